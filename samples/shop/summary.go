package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
)

// summary is what a run of the load came to.
type summary struct {
	config   loadConfig
	started  time.Time
	elapsed  time.Duration
	took     []time.Duration // of the requests that did not fail
	dropped  int             // of those whose time is not kept any more
	failures map[string]int  // by reason
}

func newSummary(c loadConfig) *summary {
	return &summary{config: c, started: time.Now(), failures: map[string]int{}}
}

func (s *summary) add(o outcome) {
	if o.failure != "" {
		s.failures[o.failure]++
		return
	}
	// A run without an end keeps the last million: enough for percentiles.
	if len(s.took) >= 1_000_000 {
		s.dropped += len(s.took) / 2
		s.took = slices.Delete(s.took, 0, len(s.took)/2)
	}
	s.took = append(s.took, o.took)
}

func (s *summary) failed() (n int) {
	for _, count := range s.failures {
		n += count
	}
	return n
}

func (s *summary) count() int { return s.dropped + len(s.took) + s.failed() }

// write prints the summary.
func (s *summary) write(w io.Writer) {
	version := "HTTP/1.1"
	if s.config.HTTP2 {
		version = "HTTP/2"
	}
	fmt.Fprintf(w, "%d requests to %s by %s in %.1fs: %.1f a second, %d failed\n",
		s.count(), s.config.URL, version, s.elapsed.Seconds(), float64(s.count())/s.elapsed.Seconds(), s.failed())
	if len(s.took) > 0 {
		slices.Sort(s.took)
		fmt.Fprintf(w, "time: p50 %s, p95 %s, p99 %s, longest %s\n", s.percentile(50), s.percentile(95), s.percentile(99), s.percentile(100))
	}
	reasons := slices.SortedFunc(maps.Keys(s.failures), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.failures[b], s.failures[a]), cmp.Compare(a, b))
	})
	for _, r := range reasons {
		fmt.Fprintf(w, "%7d  %s\n", s.failures[r], r)
	}
}

// percentile is the time within which p of 100 requests were answered; the times are sorted.
func (s *summary) percentile(p int) time.Duration {
	n := (len(s.took)*p + 99) / 100
	return s.took[max(n, 1)-1].Round(10 * time.Microsecond)
}
