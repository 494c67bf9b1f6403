//go:build apiserver

// These tests change the cluster of SELVAGE_TEST_KUBECONFIG, a lab's API server without the mesh. They make every fault really
// happen between that API server and a webhook of theirs.
package probe_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	istioclient "istio.io/client-go/pkg/clientset/versioned"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/kube"
	"github.com/selvage-mesh/selvage/internal/probe"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
	"github.com/selvage-mesh/selvage/internal/webhook"
)

// cluster is the API server, an installation of the default revision in it, and its prober, which runs with the rights that the
// installation gives to the control plane's account and no others.
type cluster struct {
	testing.TB
	admin, limited kubernetes.Interface
	installer      *install.Installer
	istio          istioclient.Interface // with the same rights as limited
	options        install.Options
	hook           *hookServer
	prober         *probe.Prober
	events         <-chan string // REASON KIND/NAME
	config         atomic.Pointer[inject.Config]
}

func connect(t testing.TB) *cluster {
	t.Helper()
	path := os.Getenv("SELVAGE_TEST_KUBECONFIG")
	if path == "" {
		t.Fatal("SELVAGE_TEST_KUBECONFIG is not set: it names the kubeconfig of an API server for tests, such as a lab's")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	account := rest.CopyConfig(config)
	account.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:istio-system:istiod",
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:istio-system", "system:authenticated"}}
	c := &cluster{TB: t, admin: kubernetes.NewForConfigOrDie(config), limited: kubernetes.NewForConfigOrDie(account), istio: istioclient.NewForConfigOrDie(account), hook: newHookServer(t, path)}
	c.installer, err = install.New(install.Config{Kubernetes: c.admin, Dynamic: dynamic.NewForConfigOrDie(config), Progress: t.Output(), Timeout: time.Minute, Poll: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	c.options = install.Default("1.0.0")
	c.options.SkipCRDs = true
	c.options.Endpoint = &install.Endpoint{Address: netip.MustParseAddr(c.hook.host), XDS: 15012, Webhook: int32(c.hook.port), HTTP: 15014}
	purge := func() {
		if _, err := c.installer.Uninstall(context.Background(), install.RemoveOptions{Purge: true}); err != nil {
			t.Error(err)
		}
	}
	purge()
	t.Cleanup(purge)
	settings, problems := inject.Default("").Compile()
	if settings == nil {
		t.Fatal(problems)
	}
	c.config.Store(settings)
	return c
}

// install applies everything, as `selvage install` does, with short timeouts and the test's own root.
func (c *cluster) install() {
	c.Helper()
	if err := c.installer.Apply(c.Context(), c.options); err != nil {
		c.Fatal(err)
	}
	for _, name := range []string{"istio-sidecar-injector", "selvage-probe"} {
		c.change(name, func(w *admissionv1.MutatingWebhook) {
			two := int32(2)
			w.ClientConfig.CABundle, w.TimeoutSeconds = c.hook.root, &two
		})
	}
}

// change changes every entry of a webhook configuration.
func (c *cluster) change(name string, change func(*admissionv1.MutatingWebhook)) {
	c.Helper()
	hooks := c.admin.AdmissionregistrationV1().MutatingWebhookConfigurations()
	config, err := hooks.Get(c.Context(), name, metav1.GetOptions{})
	if err != nil {
		c.Fatal(err)
	}
	for i := range config.Webhooks {
		change(&config.Webhooks[i])
	}
	if _, err := hooks.Update(c.Context(), config, metav1.UpdateOptions{FieldManager: "test"}); err != nil {
		c.Fatal(err)
	}
}

// run starts the prober, with its status and its Events, until the test ends.
func (c *cluster) run() {
	c.Helper()
	watcher, err := c.admin.CoreV1().Events(metav1.NamespaceAll).Watch(c.Context(), metav1.ListOptions{})
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(watcher.Stop)
	events := make(chan string, 100)
	go func() {
		for e := range watcher.ResultChan() {
			if event, ok := e.Object.(*corev1.Event); ok && event.Source.Component == "probe-test" {
				events <- event.Reason + " " + event.InvolvedObject.Kind + "/" + event.InvolvedObject.Name
			}
		}
	}()
	c.events = events
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: c.limited.CoreV1().Events("")})
	c.Cleanup(broadcaster.Shutdown)
	log := slog.New(slog.NewTextHandler(c.Output(), nil))
	status, err := kube.NewStatus(kube.StatusConfig{Kubernetes: c.limited, Namespace: "istio-system", Name: "selvage-status",
		Labels: map[string]string{install.OwnerLabel: install.Owner, "istio.io/rev": "default"}, Log: log})
	if err != nil {
		c.Fatal(err)
	}
	c.prober, err = probe.New(probe.Config{Kubernetes: c.limited, Istio: c.validates(), Namespace: "istio-system", Status: status, Registerer: prometheus.NewRegistry(), Log: log,
		Events: broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "probe-test"})})
	if err != nil {
		c.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.Context())
	done := make(chan error, 2)
	go func() { done <- status.Run(ctx) }()
	go func() { done <- c.prober.Run(ctx) }()
	c.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				c.Errorf("Run: %v", err)
			}
		}
	})
}

// dryRun asks once, as the prober does.
func (c *cluster) dryRun() (*corev1.Pod, error) {
	return c.limited.CoreV1().Pods(verdict.Namespace).Create(c.Context(), verdict.Pod("", verdict.Namespace), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}

// validates is nil where the installation has no definitions of Istio's kinds.
func (c *cluster) validates() istioclient.Interface {
	if c.options.SkipCRDs {
		return nil
	}
	return c.istio
}

// until waits until the verdict about injection holds.
func (c *cluster) until(want verdict.Verdict) {
	c.Helper()
	c.untilOf(verdict.Injection, want)
}

func (c *cluster) untilOf(check verdict.Check, want verdict.Verdict) {
	c.Helper()
	late := time.After(90 * time.Second)
	for {
		proof, changed := c.prober.Proof(check)
		if proof.Verdict == want {
			return
		}
		select {
		case <-changed:
		case <-late:
			c.Fatalf("%s: %s holds; want %s", check, proof.Verdict, want)
		}
	}
}

// condition reads the status ConfigMap until it has the reason.
func (c *cluster) condition(reason string) string {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	watcher, err := c.admin.CoreV1().ConfigMaps("istio-system").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=selvage-status"})
	if err != nil {
		c.Fatal(err)
	}
	defer watcher.Stop()
	last := ""
	for e := range watcher.ResultChan() {
		if cm, ok := e.Object.(*corev1.ConfigMap); ok {
			if last = cm.Data[probe.ConditionsKey]; strings.Contains(last, "reason: "+reason+"\n") {
				return last
			}
		}
	}
	c.Fatalf("the conditions are\n%s\nwant reason %s", last, reason)
	return ""
}

// event reads Events until there is this one.
func (c *cluster) event(want string) {
	c.Helper()
	late := time.After(time.Minute)
	for {
		select {
		case got := <-c.events:
			if got == want {
				return
			}
		case <-late:
			c.Fatalf("there came no Event %s", want)
		}
	}
}

// handler is the product's webhook with the configuration that the test says.
func (c *cluster) handler() http.Handler {
	c.Helper()
	h, err := webhook.New(webhook.Config{Config: c.config.Load, Revision: "default", Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		c.Fatal(err)
	}
	return h
}

// TestEveryFaultIsOneVerdict makes each fault, and sees that it is told as what it is, and that its end is seen too.
func TestEveryFaultIsOneVerdict(t *testing.T) {
	c := connect(t)
	real := c.handler()
	c.hook.serve(real)
	c.install()
	c.run()
	c.until(verdict.OK)
	c.event("InjectionWorks MutatingWebhookConfiguration/istio-sidecar-injector")
	c.condition("Works")

	services, slices := c.admin.CoreV1().Services("istio-system"), c.admin.DiscoveryV1().EndpointSlices("istio-system")
	hooks := c.admin.AdmissionregistrationV1().MutatingWebhookConfigurations()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const injector, service = "MutatingWebhookConfiguration/istio-sidecar-injector", "Service/istiod"
	for _, fault := range []struct {
		name   string
		make   func()
		want   verdict.Verdict
		object string // of the Event
		mend   func() // nil for installing again
	}{
		{"the webhook is deleted", func() { must(hooks.Delete(t.Context(), "istio-sidecar-injector", metav1.DeleteOptions{})) }, verdict.WebhookMissing, injector, nil},
		{"the Service is deleted", func() { must(services.Delete(t.Context(), "istiod", metav1.DeleteOptions{})) }, verdict.ServiceMissing, service, nil},
		{"there are no endpoints", func() { must(slices.Delete(t.Context(), "istiod-external", metav1.DeleteOptions{})) }, verdict.NoEndpoints, service, nil},
		{"the port is closed", c.hook.close, verdict.ConnectionRefused, service, func() { c.hook.serve(real) }},
		{"packets are dropped", c.hook.drop, verdict.Timeout, service, func() { c.hook.serve(real) }},
		{"another root", func() {
			c.change("istio-sidecar-injector", func(w *admissionv1.MutatingWebhook) { w.ClientConfig.CABundle = newRoot(t).certPEM })
		}, verdict.X509, injector, nil},
		{"another root, of an injector that fails open", func() {
			c.change("istio-sidecar-injector", func(w *admissionv1.MutatingWebhook) {
				ignore := admissionv1.Ignore
				w.ClientConfig.CABundle, w.FailurePolicy = newRoot(t).certPEM, &ignore
			})
		}, verdict.X509, injector, nil},
		{"a closed port, of an injector that fails open", func() {
			c.change("istio-sidecar-injector", func(w *admissionv1.MutatingWebhook) { ignore := admissionv1.Ignore; w.FailurePolicy = &ignore })
			c.hook.close()
		}, verdict.ConnectionRefused, service, func() { c.hook.serve(real); c.install() }},
		{"another server", func() { c.hook.serve(http.NotFoundHandler()) }, verdict.WrongResponse, service, func() { c.hook.serve(real) }},
		{"a server without TLS", func() { c.hook.servePlain(real) }, verdict.WrongResponse, service, func() { c.hook.serve(real) }},
		{"a server that sends web pages", func() {
			c.hook.serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>welcome</html>") }))
		}, verdict.WrongResponse, service, func() { c.hook.serve(real) }},
		{"no template can be used", func() { c.config.Store(nil); c.prober.Wake() }, verdict.TemplateError, "ConfigMap/istio-sidecar-injector", func() {
			settings, _ := inject.Default("").Compile()
			c.config.Store(settings)
		}},
		{"the right is taken away", func() {
			must(c.admin.RbacV1().RoleBindings(verdict.Namespace).Delete(t.Context(), "selvage-probe", metav1.DeleteOptions{}))
			c.prober.Wake()
		}, verdict.RBAC, "ServiceAccount/istiod", nil},
	} {
		fault.make()
		c.prober.Wake() // the Service, the port and the rights are not watched
		c.until(fault.want)
		c.event(fault.want.Reason() + " " + fault.object)
		t.Logf("%s:\n%s", fault.name, c.condition(fault.want.Reason()))
		if _, err := c.dryRun(); err != nil { // a line of verdict/testdata
			t.Logf("text\t%s\t%v", fault.want, err)
		}
		if fault.mend == nil {
			fault.mend = c.install
		}
		fault.mend()
		c.prober.Wake()
		c.until(verdict.OK)
		c.event("InjectionWorks " + injector)
	}
}

// TestValidationIsProven: by a refusal of this revision's, and the cause is told also where the validator fails open.
func TestValidationIsProven(t *testing.T) {
	c := connect(t)
	c.options.SkipCRDs = false
	real := c.handler()
	c.hook.serve(real)
	c.install()
	validators := c.admin.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	trust := func(name string) {
		t.Helper()
		config, err := validators.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range config.Webhooks { // failurePolicy stays as it was installed: Ignore for the validator, Fail for the probe's own
			config.Webhooks[i].ClientConfig.CABundle = c.hook.root
		}
		if _, err := validators.Update(t.Context(), config, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	trust("istio-validator-istio-system")
	trust("selvage-probe")
	c.run()
	c.untilOf(verdict.Validation, verdict.OK)
	if working, since, _ := c.prober.Validation(); !working || since.IsZero() {
		t.Errorf("working %t since %s", working, since)
	}
	c.hook.close()
	c.prober.Wake()
	c.untilOf(verdict.Validation, verdict.ConnectionRefused)
	c.event("ConnectionRefused Service/istiod")
	c.hook.serve(real)
	c.prober.Wake()
	c.untilOf(verdict.Validation, verdict.OK)
	if err := validators.Delete(t.Context(), "istio-validator-istio-system", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.untilOf(verdict.Validation, verdict.WebhookMissing)
	c.event("WebhookMissing ValidatingWebhookConfiguration/istio-validator-istio-system")
	late := time.Now().Add(time.Minute)
	for {
		gateway := verdict.Gateway("")
		_, err := c.istio.NetworkingV1().Gateways(verdict.Namespace).Create(t.Context(), gateway, metav1.CreateOptions{})
		if err != nil && strings.Contains(err.Error(), "dry run") {
			return
		}
		if err != nil || time.Now().After(late) {
			t.Fatalf("a Gateway of the control plane's: %v", err)
		}
	}
}

// TestTheControlPlaneCreatesNothing: its right to create pods in the probe's namespace is good for dry runs alone, and for no other
// namespace.
func TestTheControlPlaneCreatesNothing(t *testing.T) {
	c := connect(t)
	c.hook.serve(c.handler())
	c.install()
	c.run()
	c.until(verdict.OK)
	late := time.Now().Add(time.Minute)
	for {
		pod := verdict.Pod("", verdict.Namespace)
		got, err := c.limited.CoreV1().Pods(verdict.Namespace).Create(t.Context(), pod, metav1.CreateOptions{})
		if err != nil && strings.Contains(err.Error(), "dry run") {
			break
		}
		if err != nil || time.Now().After(late) {
			t.Fatalf("a pod of the control plane's: %v", err)
		}
		// An API server takes up a policy about a second after it was stored. That is before the control plane starts.
		if err := c.admin.CoreV1().Pods(verdict.Namespace).Delete(t.Context(), got.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.admin.CoreV1().Pods(verdict.Namespace).Create(t.Context(), verdict.Pod("", verdict.Namespace), metav1.CreateOptions{}); err == nil {
		t.Error("an administrator creates pods there")
	}
	_, err := c.limited.CoreV1().Pods("default").Create(t.Context(), verdict.Pod("", "default"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err == nil || verdict.Classify(err).Verdict != verdict.RBAC {
		t.Errorf("a dry run in another namespace: %v", err)
	}
}

// TestPeersAreProbedWhenAsked: with All, a revision whose control plane is gone is found by another's.
func TestPeersAreProbedWhenAsked(t *testing.T) {
	c := connect(t)
	c.hook.serve(c.handler())
	c.install()
	stale := inject.Registration{Revision: "asm-1122-0", Endpoint: inject.Endpoint{Namespace: "istio-system", Service: "istiod-asm-1122-0"}}
	hooks := c.admin.AdmissionregistrationV1().MutatingWebhookConfigurations()
	if _, err := hooks.Create(t.Context(), stale.Configuration(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hooks.Delete(context.Background(), stale.Name(), metav1.DeleteOptions{}) })
	status := &statusMap{texts: make(chan string, 10)}
	registry := prometheus.NewRegistry()
	p, err := probe.New(probe.Config{Kubernetes: c.limited, Namespace: "istio-system", All: true, Status: status, Registerer: registry, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() { cancel(); <-done }()
	for text := range status.texts {
		if text == "" {
			continue
		}
		for _, want := range []string{"revision: asm-1122-0", "reason: ServiceMissing", `service "istiod-asm-1122-0" not found`} {
			if !strings.Contains(text, want) {
				t.Errorf("the peers are\n%s\nwithout %q", text, want)
			}
		}
		break
	}
}

// statusMap hands the peers to a test.
type statusMap struct{ texts chan string }

func (s *statusMap) Get(context.Context, string) string { return "" }
func (s *statusMap) Set(key, text string) {
	if key == probe.PeersKey {
		s.texts <- text
	}
}

// BenchmarkProbe is what one probe costs: the time of a dry run through the API server and both webhooks, and the time of the
// control plane's CPU in it, of which there is one each 30 s.
func BenchmarkProbe(b *testing.B) {
	c := connect(b)
	c.hook.serve(c.handler())
	c.install()
	ask := func() error {
		_, err := c.dryRun()
		return err
	}
	for err := ask(); err != nil; err = ask() { // until the API server has read the configurations
		if b.Context().Err() != nil {
			b.Fatal(err)
		}
	}
	var before, after syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	for b.Loop() {
		if err := ask(); err != nil {
			b.Fatal(err)
		}
	}
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	b.ReportMetric(float64(after.Utime.Nano()+after.Stime.Nano()-before.Utime.Nano()-before.Stime.Nano())/1e6/float64(b.N), "cpu-ms/op")
}
