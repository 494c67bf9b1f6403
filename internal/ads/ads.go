// Package ads serves configuration to proxies: the aggregated discovery service (xDS) in both of its variants.
//
// What is sent is generated once for each distinct view and serialized once; a thousand replicas of a workload share the
// bytes down to the socket. A stream has no queue: it holds a pointer to the published state that it has seen, takes the
// newest when there is one, and decides what to send when it can write. The protocol itself is in ads/session.
package ads

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/scope"
	"github.com/selvage-mesh/selvage/internal/xds"
)

// Config is what a Server needs. Authenticate, Registerer and Log must be set; the zero value of every other field means
// the default that its comment names.
type Config struct {
	// Authenticate gives the identity of the caller of a stream, from its certificate or token. An error that carries a
	// gRPC status is returned as it is, any other as Unauthenticated.
	Authenticate func(ctx context.Context) (namespace, serviceAccount string, err error)
	// Generate makes the clusters, listeners and routes of a view. Default: an xds.Generator.
	Generate func(scope.View) (*xds.Config, error)
	// LoadAssignment makes the endpoints of one service port, for clients of a locality where that counts. Default: xds.LoadAssignment.
	LoadAssignment func(*mesh.EndpointSet, *mesh.LocalityBalancing, mesh.Locality) (xds.Resource, error)

	Registerer prometheus.Registerer
	Log        *slog.Logger

	// Debounce is how long the mesh must be quiet before a change is pushed (100 ms) that comes so soon after another push,
	// MaxDebounce how long such a change waits at most (1 s); a change after a longer time of quiet waits for nothing.
	// EndpointDebounce is the quiet time when nothing but endpoints changed (5 ms; at most ten times as long, and only within
	// that time after another push).
	Debounce, MaxDebounce, EndpointDebounce time.Duration
	// PodWait is how long a proxy waits for its pod to be known before it is refused (20 s).
	PodWait time.Duration
	// SendTimeout is how long one write may block before the stream is reset (10 s).
	SendTimeout time.Duration
	// AnswerTimeout is how long a proxy may leave a response unanswered before the stream is reset (2 min).
	AnswerTimeout time.Duration
	// GateTimeout is how long listeners and routes wait for the clusters that they need, and clusters that go for those that
	// used them (5 s).
	GateTimeout time.Duration
	// DrainSpread is the time over which streams are ended at shutdown, each at a random moment (2 s): their proxies do not
	// all come to the next replica at once.
	DrainSpread time.Duration
	// ConnectRate is how many new streams are accepted in a second (1000), after a first ConnectBurst (1000). Others wait.
	ConnectRate  rate.Limit
	ConnectBurst int
	// MaxStreams bounds the streams of this server; 0 means no bound.
	MaxStreams int
}

func (c *Config) setDefaults() error {
	switch {
	case c.Authenticate == nil:
		return errors.New("make ads server: Config.Authenticate is not set, and no stream is served without an identity")
	case c.Registerer == nil || c.Log == nil:
		return errors.New("make ads server: Config.Registerer and Config.Log must be set")
	}
	if c.Generate == nil {
		c.Generate = new(xds.Generator).Generate
	}
	if c.LoadAssignment == nil {
		c.LoadAssignment = xds.LoadAssignment
	}
	c.Debounce = cmp.Or(c.Debounce, 100*time.Millisecond)
	c.MaxDebounce = cmp.Or(c.MaxDebounce, time.Second)
	c.EndpointDebounce = cmp.Or(c.EndpointDebounce, 5*time.Millisecond)
	c.PodWait = cmp.Or(c.PodWait, 20*time.Second)
	c.SendTimeout = cmp.Or(c.SendTimeout, 10*time.Second)
	c.AnswerTimeout = cmp.Or(c.AnswerTimeout, 2*time.Minute)
	c.GateTimeout = cmp.Or(c.GateTimeout, 5*time.Second)
	c.DrainSpread = cmp.Or(c.DrainSpread, 2*time.Second)
	c.ConnectRate = cmp.Or(c.ConnectRate, 1000)
	c.ConnectBurst = cmp.Or(c.ConnectBurst, 1000)
	return nil
}

// Server holds the published model and the connected proxies.
type Server struct {
	config    Config
	metrics   *metrics
	views     *views
	endpoints *endpoints
	limiter   *rate.Limiter
	rejection rejectionLog

	state    atomic.Pointer[state]
	pushed   time.Time // when it was made the newest; of Run's goroutine
	inbox    inbox
	draining chan struct{} // closed when Run ends

	mu      sync.Mutex
	streams map[*stream]struct{}
	open    int           // streams, also those not yet in the map
	idle    chan struct{} // not nil while draining: closed when open becomes 0
}

// New makes a server without any model: proxies that connect wait for the first.
func New(c Config) (*Server, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	m, err := newMetrics(c.Registerer)
	if err != nil {
		return nil, err
	}
	s := &Server{
		config: c, metrics: m,
		limiter:  rate.NewLimiter(c.ConnectRate, c.ConnectBurst),
		inbox:    inbox{arrived: make(chan struct{}, 1)},
		draining: make(chan struct{}),
		streams:  map[*stream]struct{}{},
	}
	s.views = newViews(c.Generate, m, c.Log)
	s.endpoints = newEndpoints(c.LoadAssignment, m, c.Log, s.current)
	s.state.Store(&state{replaced: make(chan struct{})})
	return s, nil
}

// Register makes a gRPC server serve ADS. Give that server the option Codec as well, so that what proxies share is not
// copied for each.
func (s *Server) Register(g *grpc.Server) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, service{server: s})
}

// RegisterPlain makes a gRPC server serve ADS to callers that prove nothing: what they say of themselves is believed. It is for
// a listener that only those reach who may know all that proxies are told, such as loopback.
func (s *Server) RegisterPlain(g *grpc.Server) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, service{server: s, trusting: true})
}

// Publish makes m what proxies should have. It never blocks; of models that come faster than they can be pushed the latest
// counts.
func (s *Server) Publish(m *mesh.Model) { s.inbox.put(m) }

func (s *Server) current() *mesh.Model { return s.state.Load().model }

// inbox holds the one model that is to be pushed next.
type inbox struct {
	arrived chan struct{}

	mu     sync.Mutex
	model  *mesh.Model
	first  time.Time // when the oldest change that is waiting came
	latest time.Time
}

func (i *inbox) put(m *mesh.Model) {
	now := time.Now()
	i.mu.Lock()
	if i.model == nil {
		i.first = now
	}
	i.model, i.latest = m, now
	i.mu.Unlock()
	select {
	case i.arrived <- struct{}{}:
	default:
	}
}

func (i *inbox) peek() (m *mesh.Model, first, latest time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.model, i.first, i.latest
}

func (i *inbox) take() (m *mesh.Model, first time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	m, i.model = i.model, nil
	return m, i.first
}
