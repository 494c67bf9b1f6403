// Package cli is the operator's command line: selvage, also as `kubectl selvage`.
//
// Results go to stdout, progress and warnings to stderr. The exit code is 0 when all is fine, 1 when problems were found, and
// 2 when a command could not do its work: wrong usage, no cluster, no right.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// The exit codes of every command.
const (
	exitFine     = 0
	exitProblems = 1
	exitCannot   = 2
)

// Config is what the command line has of its surroundings.
type Config struct {
	Program string // how it was called: the first of the program's arguments
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Getenv  func(string) string
}

// Run executes one command line and gives its exit code.
func Run(ctx context.Context, c Config, args []string) int {
	a := &app{Config: c}
	root := a.root() //nolint:contextcheck // commands take the context that ExecuteContext gives them
	root.SetArgs(args)
	root.SetIn(c.Stdin)
	root.SetOut(c.Stdout)
	root.SetErr(c.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitFine
	}
	var problems *problemsError
	if errors.As(err, &problems) {
		if problems.message != "" {
			a.sayError(problems.message)
		}
		return exitProblems
	}
	if ctx.Err() != nil {
		fmt.Fprintf(c.Stderr, "%s: interrupted\n", a.name())
		return exitCannot
	}
	a.sayError(a.explain(err))
	return exitCannot
}

// sayError tells why the command ends: in one line for a program or a log, in lines that fit for a person.
func (a *app) sayError(text string) {
	text = a.name() + ": " + text
	if !isTerminal(a.Stderr) {
		fmt.Fprintln(a.Stderr, text)
		return
	}
	fmt.Fprint(a.Stderr, fold(text, plainWidth))
}

// problemsError ends a command that did its work and found something wrong: exit code 1. The message may be empty when the
// output has said it.
type problemsError struct{ message string }

func (e *problemsError) Error() string { return e.message }

// usageError is a command line that cannot be understood.
type usageError struct {
	command string
	err     error
}

func (e *usageError) Error() string {
	return fmt.Sprintf("%v; see `%s --help`", e.err, e.command)
}

// app is one run: its surroundings and the flags that every command has.
type app struct {
	Config
	kubeconfig string
	context    string
	namespace  string
	revision   string
	output     string

	host  string // of the API server, once a connection was made; for messages
	inLab bool   // it is a lab's
}

// name is how people type the program: selvage, or kubectl selvage when kubectl runs it as a plugin.
func (a *app) name() string {
	base := strings.TrimSuffix(filepath.Base(a.Program), ".exe")
	if plugin, ok := strings.CutPrefix(base, "kubectl-"); ok {
		return "kubectl " + strings.ReplaceAll(plugin, "_", "-")
	}
	return "selvage"
}

// called is what a user at the same working directory types to run the program again, for messages that say what to do next.
func (a *app) called() string {
	if a.name() == "selvage" && strings.ContainsRune(a.Program, filepath.Separator) {
		return a.Program
	}
	return a.name()
}

// display is called, or name where that would make the lines of a help too long.
func (a *app) display() string {
	const most = len("kubectl selvage")
	if called := a.called(); len(called) <= most {
		return called
	}
	return a.name()
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "selvage",
		Short: "A service mesh that does not unravel",
		Long: "selvage installs and looks after a service mesh that speaks Istio's API.\n\n" +
			"Results go to stdout, progress and warnings to stderr. Exit codes: 0 fine, 1 problems found,\n" +
			"2 could not do it (wrong usage, no cluster, no right).",
		Example: a.examples(`
			selvage up          a lab on this machine, with a sample shop
			selvage install     into the cluster of the kubeconfig's context
			selvage status      is every sidecar in step?`),
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: a.display()},
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          subcommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := root.PersistentFlags()
	f.StringVar(&a.kubeconfig, "kubeconfig", "", "path of a kubeconfig (default: $KUBECONFIG, then ~/.kube/config)")
	f.StringVar(&a.context, "context", "", "context of the kubeconfig (default: its current one)")
	f.StringVarP(&a.namespace, "namespace", "n", "", "namespace to look at")
	f.StringVar(&a.revision, "revision", "", "revision of the control plane")
	f.StringVarP(&a.output, "output", "o", "", "output format: table, json or yaml")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &usageError{cmd.CommandPath(), err} })
	root.AddCommand(a.policyCommand(), a.upCommand(), a.downCommand(), a.installCommand(), a.uninstallCommand(), a.statusCommand(),
		a.injectCommand(), a.validateCommand(), a.revisionCommand(), a.caCommand(), a.versionCommand())
	a.registerCompletions(root)
	a.layOut(root)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	return root
}

// subcommand is the check of arguments of a command that only has commands below it: what is left over is none of them.
func subcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return unknownCommand(cmd, args[0])
}

// unknownCommand says what is near to what was typed.
func unknownCommand(cmd *cobra.Command, typed string) error {
	err := fmt.Errorf("there is no command %q", typed)
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(typed); len(near) > 0 {
		err = fmt.Errorf("there is no command %q; did you mean %s?", typed, strings.Join(near, " or "))
	}
	return &usageError{cmd.CommandPath(), err}
}

// atMost is cobra's check of the number of arguments, with a message that leads to the help.
func atMost(most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= most {
			return nil
		}
		takes := "takes no arguments"
		if most > 0 {
			takes = "takes at most " + plural(most, "argument", "arguments")
		}
		return &usageError{cmd.CommandPath(), fmt.Errorf("%s %s, %d given: %s", cmd.Name(), takes, len(args), strings.Join(args, " "))}
	}
}

// color reports whether words may be coloured on w.
func (a *app) color(w io.Writer) bool {
	return isTerminal(w) && a.Getenv("NO_COLOR") == "" && a.Getenv("TERM") != "dumb"
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
