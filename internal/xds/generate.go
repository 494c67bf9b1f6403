package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"weak"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/scope"
	"github.com/selvage-mesh/selvage/internal/xds/envoy"
)

// Generate gives the clusters, listeners and routes of one view. It depends on nothing but what View.Key identifies, and it
// is deterministic: equal views give equal bytes. Many views are made faster, and with less memory, by one Generator.
func Generate(v scope.View) (*Config, error) { return new(Generator).Generate(v) }

// Generator generates views and remembers what they have in common: what leads out of a proxy is the same for all proxies
// that see the same services, but for the short names of their own namespace, and a service that did not change keeps its
// resources. What it returns is what Generate returns. The zero Generator is ready; it may be used concurrently.
type Generator struct {
	mu     sync.Mutex
	recent []*outbound                            // the last used first
	all    map[outboundKey]weak.Pointer[outbound] // that somebody still has
}

// keptOutbounds is how many models' outbound parts a Generator remembers that nobody has: the current one for each kind of proxy (Traits),
// and the one before, which proxies may still be asking for.
const keptOutbounds = 8

// Generate gives what the function Generate does.
func (g *Generator) Generate(v scope.View) (*Config, error) {
	if v.Settings == nil || v.Outbound == nil || v.Inbound == nil {
		return nil, errors.New("generate configuration: the view has no settings, no outbound or no inbound part")
	}
	out, err := g.outbound(v)
	if err != nil {
		return nil, fmt.Errorf("generate outbound configuration: %w", err)
	}
	routes, hosts, err := out.routesOf(v.Inbound.Namespace)
	if err != nil {
		return nil, fmt.Errorf("generate routes of namespace %s: %w", v.Inbound.Namespace, err)
	}
	in, err := generateInbound(build{v.Settings, v.Traits}, v.Inbound)
	if err != nil {
		return nil, fmt.Errorf("generate inbound configuration: %w", err)
	}
	return &Config{
		Clusters:  merge(out.clusters, in.clusters),
		Listeners: merge(out.listeners, in.listeners),
		Routes:    routes,
		Hosts:     hosts,
		Shared:    out,
	}, nil
}

// outbound finds or makes the part that v shares with other views. It is made under the lock: everyone who asks meanwhile
// wants that same part.
func (g *Generator) outbound(v scope.View) (*outbound, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := outboundKey{build{v.Settings, v.Traits}, v.Outbound}
	key.traits.Locality = mesh.Locality{} // counts for endpoints only
	o := g.all[key].Value()
	if o == nil {
		var err error
		if o, err = newOutbound(key, g.like(key)); err != nil {
			return nil, err
		}
		if g.all == nil {
			g.all = map[outboundKey]weak.Pointer[outbound]{}
		}
		maps.DeleteFunc(g.all, func(_ outboundKey, p weak.Pointer[outbound]) bool { return p.Value() == nil })
		g.all[key] = weak.Make(o)
	}
	if i := slices.Index(g.recent, o); i >= 0 {
		g.recent = slices.Delete(g.recent, i, i+1)
	}
	g.recent = slices.Insert(g.recent, 0, o)
	if len(g.recent) > keptOutbounds {
		g.recent = slices.Delete(g.recent, keptOutbounds, len(g.recent))
	}
	return o, nil
}

// like finds the part that has most in common with one that is to be made.
func (g *Generator) like(key outboundKey) *outbound {
	for _, o := range g.recent {
		if o.key.build == key.build {
			return o
		}
	}
	return nil
}

// build is what every resource may depend on besides its own service or port.
type build struct {
	settings *mesh.Settings
	traits   scope.Traits
}

const defaultConnectTimeout = 10 * time.Second

func (b build) connectTimeout() time.Duration {
	if b.settings.ConnectTimeoutMillis <= 0 {
		return defaultConnectTimeout
	}
	return time.Duration(b.settings.ConnectTimeoutMillis) * time.Millisecond
}

func (b build) families() envoy.Families {
	if !b.traits.IPv4 && !b.traits.IPv6 {
		return envoy.Families{IPv4: true}
	}
	return envoy.Families{IPv4: b.traits.IPv4, IPv6: b.traits.IPv6}
}

func (b build) accessLog() envoy.AccessLog {
	return envoy.AccessLog{File: b.settings.AccessLogFile, Format: b.settings.AccessLogFormat, JSON: b.settings.AccessLogJSON}
}

// resource serializes a message. Refs are its own and the mesh-wide settings', since those shape every resource.
func (b build) resource(name string, m proto.Message, refs []ref.Ref) (Resource, error) {
	body, err := envoy.Marshal(m)
	if err != nil {
		return Resource{}, fmt.Errorf("marshal %s %s: %w", m.ProtoReflect().Descriptor().Name(), name, err)
	}
	return Resource{Name: name, Version: version(body), Body: &anypb.Any{TypeUrl: envoy.TypeURL(m), Value: body}, Refs: b.refs(refs)}, nil
}

func (b build) refs(own []ref.Ref) []ref.Ref {
	return sortedRefs(append(slices.Clone(own), b.settings.Refs...))
}

func sortedRefs(refs []ref.Ref) []ref.Ref {
	slices.SortFunc(refs, ref.Compare)
	return slices.Compact(refs)
}

// version is the first 128 bits of a SHA-256.
func version(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:16])
}

func byName(a, b Resource) int { return strings.Compare(a.Name, b.Name) }

// merge joins two lists that are sorted by name and have no name in common.
func merge(a, b []Resource) []Resource {
	all := make([]Resource, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if byName(a[0], b[0]) < 0 {
			all, a = append(all, a[0]), a[1:]
		} else {
			all, b = append(all, b[0]), b[1:]
		}
	}
	return append(append(all, a...), b...)
}
