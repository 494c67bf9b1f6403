package webhook_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	goruntime "runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/webhook"
)

// peer is a webhook that listens on loopback with TLS, as the API server meets it.
type peer struct {
	url      string
	client   *http.Client
	registry *prometheus.Registry
	log      *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *syncBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

func serve(t testing.TB, config func() *inject.Config) *peer {
	t.Helper()
	p := &peer{registry: prometheus.NewPedanticRegistry(), log: &syncBuffer{}}
	h, err := webhook.New(webhook.Config{Config: config, Revision: "test", Registerer: p.registry, Log: slog.New(slog.NewTextHandler(p.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(h)
	t.Cleanup(server.Close)
	p.url, p.client = server.URL, server.Client()
	return p
}

func defaults(t testing.TB) func() *inject.Config {
	t.Helper()
	cfg, problems := inject.Default("").Compile()
	if cfg == nil {
		t.Fatal(problems)
	}
	return func() *inject.Config { return cfg }
}

// post sends a body and reads the answer.
func (p *peer) post(t testing.TB, path, contentType string, body []byte) (status int, answer []byte) {
	t.Helper()
	resp, err := p.client.Post(p.url+path, contentType, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, answer
}

// review asks for a pod, as the API server does, and gives the response.
func (p *peer) review(t testing.TB, path, pod string) *admissionv1.AdmissionResponse {
	t.Helper()
	status, answer := p.post(t, path, "application/json", request(t, pod))
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, answer)
	}
	var r admissionv1.AdmissionReview
	if err := json.Unmarshal(answer, &r); err != nil {
		t.Fatal(err)
	}
	if r.APIVersion != "admission.k8s.io/v1" || r.Kind != "AdmissionReview" || r.Response == nil || r.Response.UID != "u-1" {
		t.Fatalf("not an answer to this request: %s", answer)
	}
	return r.Response
}

// request is the API server's AdmissionReview for a pod.
func request(t testing.TB, pod string) []byte {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(pod))
	if err != nil {
		t.Fatal(err)
	}
	dry := true
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: "u-1", Namespace: "shop", Operation: admissionv1.Create, DryRun: &dry,
			Kind:     metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
			Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
			Object:   runtime.RawExtension{Raw: raw},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

const web = `
apiVersion: v1
kind: Pod
metadata:
  generateName: web-7c9-
  labels: {app: web, pod-template-hash: 7c9}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-7c9, uid: u, controller: true}]
  futureField: kept
spec:
  futureField: {kept: true}
  containers:
  - name: web
    image: example.com/web
    futureField: kept
    readinessProbe: {httpGet: {path: /, port: 8080}, futureField: kept}
`

// TestInjected: the pod that results is the one that package inject gives, and what this build's API does not know survives.
func TestInjected(t *testing.T) {
	cfg := defaults(t)
	p := serve(t, cfg)
	r := p.review(t, "/inject", web)
	if !r.Allowed || r.PatchType == nil || *r.PatchType != admissionv1.PatchTypeJSONPatch {
		t.Fatalf("got %+v", r)
	}
	patch, err := jsonpatch.DecodePatch(r.Patch)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := yaml.YAMLToJSON([]byte(web))
	if err != nil {
		t.Fatal(err)
	}
	out, err := patch.Apply(raw)
	if err != nil {
		t.Fatal(err)
	}
	var before, got corev1.Pod
	if err := json.Unmarshal(raw, &before); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	before.Namespace = "shop"
	want, _, err := inject.Pod(&before, cfg())
	if err != nil {
		t.Fatal(err)
	}
	want.Namespace = "" // the request's, not the pod's
	if a, b := canonical(t, want), canonical(t, &got); a != b {
		t.Errorf("got\n%s\nwant\n%s", b, a)
	}
	if n := strings.Count(string(out), "futureField"); n != 4 {
		t.Errorf("%d of 4 unknown fields are left in %s", n, out)
	}
	if !strings.Contains(string(out), "namespaces/shop/deployments/web") {
		t.Errorf("the owner is not in the request's namespace: %s", out)
	}
}

func canonical(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	data, err := yaml.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestAnswers: what the API server, and through it the user, hears.
func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		name, pod string
		allowed   bool
		patched   bool
		message   string // of a refusal
		warning   string
		log       string
	}{
		{"a pod is injected", web, true, true, "", "", ""},
		{"a pod that opts out passes without a word", `metadata: {name: a, labels: {sidecar.istio.io/inject: "false"}}`, true, false, "", "", ""},
		{"a pod that asks and cannot have it hears why", "metadata: {name: a, labels: {sidecar.istio.io/inject: \"true\"}}\nspec: {hostNetwork: true}", true, false, "", "pod shop/a gets no sidecar: spec.hostNetwork is true", "reason=host_network"},
		{"a word that is no word is told, and decides nothing", `metadata: {name: a, labels: {sidecar.istio.io/inject: "no"}}`, true, true, "",
			`pod shop/a: label sidecar.istio.io/inject is "no", which is neither "true" nor "false" and counts as not said`, ""},
		{"a hostile value is refused and named", `metadata: {name: a, annotations: {traffic.sidecar.istio.io/excludeInboundPorts: "80 --dport 1; reboot"}}`, false, false,
			`Pod/shop/a metadata.annotations[traffic.sidecar.istio.io/excludeInboundPorts]: cannot use "80 --dport 1; reboot"`, "", "pod refused"},
		{"what has no effect is a warning", `metadata: {name: a, annotations: {sidecar.istio.io/proxyCpu: 1m}}`, true, true, "", "did you mean sidecar.istio.io/proxyCPU?", ""},
		{"a user's part of the sidecar is merged", "metadata: {name: a}\nspec: {containers: [{name: istio-proxy, image: auto}]}", true, true, "", "", ""},
		{"a sidecar that cannot work is refused", "metadata: {name: a}\nspec: {containers: [{name: istio-proxy, securityContext: {runAsUser: 0, runAsGroup: 0}}]}", false, false,
			"spec.containers[istio-proxy]", "", "pod refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := serve(t, defaults(t))
			r := p.review(t, "/inject", c.pod)
			if r.Allowed != c.allowed || (len(r.Patch) > 0) != c.patched {
				t.Errorf("allowed %v, patch %s", r.Allowed, r.Patch)
			}
			if c.message != "" && (r.Result == nil || !strings.Contains(r.Result.Message, c.message)) {
				t.Errorf("the message is %+v, want %q", r.Result, c.message)
			}
			if warnings := strings.Join(r.Warnings, "\n"); !strings.Contains(warnings, c.warning) || c.warning == "" && warnings != "" {
				t.Errorf("the warnings are %q, want %q", warnings, c.warning)
			}
			if log := p.log.String(); !strings.Contains(log, c.log) || c.log == "" && log != "" {
				t.Errorf("the log is %q, want %q", log, c.log)
			}
		})
	}
}

// TestBadRequests: a request that no API server sends is answered with what is wrong, and the next one works.
func TestBadRequests(t *testing.T) {
	p := serve(t, defaults(t))
	good := request(t, web)
	for _, c := range []struct {
		name, path, contentType, body string
		status                        int
		want                          string
	}{
		{"no JSON", "/inject", "application/json", "{", 400, "the body is no AdmissionReview"},
		{"empty", "/inject", "application/json", "", 400, "the body is empty"},
		{"null", "/inject", "application/json", "null", 400, "the body is no AdmissionReview"},
		{"another kind", "/inject", "application/json", `{"apiVersion":"v1","kind":"Pod"}`, 400, `kind "Pod", apiVersion "v1"`},
		{"no request", "/inject", "application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, 400, "has no request with a uid"},
		{"no content type", "/inject", "", string(good), 415, "send application/json"},
		{"wrong content type", "/inject", "text/plain", string(good), 415, `the content type is "text/plain"`},
		{"too large", "/inject", "application/json", strings.Repeat(" ", 3<<20+1), 413, "the most is 3145728"},
		{"hostile cluster", "/inject/cluster/a%20b/net/c", "application/json", string(good), 400, `"a b" in the path is no name`},
		{"no such path", "/injected", "application/json", string(good), 404, "not found"},
		{"not a pod", "/inject", "application/json", strings.Replace(string(good), `"resource":"pods"`, `"resource":"nodes"`, 1), 200, "only pods can be injected"},
		{"no object", "/inject", "application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","resource":{"version":"v1","resource":"pods"},"object":null}}`, 200, "the request has no object"},
		{"a quantity that takes an hour to parse", "/inject", "application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","resource":{"version":"v1","resource":"pods"},"object":{"spec":{"containers":[{"name":"istio-proxy","resources":{"limits":{"cpu":1e-30000000}}}]}}}}`,
			200, "1e-30000000 is no quantity of a resource: it has too many digits"},
		{"a pod that is none", "/inject", "application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","resource":{"version":"v1","resource":"pods"},"object":{"spec":[]}}}`, 200, "the object is no pod"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, answer := p.post(t, c.path, c.contentType, []byte(c.body))
			if status != c.status || !strings.Contains(string(answer), strings.ReplaceAll(c.want, `"`, quoteIn(status))) {
				t.Errorf("status %d: %s\nwant %d: %s", status, answer, c.status, c.want)
			}
		})
	}
	if r := p.review(t, "/inject", web); len(r.Patch) == 0 {
		t.Error("the webhook does not work any more")
	}
}

// quoteIn is how a quotation mark looks in an answer: an AdmissionReview is JSON.
func quoteIn(status int) string {
	if status == http.StatusOK {
		return `\"`
	}
	return `"`
}

// TestUnsizedBody: a body without Content-Length is bounded too.
func TestUnsizedBody(t *testing.T) {
	p := serve(t, defaults(t))
	r, err := http.NewRequest(http.MethodPost, p.url+"/inject", io.MultiReader(strings.NewReader("{"), &endless{left: 8 << 20}))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := p.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("status %d", resp.StatusCode)
	}
}

type endless struct{ left int }

func (e *endless) Read(p []byte) (int, error) {
	if e.left <= 0 {
		return 0, io.EOF
	}
	for i := range p {
		p[i] = ' '
	}
	e.left -= len(p)
	return len(p), nil
}

// TestNoConfiguration: until there is one, pods are refused with the place to look at.
func TestNoConfiguration(t *testing.T) {
	p := serve(t, func() *inject.Config { return nil })
	r := p.review(t, "/inject", web)
	if r.Allowed || r.Result == nil || r.Result.Code != 503 || !strings.Contains(r.Result.Message, "ConfigMaps istio and istio-sidecar-injector") {
		t.Errorf("got %+v", r)
	}
}

// TestPanicIsContained: a bug costs one request, is counted and logged with its stack, and tells the caller nothing of it.
func TestPanicIsContained(t *testing.T) {
	calls := 0
	good := defaults(t)
	p := serve(t, func() *inject.Config {
		if calls++; calls == 1 {
			panic("secret detail")
		}
		return good()
	})
	status, answer := p.post(t, "/inject", "application/json", request(t, web))
	if status != http.StatusInternalServerError || strings.Contains(string(answer), "secret") {
		t.Errorf("status %d: %s", status, answer)
	}
	if log := p.log.String(); !strings.Contains(log, "secret detail") || !strings.Contains(log, "webhook_test.go") {
		t.Errorf("the log does not say where: %s", log)
	}
	if r := p.review(t, "/inject", web); len(r.Patch) == 0 {
		t.Error("the next request is not injected")
	}
	p.wantMetrics(t, map[string]float64{"selvage_webhook_panics_total": 1})
}

// wantMetrics compares counters; one with labels is name{value,…}.
func (p *peer) wantMetrics(t *testing.T, want map[string]float64) {
	t.Helper()
	families, err := p.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			name := family.GetName()
			for _, l := range m.GetLabel() {
				name += "{" + l.GetValue() + "}"
			}
			got[name] = m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %v, want %v", name, got[name], value)
		}
	}
}

// TestMetrics: requests are successes, skips by reason, or failures.
func TestMetrics(t *testing.T) {
	p := serve(t, defaults(t))
	p.review(t, "/inject", web)
	p.review(t, "/inject/cluster/east/net/n1", web)
	p.review(t, "/inject", `metadata: {labels: {sidecar.istio.io/inject: "false"}}`)
	p.review(t, "/inject", "metadata: {annotations: {sidecar.istio.io/status: '{}'}}\nspec: {containers: [{name: istio-proxy}]}")
	p.review(t, "/inject", `metadata: {annotations: {sidecar.istio.io/proxyCPU: "x"}}`)
	p.post(t, "/inject", "application/json", []byte("{"))
	p.wantMetrics(t, map[string]float64{
		"sidecar_injection_requests_total":               6,
		"sidecar_injection_success_total":                2,
		"sidecar_injection_failure_total":                2,
		"sidecar_injection_skip_total{opted_out}":        1,
		"sidecar_injection_skip_total{already_injected}": 1,
		"sidecar_injection_time_seconds":                 6,
	})
}

// TestClusterPath: pods of another cluster are told that they are there.
func TestClusterPath(t *testing.T) {
	p := serve(t, defaults(t))
	r := p.review(t, "/inject/cluster/east/net/n1", web)
	for _, want := range []string{`{"name":"ISTIO_META_CLUSTER_ID","value":"east"}`, `topology.istio.io~1network","value":"n1"`} {
		if !strings.Contains(string(r.Patch), want) {
			t.Errorf("no %s in %s", want, r.Patch)
		}
	}
}

// TestTemplateSeesTheWholePod: a template reads fields that our own sidecar does not look at, and the patch keeps what this build's API
// does not know.
func TestTemplateSeesTheWholePod(t *testing.T) {
	settings := inject.Default("")
	settings.Injector.Templates = map[string]string{"mine": "metadata: {annotations: {image: {{ (index .Spec.Containers 0).Image }}}}\nspec: {containers: [{name: web, tty: true}]}"}
	settings.Injector.DefaultTemplates = []string{"mine"}
	cfg, problems := settings.Compile()
	if cfg == nil {
		t.Fatal(problems)
	}
	r := serve(t, func() *inject.Config { return cfg }).review(t, "/inject", web)
	for _, want := range []string{`"image":"example.com/web"`, `{"op":"add","path":"/spec/containers/0/tty","value":true}`} {
		if !strings.Contains(string(r.Patch), want) {
			t.Errorf("no %s in %s", want, r.Patch)
		}
	}
	if strings.Contains(string(r.Patch), "remove") || strings.Contains(string(r.Patch), "futureField") {
		t.Errorf("the patch touches more than the template changes: %s", r.Patch)
	}
}

// TestOldReviewVersion: v1beta1, which some aggregators still send, is answered in kind.
func TestOldReviewVersion(t *testing.T) {
	p := serve(t, defaults(t))
	_, answer := p.post(t, "/inject", "application/json; charset=utf-8", bytes.Replace(request(t, web), []byte("admission.k8s.io/v1"), []byte("admission.k8s.io/v1beta1"), 1))
	if !bytes.Contains(answer, []byte(`"apiVersion":"admission.k8s.io/v1beta1"`)) || !bytes.Contains(answer, []byte(`"patch":`)) {
		t.Errorf("got %s", answer)
	}
}

// TestManyAtOnce: requests do not disturb each other, over HTTP/1.1 and HTTP/2.
func TestManyAtOnce(t *testing.T) {
	p := serve(t, defaults(t))
	two := p.client.Transport.(*http.Transport).Clone()
	two.ForceAttemptHTTP2 = true
	two.TLSClientConfig = &tls.Config{RootCAs: two.TLSClientConfig.RootCAs, NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12}
	clients := []*http.Client{p.client, {Transport: two}}
	var group sync.WaitGroup
	for i := range 64 {
		group.Go(func() {
			name := fmt.Sprintf("web-%d", i)
			resp, err := clients[i%2].Post(p.url+"/inject", "application/json", bytes.NewReader(request(t, "metadata: {name: "+name+"}\nspec: {containers: [{name: a}]}")))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			var r admissionv1.AdmissionReview
			if err := json.NewDecoder(resp.Body).Decode(&r); err != nil || r.Response == nil || !bytes.Contains(r.Response.Patch, []byte("pods/"+name+`"`)) {
				t.Errorf("%s: error %v, answer %+v", name, err, r.Response)
			}
		})
	}
	group.Wait()
}

func TestNewNeedsItsParts(t *testing.T) {
	if _, err := webhook.New(webhook.Config{}); err == nil {
		t.Error("an empty Config was accepted")
	}
}

// unread is the answer of a request whose sender does not read it.
type unread struct {
	http.ResponseWriter
	writing chan<- struct{}
	forever <-chan struct{}
}

func (u unread) Write(p []byte) (int, error) {
	u.writing <- struct{}{}
	<-u.forever
	return len(p), nil
}

// TestWhoDoesNotReadHoldsUpNobody: answers that nobody takes must not use up what requests may hold in memory.
func TestWhoDoesNotReadHoldsUpNobody(t *testing.T) {
	h, err := webhook.New(webhook.Config{Config: defaults(t), Registerer: prometheus.NewPedanticRegistry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	body := request(t, "metadata: {name: web}\nspec: {containers: [{name: a}]}")
	ask := func(w http.ResponseWriter) {
		r := httptest.NewRequest(http.MethodPost, "/inject", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		r.ContentLength = -1 // as in a chunked request, which counts for the most that a body may be
		h.ServeHTTP(w, r)
	}
	writing, forever := make(chan struct{}), make(chan struct{})
	var group sync.WaitGroup
	for range 40 { // of 3 MiB each: more than may be in flight
		group.Go(func() { ask(unread{httptest.NewRecorder(), writing, forever}) })
	}
	for range 40 {
		<-writing
	}
	answer := httptest.NewRecorder()
	ask(answer)
	if answer.Code != http.StatusOK {
		t.Errorf("the next request got %d: %s", answer.Code, answer.Body)
	}
	close(forever)
	group.Wait()
}

// serveTemplate is serve with one template of an operator's that pods take.
func serveTemplate(t *testing.T, text string, limit time.Duration) *webhook.Handler {
	t.Helper()
	settings := inject.Default("")
	settings.Injector.Templates = map[string]string{"mine": text}
	settings.Injector.DefaultTemplates = []string{"mine"}
	cfg, problems := settings.Compile()
	if cfg == nil {
		t.Fatal(problems)
	}
	h, err := webhook.New(webhook.Config{Config: func() *inject.Config { return cfg }, Registerer: prometheus.NewPedanticRegistry(),
		Log: slog.New(slog.DiscardHandler), TemplateTime: limit})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestTemplateTime: a template that runs too long for a pod ends, and the pod's creator hears which template it was.
func TestTemplateTime(t *testing.T) {
	for limit, want := range map[time.Duration]string{
		0:               "",
		time.Nanosecond: `Pod/shop/web: template "mine": it ran for 1ns and has not ended: does it loop? (mend config.templates.mine in ConfigMap/istio-system/istio-sidecar-injector)`,
	} {
		h := serveTemplate(t, `metadata: {annotations: {n: "{{ range until 500 }}{{ . }}{{ end }}"}}`, limit)
		r := httptest.NewRequest(http.MethodPost, "/inject", bytes.NewReader(request(t, "metadata: {name: web}\nspec: {containers: [{name: a}]}")))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		var answer admissionv1.AdmissionReview
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.Response == nil {
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
		got := ""
		if answer.Response.Result != nil {
			got = answer.Response.Result.Message
		}
		if answer.Response.Allowed != (want == "") || !strings.Contains(got, want) {
			t.Errorf("with a limit of %s: allowed %v, message %q, want %q", limit, answer.Response.Allowed, got, want)
		}
	}
}

// TestMemoryIsFlat: five hundred requests of 2 MiB at once, 1 GiB in all, are answered or turned away in a small part of that.
func TestMemoryIsFlat(t *testing.T) {
	h, err := webhook.New(webhook.Config{Config: defaults(t), Registerer: prometheus.NewPedanticRegistry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	body := request(t, "metadata: {name: web, annotations: {a: "+strings.Repeat("a", 2<<20)+"}}\nspec: {containers: [{name: a}]}")
	peak := peakHeap(t, func() {
		var group sync.WaitGroup
		for range 500 {
			group.Go(func() {
				r := httptest.NewRequest(http.MethodPost, "/inject", bytes.NewReader(body))
				r.Header.Set("Content-Type", "application/json")
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				if w.Code != http.StatusOK && w.Code != http.StatusServiceUnavailable {
					t.Errorf("status %d: %s", w.Code, w.Body)
				}
			})
		}
		group.Wait()
	})
	t.Logf("the heap's peak is %d MiB", peak>>20)
	if peak > 512<<20 {
		t.Errorf("the heap's peak is %d MiB for 64 MiB of requests in flight", peak>>20)
	}
}

// peakHeap is the most memory of the heap while f runs, as the garbage collector sees it.
func peakHeap(t *testing.T, f func()) uint64 {
	t.Helper()
	goruntime.GC()
	done, ended := make(chan struct{}), make(chan uint64)
	go func() {
		var most uint64
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		for {
			metrics.Read(sample)
			most = max(most, sample[0].Value.Uint64())
			select {
			case <-done:
				ended <- most
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	f()
	close(done)
	return <-ended
}
