package mesh

import (
	"time"

	"github.com/selvage-mesh/selvage/internal/ref"
)

// VirtualService is how requests to some hosts are routed (networking.istio.io VirtualService), for one kind of client: short names
// are complete, delegates are resolved, and matches of which no request of these clients can be are gone.
type VirtualService struct {
	Namespace, Name string
	HTTP            []*HTTPRoute // the first that matches counts
	Refs            []ref.Ref
}

// RoutedHost is a host that a VirtualService routes and no service has.
type RoutedHost struct {
	Host  Host // may begin with "*."
	Ports []uint32
	By    *VirtualService
}

// HTTPRoute is what is done with requests that match.
type HTTPRoute struct {
	Name    string
	Matches []*HTTPMatch // one is enough; none matches all

	// One of these three says where a request goes.
	Destinations []Destination
	Redirect     *Redirect
	Direct       *DirectResponse

	Rewrite *Rewrite
	Timeout time.Duration // 0 for none
	Retry   *Retry        // nil for the mesh's default
	Fault   *Fault
	Mirrors []Mirror
	CORS    *CORS
	Headers HeaderChanges
}

// StringMatch is a text that is compared; the zero value matches everything.
type StringMatch struct {
	Kind MatchKind
	Text string
}

// MatchKind is how a text is compared.
type MatchKind uint8

// The ways to compare.
const (
	Any MatchKind = iota
	Exact
	Prefix
	Regex // RE2, of the whole text
)

// NamedMatch is a match of a header or a query parameter. Any means that it is there.
type NamedMatch struct {
	Name   string
	Match  StringMatch
	Invert bool
}

// HTTPMatch is conditions of which all must hold.
type HTTPMatch struct {
	Name                      string
	Path                      StringMatch
	IgnoreCase                bool // of the path
	Scheme, Method, Authority StringMatch
	Headers, Query            []NamedMatch // sorted by name
	Port                      uint32       // 0 for any
	StatPrefix                string
}

// Destination is one place to which a share of requests goes.
type Destination struct {
	Host    Host
	Port    uint32 // 0 for the port that the client called
	Subset  string
	Weight  uint32
	Hash    *Hash // what the balancer of the destination hashes
	Headers HeaderChanges
}

// HeaderChanges are those of the request and of the response.
type HeaderChanges struct{ Request, Response HeaderOperations }

// HeaderOperations change headers: each list is sorted by name.
type HeaderOperations struct {
	Set, Add []Pair
	Remove   []string
}

// Redirect answers with another URL. A field that is zero stays as the request has it.
type Redirect struct {
	Path, Prefix, Authority, Scheme string
	Port                            uint32
	DefaultPort                     bool // that of the scheme
	Code                            uint32
}

// DirectResponse answers by itself.
type DirectResponse struct {
	Status uint32
	Body   []byte
}

// Rewrite changes the request on its way.
type Rewrite struct {
	URI, Authority        string
	Pattern, Substitution string // of the whole path; URI is "" then
}

// Retry says when a request is sent again.
type Retry struct {
	Attempts        uint32 // 0: never
	PerTry          time.Duration
	Backoff         time.Duration
	On              string // Envoy's conditions
	Codes           []uint32
	PreviousHosts   bool // may be asked again
	OtherLocalities bool
}

// Fault delays or ends a share of requests, in percent.
type Fault struct {
	Delay        time.Duration
	DelayPercent float64
	Status       uint32 // HTTP, 0 for none
	GRPCStatus   *uint32
	AbortPercent float64
}

// Mirror sends a share of requests to another place too, in percent, and drops the answers.
type Mirror struct {
	To      Destination
	Percent float64
}

// CORS answers preflight requests of browsers.
type CORS struct {
	Origins                  []StringMatch
	Methods, Headers, Expose []string
	MaxAge                   *time.Duration
	Credentials              *bool
	ForwardUnmatched         bool
}
