package status

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// The limits of a scrape. What an application answers is passed on line by line and never held.
const (
	scrapeTimeout = 10 * time.Second // Prometheus' default, when it does not say
	maxAppMetrics = 64 << 20         // bytes
	maxMetricLine = 1 << 20          // bytes; one sample with its labels
	maxTargets    = 32               // of one application
)

// Scrape is where the application serves its own metrics.
type Scrape struct {
	Port uint16
	Path string
}

// ParseScrape reads ISTIO_PROMETHEUS_ANNOTATIONS, {"scrape":"true","path":"/metrics","port":"8080","targets":[…]}: what the pod's own
// prometheus.io annotations said before they were changed to the agent's port. Targets, each with a port and a path, come before the
// one port and path. Only "scrape" that says no gives none, as in Istio.
func ParseScrape(text string) ([]Scrape, error) {
	if text == "" {
		return nil, nil
	}
	type target struct {
		Path string `json:"path"`
		Port string `json:"port"`
	}
	var in struct {
		target
		Scrape  string   `json:"scrape"`
		Targets []target `json:"targets"`
	}
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		return nil, fmt.Errorf("parse scrape settings: %w", err)
	}
	if wanted, err := strconv.ParseBool(in.Scrape); err == nil && !wanted {
		return nil, nil
	}
	if len(in.Targets) == 0 {
		in.Targets = []target{in.target}
	}
	if len(in.Targets) > maxTargets {
		return nil, fmt.Errorf("parse scrape settings: %d targets: the most is %d", len(in.Targets), maxTargets)
	}
	var list []Scrape
	for _, t := range in.Targets {
		s := Scrape{Port: 80, Path: "/metrics"}
		if t.Port != "" {
			n, err := strconv.ParseUint(t.Port, 10, 16)
			if err != nil || n == 0 {
				return nil, fmt.Errorf("parse scrape settings: port %q: want a number from 1 to 65535 (annotation prometheus.io/port)", t.Port)
			}
			s.Port = uint16(n)
		}
		if t.Path != "" {
			s.Path = "/" + strings.TrimPrefix(t.Path, "/")
		}
		list = append(list, s)
	}
	return list, nil
}

func (s Scrape) url() string {
	return "http://" + net.JoinHostPort("localhost", strconv.Itoa(int(s.Port))) + s.Path
}

// merger serves the metrics of the proxy, the application and the agent as one answer.
type merger struct {
	proxyURL string
	apps     []Scrape
	own      prometheus.Gatherer
	client   *http.Client
	scrapes  prometheus.Counter
	failures *prometheus.CounterVec // type: envoy, application, agent
}

func newMerger(proxyURL string, apps []Scrape, own *prometheus.Registry) *merger {
	m := &merger{
		proxyURL: proxyURL, apps: apps, own: own,
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, Proxy: nil}},
		scrapes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "istio_agent_scrapes_total", Help: "Scrapes of the merged metrics."}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_agent_scrape_failures_total", Help: "Sources that could not be scraped for the merged metrics."}, []string{"type"}),
	}
	own.MustRegister(m.scrapes, m.failures)
	return m
}

// ServeHTTP answers in the format that the application answered in, so that nothing of it is lost; without one, and with several, in
// the text format. A source that fails is counted and left out: the others' metrics are worth having most when something is wrong.
func (m *merger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.scrapes.Inc()
	ctx, cancel := context.WithTimeout(r.Context(), timeoutOf(r))
	defer cancel()
	apps, contentType := m.ask(ctx, r.Header.Get("Accept"))
	openMetrics := isOpenMetrics(contentType)
	w.Header().Set("Content-Type", contentType)
	out := bufio.NewWriterSize(w, 32<<10)
	defer func() { _ = out.Flush() }() // the scraper may have gone
	if err := m.writeOwn(out, contentType, openMetrics); err != nil {
		m.failures.WithLabelValues("agent").Inc()
	}
	if body, _, err := m.get(ctx, m.proxyURL, "text/plain"); err != nil {
		m.failures.WithLabelValues("envoy").Inc()
	} else {
		if err := copyProxy(out, body, openMetrics); err != nil {
			m.failures.WithLabelValues("envoy").Inc()
		}
		body.Close()
	}
	for _, app := range apps {
		if err := copyApp(out, app); err != nil {
			m.failures.WithLabelValues("application").Inc()
		}
		app.Close()
	}
	if openMetrics {
		_, _ = out.WriteString("# EOF\n")
	}
}

// ask asks the application for its metrics, all targets at once. Those of several can only be joined in one format, the plain one.
func (m *merger) ask(ctx context.Context, accept string) (bodies []io.ReadCloser, contentType string) {
	contentType = string(expfmt.NewFormat(expfmt.TypeTextPlain))
	if len(m.apps) > 1 {
		accept = ""
	}
	bodies = make([]io.ReadCloser, len(m.apps))
	types := make([]string, len(m.apps))
	var wg sync.WaitGroup
	for i, app := range m.apps {
		wg.Go(func() {
			body, given, err := m.get(ctx, app.url(), acceptable(accept))
			if err == nil && len(m.apps) > 1 && isOpenMetrics(given) {
				body.Close()
				err = errNotPlain
			}
			if err != nil {
				m.failures.WithLabelValues("application").Inc()
				return
			}
			bodies[i], types[i] = body, given
		})
	}
	wg.Wait()
	if len(m.apps) == 1 && types[0] != "" {
		contentType = types[0]
	}
	return slices.DeleteFunc(bodies, func(b io.ReadCloser) bool { return b == nil }), contentType
}

// errNotPlain says that a target answers in a format that was not asked for and cannot be joined with others.
var errNotPlain = errors.New("the application answers in another format than it was asked for")

// timeoutOf leaves a little of Prometheus' own time-out for the answer's way back.
func timeoutOf(r *http.Request) time.Duration {
	seconds, err := strconv.ParseFloat(r.Header.Get("X-Prometheus-Scrape-Timeout-Seconds"), 64)
	if err != nil || seconds <= 0 || seconds > 600 {
		return scrapeTimeout
	}
	return time.Duration(seconds * 0.95 * float64(time.Second))
}

const openMetricsType = "application/openmetrics-text"

func isOpenMetrics(contentType string) bool {
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && media == openMetricsType
}

// acceptable keeps the text formats of an Accept header: others cannot be joined with Envoy's.
func acceptable(accept string) string {
	var kept []string
	for part := range strings.SplitSeq(accept, ",") {
		media, _, err := mime.ParseMediaType(part)
		if err == nil && (media == "text/plain" || media == openMetricsType) {
			kept = append(kept, strings.TrimSpace(part))
		}
	}
	if len(kept) == 0 {
		return "text/plain;version=0.0.4"
	}
	return strings.Join(kept, ",")
}

func (m *merger) get(ctx context.Context, url, accept string) (body io.ReadCloser, contentType string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, "", err
	}
	request.Header.Set("Accept", accept)
	answer, err := m.client.Do(request)
	if err != nil {
		return nil, "", err
	}
	if answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		return nil, "", fmt.Errorf("get %s: %s", url, answer.Status)
	}
	return answer.Body, answer.Header.Get("Content-Type"), nil
}

func (m *merger) writeOwn(w io.Writer, contentType string, openMetrics bool) error {
	families, gatherErr := m.own.Gather()
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	if openMetrics {
		format = expfmt.Format(contentType)
		if format.FormatType() != expfmt.TypeOpenMetrics {
			format = expfmt.NewFormat(expfmt.TypeOpenMetrics)
		}
	}
	encoder := expfmt.NewEncoder(w, format)
	for _, f := range families {
		if err := encoder.Encode(f); err != nil {
			return err
		}
	}
	return gatherErr
}

// istioPrefix begins Envoy's names of Istio's own metrics: its statistics cannot be named without "envoy".
const istioPrefix = "envoy_istio_"

// copyProxy passes Envoy's text on: its envoy_istio_… under the names that dashboards ask for, and in OpenMetrics where that is asked.
func copyProxy(w *bufio.Writer, body io.Reader, openMetrics bool) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 16<<10), maxMetricLine)
	unit := []byte("# TYPE ")
	for lines.Scan() {
		line := lines.Bytes()
		if openMetrics && len(line) == 0 { // not allowed there
			continue
		}
		head, rest := []byte(nil), line
		if after, ok := bytes.CutPrefix(line, unit); ok {
			head, rest = unit, after
		} else if after, ok := bytes.CutPrefix(line, []byte("# HELP ")); ok {
			head, rest = []byte("# HELP "), after
		}
		if bytes.HasPrefix(rest, []byte(istioPrefix)) {
			rest = rest[len("envoy_"):]
		}
		if openMetrics && len(head) > 0 {
			rest = openMetricsFamily(rest)
		}
		_, _ = w.Write(head)
		_, _ = w.Write(rest)
		if err := w.WriteByte('\n'); err != nil {
			return err
		}
	}
	return lines.Err()
}

// openMetricsFamily turns "NAME counter" into what OpenMetrics wants: a counter's family is named without the _total that its samples
// must have, and one whose samples have no _total is of no known type.
func openMetricsFamily(declaration []byte) []byte {
	name, kind, ok := bytes.Cut(declaration, []byte(" "))
	if !ok || string(kind) != "counter" {
		return declaration
	}
	if family, ok := bytes.CutSuffix(name, []byte("_total")); ok {
		return append(append(make([]byte, 0, len(declaration)), family...), " counter"...)
	}
	return append(append(make([]byte, 0, len(declaration)+1), name...), " unknown"...)
}

// errTooLarge says that the application's metrics were cut.
var errTooLarge = errors.New("the application's metrics are larger than the agent passes on")

// copyApp passes the application's metrics on, without the mark of their end, in whole lines.
func copyApp(w *bufio.Writer, body io.Reader) error {
	limited := &io.LimitedReader{R: body, N: maxAppMetrics}
	lines := bufio.NewScanner(limited)
	lines.Buffer(make([]byte, 0, 16<<10), maxMetricLine)
	for lines.Scan() {
		if limited.N == 0 {
			return errTooLarge // this line may be a part of one
		}
		if bytes.Equal(lines.Bytes(), []byte("# EOF")) {
			continue
		}
		_, _ = w.Write(lines.Bytes())
		if err := w.WriteByte('\n'); err != nil {
			return err
		}
	}
	return lines.Err()
}
