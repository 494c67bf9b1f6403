package agent

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/selvage-mesh/selvage/internal/readiness"
)

// adminTimeout bounds one question to Envoy's admin interface, which its main thread answers: it may be busy with a large push.
const adminTimeout = 2 * time.Second

// admin is Envoy's admin interface on localhost.
type admin struct {
	port   uint16
	client http.Client
}

func newAdmin(port uint16) *admin {
	return &admin{port, http.Client{Timeout: adminTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute}}}
}

func (a *admin) url(path string) string {
	return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(int(a.port))) + path
}

func (a *admin) do(ctx context.Context, method, path string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, method, a.url(path), nil)
	if err != nil {
		return nil, err
	}
	answer, err := a.client.Do(request)
	if err != nil {
		if u, ok := err.(*url.Error); ok { //nolint:errorlint // net/http documents that it is exactly this
			err = u.Err
		}
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 200)) // the status is the error
		answer.Body.Close()
		return nil, fmt.Errorf("the proxy's admin interface answered %s: %s", answer.Status, strings.TrimSpace(string(text)))
	}
	return answer.Body, nil
}

// stats gives the numeric statistics whose names match filter, by name.
func (a *admin) stats(ctx context.Context, filter string) (map[string]uint64, error) {
	body, err := a.do(ctx, http.MethodGet, "/stats?filter="+url.QueryEscape(filter))
	if err != nil {
		return nil, err
	}
	defer body.Close()
	stats := map[string]uint64{}
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), ": ")
		if n, err := strconv.ParseUint(value, 10, 64); ok && err == nil {
			stats[name] = n
		}
	}
	return stats, lines.Err()
}

// The statistics that readiness goes by.
const (
	cdsSuccess     = "cluster_manager.cds.update_success"
	cdsRejected    = "cluster_manager.cds.update_rejected"
	ldsSuccess     = "listener_manager.lds.update_success"
	ldsRejected    = "listener_manager.lds.update_rejected"
	workersStarted = "listener_manager.workers_started"
	serverState    = "server.state"
)

var readinessFilter = "^(" + strings.Join([]string{
	regexp.QuoteMeta(cdsSuccess), regexp.QuoteMeta(cdsRejected), regexp.QuoteMeta(ldsSuccess), regexp.QuoteMeta(ldsRejected),
	regexp.QuoteMeta(workersStarted), regexp.QuoteMeta(serverState),
}, "|") + ")$"

// serverStates are Envoy's, by the value of server.state (envoy.admin.v3.ServerInfo.State).
var serverStates = []string{"LIVE", "DRAINING", "PRE_INITIALIZING", "INITIALIZING"}

// readiness fills in what Envoy itself knows.
func (a *admin) readiness(ctx context.Context) (s readiness.Status) {
	stats, err := a.stats(ctx, readinessFilter)
	if err != nil {
		return readiness.Status{Unreachable: err.Error()}
	}
	s.CDS = readiness.Updates{Successful: stats[cdsSuccess], Rejected: stats[cdsRejected]}
	s.LDS = readiness.Updates{Successful: stats[ldsSuccess], Rejected: stats[ldsRejected]}
	s.WorkersStarted = stats[workersStarted] == 1
	state, known := stats[serverState]
	switch {
	case !known:
		s.ServerState = "PRE_INITIALIZING" // it is the first statistic that a started server has
	case state < uint64(len(serverStates)):
		s.ServerState = serverStates[state]
	default:
		s.ServerState = strconv.FormatUint(state, 10)
	}
	return s
}

// drain makes Envoy say good-bye on inbound connections: `connection: close` with every HTTP/1 response, GOAWAY on HTTP/2. The
// listeners stay open (skip_exit), and outbound connections are not touched.
func (a *admin) drain(ctx context.Context) error {
	body, err := a.do(ctx, http.MethodPost, "/drain_listeners?inboundonly&graceful&skip_exit")
	if err != nil {
		return fmt.Errorf("drain the proxy: %w", err)
	}
	return body.Close()
}

// inbound counts connections that came in through the interception, on the listener of that port: now, and since the start.
func (a *admin) inbound(ctx context.Context, port uint16) (active, total uint64, err error) {
	stats, err := a.stats(ctx, fmt.Sprintf(`^listener\.[0-9._\[\]]+_%d\.downstream_cx_(active|total)$`, port))
	if err != nil {
		return 0, 0, fmt.Errorf("count inbound connections: %w", err)
	}
	for name, n := range stats {
		if strings.HasSuffix(name, "_active") {
			active += n
		} else {
			total += n
		}
	}
	return active, total, nil
}
