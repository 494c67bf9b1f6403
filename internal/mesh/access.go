package mesh

import (
	"net/netip"
	"time"

	"github.com/selvage-mesh/selvage/internal/ref"
)

// Access is what decides who may call a workload: tokens that are checked, and policies about what a checked request may do. The
// pieces are shared between the workloads that a policy selects.
type Access struct {
	// Tokens are the issuers whose tokens are accepted, in the order of their objects.
	Tokens []*Token
	// Policies are those of every action, in the order of namespace and name, the root namespace first.
	Policies []*AccessPolicy
}

// Action is what a policy does with a request that one of its rules matches.
type Action uint8

// The actions, in the order in which they are asked. A request that is not refused by ActionCustom and ActionDeny, and is allowed by some
// policy of ActionAllow if there is one, gets through.
const (
	ActionCustom Action = iota // an external service decides
	ActionAudit
	ActionDeny
	ActionAllow
)

// AccessPolicy is one AuthorizationPolicy.
type AccessPolicy struct {
	Namespace, Name string
	Action          Action
	// DryRun says that the policy is only evaluated, for statistics.
	DryRun bool
	// Rules: a request matches the policy when it matches one of them. None matches nothing.
	Rules []AccessRule
	// Provider decides when the action is ActionCustom.
	Provider *Authorizer
	Ref      ref.Ref
}

// AccessRule matches a request that matches one of From, one of To and all of When. An empty From or To matches all.
type AccessRule struct {
	From, To [][]AccessCondition // each all of its conditions
	When     []AccessCondition
}

// Attribute is what a condition looks at.
type Attribute uint8

// The attributes. Those from AttrHost on are only known of HTTP requests.
const (
	AttrPrincipal       Attribute = iota // SPIFFE identity of the peer's certificate, with its scheme
	AttrSourceIP                         // of the connection
	AttrRemoteIP                         // of the client, as trusted proxies say
	AttrDestinationIP                    // of the connection
	AttrDestinationPort                  // of the workload
	AttrServerName                       // SNI
	AttrMetadata                         // dynamic metadata of a filter: Names has the filter and the key
	AttrHost
	AttrMethod
	AttrPath
	AttrHeader           // Names has its name
	AttrClaim            // of the token: Names has the path to it
	AttrRequestPrincipal // issuer and subject of the token: Matches come in pairs
)

// HTTP reports whether only an HTTP request has the attribute.
func (a Attribute) HTTP() bool { return a >= AttrHost }

// AccessCondition holds when one of Any matches, if there is one, and none of None does.
type AccessCondition struct {
	Attribute Attribute
	Names     []string
	Any, None []ValueMatch
}

// ValueMatchKind is how a ValueMatch compares.
type ValueMatchKind uint8

// The kinds of matches.
const (
	MatchExact ValueMatchKind = iota
	MatchPrefix
	MatchSuffix
	MatchRegex    // RE2, the whole value
	MatchPresent  // any value but the empty one
	MatchTemplate // of a path: * is one segment, ** any number
	MatchNetwork  // an address in Network
	MatchPort
	// MatchPair is a match of the issuer and one of the subject.
	MatchPair
	// MatchListItem is a match of an item of a list.
	MatchListItem
)

// ValueMatch compares a value.
type ValueMatch struct {
	Kind    ValueMatchKind
	Text    string
	Network netip.Prefix
	Port    uint32
	// Both are the two matches of MatchPair, or the one of MatchListItem.
	Both []ValueMatch
}

// Authorizer is an external service that decides about requests (Envoy's ext_authz).
type Authorizer struct {
	Name string // of the provider in the mesh configuration
	// Service and Port are the cluster; "" when nobody is there to be asked. Where the proxy has no such cluster it cannot ask, and that is a refusal unless FailOpen.
	Service Host
	Port    uint32
	GRPC    bool
	Timeout time.Duration

	FailOpen        bool
	ClearRouteCache bool
	StatusOnError   uint32 // HTTP status when the service cannot be asked; 0 for 403
	PathPrefix      string

	// RequestHeaders are what the check sees besides the method, path and host.
	RequestHeaders []ValueMatch
	// AddedHeaders are put on the check.
	AddedHeaders map[string]string
	// BodyBytes is how much of the body the check sees; 0 for none.
	BodyBytes         uint32
	PartialBody       bool
	BodyAsBytes       bool
	UpstreamOnAllow   []ValueMatch
	DownstreamOnDeny  []ValueMatch
	DownstreamOnAllow []ValueMatch
}

// Token is one issuer whose JSON web tokens a workload accepts. A request without a token is not refused by it, one with a token
// that is not good is.
type Token struct {
	Issuer    string
	Audiences []string // one of them must be in the token; none for any
	// Keys are the issuer's public keys, a JSON web key set. A set without keys accepts no token.
	Keys string

	// Lists are the claims that are lists with spaces between their items.
	Lists []string

	Headers []TokenHeader
	Params  []string
	Cookies []string
	// Forward says that the workload sees the token too.
	Forward       bool
	PayloadHeader string // gets the payload in base64url, for the workload
	ClaimHeaders  []ClaimHeader
	Ref           ref.Ref
}

// TokenHeader is a request header in which a token may stand, after Prefix.
type TokenHeader struct{ Name, Prefix string }

// ClaimHeader is a request header that gets the value of a claim.
type ClaimHeader struct{ Header, Claim string }
