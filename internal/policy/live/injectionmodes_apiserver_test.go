//go:build apiserver

package live_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/policy"
	"github.com/selvage-mesh/selvage/internal/policy/live"
)

// keeper is the product's keeper of the template, with the rights of the control plane's account.
type keeper struct {
	*injectors
	config  atomic.Pointer[inject.Config]
	changed chan struct{}
	states  chan policy.InjectionState
	events  chan string
}

func (k *keeper) Event(_ runtime.Object, kind, reason, message string) {
	k.events <- kind + " " + reason + " " + message
}

// keep runs one until the test ends.
func (j *injectors) keep() *keeper {
	j.Helper()
	k := &keeper{injectors: j, changed: make(chan struct{}, 1), states: make(chan policy.InjectionState, 100), events: make(chan string, 100)}
	k.config.Store(j.inject)
	as := j.asControlPlane()
	i, err := live.NewInjection(live.InjectionConfig{Kubernetes: kubernetes.NewForConfigOrDie(as), Dynamic: dynamic.NewForConfigOrDie(as), Revision: j.rev, Injector: k.config.Load,
		Changed: k.changed, Report: func(s policy.InjectionState) { k.states <- s }, Events: k, Log: slog.New(slog.NewTextHandler(j.Output(), nil))})
	if err != nil {
		j.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := i.Run(ctx); err != nil {
			j.Error(err)
		}
	})
	j.Cleanup(func() { cancel(); running.Wait() })
	return k
}

// until reads states until one has the reason.
func (k *keeper) until(reason policy.Reason) policy.InjectionState {
	k.Helper()
	var last policy.InjectionState
	k.eventually("state "+string(reason), func() string {
		select {
		case last = <-k.states:
		default:
		}
		if last.Reason == reason {
			return ""
		}
		return string(last.Reason) + ": " + last.Message
	})
	return last
}

// use has the keeper take another configuration.
func (k *keeper) use(config *inject.Config) {
	k.config.Store(config)
	k.serving.Store(config)
	k.changed <- struct{}{}
}

// alone creates a pod while the webhook answers nobody.
func (j *injectors) alone(namespace string, pod *corev1.Pod) (*corev1.Pod, error) {
	j.down.Store(true)
	defer j.down.Store(false)
	return j.create(namespace, pod)
}

// whoInjects is "policy", "webhook" or what keeps the pod from being created.
func (j *injectors) whoInjects() string {
	j.Helper()
	j.calls()
	pod, err := j.create(j.namespace, withNumber(simplePod(), "who"))
	switch {
	case err != nil:
		return err.Error()
	case !policy.HasSidecar(pod):
		return "nobody"
	case j.calls()["who"]:
		return "webhook"
	}
	return "policy"
}

func (j *injectors) untilInjectedBy(who string) {
	j.Helper()
	j.eventually("injection by the "+who, func() string {
		if got := j.whoInjects(); got != who {
			return got
		}
		return ""
	})
}

// TestTheTemplateIsTriedFirst: what comes into force was proven, what is known to be wrong is taken out and told, and at no moment is a
// pod without its sidecar.
func TestTheTemplateIsTriedFirst(t *testing.T) {
	j := newInjectors(t, func(rev string) *inject.Config { return configOf(t, rev, "", "", "{}") })
	if who := j.whoInjects(); who != "webhook" {
		t.Errorf("with an empty parameter: %s", who)
	}
	k := j.keep()
	k.until(policy.ProvenHeld)
	j.untilInjectedBy("policy")

	k.use(configOf(t, j.rev, "", "injectedAnnotations: {example.com/a: b}", `{"global":{"tag":"2.0.0"}}`))
	j.eventually("another image", func() string {
		pod, err := j.alone(j.namespace, simplePod())
		if err != nil {
			return err.Error()
		}
		if image := pod.Spec.InitContainers[1].Image; !strings.HasSuffix(image, ":2.0.0") || pod.Annotations["example.com/a"] != "b" {
			return image
		}
		return ""
	})
	k.use(configOf(t, j.rev, "", "", "{}"))
	j.eventually("an annotation that is gone again", func() string {
		pod, err := j.alone(j.namespace, simplePod())
		if err != nil {
			return err.Error()
		}
		return pod.Annotations["example.com/a"]
	})

	k.use(configOf(t, j.rev, "", "", `{"pilot":{"env":{"ENABLE_NATIVE_SIDECARS":"false"}}}`))
	if s := k.until(policy.Unsupported); !strings.Contains(s.Message, "ordinary containers") {
		t.Errorf("it is told as %+v", s)
	}
	if e := <-k.events; !strings.HasPrefix(e, "Warning InjectionNotByPolicy SEL0047: ") {
		t.Errorf("Event %s", e)
	}
	j.eventually("the webhook", func() string {
		j.calls()
		pod, err := j.create(j.namespace, withNumber(simplePod(), "classic"))
		if err != nil {
			return err.Error()
		}
		return map[bool]string{false: "the policy injects"}[j.calls()["classic"] && len(pod.Spec.Containers) == 2]
	})

	// A policy of another release: somebody changes what it does.
	policies := j.client.AdmissionregistrationV1().MutatingAdmissionPolicies()
	p, err := policies.Get(t.Context(), policy.InjectionName(j.rev), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	real := p.Spec.Mutations[0].JSONPatch.Expression
	p.Spec.Mutations[0].JSONPatch.Expression = strings.Replace(real, "'istio.io/rev': string(", "'istio.io/rev': 'another' + string(", 1)
	if _, err := policies.Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	n := 0
	j.eventually("the change", func() string { // API servers hear of it within a second; the parameter is empty, so only a trial can show it
		n++
		k.use(configOf(t, j.rev, "", "", fmt.Sprintf(`{"global":{"tag":"3.0.%d"}}`, n)))
		select {
		case s := <-k.states:
			return map[bool]string{false: string(s.Reason)}[s.Reason == policy.Different && strings.Contains(s.Message, "metadata.annotations.istio.io/rev")]
		default:
			return "nothing is told"
		}
	})
	if who := j.whoInjects(); who != "webhook" {
		t.Errorf("with a policy that makes other pods: %s", who)
	}
}

// TestEveryWayToFail: a pod that asks for a sidecar gets it from the webhook or is refused with the reason; all others pass.
func TestEveryWayToFail(t *testing.T) {
	j := newInjectors(t, func(rev string) *inject.Config { return configOf(t, rev, "", "", "{}") })
	j.inForce()
	parameters := j.dynamic.Resource(policy.ParameterResource)
	policies := j.client.AdmissionregistrationV1().MutatingAdmissionPolicies()
	policyIs := func(change func(*admissionv1.MutatingAdmissionPolicy)) {
		t.Helper()
		p, err := policies.Get(t.Context(), policy.InjectionName(j.rev), metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		change(p)
		if _, err := policies.Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var whole admissionv1.MutatingAdmissionPolicy
	template := func(field string, value any) {
		t.Helper()
		body, _ := json.Marshal([]map[string]any{{"op": "add", "path": "/spec/injection/" + field, "value": value}})
		if _, err := parameters.Patch(t.Context(), policy.InjectionName(j.rev), types.JSONPatchType, body, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name       string
		make, undo func()
	}{
		{"the parameter is gone", func() {
			if err := parameters.Delete(t.Context(), policy.InjectionName(j.rev), metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}, func() {
			if err := j.installer().Apply(t.Context(), j.options); err != nil {
				t.Fatal(err)
			}
			j.webhookTrusts()
		}},
		{"an expression fails", func() {
			policyIs(func(p *admissionv1.MutatingAdmissionPolicy) {
				p.DeepCopyInto(&whole)
				for i := range p.Spec.Variables {
					if p.Spec.Variables[i].Name == "canonical" {
						p.Spec.Variables[i].Expression = "string(params.spec.nowhere)"
					}
				}
			})
		}, func() { policyIs(func(p *admissionv1.MutatingAdmissionPolicy) { p.Spec = whole.Spec }) }},
		{"the parameter is of another release", func() { template("form", 99) }, func() {}},
		{"the parameter lacks what the policy reads", func() { template("volumes", "none") }, func() {}},
	} {
		c.make()
		j.untilInjectedBy("webhook")
		if _, err := j.alone(j.namespace, simplePod()); err == nil || !strings.Contains(err.Error(), "failed calling webhook") {
			t.Errorf("%s: without the webhook a pod that asks: %v", c.name, err)
		} else {
			t.Logf("%s: %v", c.name, err)
		}
		if pod, err := j.alone(j.plain, simplePod()); err != nil || policy.HasSidecar(pod) {
			t.Errorf("%s: a pod that does not ask: %v", c.name, err)
		}
		c.undo()
		j.give(true)
		j.untilInjectedBy("policy")
	}
}

// TestMovingBetweenModes: while a revision is moved from the webhook to the policy and back, every pod that is created gets its sidecar.
func TestMovingBetweenModes(t *testing.T) {
	j := newInjectors(t, func(rev string) *inject.Config { return configOf(t, rev, "", "", "{}") })
	j.inForce()
	j.untilInjectedBy("policy")
	ctx, cancel := context.WithCancel(t.Context())
	var pods, bare atomic.Int64
	var running sync.WaitGroup
	for range 2 {
		running.Go(func() {
			for ctx.Err() == nil {
				pod, err := j.create(j.namespace, simplePod())
				switch {
				case ctx.Err() != nil:
				case err != nil || !policy.HasSidecar(pod):
					bare.Add(1)
					t.Logf("a pod was created with %v", err)
				default:
					pods.Add(1)
				}
			}
		})
	}
	for _, mode := range []string{install.ByWebhook, install.ByPolicy, install.ByWebhook} {
		j.options.Injection = mode
		if err := j.installer().Apply(t.Context(), j.options); err != nil {
			t.Error(err)
		}
		if mode == install.ByPolicy {
			j.give(true) // as the control plane does
		}
		j.untilInjectedBy(mode)
	}
	cancel()
	running.Wait()
	if t.Logf("%d pods, %d without a sidecar", pods.Load(), bare.Load()); bare.Load() > 0 || pods.Load() < 20 {
		t.Errorf("%d of %d pods got no sidecar", bare.Load(), pods.Load())
	}
	if hook, err := j.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), j.mutating(), metav1.GetOptions{}); err != nil || inject.IsAfterPolicy(&hook.Webhooks[0]) {
		t.Errorf("the webhook is still narrowed to what a policy leaves (%v)", err)
	}
	policies, err := j.client.AdmissionregistrationV1().MutatingAdmissionPolicies().List(t.Context(), metav1.ListOptions{LabelSelector: "istio.io/rev=" + j.rev})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range policies.Items {
		if p.Name == policy.InjectionName(j.rev) {
			t.Error("the policy is still there")
		}
	}
}

// TestOnlyTheControlPlaneWritesTheTemplate: a right over all custom resources is none over the image of every meshed pod.
func TestOnlyTheControlPlaneWritesTheTemplate(t *testing.T) {
	j := newInjectors(t, func(rev string) *inject.Config { return configOf(t, rev, "", "", "{}") })
	name := "selvage-test-" + j.rev
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{"*"}, Resources: []string{"admissionparameters"}, Verbs: []string{"*"}}}}
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, Name: name}}}
	if _, err := j.client.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := j.client.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = j.client.RbacV1().ClusterRoles().Delete(context.Background(), name, metav1.DeleteOptions{})
		_ = j.client.RbacV1().ClusterRoleBindings().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
	body := []byte(`{"spec":{"injection":{"form":1}}}`)
	as := func(user string) error {
		config := rest.CopyConfig(j.config)
		config.Impersonate.UserName = user
		_, err := dynamic.NewForConfigOrDie(config).Resource(policy.ParameterResource).Patch(t.Context(), policy.InjectionName(j.rev), types.MergePatchType, body, metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	j.eventually("a refusal", func() string { // rights and policies come into force within a second
		if err := as(name); err == nil || !strings.Contains(err.Error(), "decides the image of every pod of revision "+j.rev) {
			return fmt.Sprint(err)
		}
		return ""
	})
	if err := as("system:serviceaccount:istio-system:istiod-" + j.rev); err != nil {
		t.Errorf("the control plane: %v", err)
	}
	if err := as(""); err != nil {
		t.Errorf("the cluster's administrator: %v", err)
	}
}

// TestAMovedTagLeavesItsPolicy: a tag that is moved from a revision whose control plane is gone does not stay with its policy.
func TestAMovedTagLeavesItsPolicy(t *testing.T) {
	j := newInjectors(t, func(rev string) *inject.Config { return configOf(t, rev, "", "", "{}") })
	tag := "tag-of-" + j.rev
	j.options.Tags = []string{tag}
	if err := j.installer().Apply(t.Context(), j.options); err != nil {
		t.Fatal(err)
	}
	j.inForce()
	ns := j.namespaceOf(map[string]string{"istio.io/rev": tag}).Name
	if _, err := j.alone(ns, simplePod()); err != nil {
		t.Fatalf("before: %v", err)
	}
	if err := live.TakeName(t.Context(), j.dynamic, tag, j.rev); err != nil {
		t.Fatal(err)
	}
	if _, err := j.alone(ns, simplePod()); err != nil {
		t.Errorf("the revision that keeps it: %v", err)
	}
	if err := live.TakeName(t.Context(), j.dynamic, tag, "another"); err != nil {
		t.Fatal(err)
	}
	j.eventually("pods of the tag are left to the webhook", func() string {
		if pod, err := j.alone(ns, simplePod()); err == nil && policy.HasSidecar(pod) {
			return "the policy still injects"
		}
		return ""
	})
	if _, err := j.alone(j.namespace, simplePod()); err != nil {
		t.Errorf("pods of the revision's own name: %v", err)
	}
}
