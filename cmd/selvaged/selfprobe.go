package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"istio.io/api/label"
	istioclient "istio.io/client-go/pkg/clientset/versioned"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/kube"
	"github.com/selvage-mesh/selvage/internal/podwatch"
	"github.com/selvage-mesh/selvage/internal/policy"
	"github.com/selvage-mesh/selvage/internal/probe"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
	"github.com/selvage-mesh/selvage/internal/reconcile"
	"github.com/selvage-mesh/selvage/internal/restart"
)

const (
	// statusConfigMap is where the control plane says what works and what does not; with -REV.
	statusConfigMap = "selvage-status"
	// unmeshedKey is the key of the status under which the workloads stand whose pods have no sidecar and should have one.
	unmeshedKey = "podsWithoutSidecar"
	// heldKey is the key under which it stands whether the API server holds the webhooks.
	heldKey = "heldWebhooks"
	// injectionKey is the key under which it stands whether the API server injects.
	injectionKey = "injectionByPolicy"
	// mostUnmeshed bounds that list: a ConfigMap holds a megabyte, and nobody reads more.
	mostUnmeshed = 100
)

// unmeshed is what stands under unmeshedKey.
type unmeshed struct {
	Pods      int                 `json:"pods"`           // of all workloads
	Workloads []podwatch.Workload `json:"workloads"`      // the first of them by namespace and name
	More      int                 `json:"more,omitempty"` // how many are not in the list
}

// selfProbe is what the control plane knows of itself: whether injection works, and who has missed it. The replica that leads keeps it
// in the status ConfigMap, and restarts those whose namespace asks for it.
type selfProbe struct {
	status   *kube.Status
	prober   *probe.Prober
	restarts *restart.Restarter
}

func newSelfProbe(client kubernetes.Interface, istio istioclient.Interface, o options, events record.EventRecorder, metrics prometheus.Registerer, log *slog.Logger) (*selfProbe, error) {
	status, err := kube.NewStatus(kube.StatusConfig{
		Kubernetes: client, Namespace: o.namespace, Name: inject.ObjectName(statusConfigMap, o.revision), Log: log,
		Labels: map[string]string{"app.kubernetes.io/managed-by": "selvage", label.IoIstioRev.Name: o.revision},
	})
	if err != nil {
		return nil, err
	}
	prober, err := probe.New(probe.Config{
		Kubernetes: client, Istio: istio, Namespace: o.namespace, Revision: o.revision, All: o.probeAll, Status: status, Events: events, Registerer: metrics, Log: log,
		Taken: func(ctx context.Context, configuration string) bool {
			return reconcile.TakenByTag(ctx, client, configuration, o.revision)
		},
	})
	if err != nil {
		return nil, err
	}
	restarts, err := restart.New(restart.Config{
		Kubernetes: client, Account: o.namespace + ":" + inject.ObjectName("istiod", o.revision), Events: events, Registerer: metrics, Log: log,
		Works: func() bool {
			proof, _ := prober.Proof(verdict.Injection)
			return proof.Works()
		},
	})
	if err != nil {
		return nil, err
	}
	return &selfProbe{status, prober, restarts}, nil
}

// run is for the replica that leads.
func (s *selfProbe) run(ctx context.Context) error {
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return s.status.Run(ctx) })
	work.Go(func() error { return s.prober.Run(ctx) })
	work.Go(func() error { return s.restarts.Run(ctx) })
	return work.Wait()
}

// report takes in which workloads have pods without a sidecar.
func (s *selfProbe) report(list []podwatch.Workload) {
	var wanted []restart.Workload
	all := unmeshed{Workloads: list}
	for _, w := range list {
		all.Pods += w.Pods
		if w.Restart && w.APIVersion == "apps/v1" {
			wanted = append(wanted, restart.Workload{Namespace: w.Namespace, Kind: w.Kind, Name: w.Name})
		}
	}
	s.restarts.Want(wanted)
	if len(list) == 0 {
		s.status.Set(unmeshedKey, "")
		return
	}
	if more := len(list) - mostUnmeshed; more > 0 {
		all.Workloads, all.More = list[:mostUnmeshed], more
	}
	text, err := yaml.Marshal(all)
	if err != nil {
		panic(fmt.Sprintf("encode workloads: %v", err)) // strings and numbers
	}
	s.status.Set(unmeshedKey, string(text))
}

// held takes in whether the API server holds the webhooks.
func (s *selfProbe) held(state policy.State) { s.set(heldKey, state) }

// injects takes in whether the API server injects.
func (s *selfProbe) injects(state policy.InjectionState) { s.set(injectionKey, state) }

func (s *selfProbe) set(key string, state any) {
	text, err := yaml.Marshal(state)
	if err != nil {
		panic(fmt.Sprintf("encode state: %v", err)) // strings
	}
	s.status.Set(key, string(text))
}
