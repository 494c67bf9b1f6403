package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// errFailed ends a run of the load in which requests failed.
var errFailed = errors.New("requests failed")

// loadConfig is one run of the load generator.
type loadConfig struct {
	URL      string
	Rate     float64       // requests a second
	Duration time.Duration // 0 runs until it is ended
	HTTP2    bool          // without TLS, by prior knowledge
	Timeout  time.Duration // of one request
	Report   time.Duration // between two lines of progress; 0 for none
}

func runLoad(ctx context.Context, args []string, out io.Writer) error {
	var c loadConfig
	flags := flag.NewFlagSet("sample load", flag.ContinueOnError)
	flags.StringVar(&c.URL, "url", "http://web/api", "what to request")
	flags.Float64Var(&c.Rate, "rate", 10, "requests a second, sent at their time whether or not earlier ones are answered")
	flags.DurationVar(&c.Duration, "duration", 0, "how long; 0 is until SIGTERM")
	http1 := flags.Bool("http1", false, "HTTP/1.1 (the default)")
	flags.BoolVar(&c.HTTP2, "http2", false, "HTTP/2 without TLS")
	flags.DurationVar(&c.Timeout, "timeout", 5*time.Second, "longest wait for one answer")
	flags.DurationVar(&c.Report, "report", 10*time.Second, "time between two lines of progress; 0 for none")
	untilEOF := flags.Bool("until-eof", false, "end when standard input does: kubectl exec -i passes that on, and no signal")
	addr := flags.String("addr", "", "address for metrics and health, such as :8080; none when empty")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *http1 && c.HTTP2 {
		return errors.New("load: --http1 and --http2 exclude each other")
	}
	if target, err := url.Parse(c.URL); err != nil || target.Host == "" || target.Scheme != "http" {
		return fmt.Errorf("load: --url %q is not of the form http://HOST/PATH", c.URL)
	}
	if c.Rate <= 0 || c.Rate > 100000 {
		return fmt.Errorf("load: --rate %g is not between 0 and 100000", c.Rate)
	}
	registry := prometheus.NewRegistry()
	l, err := newLoad(c, registry)
	if err != nil {
		return err
	}
	serving := make(chan error, 1)
	serveCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	if *addr != "" {
		listener, err := listen(ctx, *addr)
		if err != nil {
			stop()
			return fmt.Errorf("load: serve metrics: %w", err)
		}
		go func() { serving <- serve(serveCtx, listener, health(registry), 0) }()
	} else {
		serving <- nil
	}
	if *untilEOF {
		var end context.CancelFunc
		ctx, end = context.WithCancel(ctx)
		defer end()
		go func() { _, _ = io.Copy(io.Discard, os.Stdin); end() }()
	}
	result := l.run(ctx)
	stop()
	if err := <-serving; err != nil {
		slog.Warn("metrics ended", "error", err)
	}
	result.write(out)
	if result.failed() > 0 {
		return errFailed
	}
	return nil
}

// load sends requests at a constant rate. It never repeats one: what fails has failed.
type load struct {
	config   loadConfig
	client   *http.Client
	results  chan outcome
	requests *prometheus.CounterVec
	seconds  prometheus.Histogram
}

// outcome is one request: the time it took, or why it failed.
type outcome struct {
	failure string // "" when it did not
	class   string // of the failure: one of few, for the metric
	took    time.Duration
}

func newLoad(c loadConfig, registerer prometheus.Registerer) (*load, error) {
	l := &load{
		config:  c,
		client:  &http.Client{Transport: newTransport(c.HTTP2), Timeout: c.Timeout},
		results: make(chan outcome, 1024),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "load_requests_total", Help: "Requests made, by how they ended: ok, timeout, error, or the status code.",
		}, []string{"result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "load_request_seconds", Help: "Time until the whole answer was read, of requests that did not fail.", Buckets: prometheus.DefBuckets,
		}),
	}
	for _, collector := range []prometheus.Collector{l.requests, l.seconds} {
		if err := registerer.Register(collector); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return l, nil
}

// run sends until the time is over or ctx ends, and waits for the answers to what it has sent.
func (l *load) run(ctx context.Context) *summary {
	if l.config.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.config.Duration)
		defer cancel()
	}
	s := newSummary(l.config)
	sent := make(chan int, 1)
	go func() { sent <- l.send(ctx) }()
	var report <-chan time.Time
	if l.config.Report > 0 {
		ticker := time.NewTicker(l.config.Report)
		defer ticker.Stop()
		report = ticker.C
	}
	total := -1 // unknown while requests are being sent
	for total < 0 || s.count() < total {
		select {
		case o := <-l.results:
			s.add(o)
			l.observe(o)
		case total = <-sent:
		case <-report:
			slog.Info("load", "requests", s.count(), "failed", s.failed())
		}
	}
	s.elapsed = time.Since(s.started)
	return s
}

// send starts each request at its time, whether or not earlier ones were answered, and says how many it has started. A
// sender that fell behind, because the machine was busy, catches up at once.
func (l *load) send(ctx context.Context) (started int) {
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		due := start.Add(time.Duration(float64(started) / l.config.Rate * float64(time.Second)))
		timer.Reset(time.Until(due))
		select {
		case <-ctx.Done():
			return started
		case <-timer.C:
		}
		if l.config.Duration > 0 && due.Sub(start) >= l.config.Duration {
			return started
		}
		started++
		go func() { l.results <- l.request(context.WithoutCancel(ctx)) }()
	}
}

// once is an empty body that cannot be rewound: the client library sends a request without a body a second time by itself
// when a connection breaks, and that would hide the failure.
type once struct{ io.Reader }

func (once) Close() error { return nil }

func (l *load) request(ctx context.Context) outcome {
	start := time.Now()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, l.config.URL, once{bytes.NewReader(nil)})
	if err != nil {
		return outcome{failure: err.Error(), class: "error"}
	}
	response, err := l.client.Do(request)
	if err != nil {
		return failed("", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 16<<20))
	if err != nil {
		return failed("answer cut off: ", err)
	}
	if response.StatusCode != http.StatusOK {
		code := fmt.Sprintf("HTTP %d", response.StatusCode)
		return outcome{failure: fmt.Sprintf("%s: %.120s", code, bytes.TrimSpace(body)), class: code}
	}
	return outcome{took: time.Since(start)}
}

func failed(prefix string, err error) outcome {
	o := outcome{failure: prefix + reason(err), class: "error"}
	if reason(err) == timedOut {
		o.class = timedOut
	}
	return o
}

const timedOut = "timeout"

// reason is an error without what differs from request to request, so that equal failures are counted together.
func reason(err error) string {
	var network net.Error
	if errors.As(err, &network) && network.Timeout() {
		return timedOut
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		return call.Error()
	}
	var lookup *net.DNSError
	if errors.As(err, &lookup) {
		return "lookup " + lookup.Name + ": " + lookup.Err
	}
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	return err.Error()
}

func (l *load) observe(o outcome) {
	if o.failure == "" {
		l.requests.WithLabelValues("ok").Inc()
		l.seconds.Observe(o.took.Seconds())
		return
	}
	l.requests.WithLabelValues(o.class).Inc()
}
