package kube_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	networkingapi "istio.io/api/networking/v1alpha3"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
)

const reviews = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {namespace: shop, name: reviews}
spec: {hosts: [reviews], http: [{timeout: 1s, route: [{destination: {host: reviews}}]}]}
`

func (f *fixture) hosts() string {
	f.t.Helper()
	var hosts []string
	for _, r := range f.latest().Namespaces.Get("shop").Resources(index.VirtualServices).All() {
		if spec, ok := r.Spec.(*networkingapi.VirtualService); ok && r.Valid {
			hosts = append(hosts, spec.GetHosts()...)
		}
	}
	return strings.Join(hosts, " ")
}

// unavailable is what the metric says: resource and verb of each gap.
func (f *fixture) unavailable() string {
	f.t.Helper()
	families, err := f.metrics.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	var all []string
	for _, family := range families {
		for _, m := range family.GetMetric() {
			all = append(all, fmt.Sprintf("%s %s %v", m.GetLabel()[0].GetValue(), m.GetLabel()[1].GetValue(), m.GetGauge().GetValue()))
		}
	}
	return strings.Join(all, ", ")
}

func TestAKindThatCannotBeReadStopsNothing(t *testing.T) {
	conversion := apierrors.NewInternalError(errors.New("conversion webhook failed"))
	for name, c := range map[string]struct {
		refusal      error
		says, metric string
		object       string
	}{
		"forbidden":              {forbidden("virtualservices", "list"), "does not grant the verb list", "virtualservices.networking.istio.io list 1", "ClusterRole/istiod-clusterrole-istio-system"},
		"not defined":            {missing(), "there may be no CustomResourceDefinition virtualservices.networking.istio.io", "virtualservices.networking.istio.io list 1", "CustomResourceDefinition/virtualservices.networking.istio.io"},
		"a definition half made": {conversion, "fails again and again", "virtualservices.networking.istio.io list 1", "CustomResourceDefinition/virtualservices.networking.istio.io"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fixture) {
				f.refused.Store("virtualservices list", c.refusal)
				f.run()
				f.pass(30 * time.Second)
				s := f.latest()
				if s.Namespaces.Get("shop") == nil || f.cluster.Ready() != nil {
					t.Fatalf("the rest waits: %v", f.cluster.Ready())
				}
				if len(s.Problems) != 1 || s.Problems[0].Code != diag.SourceUnavailable || !strings.Contains(s.Problems[0].Detail, c.says) ||
					!strings.Contains(s.Problems[0].Detail, "no VirtualService is in force") {
					t.Errorf("the problems are %v", s.Problems)
				}
				if gaps := f.cluster.Gaps(); len(gaps) != 1 || !strings.Contains(gaps[0], c.says) {
					t.Errorf("the gaps are %v", gaps)
				}
				if got := f.unavailable(); got != c.metric {
					t.Errorf("the metric says %q", got)
				}
				if len(f.events) != 1 || !strings.HasPrefix(f.events[0], c.object+" Warning SourceUnavailable") || !strings.Contains(f.events[0], c.says) {
					t.Errorf("the Events are %v", f.events)
				}
				f.write("v1", "virtualservices", reviews)
				f.refused.Delete("virtualservices list")
				f.pass(10 * time.Second)
				if got := f.hosts(); got != "reviews" || len(f.latest().Problems) != 0 || len(f.cluster.Gaps()) != 0 || f.unavailable() != "" {
					t.Errorf("10 s after it can be read: hosts %q, problems %v, gaps %v, metric %q", got, f.latest().Problems, f.cluster.Gaps(), f.unavailable())
				}
				if len(f.events) != 2 || !strings.Contains(f.events[1], "Normal SourceAvailable") {
					t.Errorf("the Events are %v", f.events)
				}
			})
		})
	}
}

// TestWhatIsKnownStays takes the right away while the control plane runs: nothing of what was read is lost, whatever else happens.
func TestWhatIsKnownStays(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		f.write("v1", "virtualservices", reviews)
		var stop func()
		f.istio.PrependWatchReactor("virtualservices", func(a clienttesting.Action) (bool, watch.Interface, error) {
			w, err := f.istio.Tracker().Watch(a.GetResource(), a.GetNamespace())
			stop = w.Stop
			return true, w, err
		})
		f.run()
		if got := f.hosts(); got != "reviews" {
			t.Fatalf("the hosts are %q", got)
		}
		f.refused.Store("virtualservices list", forbidden("virtualservices", "list"))
		f.istio.PrependWatchReactor("virtualservices", func(clienttesting.Action) (bool, watch.Interface, error) {
			return true, nil, forbidden("virtualservices", "watch")
		})
		stop()
		f.pass(time.Minute)
		f.add(service("another"))
		f.pass(time.Minute)
		s := f.latest()
		if got := f.hosts(); got != "reviews" || s.Namespaces.Get("shop").Services.Len() != 2 {
			t.Errorf("without the right the hosts are %q, and there are %d services", got, s.Namespaces.Get("shop").Services.Len())
		}
		if len(s.Problems) != 1 || !strings.Contains(s.Problems[0].Detail, "what was read before stays in force") {
			t.Errorf("the problems are %v", s.Problems)
		}
	})
}

// TestAnOlderVersionIsRead has an API server whose definitions do not know v1 yet.
func TestAnOlderVersionIsRead(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		old := func(a clienttesting.Action) (bool, runtime.Object, error) {
			return a.GetResource().Version == "v1", nil, missing()
		}
		f.istio.PrependReactor("list", "virtualservices", old)
		f.write("v1beta1", "virtualservices", strings.Replace(reviews, "/v1\n", "/v1beta1\n", 1))
		f.run()
		if got := f.hosts(); got != "reviews" || len(f.latest().Problems) != 0 {
			t.Errorf("the hosts are %q, the problems %v", got, f.latest().Problems)
		}
		if err := f.istio.Tracker().Delete(schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1beta1", Resource: "virtualservices"}, "shop", "reviews", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		f.pass(time.Second)
		if got := f.hosts(); got != "" {
			t.Errorf("after it is gone the hosts are %q: the version that is listed is not the one that is watched", got)
		}
	})
}

func TestAMalformedObjectIsItsOwnProblem(t *testing.T) {
	inBubble(t, func(t *testing.T, f *fixture) {
		f.write("v1", "virtualservices", reviews)
		f.write("v1", "virtualservices", `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {namespace: shop, name: broken}
spec: {hosts: [broken], http: {timeout: 1s}}
`)
		f.write("v1", "destinationrules", `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {namespace: shop, name: broken}
spec: {host: broken, trafficPolicy: {loadBalancer: {simple: BEST_OF_ALL}}}
`)
		f.run()
		if got := f.hosts(); got != "reviews" {
			t.Errorf("the hosts are %q", got)
		}
		var said []string
		for _, p := range f.latest().Namespaces.Get("shop").Problems() {
			said = append(said, p.String())
		}
		for _, want := range []string{
			"Error SEL0303 DestinationRule/shop/broken spec.trafficPolicy.loadBalancer.simple", "kubectl -n shop edit destinationrule broken",
			"Error SEL0301 VirtualService/shop/broken spec.http: it must be a list",
		} {
			if !strings.Contains(strings.Join(said, "\n"), want) {
				t.Errorf("no problem has %q:\n%s", want, strings.Join(said, "\n"))
			}
		}
	})
}
