//go:build apiserver

package live_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/policy"
	"github.com/selvage-mesh/selvage/internal/policy/live"
	revisionlive "github.com/selvage-mesh/selvage/internal/revision/live"
)

// warnings collects what the API server warns of.
type warnings struct {
	mu   sync.Mutex
	said []string
}

func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, text)
}

// take gives what was said since the last time.
func (w *warnings) take() (said []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	said, w.said = w.said, nil
	return said
}

// person is a client whose warnings are read.
func (m *mesh) person(change func(*rest.Config)) (kubernetes.Interface, *warnings) {
	w := &warnings{}
	config := rest.CopyConfig(m.config)
	config.WarningHandler = w
	if change != nil {
		change(config)
	}
	return kubernetes.NewForConfigOrDie(config), w
}

// startGuards keeps the parameters of the guards as the control plane does, with the rights of its account.
func (m *mesh) startGuards(config *inject.Config) (stop func()) {
	m.Helper()
	as := m.asControlPlane()
	client, own, log := kubernetes.NewForConfigOrDie(as), dynamic.NewForConfigOrDie(as), slog.New(slog.NewTextHandler(m.Output(), nil))
	chosen, err := live.NewParameter(live.ParameterConfig{Kubernetes: client, Dynamic: own, Name: policy.MeshedName(m.rev), Log: log,
		Spec: func(ctx context.Context) (map[string]any, error) {
			list, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
			if err != nil {
				return nil, err
			}
			return policy.Chosen(m.rev, list.Items, config), nil
		}})
	if err != nil {
		m.Fatal(err)
	}
	users := revisionlive.NewUsers(client)
	shared, err := live.NewParameter(live.ParameterConfig{Kubernetes: client, Dynamic: own, Name: policy.RevisionsName, Stamp: "asOf", Log: log,
		AtEnd: map[string]any{"users": nil}, Changed: users.Changed(),
		Spec: func(ctx context.Context) (map[string]any, error) {
			facts, err := revisionlive.ControlPlanes(ctx, client)
			if err != nil {
				return nil, err
			}
			unknown := users.Add(facts)
			return policy.Users(facts, unknown == nil), nil
		}})
	if err != nil {
		m.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{chosen.Run, users.Run, shared.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				m.Error(err)
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	m.Cleanup(stop)
	return stop
}

// parameter reads the fields of one.
func (m *mesh) parameter(name string) map[string]any {
	m.Helper()
	u, err := m.dynamic.Resource(policy.ParameterResource).Get(m.Context(), name, metav1.GetOptions{})
	if err != nil {
		m.Fatal(err)
	}
	spec, _, _ := unstructured.NestedMap(u.Object, "spec")
	return spec
}

// namespaceOf makes one with labels, which goes with the test.
func (m *mesh) namespaceOf(labels map[string]string) *corev1.Namespace {
	m.Helper()
	var ns *corev1.Namespace
	m.eventually("a namespace", func() string { // a guard that was just taken away may refuse it for a second
		made, err := m.client.CoreV1().Namespaces().Create(m.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "selvage-test-", Labels: labels}}, metav1.CreateOptions{})
		if err != nil {
			return err.Error()
		}
		ns = made
		return ""
	})
	m.Cleanup(func() {
		_ = m.client.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{})
	})
	return ns
}

// as installs again with guards in a mode and waits until that is in force, as a namespace with a misspelt label shows.
func (m *mesh) as(mode policy.Mode) {
	m.Helper()
	guards, err := policy.DefaultGuards().With([]string{"all=" + string(mode)})
	if err != nil {
		m.Fatal(err)
	}
	m.options.Guards = guards
	if err := m.installer().Apply(m.Context(), m.options); err != nil {
		m.Fatal(err)
	}
	client, said := m.person(nil)
	m.eventually("guards in mode "+string(mode), func() string {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "selvage-test-dry", Labels: map[string]string{"istio-inject": "enabled"}}}
		_, err := client.CoreV1().Namespaces().Create(m.Context(), ns, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		warned := len(said.take()) > 0
		if warned == (mode == policy.Warn) && (err != nil) == (mode == policy.Deny) {
			return ""
		}
		return fmt.Sprintf("warned %v, error %v", warned, err)
	})
}

// never keeps pods with this label out, by the injector configuration of the tests.
const never = "selvage-test/never"

func injector(t *testing.T, rev string) *inject.Config {
	t.Helper()
	settings := inject.Default(rev)
	settings.Injector.NeverInjectSelector = []metav1.LabelSelector{{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: never, Operator: metav1.LabelSelectorOpExists}}}}
	config, problems := settings.Compile()
	if config == nil {
		t.Fatal(problems)
	}
	return config
}

// TestGuards has one installation for all its parts.
func TestGuards(t *testing.T) {
	m := newMesh(t, func(o *install.Options) { o.Tags = []string{"tag-of-" + o.Revision} })
	config := injector(t, m.rev)
	stop := m.startGuards(config)
	m.eventually("parameters", func() string {
		if _, has := m.parameter(policy.MeshedName(m.rev))["names"]; !has {
			return "the revision's is empty"
		}
		if _, has := m.parameter(policy.RevisionsName)["users"]; !has {
			return "the shared one is empty"
		}
		return ""
	})
	for _, mode := range []policy.Mode{policy.Audit, policy.Warn, policy.Deny, policy.Off} {
		t.Run(string(mode), func(t *testing.T) {
			part := *m
			part.T = t
			part.as(mode)
			part.labels(mode)
			part.inUse(mode)
		})
	}
	t.Run("which pods are meshed is decided as the webhook does", func(t *testing.T) {
		part := *m
		part.T = t
		part.options.Guards = policy.Guards{policy.MeshedGuard: policy.Deny, policy.InUseGuard: policy.Warn}
		if err := part.installer().Apply(t.Context(), part.options); err != nil {
			t.Fatal(err)
		}
		stop()
		stop = m.startGuards(config) // a parameter that was made again is looked for once a minute
		part.meshedAsInjected(config)
	})
	t.Run("users of a control plane that has ended are forgotten", func(t *testing.T) {
		m.eventually("the users", func() string {
			if _, has := m.parameter(policy.RevisionsName)["users"]; !has {
				return "nobody has counted"
			}
			return ""
		})
		stop()
		if users, has := m.parameter(policy.RevisionsName)["users"]; has {
			t.Errorf("they are still there: %v", users)
		}
	})
}

// found checks what a guard did about something: nothing, a warning, or a refusal, each with the text.
func (m *mesh) found(mode policy.Mode, what string, said []string, err error, text string) {
	m.Helper()
	said = slices.DeleteFunc(said, func(s string) bool { return !strings.Contains(s, text) })
	refused := err != nil && strings.Contains(err.Error(), text)
	if err != nil && !refused {
		m.Errorf("%s: %v", what, err)
	}
	if refused != (mode == policy.Deny) || (len(said) > 0) != (mode == policy.Warn) {
		m.Errorf("%s in mode %s: warnings %q, error %v; the text is %q", what, mode, said, err, text)
	}
}

// labels are written wrongly in every way.
func (m *mesh) labels(mode policy.Mode) {
	m.Helper()
	client, said := m.person(nil)
	dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	for _, c := range []struct {
		labels map[string]string
		text   string // "" for nothing to find
	}{
		{map[string]string{"istio-inject": "enabled"}, "SEL0022: label istio-inject of this namespace has no effect"},
		{map[string]string{"istio-injection": "enabled", "istio.io/rev": m.rev}, "IST0123: "},
		{map[string]string{"istio-injection": "true"}, `SEL0022: label istio-injection is "true"`},
		{map[string]string{"istio.io/rev": "nowhere"}, "SEL0022: this namespace asks for a sidecar of nowhere, and there is no revision or tag of that name"},
		{map[string]string{"istio.io/rev": m.rev}, ""},
		{map[string]string{"istio.io/rev": m.options.Tags[0]}, ""},
		{map[string]string{"istio-injection": "disabled"}, ""},
		{nil, ""},
	} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "selvage-test-dry", Labels: c.labels}}
		_, err := client.CoreV1().Namespaces().Create(m.Context(), ns, dry)
		if w := said.take(); c.text == "" && (err != nil || len(w) > 0) {
			m.Errorf("namespace with %v: warnings %q, error %v", c.labels, w, err)
		} else if c.text != "" {
			m.found(mode, fmt.Sprintf("namespace with %v", c.labels), w, err, c.text)
		}
	}
	pod := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "a", "istio-injection": "enabled"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "a"}}}}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}, Template: pod}}
	_, err := client.AppsV1().Deployments("default").Create(m.Context(), d, dry)
	m.found(mode, "a Deployment with a namespace's label", said.take(), err, "SEL0022: label istio-injection of the pod template has no effect")
}

// inUse deletes what a namespace hangs on, as a dry run.
func (m *mesh) inUse(mode policy.Mode) {
	m.Helper()
	for _, value := range []string{m.rev, m.options.Tags[0]} {
		m.namespaceOf(map[string]string{"istio.io/rev": value})
	}
	name, tag := m.mutating(), "istio-revision-tag-"+m.options.Tags[0]
	if mode != policy.Off {
		m.eventually("the users", func() string {
			users, _, _ := unstructured.NestedSlice(m.parameter(policy.RevisionsName), "users")
			counted := 0
			for _, u := range users {
				if n := u.(map[string]any)["name"]; n == m.rev || n == m.options.Tags[0] {
					counted++
				}
			}
			return map[bool]string{false: fmt.Sprint(users)}[counted == 2]
		})
	}
	client, said := m.person(nil)
	hooks := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	dry := metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}
	err := hooks.Delete(m.Context(), name, dry)
	m.found(mode, "deleting the injector", said.take(), err, "SEL0071: MutatingWebhookConfiguration "+name+" is in use: ")
	err = hooks.Delete(m.Context(), tag, dry)
	m.found(mode, "deleting a tag", said.take(), err, "Safely: selvage revision tag remove "+m.options.Tags[0])
	err = client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(m.Context(), m.validating(), dry)
	m.found(mode, "deleting the validator", said.take(), err, "selvage revision retire "+m.rev)
	err = client.CoreV1().Services(install.Namespace).Delete(m.Context(), "istiod-"+m.rev, dry)
	if !apierrors.IsNotFound(err) { // an installation by URL has none
		m.found(mode, "deleting the Service", said.take(), err, "SEL0071: Service istiod-"+m.rev)
	}

	// What nobody may be kept from.
	hook, err := hooks.Get(m.Context(), name, metav1.GetOptions{})
	if err != nil {
		m.Fatal(err)
	}
	looked := dry
	looked.Preconditions = &metav1.Preconditions{UID: &hook.UID}
	if err := hooks.Delete(m.Context(), name, looked); err != nil {
		m.Errorf("a deletion of the very object that was seen: %v", err)
	}
	controller, _ := m.person(func(c *rest.Config) {
		c.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:kube-system:namespace-controller", Groups: []string{"system:masters"}}
	})
	if err := controller.CoreV1().Services(install.Namespace).Delete(m.Context(), "istiod-"+m.rev, dry); err != nil && !apierrors.IsNotFound(err) {
		m.Errorf("the namespace controller: %v", err)
	}
	if w := said.take(); len(w) > 0 {
		m.Errorf("warnings %q", w)
	}
}

// pods are all that differ in what decides about them, with a sidecar and without.
func (m *mesh) pods() (pods []*corev1.Pod) {
	opt := "sidecar.istio.io/inject"
	for _, label := range []string{"", "true", "false", "odd"} {
		for _, rev := range []string{"", m.rev, m.options.Tags[0], "other"} {
			for _, annotation := range []string{"", "true", "false"} {
				for _, kind := range []string{"", "never", "host", "meshed", "copied"} {
					p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{}, Annotations: map[string]string{}},
						Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "a"}}}}
					if label != "" {
						p.Labels[opt] = label
					}
					if rev != "" {
						p.Labels["istio.io/rev"] = rev
					}
					if annotation != "" {
						p.Annotations[opt] = annotation
					}
					switch kind {
					case "never":
						p.Labels[never] = "yes"
					case "host":
						p.Spec.HostNetwork = true
					case "meshed":
						p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: inject.ProxyContainer, Image: "p"})
						p.Annotations["sidecar.istio.io/status"] = "{}"
					case "copied":
						p.Annotations["sidecar.istio.io/status"] = "{}"
					}
					pods = append(pods, p)
				}
			}
		}
	}
	return pods
}

// spaces makes namespaces with every combination of labels about injection, of which istio.io/rev has one of the values or is not there.
func (m *mesh) spaces(values ...string) (out []*corev1.Namespace) {
	m.Helper()
	for _, injection := range []string{"", "enabled", "disabled"} {
		for _, rev := range append([]string{""}, values...) {
			labels := map[string]string{}
			if injection != "" {
				labels["istio-injection"] = injection
			}
			if rev != "" {
				labels["istio.io/rev"] = rev
			}
			out = append(out, m.namespaceOf(labels))
		}
	}
	return out
}

// meshedAsInjected creates every pod in every namespace as a dry run, with webhooks that are deleted or fail open: refused are exactly those
// that they would have given a sidecar.
func (m *mesh) meshedAsInjected(config *inject.Config) {
	hooks := m.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	list, err := hooks.List(m.Context(), metav1.ListOptions{})
	if err != nil {
		m.Fatal(err)
	}
	admission := inject.NewAdmission(list.Items, map[string]*inject.Config{m.rev: config})
	for _, c := range list.Items {
		switch {
		case c.Name == m.mutating():
			err = hooks.Delete(m.Context(), c.Name, metav1.DeleteOptions{})
		case c.Labels["istio.io/tag"] != "" && c.Labels["istio.io/rev"] == m.rev:
			ignore, url := admissionv1.Ignore, "https://127.0.0.1:1/inject" // refused at once
			for i := range c.Webhooks {
				c.Webhooks[i].FailurePolicy, c.Webhooks[i].ClientConfig = &ignore, admissionv1.WebhookClientConfig{URL: &url}
			}
			_, err = hooks.Update(m.Context(), &c, metav1.UpdateOptions{})
		}
		if err != nil {
			m.Fatal(err)
		}
	}
	spaces := m.spaces(m.rev, m.options.Tags[0])
	dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	m.eventually("the guard", func() string {
		for _, ns := range spaces {
			if ns.Labels["istio-injection"] != "" || ns.Labels["istio.io/rev"] == "" {
				continue
			}
			pod := m.pods()[0]
			if _, err := m.client.CoreV1().Pods(ns.Name).Create(m.Context(), pod, dry); err == nil || !strings.Contains(err.Error(), "SEL0070") {
				return fmt.Sprintf("in a namespace of %s: %v; parameter %v", ns.Labels["istio.io/rev"], err, m.parameter(policy.MeshedName(m.rev)))
			}
		}
		return ""
	})
	refused, passed := 0, 0
	for _, ns := range spaces {
		for _, pod := range m.pods() {
			want := admission.Expect(ns, pod)
			_, err := m.client.CoreV1().Pods(ns.Name).Create(m.Context(), pod, dry)
			flagged := err != nil && strings.Contains(err.Error(), "SEL0070: this pod asks for a sidecar of revision "+m.rev)
			if err != nil && !flagged {
				m.Fatalf("create a pod: %v", err)
			}
			if flagged != want.Inject {
				m.Errorf("namespace %v, pod %v %v, hostNetwork %v: flagged %v, while the webhook says %s (%s)", ns.Labels, pod.Labels, pod.Annotations, pod.Spec.HostNetwork, flagged, want.Reason, want.Detail)
			}
			if flagged {
				refused++
			} else {
				passed++
			}
		}
	}
	m.Logf("%d pods were refused and %d passed", refused, passed)
	if refused < 50 || passed < 500 {
		m.Error("the test does not test")
	}
}
