package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
)

// injectFlags name the files of `inject`.
type injectFlags struct{ file, mesh, config, values string }

func (a *app) injectCommand() *cobra.Command {
	var flags injectFlags
	cmd := &cobra.Command{
		Use:   "inject -f FILE|-",
		Short: "Add sidecars to manifests, without a cluster",
		Long: "inject reads a stream of YAML or JSON documents and writes it with sidecars, as the webhook of the same revision\n" +
			"would have made the pods. Documents without pods stay as they are, byte for byte; twice changes nothing.\n" +
			"The configuration is the built-in one, or the documents of the ConfigMaps istio (key mesh) and\n" +
			"istio-sidecar-injector (keys config and values) as files.\n\n" +
			"Nothing is written unless all documents can be. It ends with 1 when an object cannot have a sidecar as it is.",
		Example: a.examples(`
			selvage inject -f shop.yaml > meshed.yaml
			kustomize build . | selvage inject -f - | kubectl apply -f -
			selvage inject -f shop.yaml --revision asm-1234-1 --values values.yaml`),
		Args: atMost(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if flags.file == "" {
				return &usageError{cmd.CommandPath(), errors.New("-f is missing: the file to read, or - for standard input")}
			}
			if err := a.checkOutput(cmd, "yaml"); err != nil {
				return err
			}
			config, err := a.injectConfig(flags)
			if err != nil {
				return err
			}
			return a.injectStream(flags.file, config)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&flags.file, "file", "f", "", "manifests to read; - is standard input")
	f.StringVar(&flags.mesh, "mesh-config", "", "file with the mesh configuration: key mesh of ConfigMap istio")
	f.StringVar(&flags.config, "inject-config", "", "file with the injector's rules: key config of ConfigMap istio-sidecar-injector")
	f.StringVar(&flags.values, "values", "", "file with the injector's values: key values of ConfigMap istio-sidecar-injector")
	return cmd
}

// injectConfig compiles the files; a file that is not named has the built-in content.
func (a *app) injectConfig(flags injectFlags) (*inject.Config, error) {
	var documents [3][]byte
	for n, path := range []string{flags.mesh, flags.config, flags.values} {
		if path == "" {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		documents[n] = data
	}
	values, err := withRevision(documents[2], a.revision)
	if err != nil {
		return nil, fmt.Errorf("read --values %s: %w", flags.values, err)
	}
	config, problems := inject.ParseConfig(documents[0], documents[1], values)
	for _, p := range problems {
		fmt.Fprintln(a.Stderr, p)
	}
	if config == nil {
		return nil, errors.New("the injector's configuration cannot be used: mend what is said above")
	}
	return config, nil
}

// withRevision puts the revision of the command line over that of the values.
func withRevision(values []byte, revision string) ([]byte, error) {
	if revision == "" {
		return values, nil
	}
	fields := map[string]any{}
	if err := yaml.Unmarshal(values, &fields); err != nil {
		return nil, err
	}
	if fields == nil {
		fields = map[string]any{}
	}
	fields["revision"] = revision
	return json.Marshal(fields)
}

func (a *app) injectStream(path string, config *inject.Config) error {
	in := a.Stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("read manifests: %w", err)
		}
		defer file.Close()
		in = file
	}
	var out bytes.Buffer
	outcomes, err := inject.Stream(in, &out, inject.StreamOptions{Config: config, Namespace: a.namespace})
	for _, o := range outcomes {
		a.sayOutcome(o)
	}
	var refused *inject.RefusedError
	if errors.As(err, &refused) {
		return &problemsError{err.Error()}
	}
	if err != nil {
		return fmt.Errorf("inject %s: %w", path, err)
	}
	_, err = io.Copy(a.Stdout, &out)
	return err
}

// sayOutcome tells why an object has no sidecar, and what of it has no effect.
func (a *app) sayOutcome(o inject.Outcome) {
	switch {
	case o.Verdict.Surprising:
		fmt.Fprintf(a.Stderr, "warning: %s asks for a sidecar and gets none: %s\n", o.Object, o.Verdict.Detail)
	case !o.Verdict.Inject:
		fmt.Fprintf(a.Stderr, "%s gets no sidecar: %s\n", o.Object, o.Verdict.Detail)
	}
	for _, p := range o.Warnings {
		if p.Severity >= diag.Warning {
			fmt.Fprintln(a.Stderr, p)
		}
	}
}
