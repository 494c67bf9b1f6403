package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/selvage-mesh/selvage/internal/ads"
	"github.com/selvage-mesh/selvage/internal/ca"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/jwks"
	"github.com/selvage-mesh/selvage/internal/kube"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/podwatch"
	policylive "github.com/selvage-mesh/selvage/internal/policy/live"
	"github.com/selvage-mesh/selvage/internal/reconcile"
	"github.com/selvage-mesh/selvage/internal/revision"
	"github.com/selvage-mesh/selvage/internal/revision/live"
	"github.com/selvage-mesh/selvage/internal/translate"
	"github.com/selvage-mesh/selvage/internal/trust"
	"github.com/selvage-mesh/selvage/internal/version"
	"github.com/selvage-mesh/selvage/internal/webhook"
)

// run is the control plane from start to end: cluster → snapshot → model → proxies, and beside it the CA, the webhook and the
// loops that keep webhooks and roots right.
func run(ctx context.Context, o options, log *slog.Logger) error {
	if !inject.IsClusterName(o.clusterID) {
		return fmt.Errorf("read --cluster-id %q: use letters, digits, dots, dashes and underscores", o.clusterID)
	}
	replica, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read the host's name: %w", err)
	}
	log = log.With("revision", o.revision, "replica", replica)
	log.Info("starting", "version", version.Version, "commit", version.Commit())
	clients, err := newClients(o)
	if err != nil {
		return err
	}
	client, istio := clients.core, clients.istio
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	recorder, stopEvents := newRecorder(client, o)
	defer stopEvents()
	elsewhere, err := o.elsewhere(client)
	if err != nil {
		return err
	}
	var proxies *ads.Server
	authority, err := ca.New(ca.Config{
		Kubernetes: client, Reviews: clients.reviews, Namespace: o.namespace, TrustDomain: o.trustDomain, ClusterID: o.clusterID, Revision: o.revision,
		ExtraNames: o.extraNames(), Key: o.caKey.KeyKind, Elsewhere: elsewhere, Workloads: func() []trust.Certificate { return proxies.Certificates() },
		Events: recorder, Registerer: metrics, Log: log,
	})
	if err != nil {
		return err
	}
	proxies, err = ads.New(ads.Config{
		Authenticate: func(ctx context.Context) (string, string, error) {
			id, err := authority.Authenticate(ctx)
			return id.Namespace, id.ServiceAccount, err
		},
		Registerer: metrics, Log: log,
	})
	if err != nil {
		return err
	}
	var model *mesh.Model // these two are used by the cluster's goroutine alone
	found := problemLog{log: log}
	var issuers *jwks.Fetcher
	cluster, err := kube.New(kube.Config{
		Kubernetes: client, Dynamic: clients.own, Namespace: o.namespace, Revision: o.revision, TrustDomain: o.trustDomain,
		Events: recorder, Registerer: metrics, Log: log,
		OnGone: func(uid types.UID) { authority.Gone(string(uid)) },
		OnSnapshot: func(s *index.Snapshot) {
			issuers.Want(translate.KeyURIs(s))
			next, problems := translate.Model(model, s)
			found.report(problems)
			if next != model {
				model = next
				proxies.Publish(next)
			}
		},
	})
	if err != nil {
		return err
	}
	issuers, err = jwks.New(jwks.Config{OnKeys: cluster.SetKeys, OnGone: cluster.ForgetKeys, Log: log})
	if err != nil {
		return err
	}
	injection, err := newInjection(client, o, recorder, metrics, log)
	if err != nil {
		return err
	}
	admission, err := webhook.New(webhook.Config{Config: injection.config, Revision: o.revision, Registerer: metrics, Log: log})
	if err != nil {
		return err
	}
	self, err := newSelfProbe(client, istio, o, recorder, metrics, log)
	if err != nil {
		return err
	}
	watcher, err := podwatch.New(podwatch.Config{
		Kubernetes: client, Revision: o.revision, Injector: injection.config, Report: self.report, Events: recorder, Registerer: metrics, Log: log,
	})
	if err != nil {
		return err
	}
	guards, err := newGuards(clients, o, injection.config, log)
	if err != nil {
		return err
	}
	guards.injection, err = policylive.NewInjection(policylive.InjectionConfig{
		Kubernetes: client, Dynamic: clients.own, Revision: o.revision, Injector: injection.config, Changed: guards.another,
		Report: self.injects, Events: recorder, Registerer: metrics, Log: log,
	})
	if err != nil {
		return err
	}
	injection.changed = func() { watcher.Recheck(); guards.recheck() }
	held, err := policylive.NewHeld(policylive.HeldConfig{
		Kubernetes: client, Dynamic: clients.own, Manager: reconcile.BundleManager, Revision: o.revision, Roots: authority,
		Report: self.held, Events: recorder, Registerer: metrics, Log: log,
	})
	if err != nil {
		return err
	}
	webhooks, err := reconcile.NewWebhooks(reconcile.WebhooksConfig{
		Kubernetes: client, Revision: o.revision, Roots: held, Validation: self.prober, Expected: o.expectedWebhooks(),
		Events: recorder, Registerer: metrics, Log: log,
	})
	if err != nil {
		return err
	}
	roots, err := reconcile.NewRoots(reconcile.RootsConfig{
		Kubernetes: client, Roots: authority, Events: recorder, Registerer: metrics, Log: log,
	})
	if err != nil {
		return err
	}
	rotation, err := ca.NewRotation(ca.RotationConfig{Authority: authority, Namespaces: roots.Count, Distribution: roots.Problems, Registerer: metrics})
	if err != nil {
		return err
	}
	reporter, err := ca.NewReporter(ca.ReporterConfig{Authority: authority, Replica: replica, Proxies: proxies.Trust})
	if err != nil {
		return err
	}
	leftovers := problemLog{log: log}
	staleness, err := live.NewWatcher(live.WatcherConfig{
		Kubernetes: client, Revision: o.revision, Replica: replica, Grace: o.staleGrace, Events: recorder, Problems: leftovers.report,
		Registerer: metrics, Log: log,
	})
	if err != nil {
		return err
	}
	authorizer, err := ca.NewAuthorizer(client, o.namespace, metrics)
	if err != nil {
		return err
	}
	front := &front{
		options: o, log: log, metrics: metrics, authority: authority, proxies: proxies, admission: admission,
		authorizer: authorizer, replica: replica,
		ready: map[string]func() error{"cluster": cluster.Ready, "root": authority.Ready, "injection": injection.ready},
		gaps:  cluster.Gaps,
	}

	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return authority.Run(ctx) })
	work.Go(func() error { return reporter.Run(ctx) })
	work.Go(func() error { return injection.run(ctx) })
	work.Go(func() error { return cluster.Run(ctx) })
	work.Go(func() error { return issuers.Run(ctx) })
	work.Go(func() error { return proxies.Run(ctx) })
	work.Go(func() error { return held.Run(ctx) })
	work.Go(func() error { return webhooks.Run(ctx) })
	work.Go(func() error { return front.run(ctx) })
	lead := func(lease string, labels map[string]string, run func(context.Context) error) {
		labels[revision.ManagedByLabel] = revision.Owner // by which an uninstallation finds them
		work.Go(func() error {
			return kube.Lead(ctx, kube.LeadConfig{Kubernetes: client, Namespace: o.namespace, Lease: lease, Identity: replica, Labels: labels, Log: log}, run)
		})
	}
	ofRevision := map[string]string{label.IoIstioRev.Name: o.revision}
	lead(inject.ObjectName(revision.WebhooksLease, o.revision), ofRevision, func(ctx context.Context) error {
		work, ctx := errgroup.WithContext(ctx)
		work.Go(func() error { return held.Lead(ctx) })
		work.Go(func() error { return webhooks.Lead(ctx) })
		work.Go(func() error { return watcher.Run(ctx) })
		work.Go(func() error { return injection.lead(ctx) })
		work.Go(func() error { return self.run(ctx) })
		work.Go(func() error { return guards.revision.Run(ctx) })
		work.Go(func() error { return guards.injection.Run(ctx) })
		return work.Wait()
	})
	lead("selvage-roots", map[string]string{}, func(ctx context.Context) error { // what all revisions share
		work, ctx := errgroup.WithContext(ctx)
		if o.distributes() {
			work.Go(func() error { return roots.Run(ctx) })
		}
		work.Go(func() error { return rotation.Run(ctx) })
		work.Go(func() error { return staleness.Run(ctx) })
		work.Go(func() error { return guards.users.Run(ctx) })
		work.Go(func() error { return guards.shared.Run(ctx) })
		return work.Wait()
	})
	err = work.Wait()
	log.Info("stopped")
	return err
}

// newRecorder tells people about objects; they stand in "kubectl describe".
func newRecorder(client kubernetes.Interface, o options) (recorder record.EventRecorder, stop func()) {
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events("")})
	source := corev1.EventSource{Component: inject.ObjectName("istiod", o.revision)}
	return broadcaster.NewRecorder(scheme.Scheme, source), broadcaster.Shutdown
}
