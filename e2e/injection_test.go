package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

const webhookSuffix = ".sidecar-injector.istio.io"

// TestWhoGetsASidecarAndWhy creates a pod for each line of testdata/injection at a real API server, with two revisions, a tag, a
// default tag and enableNamespacesByDefault, and holds four witnesses together: the pod that the API server gives back, how often
// it has called which webhook, what `selvage inject --check` said before, and the Events that pods without their sidecar get.
func TestWhoGetsASidecarAndWhy(t *testing.T) {
	l := atLevel(t, 1)
	const name = "asm-1234-1"
	r := l.startRevision(t, name, func() {
		l.setInjector(t, name, "policy: enabled\nneverInjectSelector:\n- matchLabels: {team: batch}\nalwaysInjectSelector:\n- matchLabels: {mesh: always}\n")
	})
	l.tag(t, "prod", name)
	l.watcherIsAwake(t, name)
	t.Run("two revisions", func(t *testing.T) { l.outcomes(t, "two-revisions") })

	l.withoutWebhook(t, "istio-sidecar-injector")
	t.Run("no default", func(t *testing.T) { l.outcomes(t, "no-default") })
	unlabelled, labelled := l.namespace(t, nil), l.namespace(t, map[string]string{"istio-injection": "enabled"})
	r.install(t, "--set-default")
	l.injects(t, labelled, name)
	t.Run("default tag", func(t *testing.T) { l.outcomes(t, "default-tag") })
	r.install(t, "--set-default", "--every-namespace")
	l.injects(t, unlabelled, name)
	t.Run("every namespace", func(t *testing.T) { l.outcomes(t, "every-namespace") })
}

// outcome is a line of testdata/injection.
type outcome struct {
	line                            int
	namespace, pod                  string
	revision, reason, hook, refused string
	told                            bool // by an Event

	created corev1.Pod // as it is sent
}

func (o *outcome) configuration() (configuration, entry string) {
	configuration, entry, _ = strings.Cut(o.hook, "/")
	return configuration, entry + webhookSuffix
}

func (o *outcome) name() string { return fmt.Sprintf("line %d, %s, %s", o.line, o.namespace, o.pod) }

// readOutcomes reads testdata/injection/NAME.txt.
func readOutcomes(t *testing.T, name string) (list []*outcome) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "injection", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if len(f) < 5 || len(f) > 6 {
			t.Fatalf("line %d of %s.txt has %d fields: %s", n, name, len(f), line)
		}
		o := &outcome{line: n, namespace: f[0], pod: f[1], revision: strings.Trim(f[2], "-"), hook: strings.Trim(f[4], "-")}
		o.reason, o.told = strings.CutSuffix(f[3], "!")
		if len(f) == 6 {
			o.refused = f[5]
		}
		list = append(list, o)
	}
	return list
}

// fullNames are the labels that the files write in short.
var fullNames = map[string]string{"injection": "istio-injection", "rev": "istio.io/rev", "inject": "sidecar.istio.io/inject"}

// pairs reads k=v,@k=v,+trait.
func pairs(text string) (labels, annotations map[string]string, traits []string) {
	labels, annotations = map[string]string{}, map[string]string{}
	for part := range strings.SplitSeq(strings.Trim(text, "-"), ",") {
		into := labels
		if trait, is := strings.CutPrefix(part, "+"); is {
			traits = append(traits, trait)
			continue
		}
		if rest, is := strings.CutPrefix(part, "@"); is {
			part, into = rest, annotations
		}
		if key, value, found := strings.Cut(part, "="); found {
			if full := fullNames[key]; full != "" {
				key = full
			}
			into[key] = value
		}
	}
	return labels, annotations, traits
}

// podOf is the pod of a line. It is one that PodSecurity's strictest level admits, as the mesh's own namespace wants.
func podOf(o *outcome, namespace string) corev1.Pod {
	labels, annotations, traits := pairs(o.pod)
	no, yes, user := false, true, int64(65532)
	pod := corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pod-%d", o.line), Namespace: namespace, Labels: labels, Annotations: annotations},
		Spec: corev1.PodSpec{
			SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &user, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers: []corev1.Container{{Name: "app", Image: "docker.io/selvage/sample:dev", SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}}},
		},
	}
	status := func() {
		annotations["sidecar.istio.io/status"] = `{"containers":["istio-proxy"],"revision":"elsewhere"}`
	}
	for _, trait := range traits {
		switch trait {
		case "hostNetwork":
			pod.Spec.HostNetwork = true
		case "windows":
			pod.Spec.OS = &corev1.PodOS{Name: corev1.Windows}
			pod.Spec.SecurityContext, pod.Spec.Containers[0].SecurityContext = nil, nil
		case "mirror":
			annotations[corev1.MirrorPodAnnotationKey] = "x"
			pod.Spec.NodeName, pod.Spec.AutomountServiceAccountToken = "node", &no
		case "status": // copied from a pod that runs
			status()
		case "sidecar":
			status()
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "istio-proxy", Image: "example.com/proxy"})
		case "gateway":
			annotations["inject.istio.io/templates"] = "gateway"
		default:
			panic("no such trait: " + trait)
		}
	}
	return pod
}

// outcomes goes through a file.
func (l *lab) outcomes(t *testing.T, file string) {
	list := readOutcomes(t, file)
	l.placePods(t, list, file)
	predictions := l.check(t, list)
	options := metav1.ListOptions{FieldSelector: "reason=SidecarNotInjected"}
	old, err := l.Client.CoreV1().Events("").List(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	options.ResourceVersion = old.ResourceVersion
	events, err := l.Client.CoreV1().Events("").Watch(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()

	before := l.webhookCalls(t)
	for i, o := range list {
		t.Run(o.name(), func(t *testing.T) {
			o.predicted(t, predictions[i])
			l.create(t, o)
		})
	}
	after, want := l.webhookCalls(t), map[string]int{}
	for _, o := range list {
		if o.hook != "" {
			_, entry := o.configuration()
			want[entry]++
		}
	}
	for entry, n := range before {
		if after[entry] -= n; after[entry] == 0 {
			delete(after, entry)
		}
	}
	// The control planes try all the time whether pods of their revision get sidecars.
	const probed = "rev.object" + webhookSuffix
	if after[probed] > want[probed] {
		after[probed] = want[probed]
	}
	if !maps.Equal(after, want) {
		t.Errorf("the API server has called %v\nwant %v", after, want)
	}
	l.told(t, list, events.ResultChan())
	l.checkLive(t, list)
}

// placePods makes the namespaces, one for each set of labels, and the pods' objects.
func (l *lab) placePods(t *testing.T, list []*outcome, prefix string) {
	t.Helper()
	places := map[string]string{}
	for _, o := range list {
		name, exists := strings.CutPrefix(o.namespace, "@")
		if !exists {
			if places[o.namespace] == "" {
				labels, _, _ := pairs(o.namespace)
				places[o.namespace] = l.namespace(t, labels)
			}
			name = places[o.namespace]
		}
		o.created = podOf(o, name)
		o.created.Name = fmt.Sprintf("%s-line-%d", prefix, o.line)
		if exists {
			t.Cleanup(func() {
				_ = l.Client.CoreV1().Pods(name).Delete(context.Background(), o.created.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
			})
		}
	}
}

// prediction is what `selvage inject --check -o json` says of an object.
type prediction struct {
	Namespace, Name, Reason, Detail, Webhook, Revision, Next string
	Sidecar, Problem                                         bool
	Refused                                                  []string
}

// check asks about the pods before there are any.
func (l *lab) check(t *testing.T, list []*outcome) []prediction {
	t.Helper()
	manifest := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "List"}}
	for _, o := range list {
		manifest.Items = append(manifest.Items, o.created)
	}
	data, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "pods.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	found := l.checked(t, "-f", path)
	if len(found) != len(list) {
		t.Fatalf("selvage inject --check tells of %d objects of %d", len(found), len(list))
	}
	return found
}

// checked runs `selvage inject --check`; of the files here some pods always ask in vain.
func (l *lab) checked(t *testing.T, args ...string) []prediction {
	t.Helper()
	stdout, stderr, code := l.selvage(t, append([]string{"inject", "--check", "-o", "json"}, args...)...)
	if code != 1 {
		t.Errorf("selvage inject --check %s: exit %d, want 1\n%s", strings.Join(args, " "), code, stderr)
	}
	var answer struct{ Objects []prediction }
	if err := json.Unmarshal([]byte(stdout), &answer); err != nil {
		t.Fatalf("read what selvage inject --check says: %v\n%s%s", err, stdout, stderr)
	}
	return answer.Objects
}

// predicted compares what --check says with the line.
func (o *outcome) predicted(t *testing.T, p prediction) {
	t.Helper()
	want := prediction{Namespace: o.created.Namespace, Name: o.created.Name, Reason: o.reason, Problem: o.told,
		Sidecar: o.revision != "" || o.reason == "already_injected"}
	if o.refused != "" {
		want.Sidecar, want.Problem, want.Reason = false, true, "refused"
		if !strings.Contains(strings.Join(p.Refused, " "), o.refused) {
			t.Errorf("--check does not say that it is refused for %s: %q", o.refused, p.Refused)
		}
	}
	if o.hook != "" {
		configuration, entry := o.configuration()
		want.Webhook = configuration + "/" + entry
	}
	got := prediction{Namespace: p.Namespace, Name: p.Name, Reason: p.Reason, Problem: p.Problem, Sidecar: p.Sidecar, Webhook: p.Webhook}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("--check says %+v\nwant %+v (%s)", got, want, p.Detail)
	}
	if o.revision != "" && p.Revision != o.revision {
		t.Errorf("--check says that revision %q decides, want %q", p.Revision, o.revision)
	}
	if p.Detail == "" || p.Problem && p.Next == "" {
		t.Errorf("--check does not say why, or what to do: %+v", p)
	}
}

// create makes the pod, as a dry run unless it shall be told of, and reads what the API server made of it.
func (l *lab) create(t *testing.T, o *outcome) {
	t.Helper()
	options := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	if o.told {
		options.DryRun = nil
	}
	pod, err := l.Client.CoreV1().Pods(o.created.Namespace).Create(t.Context(), &o.created, options)
	if o.refused != "" {
		if err == nil || !strings.Contains(err.Error(), o.refused) {
			t.Errorf("the API server says %v, want that it is refused for %s", err, o.refused)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	want := containers(&o.created)
	if o.revision != "" {
		want = []string{"istio-init", "istio-proxy", "app"}
	}
	if got := containers(pod); !slices.Equal(got, want) {
		t.Errorf("containers are %v, want %v", got, want)
	}
	if got := pod.Annotations["istio.io/rev"]; o.revision != "" && got != o.revision {
		t.Errorf("revision %q gave it its sidecar, want %q", got, o.revision)
	}
}

// told waits for an Event on each pod that asks in vain, and takes none on others.
func (l *lab) told(t *testing.T, list []*outcome, events <-chan watch.Event) {
	t.Helper()
	waiting := map[string]*outcome{}
	ours := map[string]bool{}
	for _, o := range list {
		key := o.created.Namespace + "/" + o.created.Name
		ours[key] = true
		if o.told && o.refused == "" {
			waiting[key] = o
		}
	}
	deadline := time.After(3 * time.Minute)
	for len(waiting) > 0 {
		select {
		case e := <-events:
			event, ok := e.Object.(*corev1.Event)
			if !ok || event.InvolvedObject.Kind != "Pod" {
				continue
			}
			key := event.InvolvedObject.Namespace + "/" + event.InvolvedObject.Name
			o := waiting[key]
			switch {
			case o == nil && ours[key]:
				t.Errorf("an Event on %s, or a second one: %s", key, event.Message)
			case o != nil && !strings.Contains(event.Message, "("+o.reason+")"):
				t.Errorf("%s: the Event says %q, want the reason %s", o.name(), event.Message, o.reason)
			}
			delete(waiting, key)
		case <-deadline:
			for _, o := range waiting {
				t.Errorf("%s: no Event within three minutes", o.name())
			}
			return
		}
	}
}

// checkLive asks about the pods that run now.
func (l *lab) checkLive(t *testing.T, list []*outcome) {
	t.Helper()
	said := map[string]prediction{}
	for _, p := range l.checked(t) {
		said[p.Namespace+"/"+p.Name] = p
	}
	for _, o := range list {
		if !o.told || o.refused != "" || slices.Contains([]string{"kube-system", "kube-public"}, o.created.Namespace) {
			continue // what nobody names is not asked in Kubernetes' own namespaces
		}
		if p := said[o.created.Namespace+"/"+o.created.Name]; p.Reason != o.reason || !p.Problem {
			t.Errorf("%s: of the live pod --check says %+v, want %s", o.name(), p, o.reason)
		}
	}
}

var webhookRequests = regexp.MustCompile(`^apiserver_admission_webhook_request_total\{.*\bname="([^"]+)".*\} ([0-9.e+]+)$`)

// webhookCalls counts the API server's calls of the injecting webhooks, by entry.
func (l *lab) webhookCalls(t *testing.T) map[string]int {
	t.Helper()
	data, err := l.Client.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]int{}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		m := webhookRequests.FindStringSubmatch(lines.Text())
		if m == nil || !strings.HasSuffix(m[1], webhookSuffix) {
			continue
		}
		n, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Fatal(err)
		}
		calls[m[1]] += int(n)
	}
	return calls
}

// setInjector writes the rules of a revision's injector.
func (l *lab) setInjector(t *testing.T, revision, config string) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"data": map[string]string{"config": config}})
	if err != nil {
		t.Fatal(err)
	}
	l.kubectl(t, "-n", "istio-system", "patch", "configmap", "istio-sidecar-injector-"+revision, "--type=merge", "-p", string(patch))
}

// tag gives a revision another name.
func (l *lab) tag(t *testing.T, tag, revision string) {
	t.Helper()
	l.mustSelvage(t, "revision", "tag", "set", tag, "--revision", revision)
	t.Cleanup(func() { _, _, _ = l.selvage(t, "revision", "tag", "remove", tag, "--force") })
	l.injects(t, l.namespace(t, map[string]string{"istio.io/rev": tag}), revision)
}

// withoutWebhook removes a webhook configuration until the test ends, and waits until the API server has noticed.
func (l *lab) withoutWebhook(t *testing.T, name string) {
	t.Helper()
	webhooks := l.Client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	c, err := webhooks.Get(t.Context(), name, metav1.GetOptions{})
	if err == nil {
		err = webhooks.Delete(t.Context(), name, metav1.DeleteOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	ns := l.namespace(t, map[string]string{"istio-injection": "enabled"})
	t.Cleanup(func() {
		again := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: c.Name, Labels: c.Labels, Annotations: c.Annotations}, Webhooks: c.Webhooks}
		if _, err := webhooks.Create(context.Background(), again, metav1.CreateOptions{}); err != nil {
			t.Errorf("the lab's webhook is gone: %v", err)
		}
	})
	l.injects(t, ns, "")
}

// injects waits until a pod in the namespace gets its sidecar from the revision, or none where that is "". API servers hear of
// webhook configurations a little later than who writes them.
func (l *lab) injects(t *testing.T, namespace, revision string) {
	t.Helper()
	o := &outcome{pod: "-"}
	eventually(t, fmt.Sprintf("sidecars of revision %q in namespace %s", revision, namespace), func(ctx context.Context) string {
		pod := podOf(o, namespace)
		stored, err := l.Client.CoreV1().Pods(namespace).Create(ctx, &pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			return err.Error()
		}
		if got := stored.Annotations["istio.io/rev"]; got != revision {
			return fmt.Sprintf("they are of %q", got)
		}
		return ""
	})
}

// watcherIsAwake waits until the watcher of pods of both revisions tells of a pod that comes: what was there before it would get
// an Event for its whole namespace only.
func (l *lab) watcherIsAwake(t *testing.T, revisions ...string) {
	t.Helper()
	for _, revision := range append(revisions, "default") {
		ns := l.namespace(t, map[string]string{"istio.io/rev": revision})
		events := l.Client.CoreV1().Events(ns)
		n := 0
		eventually(t, "an Event of revision "+revision, func(ctx context.Context) string {
			n++
			if n%30 == 1 { // every three seconds another pod
				pod := podOf(&outcome{line: n, pod: "+hostNetwork"}, ns)
				if _, err := l.Client.CoreV1().Pods(ns).Create(ctx, &pod, metav1.CreateOptions{}); err != nil {
					return err.Error()
				}
			}
			list, err := events.List(ctx, metav1.ListOptions{FieldSelector: "reason=SidecarNotInjected,involvedObject.kind=Pod"})
			if err != nil {
				return err.Error()
			}
			if len(list.Items) == 0 {
				return "none"
			}
			return ""
		})
	}
}
