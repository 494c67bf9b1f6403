// Package cluster says how the control plane of a lab's Kubernetes is run: the arguments of etcd, kube-apiserver,
// kube-controller-manager and kube-scheduler, the order in which they start and end, and the kubeconfigs of their users.
package cluster

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"strconv"

	"github.com/selvage-mesh/selvage/lab/internal/pki"
)

// The ranges of a lab. Every lab has the same: each has a network of its own, or no kube-proxy at all.
const (
	ServiceRange = "10.96.0.0/16"
	PodRange     = "10.244.0.0/16"
	DNSAddress   = "10.96.0.10"
	// Host is the lab's own address inside its network namespace.
	Host = "10.244.255.1"
	// Node is the name of the one node at level 2.
	Node = "lab"
)

// The programs of the control plane.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
)

// The names of the ports in Config.Ports.
const (
	PortAPI               = "api"
	PortEtcd              = "etcd"
	PortEtcdPeer          = "etcd-peer"
	PortControllerManager = "controller-manager"
	PortScheduler         = "scheduler"
)

// StandardPorts are for a lab with a network of its own.
func StandardPorts() map[string]int {
	return map[string]int{PortAPI: 6443, PortEtcd: 2379, PortEtcdPeer: 2380, PortControllerManager: 10257, PortScheduler: 10259}
}

// FreePorts chooses ports of 127.0.0.1 that nothing listens on now.
func FreePorts(ctx context.Context) (map[string]int, error) {
	ports := StandardPorts()
	var listen net.ListenConfig
	for name := range ports {
		l, err := listen.Listen(ctx, "tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer l.Close() // only at the end: no port is chosen twice
		ports[name] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}

// FreePort chooses one port of an address that nothing listens on now.
func FreePort(ctx context.Context, host string) (int, error) {
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Config describes one control plane.
type Config struct {
	PKI   pki.Set
	Data  string // etcd's folder
	Ports map[string]int
	// Host is an address of the lab's own network, where pods and webhooks are; "" on the machine's network, where
	// everything binds to loopback.
	Host string
	// AuditPolicy and AuditLog are paths: what the API server writes down, and where. "" for nothing.
	AuditPolicy, AuditLog string
	// Kubeconfig returns the path of the kubeconfig of a user named in package pki.
	Kubeconfig func(user string) string
}

// EtcdURL is where etcd serves its clients. Both sides show certificates of the lab's own authority: an API server can only
// ever talk to the etcd that was started for it.
func (c Config) EtcdURL() string { return "https://127.0.0.1:" + strconv.Itoa(c.Ports[PortEtcd]) }

// API is the API server's HOST:PORT as its own components reach it.
func (c Config) API() string { return "127.0.0.1:" + strconv.Itoa(c.Ports[PortAPI]) }

// Args returns the arguments of a program of the control plane, its name first, as the multi-call binary takes them.
func (c Config) Args(program string) []string {
	switch program {
	case Etcd:
		return c.etcd()
	case APIServer:
		return c.apiServer()
	case ControllerManager:
		return c.controllerManager()
	case Scheduler:
		return c.scheduler()
	}
	panic("cluster: no program " + program)
}

func (c Config) etcd() []string {
	peer := "https://127.0.0.1:" + strconv.Itoa(c.Ports[PortEtcdPeer])
	cert, key, ca := c.PKI.Cert(pki.EtcdServer), c.PKI.Key(pki.EtcdServer), c.PKI.Cert(pki.CA)
	return []string{
		Etcd, "--name=lab", "--data-dir=" + c.Data,
		"--listen-client-urls=" + c.EtcdURL(), "--advertise-client-urls=" + c.EtcdURL(),
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=lab=" + peer,
		"--client-cert-auth", "--cert-file=" + cert, "--key-file=" + key, "--trusted-ca-file=" + ca,
		"--peer-client-cert-auth", "--peer-cert-file=" + cert, "--peer-key-file=" + key, "--peer-trusted-ca-file=" + ca,
		"--unsafe-no-fsync", // a lab need not survive a power cut
		"--log-level=warn",
	}
}

func (c Config) apiServer() []string {
	tokenKey, tokenPub := c.PKI.TokenKey()
	args := []string{
		APIServer,
		"--etcd-servers=" + c.EtcdURL(),
		"--etcd-cafile=" + c.PKI.Cert(pki.CA), "--etcd-certfile=" + c.PKI.Cert(pki.EtcdClient), "--etcd-keyfile=" + c.PKI.Key(pki.EtcdClient),
		"--secure-port=" + strconv.Itoa(c.Ports[PortAPI]),
		"--service-cluster-ip-range=" + ServiceRange,
		"--allow-privileged=true",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--tls-cert-file=" + c.PKI.Cert(pki.APIServer), "--tls-private-key-file=" + c.PKI.Key(pki.APIServer),
		"--client-ca-file=" + c.PKI.Cert(pki.CA),
		"--kubelet-client-certificate=" + c.PKI.Cert(pki.KubeletClient), "--kubelet-client-key=" + c.PKI.Key(pki.KubeletClient),
		"--kubelet-certificate-authority=" + c.PKI.Cert(pki.CA),
		"--kubelet-preferred-address-types=InternalIP,Hostname",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + tokenPub, "--service-account-signing-key-file=" + tokenKey,
		// Webhooks that name a Service go to its EndpointSlice's addresses, with and without a kube-proxy.
		"--enable-aggregator-routing=true",
		"--requestheader-client-ca-file=" + c.PKI.Cert(pki.FrontProxyCA), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + c.PKI.Cert(pki.FrontProxyClient), "--proxy-client-key-file=" + c.PKI.Key(pki.FrontProxyClient),
	}
	if c.AuditPolicy != "" {
		args = append(args, "--audit-policy-file="+c.AuditPolicy, "--audit-log-path="+c.AuditLog, "--audit-log-maxsize=50", "--audit-log-maxbackup=1")
	}
	if c.Host == "" {
		// Endpoints of the Service "kubernetes" may not be loopback addresses, and there is no pod to use them.
		return append(args, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none")
	}
	return append(args, "--bind-address=0.0.0.0", "--advertise-address="+c.Host)
}

// AuditPolicy writes down what the mesh's control planes ask of the API server, and what they are answered: which rights they use, and
// which they lack.
const AuditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: Metadata
  userGroups: ["system:serviceaccounts:istio-system"]
- level: None
`

func (c Config) controllerManager() []string {
	tokenKey, _ := c.PKI.TokenKey()
	args := append(c.component(ControllerManager, pki.ControllerManager, PortControllerManager),
		"--use-service-account-credentials=true",
		"--service-account-private-key-file="+tokenKey, "--root-ca-file="+c.PKI.Cert(pki.CA),
		"--cluster-signing-cert-file="+c.PKI.Cert(pki.CA), "--cluster-signing-key-file="+c.PKI.Key(pki.CA),
		"--allocate-node-cidrs=true", "--cluster-cidr="+PodRange, "--service-cluster-ip-range="+ServiceRange,
		// With the defaults (20 and 30) the first ServiceAccounts take 9 s to appear instead of 3.
		"--kube-api-qps=300", "--kube-api-burst=600",
	)
	return args
}

func (c Config) scheduler() []string { return c.component(Scheduler, pki.Scheduler, PortScheduler) }

func (c Config) component(program, user, port string) []string {
	kubeconfig := c.Kubeconfig(user)
	return []string{
		program,
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(c.Ports[port]), "--leader-elect=false",
	}
}

// Kubeconfig renders a kubeconfig with everything inside, so that it works from any folder. server is HOST:PORT.
func Kubeconfig(server string, ca []byte, user pki.Pair) ([]byte, error) {
	const name = "selvage-lab"
	b64 := base64.StdEncoding.EncodeToString
	type m = map[string]any
	b, err := json.MarshalIndent(m{ // JSON is YAML
		"apiVersion": "v1", "kind": "Config", "current-context": name,
		"clusters": []m{{"name": name, "cluster": m{"server": "https://" + server, "certificate-authority-data": b64(ca)}}},
		"users":    []m{{"name": name, "user": m{"client-certificate-data": b64(user.Cert), "client-key-data": b64(user.Key)}}},
		"contexts": []m{{"name": name, "context": m{"cluster": name, "user": name}}},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("render kubeconfig: %w", err)
	}
	return append(b, '\n'), nil
}
