// Package session is the xDS protocol of one stream as a state machine: requests and new configurations go in, responses
// come out. It does no I/O and knows no clock, so every order of events can be tried in a test.
//
// The caller feeds it (Delta or SotW for each request, Update for each new configuration, OpenGates when a deadline has
// passed) and takes one response at a time from Next whenever it is able to write. Nothing is ever queued: what a response
// holds is decided when it can be written, so a slow proxy is sent the latest state and skips those between.
//
// What is promised, each with a test of that name: at most one response of a type is unacknowledged; a rejected version is
// not sent again until its content changes; nothing that a reconnecting client holds is sent again; a cluster's endpoints
// follow every change of the cluster (Envoy warms it again and waits for them, envoyproxy/envoy#33607), also when the stream
// breaks in between; new things come
// before what refers to them, and old ones go after (make before break). Virtual hosts that are resources of their own are in
// hosts.go.
package session

import (
	"fmt"
	"strconv"

	"github.com/selvage-mesh/selvage/internal/xds"
)

// Kind tells the types of resources apart that have a part in the order of updates.
type Kind uint8

// The kinds, in the order in which a proxy is told of new things.
const (
	Clusters Kind = iota
	Endpoints
	Listeners
	Routes
	VirtualHosts // of route configurations that do not hold theirs, see hosts.go
	Unknown      // any type that is not served: it is answered with nothing, so that the client does not wait for it

	served = int(Unknown)
)

// String is Istio's word for the kind, as in its metrics and in `istioctl proxy-status`, in lower case; vhds is Envoy's.
func (k Kind) String() string { return [...]string{"cds", "eds", "lds", "rds", "vhds", "unknown"}[k] }

var urls = [served]string{xds.ClusterType, xds.EndpointType, xds.ListenerType, xds.RouteType, xds.VirtualHostType}

// KindOf gives the kind of a type URL.
func KindOf(typeURL string) Kind {
	for k, u := range urls {
		if u == typeURL {
			return Kind(k)
		}
	}
	return Unknown
}

// Variant is one of the two forms of the protocol.
type Variant uint8

// The variants of the aggregated discovery service.
const (
	Delta Variant = iota // DeltaAggregatedResources: only what changed
	SotW                 // StreamAggregatedResources: state of the world, whole types at a time
)

// Config is all that a client should have.
type Config struct {
	Clusters, Listeners, Routes *Set
	// Hosts has, for each route configuration of Routes that does not hold its virtual hosts, these: at least one, each named
	// ROUTE/NAME. Delta only.
	Hosts map[string]*Set
	// Endpoints gives the endpoints of one name, or nil where there is no such thing. It must give the same for the same
	// arguments until the next Update that lists the name as changed.
	//
	// The version must depend on cluster too, which is the version of the cluster of that name that the client was sent
	// before ("" when none): endpoints that came before a change of their cluster are not those that it waits for after the
	// change, and a client that comes back must not be able to claim that they are.
	Endpoints func(name, cluster string) *Resource
}

func (c Config) set(k Kind) *Set {
	switch k {
	case Clusters:
		return c.Clusters
	case Listeners:
		return c.Listeners
	default:
		return c.Routes
	}
}

// Changes says which endpoints differ between two configurations.
type Changes struct {
	All   bool     // it is not known: compare every subscribed name
	Names []string // otherwise the names that may differ
}

// Response is what to write next.
type Response struct {
	Kind    Kind
	TypeURL string
	Nonce   string
	Version string      // of the whole type, state of the world only
	Added   []*Resource // delta: new and changed ones. State of the world: all, or for endpoints and routes those that changed
	Removed []string    // delta only
}

// Bounds of what one client may make the server remember.
const (
	maxNames        = 100_000 // subscriptions of one type
	maxName         = 1024    // bytes of a resource's name
	maxUnknownTypes = 16
	maxErrorText    = 4096 // bytes of a rejection's text that are kept
)

// Session is the state of one stream. It is not safe for concurrent use.
type Session struct {
	variant Variant
	tracks  []*track // the served kinds in order, then unknown types
	nonces  uint64

	// rewarmed are the endpoint names of clusters sent on this stream before the client told which endpoints it holds: such
	// a claim is true, and yet the cluster waits for them.
	rewarmed map[string]struct{}
	// warming are the endpoint names of clusters that were sent and whose endpoints were not acknowledged since. Traffic is
	// not moved to them (by listeners and routes) before. The value is the nonce of a response with endpoints that was on
	// its way already, and so does not count.
	warming map[string]string
	tables  []*table                     // the virtual hosts of each route configuration that the client has or had, sorted by its name
	serving *track                       // of which table the virtual hosts on their way are
	hosts   map[string]*Set              // Config.Hosts
	claims  map[string]map[string]string // what the client came with, by route configuration, that is in no table yet

	blocked bool // something waits for an acknowledgement of another type
	patient bool // a deadline has passed: what is blocked goes now
}

// New starts a session with what its client should have.
func New(v Variant, cfg Config) *Session {
	s := &Session{variant: v}
	for k := range served {
		s.tracks = append(s.tracks, &track{kind: Kind(k), url: urls[k]})
	}
	s.target(cfg)
	return s
}

func (s *Session) target(cfg Config) {
	for _, k := range [...]Kind{Clusters, Listeners, Routes} {
		set := cfg.set(k)
		t := s.tracks[k]
		if t.set != set && t.set.Version() != set.Version() {
			t.refused = ""
		}
		t.set = set
	}
	s.hosts = cfg.Hosts
	for _, t := range s.tables {
		s.fill(t)
	}
	s.tracks[Endpoints].find = func(name string) *Resource { return cfg.Endpoints(name, s.clusterSent(name)) }
}

// Update replaces what the client should have. What it does not need any more is never sent.
func (s *Session) Update(cfg Config, endpoints Changes) {
	before := s.tracks[Routes].set
	s.target(cfg)
	for _, t := range s.tracks {
		t.halvings = 0
		t.forgetOldRejections()
	}
	for _, t := range s.tables {
		t.halvings = 0
		t.forgetOldRejections()
	}
	if rt := s.tracks[Routes]; rt.set != before && !rt.wildcard {
		rt.recheckAll()
	}
	for _, k := range []Kind{Clusters, Listeners} {
		if t := s.tracks[k]; !t.wildcard {
			t.recheckAll()
		}
	}
	eds := s.tracks[Endpoints]
	if endpoints.All {
		eds.recheckAll()
		return
	}
	for _, n := range endpoints.Names {
		eds.recheck(n)
	}
	for n := range eds.missing {
		eds.recheck(n)
	}
}

// OpenGates tells that the client was given enough time to acknowledge what other types wait for.
func (s *Session) OpenGates() {
	s.patient = true
	clear(s.warming)
}

// Blocked reports whether something waits for an acknowledgement of another type, so that a deadline for OpenGates should
// run. It is right after Next has returned false.
func (s *Session) Blocked() bool { return s.blocked }

// Settled reports whether the client has acknowledged or rejected all that it should have. It is right after Next has
// returned false.
func (s *Session) Settled() bool {
	for _, t := range s.tracks {
		if t.flight != nil {
			return false
		}
	}
	return !s.blocked
}

// InFlight reports whether a response of a served kind waits for its answer.
func (s *Session) InFlight(k Kind) bool { return k < Unknown && s.tracks[k].flight != nil }

// Rejecting reports whether the client rejects something of a served kind that it should have.
func (s *Session) Rejecting(k Kind) bool {
	return s.tracks[k].rejecting() || k == VirtualHosts && s.hostsRejected()
}

func (t *track) rejecting() bool { return len(t.rejected) > 0 || t.refused != "" }

// Next gives the response to write now; the session takes it as written. False means that there is nothing to do until the
// next event.
func (s *Session) Next() (Response, bool) {
	s.blocked = false
	for _, t := range s.tracks {
		if !t.started || t.flight != nil {
			continue
		}
		f, ok := s.plan(t)
		if !ok {
			continue
		}
		s.nonces++
		f.nonce = strconv.FormatUint(s.nonces, 36)
		return s.launch(t, f), true
	}
	if !s.blocked {
		s.patient = false
	}
	return Response{}, false
}

// launch puts a planned response on its way.
func (s *Session) launch(t *track, f *flight) Response {
	if t.kind == VirtualHosts && s.serving != nil {
		s.serving.launched(f)
	}
	t.launched(f)
	if t.kind == Clusters {
		s.clustersSent(f.added)
	}
	r := Response{Kind: t.kind, TypeURL: t.url, Nonce: f.nonce, Added: f.added}
	if s.variant == SotW {
		r.Version = t.versionAfter(f)
		if f.full {
			r.Added = f.whole.all()
		}
		return r
	}
	r.Removed = f.removed
	return r
}

// track finds the state of a type, and makes it for a type that is not served.
func (s *Session) track(typeURL string) (*track, error) {
	for _, t := range s.tracks {
		if t.url == typeURL {
			return t, nil
		}
	}
	if len(s.tracks) >= served+maxUnknownTypes {
		return nil, fmt.Errorf("subscribe to %q: the client has asked for %d types that are not served", typeURL, maxUnknownTypes)
	}
	t := &track{kind: Unknown, url: typeURL}
	s.tracks = append(s.tracks, t)
	return t, nil
}
