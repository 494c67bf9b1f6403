package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Set is the folder with a Kubernetes' certificates: NAME.crt and NAME.key for each name below, sa.key and sa.pub.
type Set struct {
	Dir string
}

// Params are the facts that certificates name.
type Params struct {
	Node      string   // the node's name
	Addresses []net.IP // where the API server and the kubelet serve, beside loopback
}

// The names of the pairs in a Set.
const (
	CA                = "ca"
	FrontProxyCA      = "front-proxy-ca"
	APIServer         = "apiserver"
	KubeletClient     = "apiserver-kubelet-client"
	EtcdServer        = "etcd-server"
	EtcdClient        = "etcd-client"
	FrontProxyClient  = "front-proxy-client"
	Admin             = "admin"
	ControllerManager = "controller-manager"
	Scheduler         = "scheduler"
	Kubelet           = "kubelet"
	KubeletServer     = "kubelet-server"
	KubeProxy         = "kube-proxy"
	DNS               = "dns"
)

// Cert and Key are the paths of a pair's files.
func (s Set) Cert(name string) string { return filepath.Join(s.Dir, name+".crt") }

// Key is the path of a pair's private key.
func (s Set) Key(name string) string { return filepath.Join(s.Dir, name+".key") }

// TokenKey returns the paths of a key pair: the private one signs ServiceAccount tokens, the public one verifies them.
func (s Set) TokenKey() (private, public string) {
	return filepath.Join(s.Dir, "sa.key"), filepath.Join(s.Dir, "sa.pub")
}

// Pair reads a pair back.
func (s Set) Pair(name string) (Pair, error) {
	cert, err := os.ReadFile(s.Cert(name))
	if err != nil {
		return Pair{}, fmt.Errorf("read certificate %s: %w", name, err)
	}
	key, err := os.ReadFile(s.Key(name))
	if err != nil {
		return Pair{}, fmt.Errorf("read certificate %s: %w", name, err)
	}
	return Pair{cert, key}, nil
}

// Issue signs one more certificate by the cluster's authority and stores it.
func (s Set) Issue(name string, l Leaf) error {
	pair, err := s.Pair(CA)
	if err != nil {
		return err
	}
	ca, err := ParseAuthority(pair, time.Now)
	if err != nil {
		return err
	}
	leaf, err := ca.Issue(l)
	if err != nil {
		return err
	}
	return s.write(name, leaf)
}

// Ensure makes the set unless it is complete already. The last file written is sa.pub, so its presence means all.
func (s Set) Ensure(p Params) error {
	private, public := s.TokenKey()
	if _, err := os.Stat(public); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for certificates: %w", err)
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return fmt.Errorf("make certificates' folder: %w", err)
	}
	authorities := map[string]*Authority{}
	for _, name := range []string{CA, FrontProxyCA} {
		a, err := NewAuthority("selvage-lab-"+name, time.Now)
		if err != nil {
			return err
		}
		if err := s.write(name, a.Pair()); err != nil {
			return err
		}
		authorities[name] = a
	}
	for name, l := range leaves(p) {
		by := authorities[CA]
		if name == FrontProxyClient {
			by = authorities[FrontProxyCA]
		}
		pair, err := by.Issue(l)
		if err != nil {
			return err
		}
		if err := s.write(name, pair); err != nil {
			return err
		}
	}
	key, pub, err := TokenKey()
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(private, key, 0o600), os.WriteFile(public, pub, 0o600))
}

// leaves lists every certificate. Users and groups are those that Kubernetes' bootstrap RBAC binds.
func leaves(p Params) map[string]Leaf {
	loopback := net.IPv4(127, 0, 0, 1)
	serving := append([]net.IP{loopback}, p.Addresses...)
	admin := []string{"system:masters"}
	return map[string]Leaf{
		APIServer: {CommonName: "kube-apiserver", Server: true, IPs: append(serving, net.IPv4(10, 96, 0, 1)), DNSNames: []string{
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		}},
		KubeletClient:     {CommonName: "kube-apiserver-kubelet-client", Organizations: admin, Client: true},
		EtcdServer:        {CommonName: "etcd", Server: true, Client: true, IPs: []net.IP{loopback}},
		EtcdClient:        {CommonName: "kube-apiserver", Client: true},
		FrontProxyClient:  {CommonName: "front-proxy-client", Client: true},
		Admin:             {CommonName: "admin", Organizations: admin, Client: true},
		ControllerManager: {CommonName: "system:kube-controller-manager", Client: true},
		Scheduler:         {CommonName: "system:kube-scheduler", Client: true},
		Kubelet:           {CommonName: "system:node:" + p.Node, Organizations: []string{"system:nodes"}, Client: true},
		KubeletServer:     {CommonName: p.Node, Server: true, IPs: serving, DNSNames: []string{p.Node}},
		KubeProxy:         {CommonName: "system:kube-proxy", Client: true},
		DNS:               {CommonName: "system:coredns", Client: true},
	}
}

func (s Set) write(name string, p Pair) error {
	if err := os.WriteFile(s.Cert(name), p.Cert, 0o600); err != nil {
		return fmt.Errorf("write certificate %s: %w", name, err)
	}
	if err := os.WriteFile(s.Key(name), p.Key, 0o600); err != nil {
		return fmt.Errorf("write certificate %s: %w", name, err)
	}
	return nil
}
