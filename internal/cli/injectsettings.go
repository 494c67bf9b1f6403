package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// settingsFlags say where `inject` has its settings from.
type settingsFlags struct {
	mesh, config, values string
	offline              bool
}

func (f settingsFlags) named() bool { return f.mesh+f.config+f.values != "" }

// injectSettings are the settings that `inject` uses, and where they come from.
type injectSettings struct {
	config  *inject.Config
	source  string
	cluster *connection // nil where none was asked
}

// injectSettings compiles the settings that the flags name: files, the cluster's, or this build's own.
func (a *app) injectSettings(ctx context.Context, flags settingsFlags) (*injectSettings, error) {
	if flags.named() {
		documents, source, err := readSettings(flags)
		if err != nil {
			return nil, err
		}
		config, err := a.compileSettings(documents, a.revision)
		if err != nil {
			return nil, fmt.Errorf("use %s: %w", source, err)
		}
		return &injectSettings{config: config, source: source}, nil
	}
	why := "as --offline says"
	if !flags.offline {
		c, err := a.connect()
		var no *kubeconfigError
		switch {
		case err == nil:
			return a.liveSettings(ctx, c)
		case !errors.As(err, &no) || !no.isEmpty() || a.kubeconfig != "" || a.context != "":
			return nil, err
		}
		why = "no cluster is configured"
	}
	return a.ownSettings(why)
}

// ownSettings are those of a fresh installation.
func (a *app) ownSettings(why string) (*injectSettings, error) {
	config, err := a.compileSettings([3][]byte{}, a.revision)
	return &injectSettings{config: config, source: "those of a fresh installation of revision " + revisionName(a.revision) + " (" + why + ")"}, err
}

// compileSettings compiles the documents mesh, config and values; revision, unless it is "", stands over that of the values.
func (a *app) compileSettings(documents [3][]byte, revision string) (*inject.Config, error) {
	values, err := withRevision(documents[2], revision)
	if err != nil {
		return nil, fmt.Errorf("read values: %w", err)
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

// readSettings reads the files; what none is named for is as in a fresh installation.
func readSettings(flags settingsFlags) (documents [3][]byte, source string, err error) {
	var from []string
	for n, file := range []struct{ flag, path, key string }{
		{"--mesh-config", flags.mesh, inject.MeshKey}, {"--inject-config", flags.config, inject.InjectorKey}, {"--values", flags.values, inject.ValuesKey},
	} {
		if file.path == "" {
			continue
		}
		data, err := os.ReadFile(file.path)
		if err != nil {
			return documents, "", fmt.Errorf("read configuration: %w", err)
		}
		maps, isMap, err := configMapsIn(data)
		if err != nil {
			return documents, "", fmt.Errorf("read %s %s: %w", file.flag, file.path, err)
		}
		if isMap {
			text, err := keyOf(maps, file.key)
			if err != nil {
				return documents, "", fmt.Errorf("read %s %s: %w", file.flag, file.path, err)
			}
			data = []byte(text)
			if file.key == inject.InjectorKey && flags.values == "" { // the same ConfigMap has them
				if text, err := keyOf(maps, inject.ValuesKey); err == nil {
					documents[2] = []byte(text)
				}
			}
		}
		documents[n] = data
		from = append(from, file.flag+" "+file.path)
	}
	source = strings.Join(from, ", ")
	if len(from) < len(documents) {
		source += "; the rest is as in a fresh installation"
	}
	return documents, source, nil
}

// configMapsIn finds the ConfigMaps of a manifest. isMap is false for a document that is no manifest of them, but the text of a
// key itself.
func configMapsIn(data []byte) (list []corev1.ConfigMap, isMap bool, err error) {
	visit := func(kind string, asJSON []byte) {
		var cm corev1.ConfigMap
		if kind == "ConfigMap" && json.Unmarshal(asJSON, &cm) == nil {
			list = append(list, cm)
		}
	}
	var head metav1.TypeMeta
	if yaml.Unmarshal(data, &head) != nil || head.Kind == "" {
		// The text of a key, or something that the reader of keys explains; a manifest of several documents has a kind in the first.
		return nil, false, nil //nolint:nilerr // see above
	}
	if _, err := (inject.StreamOptions{}).Workloads(data, visit); err != nil {
		return nil, true, err
	}
	return list, true, nil
}

// keyOf is a key of the one ConfigMap that has it.
func keyOf(maps []corev1.ConfigMap, key string) (string, error) {
	var names []string
	text := ""
	for _, cm := range maps {
		if value, has := cm.Data[key]; has {
			names = append(names, cm.Name)
			text = value
		}
	}
	switch len(names) {
	case 0:
		return "", fmt.Errorf("it holds no ConfigMap with the key %q", key)
	case 1:
		return text, nil
	}
	return "", fmt.Errorf("several of its ConfigMaps have the key %q: %s; leave the one of the revision that you mean", key, strings.Join(names, ", "))
}

// liveSettings are those of the revision, or of the tag, that --revision names, in the cluster.
func (a *app) liveSettings(ctx context.Context, c *connection) (*injectSettings, error) {
	revision, tag, err := a.liveRevision(ctx, c)
	if err != nil {
		return nil, errors.New("read the settings of the cluster: " + a.explain(err) + "; --offline uses the settings of a fresh installation")
	}
	if revision == "" {
		s, err := a.ownSettings("the cluster at " + a.host + " has no injector")
		if s != nil {
			s.cluster = c
		}
		return s, err
	}
	config, err := a.revisionConfig(ctx, c, revision)
	if err != nil {
		return nil, err
	}
	s := &injectSettings{config: config, cluster: c}
	s.source = fmt.Sprintf("ConfigMaps %s and %s of %s at %s", inject.ObjectName(inject.MeshConfigMap, revision),
		inject.ObjectName(inject.InjectorConfigMap, revision), inject.DefaultNamespace, a.host)
	if tag != "" {
		s.source += ", to which tag " + tag + " leads"
	}
	return s, nil
}

// liveRevision finds the revision that --revision means, by its ConfigMap or as a tag. It is "" where the cluster has no injector.
func (a *app) liveRevision(ctx context.Context, c *connection) (revision, tag string, err error) {
	asked := revisionName(a.revision)
	list, err := c.kubernetes.CoreV1().ConfigMaps(inject.DefaultNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", "", err
	}
	var installed []string
	for _, cm := range list.Items {
		if name, found := strings.CutPrefix(cm.Name, inject.InjectorConfigMap); found && (name == "" || name[0] == '-') {
			installed = append(installed, revisionName(strings.TrimPrefix(name, "-")))
		}
	}
	if slices.Contains(installed, asked) {
		return asked, "", nil
	}
	name := inject.Registration{Revision: asked, Tag: asked}.Name()
	w, err := c.kubernetes.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, name, metav1.GetOptions{})
	if err == nil && slices.Contains(installed, w.Labels[label.IoIstioRev.Name]) {
		return w.Labels[label.IoIstioRev.Name], asked, nil
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return "", "", err
	}
	if len(installed) == 0 && a.revision == "" {
		return "", "", nil
	}
	if len(installed) == 0 {
		return "", "", fmt.Errorf("there is no revision or tag %q, nor any other", asked)
	}
	return "", "", fmt.Errorf("there is no revision or tag %q: name one with --revision (there is %s)", asked, strings.Join(installed, ", "))
}

// revisionConfig compiles a revision's ConfigMaps for the cluster's Kubernetes.
func (a *app) revisionConfig(ctx context.Context, c *connection, revision string) (*inject.Config, error) {
	maps := c.kubernetes.CoreV1().ConfigMaps(inject.DefaultNamespace)
	injector, err := maps.Get(ctx, inject.ObjectName(inject.InjectorConfigMap, revision), metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read the injector's settings: %w", err)
	}
	mesh, err := maps.Get(ctx, inject.ObjectName(inject.MeshConfigMap, revision), metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("read the mesh's settings: %w", err)
	}
	config, err := a.compileSettings([3][]byte{[]byte(mesh.Data[inject.MeshKey]), []byte(injector.Data[inject.InjectorKey]), []byte(injector.Data[inject.ValuesKey])}, "")
	if err != nil {
		return nil, fmt.Errorf("revision %s: %w", revision, err)
	}
	if info, err := c.kubernetes.Discovery().ServerVersion(); err == nil {
		var major, minor int
		if _, err := fmt.Sscanf(info.Major+"."+info.Minor, "%d.%d", &major, &minor); err == nil {
			config = config.ForKubernetes(major, minor)
		}
	}
	return config, nil
}

// liveAdmission is what the cluster does to a pod at its creation.
func (a *app) liveAdmission(ctx context.Context, c *connection) (*inject.Admission, map[string]*inject.Config, []admissionv1.MutatingWebhookConfiguration, error) {
	list, err := c.kubernetes.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, nil, err
	}
	configs := map[string]*inject.Config{}
	for _, w := range list.Items {
		revision := revisionName(w.Labels[label.IoIstioRev.Name])
		injects := slices.ContainsFunc(w.Webhooks, func(h admissionv1.MutatingWebhook) bool { return strings.HasSuffix(h.Name, inject.WebhookSuffix) })
		if _, known := configs[revision]; known || !injects {
			continue
		}
		config, err := a.revisionConfig(ctx, c, revision)
		if err != nil && !apierrors.IsNotFound(err) {
			fmt.Fprintf(a.Stderr, "warning: %v\n", err)
		}
		configs[revision] = config
	}
	return inject.NewAdmission(list.Items, configs), configs, list.Items, nil
}
