package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The annotations about Envoy's statistics are read by the agent, from the pod. Here they are checked: Envoy would not start with a
// wrong one.

// statName is the name of a statistic or a part of it; {pod_ip} stands for the pod's addresses.
var statName = regexp.MustCompile(`^[^\s\x00-\x1f"\\]+$`)

// maxStatNames bounds what is tried on the name of each statistic.
const maxStatNames = 200

func setStatNames(_ *podSettings, value string) error { return checkStatNames(items(value)) }

func checkStatNames(list []string) error {
	if len(list) > maxStatNames {
		return fmt.Errorf("it has %d entries: the most is %d", len(list), maxStatNames)
	}
	for _, name := range list {
		if !statName.MatchString(name) {
			return fmt.Errorf("%q is no part of a statistic's name: use names such as cluster.outbound, with commas between", name)
		}
	}
	return nil
}

func setStatRegexps(_ *podSettings, value string) error { return checkStatRegexps(items(value)) }

// checkStatRegexps takes what Envoy takes, which is Go's syntax too: RE2.
func checkStatRegexps(list []string) error {
	if len(list) > maxStatNames {
		return fmt.Errorf("it has %d entries: the most is %d", len(list), maxStatNames)
	}
	for _, text := range list {
		if _, err := regexp.Compile(text); err != nil || text == "" {
			return fmt.Errorf("%q is no regular expression (RE2)", text)
		}
	}
	return nil
}

// setHistogramBuckets wants {"PREFIX": [bounds]}, bounds above zero and rising.
func setHistogramBuckets(_ *podSettings, value string) error {
	var buckets map[string][]float64
	if err := json.Unmarshal([]byte(value), &buckets); err != nil {
		return errors.New("it is no JSON object of prefix to list of numbers")
	}
	for _, prefix := range sortedKeys(buckets) {
		list := buckets[prefix]
		rising := slices.IsSorted(list) && len(slices.Compact(slices.Clone(list))) == len(list)
		if !statName.MatchString(prefix) || len(list) == 0 || list[0] <= 0 || !rising {
			return fmt.Errorf("%q: the bounds must be above 0 and rise", prefix)
		}
	}
	return nil
}

// maxFlush is Envoy's bound.
const maxFlush = 5 * time.Minute

func setStatsFlush(s *podSettings, value string) error {
	d, err := time.ParseDuration(strings.TrimSpace(value))
	if err != nil || d < time.Millisecond || d >= maxFlush || d%time.Millisecond != 0 || value != strings.TrimSpace(value) {
		return errors.New("use a duration from 1ms to below 5m, such as 5s")
	}
	s.statsFlush = d
	return nil
}

// setStatsEviction comes before setStatsFlush in the order of names: the two are compared at the end.
func setStatsEviction(s *podSettings, value string) error {
	d, err := time.ParseDuration(value)
	if err != nil || d < time.Millisecond || d > 24*time.Hour {
		return errors.New("use a duration such as 1m")
	}
	s.statsEviction = d
	return nil
}

// checkStatsIntervals wants what Envoy wants of the two together. Without an interval of its own a pod's is five seconds.
func (s *podSettings) checkStatsIntervals() error {
	flush := s.statsFlush
	if flush == 0 {
		flush = 5 * time.Second
	}
	if s.statsEviction%flush != 0 {
		return fmt.Errorf("it is no multiple of the flush interval of %s", flush)
	}
	return nil
}
