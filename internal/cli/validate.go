package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// validateFormats are the forms of the verdict.
var validateFormats = []string{"table", "json", "yaml", "sarif", "github"}

func (a *app) validateCommand() *cobra.Command {
	var files []string
	recursive := false
	cmd := &cobra.Command{
		Use:   "validate -f FILE|-",
		Short: "Say what is wrong with objects of Istio's API in files",
		Long: "validate judges objects of Istio's API as the validating webhook does, without a cluster: each problem with its code,\n" +
			"its place in the file and what to do. Fields that do not exist, which an API server takes out before a webhook is\n" +
			"asked, are errors here. Objects of other kinds are passed over.\n\n" +
			"It looks at each object alone: a host that no service has is not noticed.\n\n" +
			"It ends with 1 when an object would be refused, and with 0 when there is nothing, or only warnings.",
		Example: a.examples(`
			selvage validate -f shop.yaml
			kustomize build . | selvage validate -f -
			selvage validate -f manifests/ -R -o github     in a workflow of GitHub's
			selvage validate -f manifests/ -R -o sarif      for tools that read SARIF`),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 0:
				return &usageError{cmd.CommandPath(), fmt.Errorf("validate takes no arguments, 1 given: %s; name a file with -f", args[0])}
			case len(files) == 0:
				return &usageError{cmd.CommandPath(), fmt.Errorf("-f is missing: the file or folder to read, or - for standard input")}
			}
			if err := a.checkOutput(cmd, validateFormats...); err != nil {
				return err
			}
			return a.runValidate(files, recursive)
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&files, "file", "f", nil, "file or folder with manifests; - is standard input; may be repeated")
	f.BoolVarP(&recursive, "recursive", "R", false, "read the folders in a folder too")
	_ = cmd.RegisterFlagCompletionFunc("output", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return validateFormats, cobra.ShellCompDirectiveNoFileComp
	}) // the flag exists
	return cmd
}

func (a *app) runValidate(paths []string, recursive bool) error {
	list, err := a.manifests(paths, recursive)
	if err != nil {
		return err
	}
	v := judgement{Problems: []finding{}}
	for _, m := range list {
		v.judge(m.name, m.data, a.namespace)
	}
	if err := a.writeVerdict(v); err != nil {
		return err
	}
	errs := 0
	for _, p := range v.Problems {
		if p.severity == diag.Error {
			errs++
		}
	}
	fmt.Fprintf(a.Stderr, "%s of Istio's API in %s: %s, %s", plural(v.Objects, "object", "objects"), plural(len(list), "file", "files"),
		plural(errs, "error", "errors"), plural(len(v.Problems)-errs, "warning", "warnings"))
	if v.Others > 0 {
		fmt.Fprintf(a.Stderr, "; %s of other kinds passed over", plural(v.Others, "object", "objects"))
	}
	fmt.Fprintln(a.Stderr)
	if errs > 0 {
		return &problemsError{}
	}
	return nil
}

// writeVerdict writes it in the form of -o.
func (a *app) writeVerdict(v judgement) error {
	slices.SortStableFunc(v.Problems, func(x, y finding) int {
		if x.File != y.File {
			return 0 // files are in the order in which they were named
		}
		return x.Line - y.Line
	})
	switch a.output {
	case "json", "yaml":
		return a.print(v)
	case "sarif":
		return writeSARIF(a.Stdout, v.Problems)
	case "github":
		return writeAnnotations(a.Stdout, v.Problems)
	}
	for _, p := range v.Problems {
		what := strings.Join(strings.Fields(p.Severity+" "+p.Code+" "+p.object()+" "+p.Field), " ")
		fmt.Fprintf(a.Stdout, "%s: %s\n", printable(p.place()), printable(what))
		fmt.Fprint(a.Stdout, wrap(p.Detail, "  ", plainWidth))
		if p.Hint != "" {
			fmt.Fprint(a.Stdout, wrap("hint: "+p.Hint, "  ", plainWidth))
		}
	}
	return nil
}
