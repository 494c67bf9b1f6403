package jwks

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/selvage-mesh/selvage/internal/index"
)

// told is what a fetcher says, by address.
type told struct {
	mu    sync.Mutex
	sets  map[string]index.KeySet
	tries int
	more  chan struct{}
}

func start(t *testing.T, transport http.RoundTripper) (*Fetcher, *told) {
	t.Helper()
	out := &told{sets: map[string]index.KeySet{}, more: make(chan struct{}, 100)}
	f, err := New(Config{Transport: transport,
		OnKeys: func(uri string, set index.KeySet) {
			out.mu.Lock()
			out.sets[uri] = set
			out.tries++
			out.mu.Unlock()
			out.more <- struct{}{}
		},
		OnGone: func(uri string) {
			out.mu.Lock()
			delete(out.sets, uri)
			out.mu.Unlock()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return f, out
}

func (o *told) get(uri string) index.KeySet {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.sets[uri]
}

// TestFetch reads from real servers.
func TestFetch(t *testing.T) {
	const keys = `{"keys":[]}`
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	defer server.Close()
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, keys) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/keys", http.StatusFound) })
	mux.HandleFunc("/round", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/round", http.StatusFound) })
	mux.HandleFunc("/long", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("x", maxBytes+1))
	})
	mux.HandleFunc("/found"+index.Discovery, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"issuer":"`+server.URL+`/found","jwks_uri":"`+server.URL+`/keys"}`)
	})
	mux.HandleFunc("/other"+index.Discovery, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"issuer":"https://other.example","jwks_uri":"`+server.URL+`/keys"}`)
	})
	f, _ := start(t, http.DefaultTransport)
	for path, want := range map[string]string{
		"/keys": "", "/moved": "", "/found" + index.Discovery: "", "/round": "more than three times", "/long": "longer than",
		"/other" + index.Discovery: "another issuer", "/nothing": "Not Found",
	} {
		text, err := f.fetch(t.Context(), server.URL+path)
		if want == "" && (err != nil || text != keys) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %q, %v; want %q", path, text, err, want)
		}
	}
	for _, uri := range []string{"file:///etc/passwd", "gopher://x", "https://user:secret@x.example/", "nonsense"} {
		if _, err := f.fetch(t.Context(), uri); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// TestForbiddenAddresses: who may write a RequestAuthentication must not reach through the control plane what only it reaches.
func TestForbiddenAddresses(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was asked") }))
	defer server.Close()
	f, _ := start(t, nil)
	for _, uri := range []string{server.URL, strings.Replace(server.URL, "127.0.0.1", "localhost", 1), strings.Replace(server.URL, "127.0.0.1", "[::ffff:127.0.0.1]", 1)} {
		if _, err := f.fetch(t.Context(), uri); err == nil || !strings.Contains(err.Error(), "loopback") {
			t.Errorf("%s: %v", uri, err)
		}
	}
	for text, ok := range map[string]bool{
		"169.254.169.254": false, "fe80::1": false, "fd00:ec2::254": false, "::ffff:169.254.169.254": false, "0.0.0.0": false, "::1": false,
		"100.100.100.200": false, "224.0.0.1": false, "10.96.0.10": true, "192.0.2.7": true, "fd00::10": true,
		"64:ff9b::a9fe:a9fe": false, "2002:a9fe:a9fe::1": false, "::a9fe:a9fe": false, "168.63.129.16": false, "fd20:ce::254": false,
		"64:ff9b::c000:207": true,
	} {
		if err := refuse(netip.MustParseAddr(text)); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// roundTrip answers requests without a network.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestAnswerThatIsNoText: what a message to a proxy cannot carry is refused where it comes in.
func TestAnswerThatIsNoText(t *testing.T) {
	f, _ := start(t, roundTrip(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader("{\"keys\":[{\"kid\":\"\xff\"}]}"))}, nil
	}))
	if text, err := f.fetch(t.Context(), "https://issuer.example/keys"); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("%q, %v", text, err)
	}
}

// flaky answers as it is told.
type flaky struct {
	mu   sync.Mutex
	fail bool
}

func (f *flaky) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail {
		return nil, errors.New("it is away")
	}
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(`{"keys":[]}`)), Request: r}, nil
}

// TestKeysStayWhileTheIssuerIsAway: keys are read again in time, and an error never takes away what was read.
func TestKeysStayWhileTheIssuerIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const uri = "https://a.example/keys"
		issuer := &flaky{fail: true}
		f, out := start(t, issuer)
		go func() { _ = f.Run(t.Context()) }()
		f.Want(map[string]time.Duration{uri: time.Second})
		<-out.more
		if set := out.get(uri); set.Text != "" || set.Error != "it is away" {
			t.Fatalf("%+v", set)
		}
		issuer.mu.Lock()
		issuer.fail = false
		issuer.mu.Unlock()
		<-out.more // the retry
		if set := out.get(uri); set.Text == "" || set.Error != "" {
			t.Fatalf("%+v", set)
		}
		issuer.mu.Lock()
		issuer.fail = true
		issuer.mu.Unlock()
		began := time.Now()
		<-out.more
		if set := out.get(uri); set.Text == "" || set.Error == "" || time.Since(began) != refresh {
			t.Fatalf("%+v after %s", set, time.Since(began))
		}
		f.Want(nil)
		if set := out.get(uri); set != (index.KeySet{}) {
			t.Errorf("what nobody wants stays: %+v", set)
		}
		tries := out.tries
		time.Sleep(time.Hour)
		if out.tries != tries {
			t.Error("what nobody wants is read")
		}
	})
}
