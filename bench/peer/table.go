package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// row is a line of the table.
type row struct {
	what string
	cell func(runs []*result) string
}

var rows = []row{
	{"all connected and synced: server CPU", func(rs []*result) string {
		return fmt.Sprintf("%.1f s", median(rs, func(r *result) float64 { return r.SyncCPU })/1000)
	}},
	{"the same: time until the last", func(rs []*result) string {
		return fmt.Sprintf("%.1f s", median(rs, func(r *result) float64 { return r.SyncMillis })/1000)
	}},
	{"the same: bytes to each", func(rs []*result) string {
		return fmt.Sprintf("%.2f MB", median(rs, func(r *result) float64 { return float64(r.SyncBytes) / float64(r.Proxies) })/1e6)
	}},
	{"resident memory: settled; after all changes", func(rs []*result) string {
		return fmt.Sprintf("%.0f; %.0f MB", median(rs, func(r *result) float64 { return float64(r.SettledBytes) })/1e6,
			median(rs, func(r *result) float64 { return float64(r.ChangedBytes) })/1e6)
	}},
	{"one endpoint changed: p50 / p99; CPU; bytes to all", changeCell(endpointChanged)},
	{"one VirtualService changed: p50 / p99; CPU; bytes to all", changeCell(virtualServiceChanged)},
	{"one Service added: p50 / p99; CPU; bytes to all", changeCell(serviceAdded)},
	{"start to ready; resident memory then", func(rs []*result) string {
		return fmt.Sprintf("%.2f s; %.0f MB", median(rs, func(r *result) float64 { return r.ReadyMillis })/1000,
			median(rs, func(r *result) float64 { return float64(r.ReadyBytes) })/1e6)
	}},
	{"reconnect of all after a restart: bytes to each; CPU", func(rs []*result) string {
		return fmt.Sprintf("%.3f MB; %.1f s", median(rs, func(r *result) float64 { return float64(r.ReconnectBytes) / float64(r.Proxies) })/1e6,
			median(rs, func(r *result) float64 { return r.ReconnectCPU })/1000)
	}},
}

func changeCell(kind string) func([]*result) string {
	return func(rs []*result) string {
		if slices.ContainsFunc(rs, func(r *result) bool { return r.Changes[kind] == nil || r.Changes[kind].NotServed }) {
			return "not served"
		}
		of := func(value func(*changed) float64) float64 {
			return median(rs, func(r *result) float64 { return value(r.Changes[kind]) })
		}
		return fmt.Sprintf("%.0f / %.0f ms; %.0f ms; %.2f MiB", of(func(c *changed) float64 { return c.P50 }), of(func(c *changed) float64 { return c.P99 }),
			of(func(c *changed) float64 { return c.CPU }), of(func(c *changed) float64 { return c.Bytes })/(1<<20))
	}
}

func median(rs []*result, value func(*result) float64) float64 {
	all := make([]float64, len(rs))
	for i, r := range rs {
		all[i] = value(r)
	}
	slices.Sort(all)
	if n := len(all); n%2 == 0 {
		return (all[n/2-1] + all[n/2]) / 2
	}
	return all[len(all)/2]
}

// size is what is measured; each has a table of its own.
type size struct {
	services, endpoints, proxies int
	protocol                     string
}

// table prints the medians of the runs, one table for each size, in Markdown.
func table(results []*result) string {
	bySize := map[size]map[string][]*result{}
	for _, r := range results {
		s := size{r.Services, r.Endpoints, r.Proxies, r.Protocol}
		if bySize[s] == nil {
			bySize[s] = map[string][]*result{}
		}
		bySize[s][r.Server] = append(bySize[s][r.Server], r)
	}
	sizes := make([]size, 0, len(bySize))
	for s := range bySize {
		sizes = append(sizes, s)
	}
	slices.SortFunc(sizes, func(a, b size) int {
		return cmp.Or(strings.Compare(a.protocol, b.protocol), cmp.Compare(a.services, b.services), cmp.Compare(a.proxies, b.proxies))
	})
	var b strings.Builder
	for _, s := range sizes {
		var names, counts []string
		for _, name := range []string{"istiod", "selvaged"} {
			if runs := bySize[s][name]; len(runs) > 0 {
				names, counts = append(names, name), append(counts, fmt.Sprint(len(runs)))
			}
		}
		fmt.Fprintf(&b, "\n%d services × %d endpoints, %d sidecars, %s, plain listener; medians of %s runs\n\n", s.services, s.endpoints, s.proxies,
			s.protocol, strings.Join(counts, " and "))
		fmt.Fprintf(&b, "| work | %s |\n|---|%s\n", strings.Join(names, " | "), strings.Repeat("---|", len(names)))
		for _, r := range rows {
			fmt.Fprintf(&b, "| %s |", r.what)
			for _, name := range names {
				fmt.Fprintf(&b, " %s |", r.cell(bySize[s][name]))
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}
