package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
)

// injectFlags are those of `inject`.
type injectFlags struct {
	files     []string
	recursive bool
	settings  settingsFlags
	check     bool
}

func (a *app) injectCommand() *cobra.Command {
	var flags injectFlags
	cmd := &cobra.Command{
		Use:   "inject -f FILE|DIR|- | --check [OBJECT...]",
		Short: "Add sidecars to manifests, or say which pods get one and why",
		Long: "inject reads a stream of YAML or JSON documents and writes it with sidecars, as the webhook would have made the pods.\n" +
			"What has no pods stays as it is, byte for byte; comments, order and anchors stay; twice changes nothing. If any\n" +
			"document cannot be injected nothing is written, and all that is wrong is told.\n\n" +
			"The settings are those of the cluster that the kubeconfig leads to (ConfigMaps istio and istio-sidecar-injector, of\n" +
			"the revision or tag of --revision); where --mesh-config, --inject-config or --values name files, those and nothing\n" +
			"of the cluster; with --offline, or where no cluster is configured, those of a fresh installation. Which, is told.\n\n" +
			"With --check it changes nothing: it says which webhook the API server calls for the pods of an object, what that\n" +
			"decides, which label or annotation made it so, and which running pods have no sidecar and should. OBJECT is\n" +
			"KIND/NAME, POD or NAMESPACE; without one all workloads outside Kubernetes' own namespaces. With -f it checks files.\n\n" +
			"It ends with 1 when an object cannot have a sidecar as it is or, with --check, asks for one and does not get it.",
		Example: a.examples(`
			selvage inject -f shop.yaml > meshed.yaml
			kustomize build . | selvage inject -f - | kubectl apply -f -
			selvage inject -f shop.yaml -o diff
			selvage inject -f shop/ --offline --revision asm-1234-1
			selvage inject --check
			selvage inject --check deployment/web -n shop
			selvage inject --check -f shop.yaml`),
		ValidArgsFunction: a.completeChecked,
		RunE: func(cmd *cobra.Command, args []string) error {
			usage := func(format string, args ...any) error {
				return &usageError{cmd.CommandPath(), fmt.Errorf(format, args...)}
			}
			switch {
			case flags.check:
				if err := a.checkOutput(cmd, "table", "json", "yaml"); err != nil {
					return err
				}
				if len(args) > 0 && len(flags.files) > 0 {
					return usage("--check takes objects or -f, not both")
				}
				return a.runCheck(cmd.Context(), flags, args)
			case len(args) > 0:
				return usage("inject takes no arguments, 1 given: %s; name a file with -f, or an object with --check", args[0])
			case len(flags.files) == 0:
				return usage("-f is missing: the file or folder to read, or - for standard input; --check looks at a cluster")
			}
			if err := a.checkOutput(cmd, "yaml", "json", "diff"); err != nil {
				return err
			}
			return a.runInject(cmd.Context(), flags)
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&flags.files, "file", "f", nil, "file or folder with manifests; - is standard input; may be repeated")
	f.BoolVarP(&flags.recursive, "recursive", "R", false, "read the folders in a folder too")
	f.BoolVar(&flags.check, "check", false, "change nothing: say what would get a sidecar, and why")
	a.settingsFlags(cmd, &flags.settings)
	_ = cmd.RegisterFlagCompletionFunc("output", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return []string{"yaml", "json", "diff", "table"}, cobra.ShellCompDirectiveNoFileComp
	}) // the flag exists
	return cmd
}

// manifest is one file of -f and what became of it.
type manifest struct {
	name string
	data []byte
	docs []inject.Document
}

// manifests reads what -f names. A folder stands for its files of manifests, in the order of their names.
func (a *app) manifests(paths []string, recursive bool) (list []manifest, err error) {
	for _, path := range paths {
		if path == "-" {
			data, err := inject.ReadStream(a.Stdin)
			if err != nil {
				return nil, fmt.Errorf("stdin: %w", err)
			}
			list = append(list, manifest{name: "stdin", data: data})
			continue
		}
		names := []string{path}
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			if names, err = manifestsIn(path, recursive); err != nil {
				return nil, err
			}
		}
		for _, name := range names {
			data, err := readManifest(name)
			if err != nil {
				return nil, err
			}
			list = append(list, manifest{name: name, data: data})
		}
	}
	return list, nil
}

func manifestsIn(dir string, recursive bool) (names []string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != dir && !recursive:
			return filepath.SkipDir
		case !d.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)):
			names = append(names, path)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("read manifests: folder %s has no .yaml, .yml or .json file; -R reads the folders in it too", dir)
	}
	return names, nil
}

func readManifest(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	defer file.Close()
	data, err := inject.ReadStream(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, nil
}

func (a *app) runInject(ctx context.Context, flags injectFlags) error {
	list, err := a.manifests(flags.files, flags.recursive)
	if err != nil {
		return err
	}
	s, err := a.injectSettings(ctx, flags.settings)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Stderr, "settings: %s\n", s.source)
	options := inject.StreamOptions{Config: s.config, Namespace: a.manifestNamespace()}
	failed, refused, total := 0, 0, 0
	for i := range list {
		list[i].docs = options.Documents(list[i].data)
		total += list[i].docs[len(list[i].docs)-1].Number
		for _, d := range list[i].docs {
			a.sayDocument(list[i].name, d)
			var no *inject.RefusedError
			if errors.As(d.Err, &no) {
				refused++
			} else if d.Err != nil {
				failed++
			}
		}
	}
	if n := failed + refused; n > 0 {
		message := fmt.Sprintf("nothing is written: %d of %s cannot be injected, as told above", n, plural(total, "document", "documents"))
		if failed > 0 {
			return errors.New(message)
		}
		return &problemsError{message}
	}
	a.saySummary(list)
	if a.output == "diff" {
		return a.writeDiff(list)
	}
	return a.writeManifests(list)
}

// manifestNamespace is that of objects that name none.
func (a *app) manifestNamespace() string {
	if a.namespace != "" {
		return a.namespace
	}
	if namespace, _, err := a.clientConfig().Namespace(); err == nil {
		return namespace
	}
	return ""
}

// sayDocument tells what is wrong with a document, why an object has no sidecar, and what of it has no effect.
func (a *app) sayDocument(name string, d inject.Document) {
	var e *inject.DocumentError
	if errors.As(d.Err, &e) {
		fmt.Fprintf(a.Stderr, "error: %s:%d: document %d: %s\n", name, e.Line, e.Document, printableLines(e.Err.Error()))
	}
	for _, note := range d.Notes {
		fmt.Fprintf(a.Stderr, "warning: %s:%d: document %d: %s\n", name, d.Line, d.Number, printable(note))
	}
	for _, o := range d.Outcomes {
		at := fmt.Sprintf("%s:%d", name, o.Line)
		switch {
		case o.Verdict.Surprising:
			fmt.Fprintf(a.Stderr, "warning: %s: %s asks for a sidecar and gets none: %s\n", at, o.Object, printable(o.Verdict.Detail))
		case !o.Verdict.Inject && o.Verdict.Reason != inject.AlreadyInjected:
			fmt.Fprintf(a.Stderr, "%s: %s gets no sidecar: %s\n", at, o.Object, printable(o.Verdict.Detail))
		}
		if o.Verdict.Warning != "" {
			fmt.Fprintf(a.Stderr, "warning: %s: %s: %s\n", at, o.Object, printable(o.Verdict.Warning))
		}
		for _, p := range o.Warnings {
			if p.Severity >= diag.Warning {
				fmt.Fprintf(a.Stderr, "warning: %s: %s\n", at, printable(inject.Describe(p)))
			}
		}
	}
}

// printableLines is printable for a text of several lines.
func printableLines(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return strings.Join(lines, "\n")
}

func (a *app) saySummary(list []manifest) {
	var get, have, none int
	for _, m := range list {
		for _, d := range m.docs {
			for _, o := range d.Outcomes {
				switch {
				case o.Verdict.Inject:
					get++
				case o.Verdict.Reason == inject.AlreadyInjected:
					have++
				default:
					none++
				}
			}
		}
	}
	if get+have+none == 0 {
		fmt.Fprintln(a.Stderr, "no object here has pods")
		return
	}
	fmt.Fprintf(a.Stderr, "objects with pods: %d get a sidecar, %d have one already, %d get none\n", get, have, none)
}

// writeManifests writes all documents with their sidecars as one stream.
func (a *app) writeManifests(list []manifest) error {
	var out bytes.Buffer
	for _, m := range list {
		for i, d := range m.docs {
			text, err := d.After, error(nil)
			switch a.output {
			case "json":
				text, err = d.JSON()
			case "yaml":
				text, err = d.YAML()
			}
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			if a.output != "json" {
				separate(&out, d, i == 0, a.output == "yaml")
			}
			out.Write(text)
		}
	}
	_, err := io.Copy(a.Stdout, &out)
	return err
}

// separate writes what stands between the stream so far and a document.
func separate(out *bytes.Buffer, d inject.Document, first, always bool) {
	if n := out.Len(); n > 0 && (first || always) && out.Bytes()[n-1] != '\n' {
		out.WriteByte('\n') // the file before ended without one
	}
	switch {
	case len(d.Head) > 0:
		out.Write(d.Head)
	case out.Len() > 0 && (first || always):
		out.WriteString("---\n")
	}
}
