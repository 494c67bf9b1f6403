package ads

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/selvage-mesh/selvage/internal/ads/session"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// ProxyStatus is one connected proxy, as /debug/syncz shows it.
type ProxyStatus struct {
	ID             string                `json:"id"` // xDS node id
	Namespace      string                `json:"namespace"`
	Pod            string                `json:"pod"`
	ServiceAccount string                `json:"serviceAccount"`
	ConnectedAt    time.Time             `json:"connectedAt"` // UTC, whole seconds
	EnvoyVersion   string                `json:"envoyVersion,omitempty"`
	Certificate    *CertificateStatus    `json:"certificate,omitempty"`
	Types          map[string]TypeStatus `json:"types"` // CDS, EDS, LDS, RDS; VHDS of proxies that are sent virtual hosts apart
}

// TypeStatus is how far a proxy is with one type.
type TypeStatus struct {
	State        session.State `json:"state"`
	SentVersion  string        `json:"sentVersion,omitempty"`  // of the whole type
	AckedVersion string        `json:"ackedVersion,omitempty"` // of the whole type
	LastError    string        `json:"lastError,omitempty"`    // the proxy's own words, while something is rejected
	RejectedRefs []string      `json:"rejectedRefs,omitempty"` // objects that the rejected resources come from, Kind/NAMESPACE/NAME
}

// Proxies describes the connected proxies, sorted by namespace and pod. Of a proxy that has several streams, as for a moment
// after a broken connection, the newest counts.
func (s *Server) Proxies() []ProxyStatus {
	newest := s.newest()
	list := make([]ProxyStatus, 0, len(newest))
	for _, st := range newest {
		list = append(list, st.status())
	}
	slices.SortFunc(list, func(a, b ProxyStatus) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Pod, b.Pod), strings.Compare(a.ID, b.ID))
	})
	return list
}

// newest gives the streams by proxy.
func (s *Server) newest() map[string]*stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	newest := make(map[string]*stream, len(s.streams))
	for st := range s.streams {
		if other := newest[st.proxy.ID]; other == nil || other.connected.Before(st.connected) {
			newest[st.proxy.ID] = st
		}
	}
	return newest
}

func (st *stream) status() ProxyStatus {
	p := ProxyStatus{
		ID: st.proxy.ID, Namespace: st.proxy.Namespace, Pod: st.proxy.Name, ServiceAccount: st.proxy.ServiceAccount,
		ConnectedAt: st.connected.UTC().Truncate(time.Second), EnvoyVersion: versionString(st.proxy.Version),
		Types: map[string]TypeStatus{},
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	p.Certificate = st.certificate()
	for k := range session.Unknown {
		t := st.session.Status(k)
		if k == session.VirtualHosts && t.State == session.NotSent {
			continue // they stand in their route configurations
		}
		p.Types[strings.ToUpper(k.String())] = TypeStatus{State: t.State, SentVersion: t.Sent, AckedVersion: t.Acked, LastError: t.Error,
			RejectedRefs: refsOf(t.Rejected)}
	}
	// For people a virtual host is a part of its routes, also where it is a resource of its own.
	if hosts, ok := p.Types["VHDS"]; ok && p.Types["RDS"].State == session.Synced {
		routes := p.Types["RDS"]
		routes.State, routes.LastError, routes.RejectedRefs = hosts.State, hosts.LastError, hosts.RejectedRefs
		p.Types["RDS"] = routes
	}
	return p
}

// refsOf are the objects that resources come from, each once, sorted.
func refsOf(rs []*session.Resource) []string {
	var all []ref.Ref
	for _, r := range rs {
		if p, ok := r.Data.(*payload); ok {
			for _, o := range p.refs {
				all = append(all, o.Object())
			}
		}
	}
	slices.SortFunc(all, ref.Compare)
	all = slices.Compact(all)
	list := make([]string, 0, len(all))
	for _, o := range all {
		list = append(list, o.String())
	}
	return list
}

// SyncHandler serves /debug/syncz: the proxies of this replica. Whoever mounts it must check that the caller may see them.
func (s *Server) SyncHandler(replica, version string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		// An error here is a client that went away.
		_ = json.NewEncoder(w).Encode(struct {
			Replica string        `json:"replica"`
			Version string        `json:"version"`
			Proxies []ProxyStatus `json:"proxies"`
		}{replica, version, s.Proxies()})
	})
}

// rejectionLog remembers which rejections were logged, so that a proxy that reconnects with the same bad configuration does
// not fill the log.
type rejectionLog struct {
	mu   sync.Mutex
	seen map[string]struct{}
}

const keptRejections = 4096

// first reports whether this is the first rejection of a version by a proxy.
func (l *rejectionLog) first(node string, kind session.Kind, version string) bool {
	key := node + "\x00" + kind.String() + "\x00" + version
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.seen[key]; ok {
		return false
	}
	if l.seen == nil || len(l.seen) >= keptRejections {
		l.seen = map[string]struct{}{}
	}
	l.seen[key] = struct{}{}
	return true
}
