package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

// The annotations by which a pod chooses its proxy's statistics. Injection has checked them; here they come from the downward API.
const (
	statsPrefixes = "sidecar.istio.io/statsInclusionPrefixes"
	statsSuffixes = "sidecar.istio.io/statsInclusionSuffixes"
	statsRegexps  = "sidecar.istio.io/statsInclusionRegexps"
	statsFlush    = "sidecar.istio.io/statsFlushInterval"
	statsEviction = "sidecar.istio.io/statsEvictionInterval"
	statsBuckets  = "sidecar.istio.io/statsHistogramBuckets"
)

// defaultFlush is Envoy's own, which eviction counts in.
const defaultFlush = 5 * time.Second

// stats says which statistics Envoy keeps and how, by ProxyConfig and the pod's annotations, which win kind by kind.
func (c Config) stats(annotations map[string]any) (s envoy.StatsConfig, err error) {
	value := func(name string) string { v, _ := annotations[name].(string); return v }
	s.Prefixes = c.chosen(value(statsPrefixes), c.Proxy.StatsMatcher.Prefixes)
	s.Suffixes = c.chosen(value(statsSuffixes), c.Proxy.StatsMatcher.Suffixes)
	s.Regexps = c.chosen(value(statsRegexps), c.Proxy.StatsMatcher.Regexps)
	if c.Ports.Inbound != envoy.InboundPort { // draining goes by the inbound listener's counters
		s.Regexps = append(s.Regexps, fmt.Sprintf(`listener\.[0-9._\[\]]+_%d\..*`, c.Ports.Inbound))
	}
	for _, d := range []struct {
		name string
		into *time.Duration
	}{{statsFlush, &s.FlushInterval}, {statsEviction, &s.EvictionInterval}} {
		text := value(d.name)
		if text == "" {
			continue
		}
		if *d.into, err = time.ParseDuration(text); err != nil || *d.into <= 0 {
			return s, fmt.Errorf("annotation %s: %q is no duration such as 5s", d.name, text)
		}
	}
	if s.EvictionInterval > 0 && s.FlushInterval == 0 {
		s.FlushInterval = defaultFlush
	}
	if text := value(statsBuckets); text != "" {
		if json.Unmarshal([]byte(text), &s.Buckets) != nil {
			return s, errors.New("annotation " + statsBuckets + ": want a JSON object of prefix to numbers")
		}
	}
	return s, nil
}

// chosen is the annotation's list, or without one ProxyConfig's. {pod_ip} stands for each of the pod's addresses.
func (c Config) chosen(annotation string, otherwise []string) (list []string) {
	items := otherwise
	if annotation != "" {
		items = strings.Split(annotation, ",")
	}
	for _, item := range items {
		item = strings.TrimSpace(item)
		switch {
		case item == "":
		case strings.Contains(item, "{pod_ip}"):
			for _, address := range c.addresses() {
				list = append(list, strings.ReplaceAll(item, "{pod_ip}", address))
			}
		default:
			list = append(list, item)
		}
	}
	return list
}
