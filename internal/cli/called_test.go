package cli

import (
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestProgramIsNamedAsItWasCalled: what a message tells to type works where the user is; the heading of it is the short name.
func TestProgramIsNamedAsItWasCalled(t *testing.T) {
	for program, want := range map[string]struct{ name, called, display string }{
		"selvage":                        {"selvage", "selvage", "selvage"},
		"bin/selvage":                    {"selvage", "bin/selvage", "bin/selvage"},
		"./selvage":                      {"selvage", "./selvage", "./selvage"},
		"/opt/selvage-1.0.0/bin/selvage": {"selvage", "/opt/selvage-1.0.0/bin/selvage", "selvage"},
		"/usr/local/bin/kubectl-selvage": {"kubectl selvage", "kubectl selvage", "kubectl selvage"},
		"kubectl-selvage":                {"kubectl selvage", "kubectl selvage", "kubectl selvage"},
	} {
		a := &app{Config: Config{Program: program}}
		if a.name() != want.name || a.called() != want.called || a.display() != want.display {
			t.Errorf("%s: name %q, called %q, display %q; want %+v", program, a.name(), a.called(), a.display(), want)
		}
	}
	var stderr strings.Builder
	none := Config{Program: "bin/selvage", Stdout: &stderr, Stderr: &stderr, Getenv: func(string) string { return "" }}
	t.Setenv("KUBECONFIG", "")
	t.Setenv("HOME", t.TempDir())
	if code := Run(t.Context(), none, []string{"status"}); code != exitCannot || !strings.Contains(stderr.String(), "`bin/selvage up`") {
		t.Errorf("exit code %d, it says: %s", code, stderr.String())
	}
}

// TestServerThatDoesNotAnswer is the one fault that takes as long as the timeout, here a short one.
func TestServerThatDoesNotAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // it takes connections into its queue, and nobody accepts them
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Client{Timeout: time.Millisecond}).Do(request)
	if err == nil {
		response.Body.Close()
		t.Fatal("it answers")
	}
	a := &app{host: "https://" + l.Addr().String()}
	if text := a.explain(err); !strings.Contains(text, "takes connections and does not answer (waited 40s): try again; is it running?") {
		t.Error(text)
	}
}
