package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/selvage-mesh/selvage/lab/internal/cluster"
	"github.com/selvage-mesh/selvage/lab/internal/forward"
	"github.com/selvage-mesh/selvage/lab/internal/kubeapi"
	"github.com/selvage-mesh/selvage/lab/internal/netns"
	"github.com/selvage-mesh/selvage/lab/internal/pki"
	"github.com/selvage-mesh/selvage/lab/internal/state"
)

// startLimit is how long one program may take to come up: 2 s on a free machine, much more where tests keep it busy.
const startLimit = 2 * time.Minute

// base makes the network and the certificates.
func (l *Lab) base(ctx context.Context) error {
	step := l.Progress.Step("making the network and the certificates")
	if err := l.foundation(ctx); err != nil {
		step.Fail()
		return err
	}
	step.Done(l.networkSummary())
	return nil
}

// serve brings up etcd and the API server, and leaves l.api usable.
func (l *Lab) serve(ctx context.Context) error {
	step := l.Progress.Step("starting etcd and the API server")
	version, err := l.startAPI(ctx)
	if err != nil {
		step.Fail()
		return err
	}
	step.Done("Kubernetes " + version + " answers on " + l.dir.Lab().Addresses["api"])
	return nil
}

// control brings up the controllers and the scheduler.
func (l *Lab) control(ctx context.Context) error {
	step := l.Progress.Step("starting the controllers and the scheduler")
	if err := l.startControllers(ctx); err != nil {
		step.Fail()
		return err
	}
	step.Done("controllers and scheduler at work")
	return nil
}

func (l *Lab) networkSummary() string {
	if l.network == "" {
		return "certificates made; everything listens on 127.0.0.1"
	}
	return "network namespace " + l.network + " and certificates made"
}

// foundation makes what processes stand on: namespace, ports, certificates, kubeconfigs.
func (l *Lab) foundation(ctx context.Context) error {
	if l.network != "" && !netns.Exists(l.network) {
		if err := netns.Create(l.network, network()); err != nil {
			return err
		}
	}
	ports := l.dir.Lab().Ports
	if len(ports) == 0 {
		ports = cluster.StandardPorts()
		if l.network == "" {
			var err error
			if ports, err = cluster.FreePorts(ctx); err != nil {
				return err
			}
		}
		if err := l.dir.Update(func(s *state.Lab) { s.Ports = ports }); err != nil {
			return err
		}
	}
	params := pki.Params{Node: cluster.Node}
	l.plane = cluster.Config{
		PKI: l.pki(), Data: l.dir.File("etcd"), Ports: ports,
		Kubeconfig: func(user string) string { return l.dir.File("pki", user+".kubeconfig") },
	}
	if err := l.dir.Write("audit-policy.yaml", []byte(cluster.AuditPolicy), 0o644); err != nil {
		return err
	}
	l.plane.AuditPolicy, l.plane.AuditLog = l.dir.File("audit-policy.yaml"), l.dir.File("logs", "audit.log")
	if l.network != "" {
		l.plane.Host = cluster.Host
		params.Addresses = []net.IP{parseIP(cluster.Host)}
	}
	if err := l.pki().Ensure(params); err != nil {
		return err
	}
	for _, user := range []string{pki.Admin, pki.ControllerManager, pki.Scheduler, pki.Kubelet, pki.KubeProxy, pki.DNS} {
		if err := l.writeKubeconfig(user); err != nil {
			return err
		}
	}
	return nil
}

// writeKubeconfig writes a user's kubeconfig for programs inside the lab.
func (l *Lab) writeKubeconfig(user string) error {
	b, err := l.kubeconfig(user, l.plane.API())
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.plane.Kubeconfig(user), b, 0o600); err != nil {
		return fmt.Errorf("write kubeconfig of %s: %w", user, err)
	}
	return nil
}

func (l *Lab) kubeconfig(user, server string) ([]byte, error) {
	ca, err := l.pki().Pair(pki.CA)
	if err != nil {
		return nil, err
	}
	pair, err := l.pki().Pair(user)
	if err != nil {
		return nil, err
	}
	return cluster.Kubeconfig(server, ca.Cert, pair)
}

// startAPI starts etcd and the API server, publishes it, and writes the user's kubeconfig. It returns Kubernetes' version.
func (l *Lab) startAPI(ctx context.Context) (version string, err error) {
	address := l.plane.API()
	if l.network != "" {
		if address, err = l.forward(ctx, forwardAPI, []string{"api"}, []string{l.plane.API()}); err != nil {
			return "", err
		}
	}
	if err := l.dir.Update(func(s *state.Lab) { s.Addresses["api"] = address }); err != nil {
		return "", err
	}
	for _, name := range []string{cluster.Etcd, cluster.APIServer} {
		if err := l.ensure(program{name: name, path: l.kube(), args: l.plane.Args(name)}); err != nil {
			return "", err
		}
		if name == cluster.Etcd {
			if err := l.await(ctx, name, startLimit, l.listens(l.plane.EtcdURL())); err != nil {
				return "", err
			}
		}
	}
	if err := l.connect(address); err != nil {
		return "", err
	}
	err = l.await(ctx, cluster.APIServer, startLimit, func(ctx context.Context) (bool, error) {
		text, err := l.api.Text(ctx, "/readyz")
		return text == "ok", err
	})
	if err != nil {
		return "", err
	}
	config, err := l.kubeconfig(pki.Admin, address)
	if err != nil {
		return "", err
	}
	if err := l.dir.Write("kubeconfig", config, 0o600); err != nil {
		return "", err
	}
	var v struct {
		GitVersion string `json:"gitVersion"`
	}
	if err := l.api.Get(ctx, "/version", &v); err != nil {
		return "", err
	}
	version = strings.TrimPrefix(v.GitVersion, "v")
	return version, l.dir.Update(func(s *state.Lab) { s.Kubernetes = version })
}

// connect makes l.api, the administrator's client.
func (l *Lab) connect(address string) error {
	ca, err := l.pki().Pair(pki.CA)
	if err != nil {
		return err
	}
	admin, err := l.pki().Pair(pki.Admin)
	if err != nil {
		return err
	}
	l.api, err = kubeapi.New(address, ca.Cert, admin)
	return err
}

// startControllers waits until the first ServiceAccount exists: before, no pod can be made.
func (l *Lab) startControllers(ctx context.Context) error {
	// Only now that the API server is ready: before, its RBAC roles are missing, and the controller-manager ends.
	for _, name := range []string{cluster.ControllerManager, cluster.Scheduler} {
		if err := l.ensure(program{name: name, path: l.kube(), args: l.plane.Args(name)}); err != nil {
			return err
		}
	}
	return l.await(ctx, cluster.ControllerManager, startLimit, func(ctx context.Context) (bool, error) {
		err := l.api.Get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", &kubeapi.Object{})
		return err == nil, err
	})
}

// dial connects to an address inside the lab.
func (l *Lab) dial(ctx context.Context, address string) (c net.Conn, err error) {
	err = netns.Do(l.network, func() error {
		dialer := net.Dialer{Timeout: time.Second}
		c, err = dialer.DialContext(ctx, "tcp4", address)
		return err
	})
	return c, err
}

// listens returns a check whether a port inside the lab takes connections.
func (l *Lab) listens(url string) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		c, err := l.dial(ctx, url[strings.LastIndex(url, "/")+1:])
		if err != nil {
			return false, err
		}
		return true, c.Close()
	}
}

// answers returns a check whether a GET inside the lab, over plain HTTP, has status 200.
func (l *Lab) answers(address, path string) func(context.Context) (bool, error) {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return l.dial(ctx, address) },
	}}
	return func(ctx context.Context) (bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
		if err != nil {
			return false, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return false, fmt.Errorf("%s%s answers %s", address, path, resp.Status)
		}
		return true, nil
	}
}

// forward starts a forwarder from new loopback ports of the machine to targets inside the lab. keys name the addresses in
// lab.json; the first one is returned. A forwarder that was there before keeps its ports.
func (l *Lab) forward(ctx context.Context, name string, keys, targets []string) (address string, err error) {
	was := l.dir.Lab()
	if id, ok := was.Identities[name]; ok && id.Alive() {
		return was.Addresses[keys[0]], nil
	}
	addresses := map[string]string{}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, key := range keys {
		file, at, err := forward.Listen(ctx, portOf(was.Addresses[key]))
		if err != nil {
			return "", err
		}
		files, addresses[key] = append(files, file), at
	}
	err = l.ensure(program{name: name, path: l.binary("selvage-lab"), args: append([]string{"forward"}, targets...), files: files})
	if err != nil {
		return "", err
	}
	return addresses[keys[0]], l.dir.Update(func(s *state.Lab) {
		for key, at := range addresses {
			s.Addresses[key] = at
		}
	})
}

// portOf returns the port of HOST:PORT, 0 when there is none.
func portOf(address string) int {
	a, err := net.ResolveTCPAddr("tcp4", address)
	if address == "" || err != nil {
		return 0
	}
	return a.Port
}

func parseIP(s string) net.IP { return net.ParseIP(s).To4() }

func ranges(cidrs ...string) (out []*net.IPNet) {
	for _, c := range cidrs {
		_, n, err := net.ParseCIDR(c)
		if err != nil {
			panic(err) // constants only
		}
		out = append(out, n)
	}
	return out
}
