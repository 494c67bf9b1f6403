package webhook

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// BenchmarkInject goes from the bytes of an AdmissionReview to the bytes of the answer, as a request does after TLS and HTTP.
// The bounds that DESIGN's issue sets: 150 µs and 1,000 allocations for the simple pod, 1 ms for the one with many variables.
func BenchmarkInject(b *testing.B) {
	for _, name := range []string{"simple", "many-env"} {
		b.Run(name, func(b *testing.B) {
			h, body := benchHandler(b), benchRequest(b, name)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				answer, status, err := h.contain(body, "", "")
				if err != nil || status != 200 || len(answer) < len("patch") {
					b.Fatal(status, err)
				}
			}
		})
	}
}

func benchHandler(t testing.TB) *Handler {
	t.Helper()
	cfg, problems := inject.Default("").Compile()
	if cfg == nil {
		t.Fatal(problems)
	}
	h, err := New(Config{Config: func() *inject.Config { return cfg }, Registerer: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// benchRequest is testdata/review.json, in the form in which an API server sends a ReplicaSet's pod, with its defaults and managed fields;
// many-env gives its container 500 variables.
func benchRequest(t testing.TB, name string) []byte {
	t.Helper()
	body, err := os.ReadFile("testdata/review.json")
	if err != nil {
		t.Fatal(err)
	}
	if name == "simple" {
		return body
	}
	var r map[string]any
	if err := json.Unmarshal(body, &r); err != nil {
		t.Fatal(err)
	}
	containers := r["request"].(map[string]any)["object"].(map[string]any)["spec"].(map[string]any)["containers"].([]any)
	var env []any
	for i := range 500 {
		env = append(env, map[string]any{"name": fmt.Sprintf("VARIABLE_NUMBER_%d", i), "value": fmt.Sprintf("value number %d", i)})
	}
	containers[0].(map[string]any)["env"] = env
	if body, err = json.Marshal(r); err != nil {
		t.Fatal(err)
	}
	return body
}

// TestAllocations keeps the simple pod's answer within its bound; allocations, unlike times, are the same on every machine.
func TestAllocations(t *testing.T) {
	h, body := benchHandler(t), benchRequest(t, "simple")
	if n := testing.AllocsPerRun(20, func() {
		if _, _, err := h.contain(body, "", ""); err != nil {
			t.Fatal(err)
		}
	}); n > 1000 {
		t.Errorf("%.0f allocations for one pod, the bound is 1000", n)
	}
}

// FuzzAnswer: no body makes the handler panic, and every answer is one.
func FuzzAnswer(f *testing.F) {
	body, err := os.ReadFile("testdata/review.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","resource":{"version":"v1","resource":"pods"},"object":{"spec":{"containers":[{"name":"istio-proxy"}]},"metadata":{"annotations":{"sidecar.istio.io/status":"{}"}}}}}`))
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","resource":{"version":"v1","resource":"pods"},"object":{"spec":{"containers":[{"name":"a"},{"name":"a","livenessProbe":{}}],"initContainers":[null]}}}}`))
	h := benchHandler(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		answer, _, err := h.answer(body, "", "")
		if err == nil && !json.Valid(answer) {
			t.Errorf("the answer is no JSON: %s", answer)
		}
	})
}
