package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// kept are rights that this test does not see used, and why they are given all the same. A right that is used, or not given, may not
// stand here.
var kept = map[string]string{
	"get namespaces": "an Event about the probe's namespace, when its dry runs are answered by nobody that is known",
	"get configmaps istio-sidecar-injector-" + pageRevision + " in istio-system": "an Event about the injector's configuration, when the probe finds that its template fails",
	"delete configmaps selvage-removed-webhooks in istio-system":                 "the last record is taken back, when a webhook that was to be removed has changed meanwhile",
}

// TestTheControlPlaneHasTheRightsThatItUses runs it with the rights that `selvage install` gives it and no others, lets it do all that
// it does, and then reads in the API server's audit log what it asked for: nothing was refused to it, and no right is left over.
func TestTheControlPlaneHasTheRightsThatItUses(t *testing.T) {
	t.Setenv("SELVAGE_STALE_GRACE", "1s")
	l := bare(t)
	p := l.startPlane(t, pageRevision)
	p.ready(t)
	h := newHooks(t, l)
	h.settle(injector)
	h.settle(validator)
	ns := l.namespace(t, map[string]string{"istio.io/rev": pageRevision})
	l.injects(t, ns, pageRevision)

	h.update(injector, "script", func(u *unstructured.Unstructured) { each(u, setBundle(nil)) }) // held, or repaired
	h.settle(injector)
	for range 2 { // the same Event again is counted, by a patch
		h.repaired(validator, func() {
			h.update(validator, "script", func(u *unstructured.Unstructured) { each(u, setPolicy("Ignore")) })
		})
		h.settle(validator)
	}
	if _, stderr, code := l.selvage(t, "status", "--revision", pageRevision, "--address", p.http); code == 2 {
		t.Fatalf("selvage status: exit %d\n%s", code, stderr)
	}
	l.mustSelvage(t, "revision", "tag", "set", "prod", "--revision", pageRevision)
	h.settle("istio-revision-tag-prod")
	l.withoutSidecars(t, ns)
	l.leftBehind(t)
	// Another root, twice: the second begins where the first has left its objects.
	l.mustSelvage(t, "ca", "rotate", "--timeout", "5m")
	if err := l.Client.CoreV1().ConfigMaps(ns).Delete(t.Context(), "istio-ca-root-cert", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	l.hasRoot(t, ns)
	p.kill() // whoever comes next takes the leases over
	p.start(t)
	p.ready(t)
	l.leads(t, p)

	asked := l.asked(t, "system:serviceaccount:istio-system:"+p.account())
	if len(asked) == 0 {
		t.Fatal("the audit log has nothing of the control plane")
	}
	for _, e := range asked {
		if why := e.refused(); why != "" {
			t.Errorf("refused to the control plane: %s", why)
		}
	}
	given := l.given(t, p)
	unused := slices.DeleteFunc(slices.Sorted(maps.Keys(given)), func(right string) bool {
		return slices.ContainsFunc(asked, func(e audited) bool { return e.uses(given[right]) })
	})
	for _, right := range unused {
		if kept[right] == "" {
			t.Errorf("a right that is never used: %s", right)
		}
	}
	for right := range kept {
		if !slices.Contains(unused, right) {
			t.Errorf("the list of rights that are kept unused names one that is used, or not given: %s", right)
		}
	}
	t.Logf("%d requests, none refused; %d rights, of which %d are kept unused", len(asked), len(given), len(kept))
}

// withoutSidecars makes workloads whose pods can have no sidecar, and waits until their owners are told.
func (l *lab) withoutSidecars(t *testing.T, namespace string) {
	t.Helper()
	l.watcherTells(t, pageRevision)
	pod := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "w"}},
		Spec: corev1.PodSpec{HostNetwork: true, RestartPolicy: corev1.RestartPolicyAlways, Containers: []corev1.Container{{Name: "app", Image: "example.com/app"}}}}
	meta := metav1.ObjectMeta{Name: "w"}
	d := &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: pod.Labels}, Template: pod}}
	if _, err := l.Client.AppsV1().Deployments(namespace).Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	job := &batchv1.Job{ObjectMeta: meta, Spec: batchv1.JobSpec{Template: *pod.DeepCopy()}}
	job.Spec.Template.Labels, job.Spec.Template.Spec.RestartPolicy = nil, corev1.RestartPolicyNever
	if _, err := l.Client.BatchV1().Jobs(namespace).Create(t.Context(), job, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"Deployment", "Job"} {
		eventually(t, "the "+kind+" is told", func(ctx context.Context) string {
			list, err := l.Client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=SidecarNotInjected,involvedObject.name=w,involvedObject.kind=" + kind})
			if err != nil || len(list.Items) == 0 {
				return fmt.Sprintf("%v, %d Events", err, len(list.Items))
			}
			return ""
		})
	}
}

// leftBehind makes webhook configurations of a revision that is gone, as an installation of Selvage's leaves them when its namespace is
// deleted, and waits until the control plane has removed them.
func (l *lab) leftBehind(t *testing.T) {
	t.Helper()
	for kind, entry := range map[string]string{"MutatingWebhookConfiguration": "rev.object.sidecar-injector.istio.io", "ValidatingWebhookConfiguration": "rev.validation.istio.io"} {
		l.kubectlIn(t, fmt.Sprintf(`{apiVersion: admissionregistration.k8s.io/v1, kind: %s, metadata: {name: left-behind, labels: {selvage/owner: selvage, istio.io/rev: asm-0}},
  webhooks: [{name: %s, sideEffects: None, failurePolicy: Ignore, admissionReviewVersions: [v1], clientConfig: {service: {namespace: istio-system, name: istiod-asm-0}}}]}`, kind, entry),
			"apply", "-f", "-")
		eventually(t, kind+" left-behind is removed", func(context.Context) string {
			return l.kubectl(t, "get", kind, "left-behind", "--ignore-not-found", "-o", "name")
		})
	}
}

// watcherTells waits until the control plane tells of pods as they come: what was there before gets an Event for its namespace only.
func (l *lab) watcherTells(t *testing.T, revision string) {
	t.Helper()
	ns, n := l.namespace(t, map[string]string{"istio.io/rev": revision}), 0
	eventually(t, "an Event on a pod", func(ctx context.Context) string {
		if n++; n%30 == 1 { // every three seconds another pod
			pod := podOf(&outcome{line: n, pod: "+hostNetwork"}, ns)
			if _, err := l.Client.CoreV1().Pods(ns).Create(ctx, &pod, metav1.CreateOptions{}); err != nil {
				return err.Error()
			}
		}
		list, err := l.Client.CoreV1().Events(ns).List(ctx, metav1.ListOptions{FieldSelector: "reason=SidecarNotInjected,involvedObject.kind=Pod"})
		if err != nil || len(list.Items) == 0 {
			return fmt.Sprintf("%v, no Event", err)
		}
		return ""
	})
}

// hasRoot waits until the namespace has the mesh's root.
func (l *lab) hasRoot(t *testing.T, namespace string) {
	t.Helper()
	eventually(t, "the root in namespace "+namespace, func(ctx context.Context) string {
		cm, err := l.Client.CoreV1().ConfigMaps(namespace).Get(ctx, "istio-ca-root-cert", metav1.GetOptions{})
		if err != nil || cm.Data["root-cert.pem"] == "" {
			return fmt.Sprint("it has none: ", err)
		}
		return ""
	})
}

// leads waits until the control plane that was just started has renewed both leases.
func (l *lab) leads(t *testing.T, p *plane) {
	t.Helper()
	since := time.Now()
	for _, name := range []string{"selvage-webhooks-" + p.revision, "selvage-roots"} {
		eventually(t, "lease "+name, func(ctx context.Context) string {
			lease, err := l.Client.CoordinationV1().Leases("istio-system").Get(ctx, name, metav1.GetOptions{})
			if err != nil || lease.Spec.RenewTime == nil || !lease.Spec.RenewTime.After(since) {
				return fmt.Sprint("it was not renewed: ", err)
			}
			return ""
		})
	}
}

// audited is one request in the API server's audit log.
type audited struct {
	Verb      string                    `json:"verb"`
	Stage     string                    `json:"stage"`
	URI       string                    `json:"requestURI"`
	User      struct{ Username string } `json:"user"`
	Notes     map[string]string         `json:"annotations"`
	ObjectRef struct {
		Resource, Namespace, Name, APIGroup, Subresource string
	} `json:"objectRef"`
	ResponseStatus struct {
		Code            int
		Message, Reason string
	} `json:"responseStatus"`
}

// refused says why the request was refused for want of a right, or by a policy that holds the control plane; "" when it was not.
func (e audited) refused() string {
	forbidden := e.Notes["authorization.k8s.io/decision"] == "forbid"
	if !forbidden && !strings.Contains(e.ResponseStatus.Message, "ValidatingAdmissionPolicy 'istiod-") {
		return ""
	}
	return fmt.Sprintf("%s %s: %d %s %s", e.Verb, e.URI, e.ResponseStatus.Code, e.ResponseStatus.Message, e.Notes["authorization.k8s.io/reason"])
}

// right is one verb on one resource, of one name where it is given for names.
type right struct{ namespace, group, resource, name, verb string }

// uses reports whether the request needed the right. A patch that made an object (201) needed to create it too, and what an API server
// streams to a watch at its beginning is a list where it does not know that.
func (e audited) uses(r right) bool {
	verb := e.Verb == r.verb || r.verb == "create" && e.Verb == "patch" && e.ResponseStatus.Code == 201 ||
		r.verb == "list" && e.Verb == "watch" && strings.Contains(e.URI, "sendInitialEvents=true")
	o := e.ObjectRef
	return verb && o.Subresource == "" && o.APIGroup == r.group && o.Resource == r.resource &&
		(r.name == "" || r.name == o.Name) && (r.namespace == "" || r.namespace == o.Namespace)
}

// asked are the requests of one user.
func (l *lab) asked(t testing.TB, user string) (out []audited) {
	t.Helper()
	file, err := os.Open(filepath.Join(l.Dir, "logs", "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewReader(file)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return out // the end, or a line that is being written
		}
		var e audited
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if e.User.Username == user {
			out = append(out, e)
		}
	}
}

// given are the rights that `selvage install` gives to the control plane's account, by how they are shown.
func (l *lab) given(t *testing.T, p *plane) map[string]right {
	t.Helper()
	var list struct{ Items []map[string]any }
	out := l.mustSelvage(t, "install", "--revision", p.revision, "--dry-run", "-o", "json", "--skip-crds")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	roles, all := map[string]rbacv1.Role{}, map[string]right{}
	key := func(kind, namespace, name string) string { return kind + " " + namespace + "/" + name }
	bindings := func(kind string, each func(u *unstructured.Unstructured)) {
		for _, item := range list.Items {
			if u := (&unstructured.Unstructured{Object: item}); strings.HasSuffix(u.GetKind(), kind) {
				each(u)
			}
		}
	}
	bindings("Role", func(u *unstructured.Unstructured) {
		var role rbacv1.Role // the same fields as a ClusterRole
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &role); err != nil {
			t.Fatal(err)
		}
		roles[key(u.GetKind(), u.GetNamespace(), u.GetName())] = role
	})
	bindings("RoleBinding", func(u *unstructured.Unstructured) {
		var binding rbacv1.RoleBinding
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &binding); err != nil {
			t.Fatal(err)
		}
		if binding.Subjects[0].Name != p.account() {
			return
		}
		namespace := ""
		if binding.RoleRef.Kind == "Role" {
			namespace = u.GetNamespace()
		}
		for _, rule := range roles[key(binding.RoleRef.Kind, namespace, binding.RoleRef.Name)].Rules {
			expand(rule, namespace, all)
		}
	})
	return all
}

// expand adds each right that a rule gives.
func expand(rule rbacv1.PolicyRule, namespace string, all map[string]right) {
	names := rule.ResourceNames
	if len(names) == 0 {
		names = []string{""}
	}
	for _, group := range rule.APIGroups {
		for _, resource := range rule.Resources {
			for _, name := range names {
				for _, verb := range rule.Verbs {
					r := right{namespace, group, resource, name, verb}
					shown := verb + " " + resource
					if name != "" {
						shown += " " + name
					}
					if namespace != "" {
						shown += " in " + namespace
					}
					all[shown] = r
				}
			}
		}
	}
}
