package main

import "fmt"

// view is what the page shows.
type view struct {
	Steps  []step
	Goods  []item
	Failed string // what the chain ended with, "" when it is whole
	Total  string
	Mutual int // hops with mutual TLS
}

// step is one box of the page.
type step struct {
	*hop
	Own      string // milliseconds spent here rather than further on
	IsMutual bool
}

// newView lays the chain out in a row.
func newView(first *hop) view {
	v := view{Total: fmt.Sprintf("%.1f", first.Millis)}
	for h := first; h != nil; h = h.Next {
		own := h.Millis
		if h.Next != nil {
			own -= h.Next.Millis
		}
		s := step{hop: h, Own: fmt.Sprintf("%.1f", max(own, 0)), IsMutual: h.Client != ""}
		if s.IsMutual {
			v.Mutual++
		}
		v.Steps = append(v.Steps, s)
		if h.NextError != "" {
			v.Failed = h.NextError
		}
		if h.Goods != nil {
			v.Goods = h.Goods
		}
	}
	return v
}
