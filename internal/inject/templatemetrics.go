package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"istio.io/api/annotation"
	corev1 "k8s.io/api/core/v1"
)

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

// scrapeOf reads the annotations, and lists those that it read. merge is false where the application wants no scraping.
func scrapeOf(annotations map[string]string) (s appScrape, read []string, merge bool, err error) {
	merge = true
	for _, name := range sortedKeys(annotations) {
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
			if s.Targets, err = parseTargets(value); err != nil {
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
func parseTargets(value string) (out []appTarget, err error) {
	for _, item := range items(value) {
		port, path, _ := strings.Cut(item, ":")
		t := appTarget{Port: strings.TrimSpace(port), Path: first(strings.TrimSpace(path), "/metrics")}
		if err := scrapablePort(t.Port); err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

func scrapablePort(port string) error {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("%q is no port", port)
	}
	for _, own := range meshPorts {
		if int(n) == own {
			return fmt.Errorf("port %d is the mesh's own", n)
		}
	}
	return nil
}

// metrics has the application's metrics merged by the agent, and Prometheus sent there. It is for agents of any kind: our own typed
// path knows what ours can do.
func (t *templating) metrics(s *podSettings) error {
	if t.forAgent() { // what the agent is told of the application's metrics stands in .Sidecar.Proxy.Env
		if !merges(t.out, s) {
			return nil
		}
		t.annotate(prometheusScrape, "true")
		t.annotate(prometheusPort, strconv.Itoa(agentPort))
		t.annotate(prometheusPath, "/stats/prometheus")
		return nil
	}
	app, read, merge, err := scrapeOf(t.out.Annotations)
	if err != nil {
		return err
	}
	port := strconv.Itoa(t.config.statusPort())
	if !merge || !s.mergeMetrics || app.Port == port {
		return nil // it is the mesh's own port already: from an earlier injection
	}
	if app.Port != "" && len(app.Targets) == 0 {
		if err := scrapablePort(app.Port); err != nil {
			return errors.New(prometheusPort + ": " + err.Error())
		}
	}
	if proxy := sidecarOf(t.out); proxy != nil && len(read) > 0 {
		data, err := json.Marshal(app)
		if err != nil {
			return err
		}
		proxy.Env = append(proxy.Env, corev1.EnvVar{Name: "ISTIO_PROMETHEUS_ANNOTATIONS", Value: literal(string(data))})
	}
	for _, name := range read {
		delete(t.out.Annotations, name) // Prometheus would take one of several spellings by chance
	}
	t.annotate(prometheusScrape, "true")
	t.annotate(prometheusPort, port)
	t.annotate(prometheusPath, "/stats/prometheus")
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
