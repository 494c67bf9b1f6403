package ads

import (
	"fmt"
	"hash/fnv"
	"log/slog"
	"sync"

	"github.com/selvage-mesh/selvage/internal/ads/session"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/scope"
	"github.com/selvage-mesh/selvage/internal/xds"
)

// endpoints generates the endpoints of each service port once for all proxies, or, where localities count, for all of one locality, and
// keeps them while they are in the model.
type endpoints struct {
	generate func(*mesh.EndpointSet, *mesh.LocalityBalancing, mesh.Locality) (xds.Resource, error)
	metrics  *metrics
	log      *slog.Logger
	current  func() *mesh.Model
	entries  sync.Map // *mesh.EndpointSet → *assignments
}

// assignments are the forms of one endpoint set: nearly always one.
type assignments struct {
	assignment

	mu         sync.Mutex
	byLocality map[localityForm]*assignment
}

// localityForm is a form for clients of one locality.
type localityForm struct {
	by       *mesh.LocalityBalancing
	locality mesh.Locality
}

// form gives that of clients in a locality; by is nil where that does not matter.
func (a *assignments) form(by *mesh.LocalityBalancing, locality mesh.Locality) *assignment {
	if by == nil {
		return &a.assignment
	}
	key := localityForm{by, locality}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byLocality == nil {
		a.byLocality = map[localityForm]*assignment{}
	}
	one := a.byLocality[key]
	if one == nil {
		one = &assignment{localityForm: key}
		a.byLocality[key] = one
	}
	return one
}

// assignment is the endpoints of one service port, with a version for each version of the cluster (see
// session.Config.Endpoints). These share the serialized body.
type assignment struct {
	localityForm

	once sync.Once
	made xds.Resource
	err  error

	mu   sync.Mutex
	sent []versioned // the latest last
}

type versioned struct {
	cluster  string
	resource *session.Resource
}

// keptVersions bounds the versions of a cluster that proxies have at one time: there are few, while a change goes round.
const keptVersions = 4

func newEndpoints(generate func(*mesh.EndpointSet, *mesh.LocalityBalancing, mesh.Locality) (xds.Resource, error), m *metrics, log *slog.Logger, current func() *mesh.Model) *endpoints {
	return &endpoints{generate: generate, metrics: m, log: log, current: current}
}

// endpointSource is where the endpoints of one view come from.
type endpointSource struct {
	*endpoints
	view    scope.View
	variant session.Variant
}

// get gives the endpoints of a name for a cluster of that version, or nil. The state of the world has no word for "there is
// none", so there a name that could exist is given an empty list, which ends a cluster's waiting.
func (c endpointSource) get(name, cluster string) *session.Resource {
	key, ok := xds.ParseClusterName(name)
	if !ok {
		return nil
	}
	set := c.view.Endpoints(key)
	if set == nil {
		if c.variant == session.Delta {
			return nil
		}
		set = &mesh.EndpointSet{Key: key}
		return (&assignment{}).resource(c.endpoints, set, cluster)
	}
	found, ok := c.entries.Load(set)
	if !ok {
		found, ok = c.entries.LoadOrStore(set, &assignments{})
		// A stream that is behind may ask for what is not in the model any more, which nobody would ever forget.
		if now := c.current(); now == nil || now.Endpoints[set.Key] != set {
			c.entries.Delete(set)
		}
	}
	if !ok {
		c.metrics.endpointMisses.Inc()
	}
	return found.(*assignments).form(c.view.ByLocality(key), c.view.Traits.Locality).resource(c.endpoints, set, cluster)
}

func (a *assignment) resource(c *endpoints, set *mesh.EndpointSet, cluster string) *session.Resource {
	a.once.Do(func() {
		if a.made, a.err = c.generate(set, a.by, a.locality); a.err != nil {
			c.log.Error("endpoints cannot be generated; proxies keep what they have", "host", set.Key.Host, "port", set.Key.Port, "error", a.err)
		}
	})
	if a.err != nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, v := range a.sent {
		if v.cluster == cluster {
			return v.resource
		}
	}
	if len(a.sent) >= keptVersions {
		a.sent = a.sent[1:]
	}
	r := a.made
	r.Version += "." + short(cluster)
	made := newResource(session.Endpoints, r)
	made.Content = a.made.Version
	a.sent = append(a.sent, versioned{cluster, made})
	return made
}

// short is a part of a version in 8 digits: versions of endpoints are sent for each of them, and by each proxy that comes back.
func short(s string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(s))
	return fmt.Sprintf("%08x", h.Sum32())
}

func (c *endpoints) forget(set *mesh.EndpointSet) {
	if set != nil {
		c.entries.Delete(set)
	}
}
