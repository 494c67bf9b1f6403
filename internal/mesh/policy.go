package mesh

import "time"

// Subset is a part of a service's endpoints, by their labels, with a policy of its own.
type Subset struct {
	Name   string
	Labels map[string]string // where the endpoints are not in the model
	// Policies has one for each port of the service, in the same order; nil where the mesh's defaults hold.
	Policies []*TrafficPolicy
}

// TrafficPolicy is how a client calls the endpoints of one service port (networking.istio.io DestinationRule). The zero value is
// what holds without any.
type TrafficPolicy struct {
	Balancer    Balancer
	Connections Connections
	Outlier     *Outlier
	TLS         *ClientTLS // nil: mutual TLS of the mesh to the endpoints that take it
	RetryBudget *RetryBudget
	// ProxyProtocol is the version of HAProxy's PROXY protocol that a connection begins with, 0 for none.
	ProxyProtocol uint32
}

// BalancerKind is how an endpoint is chosen.
type BalancerKind uint8

// The kinds of load balancers.
const (
	LeastRequest BalancerKind = iota
	RoundRobin
	Random
	RingHash
	Maglev
	Passthrough // to the address that the client wanted
)

// Balancer chooses an endpoint.
type Balancer struct {
	Kind      BalancerKind
	TableSize uint64 // of the ring (at least) or of Maglev's table; 0 for Envoy's default
	Hash      *Hash  // what a RingHash or Maglev hashes
	Warmup    *Warmup
	Locality  *LocalityBalancing // nil: localities do not count
}

// Hash is what of a request decides about its endpoint; one field is set.
type Hash struct {
	Header, QueryParameter string
	SourceIP               bool
	Cookie                 *HashCookie
}

// HashCookie is a cookie that is hashed, and made where it is missing and has a TTL.
type HashCookie struct {
	Name, Path string
	TTL        *time.Duration // nil: it is never made; 0: it ends with the session
	Attributes []Pair
}

// Pair is a name and a value.
type Pair struct{ Name, Value string }

// Warmup lets a new endpoint have its share little by little.
type Warmup struct {
	Duration                   time.Duration
	MinimumPercent, Aggression float64 // 0 for Envoy's default
}

// LocalityBalancing says which localities the endpoints of a client are taken from.
type LocalityBalancing struct {
	Distribute []Distribution
	Failover   []Failover
}

// Distribution is the weights of localities for clients of one locality. A pattern is region/zone/subzone, of which the last given
// part may be *.
type Distribution struct {
	From string
	To   []LocalityWeight // sorted, the most specific first
}

// LocalityWeight is the share of the localities that match a pattern, in percent.
type LocalityWeight struct {
	Pattern string
	Weight  uint32
}

// Failover says to which region clients of one go next.
type Failover struct{ From, To string }

// Connections bounds what a client holds open. A zero is Envoy's default, or no limit.
type Connections struct {
	Max                  uint32 // connections; also over HTTP/1.1
	MaxPending           uint32 // requests that wait for a connection
	MaxRequests          uint32 // at one time
	MaxRequestsPerConn   uint32
	MaxRetries           uint32 // at one time
	MaxConcurrentStreams uint32 // of one HTTP/2 connection
	ConnectTimeout       time.Duration
	MaxDuration          *time.Duration // of a connection
	TCPIdle, HTTPIdle    *time.Duration // 0 for never
	Keepalive            *Keepalive
	Ping                 *Ping
	UpgradeToHTTP2       bool
	AsReceived           bool // the HTTP version of the request
}

// Keepalive is TCP's own; a zero is the system's value.
type Keepalive struct {
	Probes         uint32
	Time, Interval time.Duration
}

// Ping is HTTP/2's.
type Ping struct{ Interval, Timeout time.Duration }

// Outlier takes endpoints that fail out for a while. Nil is Envoy's default, 0 switches a reason off.
type Outlier struct {
	Consecutive5xx, ConsecutiveGateway *uint32
	SplitLocal                         bool
	ConsecutiveLocal                   *uint32
	Interval, BaseEjection             *time.Duration
	MaxEjectionPercent                 uint32 // 0 for Envoy's default
	MinHealthPercent                   uint32 // below it nobody is taken out
}

// RetryBudget bounds retries by the share of requests that they are.
type RetryBudget struct {
	Percent *float64
	Minimum uint32
}

// TLSMode is how a client secures its connections, where a policy says so.
type TLSMode uint8

// The modes of ClientTLS.
const (
	PlainText TLSMode = iota
	SimpleTLS         // the client checks the server
	MutualTLS         // and shows a certificate of its own, from files
	MeshTLS           // with the mesh's certificates
)

// ClientTLS is a client's side of TLS. Files are paths in the sidecar's container.
type ClientTLS struct {
	Mode                         TLSMode
	Certificate, Key, Roots, CRL string
	Names                        []string // that the server may show; none for any
	SNI                          string
	SkipVerify                   bool
}
