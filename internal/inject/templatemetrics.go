package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"istio.io/api/annotation"
	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// Prometheus' annotations, by the convention of its Kubernetes scrape configurations, and Istio's for several targets, which its API
// package does not have.
const (
	prometheusScrape = "prometheus.io/scrape"
	prometheusPath   = "prometheus.io/path"
	prometheusPort   = "prometheus.io/port"
	scrapeTargets    = "prometheus.istio.io/scrape-targets"
)

// scrapeEnv tells the agent how the application wants to be scraped.
const scrapeEnv = "ISTIO_PROMETHEUS_ANNOTATIONS"

// mergedPath is where the agent serves the merged metrics.
const mergedPath = "/stats/prometheus"

// What Prometheus' Kubernetes discovery makes of annotations does not tell prometheus.io/port from prometheus_io_port: every character
// that is no letter or digit is one underscore. So all spellings count.
const (
	scrapeLabel  = "prometheus_io_scrape"
	portLabel    = "prometheus_io_port"
	pathLabel    = "prometheus_io_path"
	targetsLabel = "prometheus_istio_io_scrape_targets"
)

// prometheusLabel is the name of an annotation as Prometheus knows it.
func prometheusLabel(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '_'
	}, name)
}

// appScrape is how the application wants to be scraped: what Istio's agent reads from ISTIO_PROMETHEUS_ANNOTATIONS.
type appScrape struct {
	Scrape  string      `json:"scrape"`
	Path    string      `json:"path"`
	Port    string      `json:"port"`
	Targets []appTarget `json:"targets,omitempty"`
}

type appTarget struct {
	Port string `json:"port"`
	Path string `json:"path"`
}

// meshPorts are ports of the sidecar: scraping them as the application's would be a loop.
var meshPorts = []int{outboundPort, inboundPort, 15000, 15004, 15008, agentPort, readinessPort, 15053, envoyPromPort}

// scrapeOf reads the annotations, and lists those that it read. merge is false where the application wants no scraping. own are ports
// that are not the application's.
func scrapeOf(annotations map[string]string, own []int) (s appScrape, read []string, merge bool, err error) {
	merge = true
	var names []string
	for name := range annotations {
		if strings.HasPrefix(name, "prometheus") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		value := annotations[name]
		switch prometheusLabel(name) {
		case scrapeLabel:
			s.Scrape = value
			if wanted, err := strconv.ParseBool(value); err == nil {
				merge = wanted
			}
		case portLabel:
			s.Port = value
		case pathLabel:
			s.Path = value
		case targetsLabel:
			if s.Targets, err = parseTargets(value, own); err != nil {
				return s, nil, false, fmt.Errorf("%s %q: %w", name, value, err)
			}
		default:
			continue
		}
		read = append(read, name)
	}
	if len(s.Targets) > 0 {
		s.Port, s.Path = s.Targets[0].Port, s.Targets[0].Path // for agents that know one target only
	}
	return s, read, merge, nil
}

// parseTargets reads "8080:/metrics,9100".
func parseTargets(value string, own []int) (out []appTarget, err error) {
	for _, item := range items(value) {
		port, path, _ := strings.Cut(item, ":")
		t := appTarget{Port: strings.TrimSpace(port), Path: first(strings.TrimSpace(path), "/metrics")}
		if err := scrapablePort(t.Port, own); err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

func scrapablePort(port string, own []int) error {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("%q is no port", port)
	}
	if slices.Contains(own, int(n)) {
		return fmt.Errorf("port %d is the mesh's own", n)
	}
	return nil
}

// scrape is what becomes of the application's metrics: where they are merged, Prometheus is sent to the agent, which is told where the
// application has its own.
type scrape struct {
	merged bool
	app    appScrape
	read   []string // the annotations that said it
	port   int32    // the agent's
}

// notTheApplications are the ports of the mesh in this pod.
func (s *podSettings) notTheApplications() []int {
	if s.agentPort == agentPort && s.answersAlso() == 0 {
		return meshPorts
	}
	own := slices.DeleteFunc(slices.Clone(meshPorts), func(port int) bool { return port == agentPort })
	return append(own, int(s.agentPort), int(s.answersAlso()))
}

// useScrape reads how the application wants to be scraped.
func (s *podSettings) useScrape(annotations map[string]string) (err error) {
	if !s.mergeMetrics {
		return nil
	}
	own := s.notTheApplications()
	sc := scrape{port: s.agentPort}
	if sc.app, sc.read, sc.merged, err = scrapeOf(annotations, own); err != nil {
		return err
	}
	if !sc.merged || sc.app.Port == strconv.Itoa(int(sc.port)) {
		return nil // it is the agent's own port already: from an earlier injection
	}
	if sc.app.Port != "" && len(sc.app.Targets) == 0 {
		if err := scrapablePort(sc.app.Port, own); err != nil {
			return errors.New(prometheusPort + ": " + err.Error())
		}
	}
	s.scrape = sc
	return nil
}

// told is the value of scrapeEnv; "" is none.
func (s *scrape) told() string {
	if !s.merged || len(s.read) == 0 {
		return ""
	}
	data, err := json.Marshal(s.app)
	if err != nil {
		panic("encode scrape settings: " + err.Error()) // strings only
	}
	return string(data)
}

// annotations send Prometheus to the agent.
func (s *scrape) annotations() map[string]string {
	return map[string]string{prometheusScrape: "true", prometheusPort: strconv.Itoa(int(s.port)), prometheusPath: mergedPath}
}

// annotate changes the annotations of a pod: Prometheus would take one of several spellings by chance.
func (s *scrape) annotate(annotations map[string]string) {
	if !s.merged {
		return
	}
	for _, name := range s.read {
		delete(annotations, name)
	}
	maps.Copy(annotations, s.annotations())
}

// notScrapable is the error for annotations about metrics that cannot be used.
func notScrapable(subject ref.Ref, err error) *RefusedError {
	return &RefusedError{Problems: []diag.Problem{{Code: diag.InvalidAnnotation, Severity: diag.Error, Object: subject, Field: "metadata.annotations",
		Detail: "the application cannot be scraped: " + err.Error(), Hint: "name a port of the application"}}}
}

// metrics has the application's metrics merged by the agent, and Prometheus sent there. It is for agents of any kind.
func (t *templating) metrics(s *podSettings) error {
	if t.forAgent() { // what the agent is told of the application's metrics stands in .Sidecar.Proxy.Env
		if t.out.Annotations == nil {
			t.out.Annotations = map[string]string{}
		}
		s.scrape.annotate(t.out.Annotations)
		return nil
	}
	app, read, merge, err := scrapeOf(t.out.Annotations, meshPorts)
	if err != nil {
		return err
	}
	sc := scrape{merged: merge && s.mergeMetrics, app: app, read: read, port: int32(t.config.statusPort())}
	if !sc.merged || app.Port == strconv.Itoa(int(sc.port)) {
		return nil // it is the mesh's own port already: from an earlier injection
	}
	if app.Port != "" && len(app.Targets) == 0 {
		if err := scrapablePort(app.Port, meshPorts); err != nil {
			return errors.New(prometheusPort + ": " + err.Error())
		}
	}
	if proxy := sidecarOf(t.out); proxy != nil && len(read) > 0 {
		proxy.Env = append(proxy.Env, corev1.EnvVar{Name: scrapeEnv, Value: literal(sc.told())})
	}
	if t.out.Annotations == nil {
		t.out.Annotations = map[string]string{}
	}
	sc.annotate(t.out.Annotations)
	return nil
}

// statusPort is where agents of the mesh answer: the ProxyConfig's, 15020 by default.
func (c *Config) statusPort() int {
	if port := c.settings.Mesh.GetDefaultConfig().GetStatusPort(); port != 0 {
		return int(port)
	}
	return agentPort
}

// probePort is where the kubelet shall ask for the application's health: the pod's annotation comes before the mesh's port.
func (c *Config) probePort(pod *corev1.Pod) int {
	if n, err := strconv.ParseUint(pod.Annotations[annotation.SidecarStatusPort.Name], 10, 16); err == nil {
		return int(n)
	}
	return c.statusPort()
}
