package verdict_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/probe/verdict"
)

// messages are texts that people search for, as they meet them: the table of the troubleshooting page, older and newer wordings of
// the API server, and what kubectl, a ReplicaSet's Event and a JSON log make of them.
var messages = []struct {
	text    string
	verdict verdict.Verdict
	webhook string
}{
	{"net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)", verdict.Timeout, ""},
	{"no endpoints available for service 'istiod'", verdict.NoEndpoints, ""},
	{`Service "istiod" not found`, verdict.ServiceMissing, ""},
	{"x509: certificate signed by unknown authority", verdict.X509, ""},
	{`Failed to update validatingwebhookconfiguration istio-validator-asm-1-istio-system (failurePolicy=Fail, resourceVersion=7): Operation cannot be fulfilled on validatingwebhookconfigurations.admissionregistration.k8s.io "istio-validator-asm-1-istio-system": the object has been modified; please apply your changes to the latest version and try again.`,
		verdict.CouldNotProbe, ""}, // no call of a webhook: two writers of one object
	{`Error from server (InternalError): Internal error occurred: failed calling webhook "rev.namespace.sidecar-injector.istio.io": Post "https://istiod-asm-1122-0.istio-system.svc:443/inject?timeout=10s": context deadline exceeded`,
		verdict.Timeout, "rev.namespace.sidecar-injector.istio.io"},
	{`Error creating: Internal error occurred: failed calling webhook "sidecar-injector.istio.io": Post https://istiod.istio-system.svc:443/inject?timeout=30s: dial tcp 10.129.45.155:15017: i/o timeout`,
		verdict.Timeout, "sidecar-injector.istio.io"},
	{`failed calling admission webhook "sidecar-injector.istio.io": Post https://istio-sidecar-injector.istio-system.svc:443/inject?timeout=30s: net/http: TLS handshake timeout`,
		verdict.Timeout, "sidecar-injector.istio.io"},
	{`{"level":"error","msg":"Internal error occurred: failed calling webhook \"namespace.sidecar-injector.istio.io\": failed to call webhook: Post \"https://istiod.istio-system.svc:443/inject?timeout=10s\": dial tcp 10.96.19.182:443: connect: connection refused"}`,
		verdict.ConnectionRefused, "namespace.sidecar-injector.istio.io"},
	{`Internal error occurred: failed calling webhook "object.sidecar-injector.istio.io": failed to call webhook: Post "https://istiod.istio-system.svc:443/inject?timeout=10s": EOF`,
		verdict.ConnectionRefused, "object.sidecar-injector.istio.io"},
	{`failed calling webhook "rev.validation.istio.io": failed to call webhook: Post "https://istiod.istio-system.svc:443/validate?timeout=10s": proxy error from 127.0.0.1:9345 while dialing 10.42.1.3:15017, code 503: 503 Service Unavailable`,
		verdict.WrongResponse, "rev.validation.istio.io"},
	{`failed calling webhook "namespace.sidecar-injector.istio.io": failed to call webhook: Post "https://istiod.istio-system.svc:443/inject?timeout=10s": No agent available`,
		verdict.Timeout, "namespace.sidecar-injector.istio.io"},
	{`failed calling webhook "namespace.sidecar-injector.istio.io": failed to call webhook: Post "https://istiod.istio-system.svc:443/inject?timeout=10s": service "istiod" not found`,
		verdict.ServiceMissing, "namespace.sidecar-injector.istio.io"},
	{`failed calling webhook "namespace.sidecar-injector.istio.io": failed to call webhook: an error on the server ("") has prevented the request from succeeding`,
		verdict.WrongResponse, "namespace.sidecar-injector.istio.io"},
	{`pods is forbidden: User "system:serviceaccount:istio-system:istiod" cannot create resource "pods" in API group "" in the namespace "selvage-probe"`, verdict.RBAC, ""},
	{"", verdict.CouldNotProbe, ""},
	{"all is well", verdict.CouldNotProbe, ""},
}

func TestMessagesThatPeopleSearchFor(t *testing.T) {
	for _, m := range messages {
		f := verdict.Recognize(m.text)
		if f.Verdict != m.verdict || f.Webhook != m.webhook {
			t.Errorf("%s\nis %s of webhook %q; want %s of %q", m.text, f.Verdict, f.Webhook, m.verdict, m.webhook)
		}
	}
}

// TestTextsOfRealAPIServers reads what API servers have said while each fault was made: testdata/NAME.txt has a line for each, the
// verdict, a tab, the text. The tests of package probe with the tag apiserver print them.
func TestTextsOfRealAPIServers(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no texts (%v)", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[verdict.Verdict]bool{}
		for line := range strings.Lines(string(data)) {
			want, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
			seen[verdict.Verdict(want)] = true
			for _, wrapped := range []string{text, "Error from server (InternalError): error when creating \"STDIN\": " + text, fmt.Sprintf("%q", "Error creating: "+text)} {
				if got := verdict.Recognize(wrapped).Verdict; got != verdict.Verdict(want) {
					t.Errorf("%s: %s\nis %s; want %s", file, wrapped, got, want)
				}
			}
		}
		for _, v := range verdict.Verdicts {
			if !seen[v] && v != verdict.OK && v != verdict.WebhookMissing && v != verdict.CouldNotProbe {
				t.Errorf("%s has no text of %s", file, v)
			}
		}
	}
}

// TestAnswersOfADryRun goes through answers that are no failed call of a webhook of ours.
func TestAnswersOfADryRun(t *testing.T) {
	injected := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"istio.io/rev": "default"}},
		Spec: corev1.PodSpec{InitContainers: []corev1.Container{{Name: "istio-proxy"}}}}
	other := injected.DeepCopy()
	other.Annotations["istio.io/rev"] = "asm-1"
	answered := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{verdict.Annotation: verdict.Answered}}}
	internal := func(message string) error { return apierrors.NewInternalError(errors.New(message)) }
	forbidden := func(message string) error {
		return apierrors.NewForbidden(corev1.Resource("pods"), "probe", errors.New(message))
	}
	endpoint := inject.Endpoint{Namespace: "istio-system", Service: "istiod"}
	whole := verdict.Registered{Injector: inject.Registration{Endpoint: endpoint}.Configuration(), Probe: verdict.Mutating("", endpoint)}
	open := func(change func(*verdict.Registered)) verdict.Registered {
		r := verdict.Registered{Injector: whole.Injector.DeepCopy(), Probe: whole.Probe.DeepCopy()}
		for i := range r.Injector.Webhooks {
			*r.Injector.Webhooks[i].FailurePolicy = "Ignore"
		}
		change(&r)
		return r
	}
	for name, c := range map[string]struct {
		pod  *corev1.Pod
		err  error
		have verdict.Registered
		want verdict.Verdict
		says string
	}{
		"injected":      {pod: injected, have: whole, want: verdict.OK},
		"by another":    {pod: other, have: whole, want: verdict.WebhookMissing, says: `another control plane, of revision "asm-1"`},
		"no webhook":    {pod: &corev1.Pod{}, want: verdict.WebhookMissing, says: "istio-sidecar-injector does not exist"},
		"not called":    {pod: &corev1.Pod{}, have: whole, want: verdict.WebhookMissing, says: "exists and was not called"},
		"open":          {pod: &corev1.Pod{}, have: open(func(*verdict.Registered) {}), want: verdict.WebhookMissing, says: "hides the cause"},
		"open, bundle":  {pod: answered, have: open(func(r *verdict.Registered) { r.Probe.Webhooks[0].ClientConfig.CABundle = []byte("x") }), want: verdict.X509, says: "another caBundle"},
		"open, service": {pod: answered, have: open(func(r *verdict.Registered) { r.Injector.Webhooks[1].ClientConfig.Service.Name = "old" }), want: verdict.ServiceMissing, says: "leads elsewhere"},
		"entry missing": {pod: &corev1.Pod{}, have: open(func(r *verdict.Registered) { r.Injector.Webhooks = r.Injector.Webhooks[:1] }), want: verdict.WebhookMissing, says: "has no entry rev.object"},

		"pod security of the init container": {err: forbidden(`violates PodSecurity "restricted:latest": unrestricted capabilities (container "istio-init" must not include)`), want: verdict.OK},
		"other pod security":                 {err: forbidden(`violates PodSecurity "restricted:latest": (container "probe" must set)`), want: verdict.CouldNotProbe},
		"no right":                           {err: forbidden(`User "system:serviceaccount:istio-system:istiod" cannot create resource "pods" in API group "" in the namespace "selvage-probe"`), want: verdict.RBAC},
		"no account yet":                     {err: forbidden("error looking up service account selvage-probe/default: serviceaccount \"default\" not found"), want: verdict.CouldNotProbe},
		"no namespace":                       {err: apierrors.NewNotFound(corev1.Resource("namespaces"), "selvage-probe"), want: verdict.CouldNotProbe},
		"bad credentials":                    {err: apierrors.NewUnauthorized("no"), want: verdict.CouldNotProbe},
		"not the API server":                 {err: errors.New(`Post "https://10.96.0.1/api/v1/namespaces/selvage-probe/pods": dial tcp 10.96.0.1:443: connect: connection refused`), want: verdict.CouldNotProbe, says: "cannot be asked"},
		"its own deadline":                   {err: apierrors.NewTimeoutError("request did not complete within requested timeout - context deadline exceeded", 0), want: verdict.CouldNotProbe},
		"too much to do":                     {err: apierrors.NewTooManyRequests("wait", 1), want: verdict.CouldNotProbe},
		"another's webhook down":             {err: internal(`failed calling webhook "validate.kyverno.svc-fail": failed to call webhook: Post "https://kyverno-svc.kyverno.svc:443/validate/fail?timeout=10s": context deadline exceeded`), want: verdict.CouldNotProbe, says: "kyverno"},
		"another's webhook denies":           {err: forbidden(`admission webhook "validation.gatekeeper.sh" denied the request: no`), want: verdict.CouldNotProbe, says: "gatekeeper"},
		"the control plane denies":           {err: internal(`admission webhook "rev.object.sidecar-injector.istio.io" denied the request: template broken`), want: verdict.TemplateError, says: "template broken"},
		"an invalid pod comes of it":         {err: apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Pod").GroupKind(), "probe", nil), want: verdict.TemplateError},
		"a patch that does not fit":          {err: internal("add operation does not apply: doc is missing path: \"/spec/x/y\": missing value"), want: verdict.TemplateError},
	} {
		names := verdict.Names{Namespace: "istio-system"}
		f := names.OfInjection(c.pod, c.err, c.have)
		p, wrong := names.Problem(verdict.Injection, f)
		if f.Verdict != c.want || !strings.Contains(f.Cause, c.says) {
			t.Errorf("%s: %s, %q; want %s with %q", name, f.Verdict, f.Cause, c.want, c.says)
		}
		if wrong != (c.want != verdict.OK) || wrong && (p.Detail == "" || p.Hint == "" || p.Code == "" || p.Object.IsZero()) {
			t.Errorf("%s: the problem is %+v", name, p)
		}
	}
}

// TestEveryProblemNamesTheRevision: what people copy from a hint must be about their revision.
func TestEveryProblemNamesTheRevision(t *testing.T) {
	names := verdict.Names{Revision: "asm-1234-1", Namespace: "istio-system"}
	codes := map[string]bool{}
	for _, v := range verdict.Verdicts[1:] {
		p, _ := names.Problem(verdict.Injection, verdict.Finding{Verdict: v, Cause: "CAUSE"})
		text := p.String()
		if v != verdict.Timeout && !strings.Contains(p.Object.Name+p.Hint, "asm-1234-1") || !strings.HasSuffix(p.Detail, ": CAUSE") {
			t.Errorf("%s: %s", v, text)
		}
		if codes[string(p.Code)] {
			t.Errorf("%s has the code of another: %s", v, p.Code)
		}
		codes[string(p.Code)] = true
		if verdict.ByReason(v.Reason()) != v {
			t.Errorf("the reason %s of %s leads to %s", v.Reason(), v, verdict.ByReason(v.Reason()))
		}
	}
}

// FuzzRecognize: whatever a text is, it is exactly one verdict, whose problem can be shown and stored.
func FuzzRecognize(f *testing.F) {
	for _, m := range messages {
		f.Add(m.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, finding := range []verdict.Finding{verdict.Recognize(text), verdict.Classify(errors.New(text)), verdict.Classify(apierrors.NewInternalError(errors.New(text)))} {
			if !slices.Contains(verdict.Verdicts, finding.Verdict) || finding.Verdict == verdict.OK {
				t.Fatalf("%q is %q", text, finding.Verdict)
			}
			p, _ := verdict.Names{Namespace: "istio-system"}.Problem(verdict.Injection, finding)
			if !utf8.ValidString(p.Detail) || strings.ContainsAny(p.Detail, "\n\r\x00\x1b") || len(p.Detail) > 1000 || p.Hint == "" {
				t.Fatalf("%q gives %q", text, p.Detail)
			}
		}
	})
}
