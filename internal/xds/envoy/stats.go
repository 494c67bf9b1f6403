package envoy

import (
	"fmt"
	"maps"
	"slices"
	"time"

	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// StatsConfig adds to the statistics that a sidecar keeps (sidecar.istio.io/statsInclusionPrefixes, -Suffixes and -Regexps).
// Names are Envoy's full ones, such as cluster.outbound|80||web.shop.svc.cluster.local;.upstream_rq_total.
type StatsConfig struct {
	Prefixes, Suffixes, Regexps []string

	// FlushInterval is how often statistics are put together for sinks; 0 is only when someone asks. EvictionInterval, a multiple of
	// it, is how long a series may stay unused; 0 is for ever.
	FlushInterval, EvictionInterval time.Duration
	// Buckets are the upper bounds of histograms, by the prefix of their names.
	Buckets map[string][]float64
}

// check says what Envoy would refuse.
func (s StatsConfig) check() error {
	if s.FlushInterval < 0 || s.FlushInterval >= 5*time.Minute || s.FlushInterval%time.Millisecond != 0 {
		return fmt.Errorf("stats flush interval %s: want whole milliseconds, less than 5m", s.FlushInterval)
	}
	if s.EvictionInterval != 0 && (s.FlushInterval == 0 || s.EvictionInterval < 0 || s.EvictionInterval%s.FlushInterval != 0) {
		return fmt.Errorf("stats eviction interval %s is no multiple of the flush interval %s", s.EvictionInterval, s.FlushInterval)
	}
	return nil
}

// StatName ends the name of a cluster or the prefix of a filter inside the name of a statistic, so that the tags below find
// its end although it has dots in it.
func StatName(name string) string { return name + ";" }

// A sidecar of a mesh with 1,000 services would keep 150,000 statistics if it kept all that Envoy can. These are the ones
// that say whether the proxy itself is well, what comes in, and how each upstream does.
var (
	keptPrefixes = []string{
		"cluster_manager.", "listener_manager.", "control_plane.", "server.", "http.", "tcp.",
		"cluster." + XDSCluster + ";.", "cluster." + SDSCluster + ";.",
		"listener.0.0.0.0_15006.", "listener.[__]_15006.", "listener.0.0.0.0_15001.", "listener.[__]_15001.",
	}
	keptSuffixes = []string{
		".upstream_rq_total", ".upstream_rq_completed", ".upstream_rq_active",
		".upstream_rq_2xx", ".upstream_rq_3xx", ".upstream_rq_4xx", ".upstream_rq_5xx",
		".upstream_rq_retry", ".upstream_rq_retry_success", ".upstream_rq_timeout", ".upstream_rq_rx_reset", ".upstream_rq_tx_reset",
		".upstream_cx_total", ".upstream_cx_active", ".upstream_cx_connect_fail", ".upstream_cx_none_healthy",
		".upstream_cx_destroy_with_active_rq", ".upstream_cx_rx_bytes_total", ".upstream_cx_tx_bytes_total",
		".membership_healthy", ".membership_total",
		".ssl.handshake", ".ssl.connection_error", ".ssl.fail_verify_san", ".ssl.fail_verify_error", ".ssl.fail_verify_no_cert",
	}
)

// tags are the parts of statistics' names that become labels. Only these: each one is tried on every name.
var tags = []struct{ name, regex string }{
	{"cluster_name", `^cluster\.((.+?);\.)`},
	{"http_conn_manager_prefix", `^http\.((.+?);\.)`},
	{"tcp_prefix", `^tcp\.((.+?);\.)`},
	{"listener_address", `^listener\.((.+?_\d+)\.)`},
	{"response_code", `_rq(_(\d{3}))$`},
	{"response_code_class", `_rq(_(\dxx))$`},
	{"ssl_version", `\.ssl\.versions(\.(.+))$`},
	{"ssl_cipher", `\.ssl\.ciphers(\.(.+))$`},
	{"ssl_curve", `\.ssl\.curves(\.(.+))$`},
	{"ssl_sigalg", `\.ssl\.sigalgs(\.(.+))$`},
}

func (s StatsConfig) config() *metricsv3.StatsConfig {
	var keep matcherv3.ListStringMatcher
	for _, list := range [][]string{keptPrefixes, s.Prefixes} {
		for _, p := range list {
			keep.Patterns = append(keep.Patterns, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: p}})
		}
	}
	for _, list := range [][]string{keptSuffixes, s.Suffixes} {
		for _, p := range list {
			keep.Patterns = append(keep.Patterns, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: p}})
		}
	}
	for _, p := range s.Regexps {
		keep.Patterns = append(keep.Patterns, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
			SafeRegex: &matcherv3.RegexMatcher{Regex: p},
		}})
	}
	config := &metricsv3.StatsConfig{
		UseAllDefaultTags: wrapperspb.Bool(false),
		StatsMatcher:      &metricsv3.StatsMatcher{StatsMatcher: &metricsv3.StatsMatcher_InclusionList{InclusionList: &keep}},
	}
	for _, prefix := range slices.Sorted(maps.Keys(s.Buckets)) {
		config.HistogramBucketSettings = append(config.HistogramBucketSettings, &metricsv3.HistogramBucketSettings{
			Match: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: prefix}}, Buckets: s.Buckets[prefix],
		})
	}
	for _, t := range tags {
		config.StatsTags = append(config.StatsTags, &metricsv3.TagSpecifier{
			TagName: t.name, TagValue: &metricsv3.TagSpecifier_Regex{Regex: t.regex},
		})
	}
	return config
}
