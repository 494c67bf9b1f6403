// Package node says how the one node of a lab is run: containerd, the pods' network, the kubelet, kube-proxy and the cluster's
// DNS; and it keeps what they do to the machine inside the lab: mounts, cgroups, kernel settings.
package node

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/selvage-mesh/selvage/lab/internal/cluster"
	"github.com/selvage-mesh/selvage/lab/internal/pki"
)

// The programs of a node.
const (
	Containerd = "containerd"
	Kubelet    = "kubelet"
	KubeProxy  = "kube-proxy"
	DNS        = "dns"
)

// podRange is the part of cluster.PodRange that the controllers give to the first node, which is the only one.
const podRange = "10.244.0.0/24"

// Config describes the node of one lab.
type Config struct {
	Dir        string // the node's folder in the lab's
	Logs       string // the lab's folder for logs
	Run        string // short, under /run: the path of a Unix socket may have 107 bytes
	Cgroup     string // the name of the cgroup above the pods'
	PauseImage string
	Plugins    string // the folder with the CNI programs
	PKI        pki.Set
	API        string // the API server's HOST:PORT
	Kubeconfig func(user string) string
}

// Socket is where containerd listens.
func (c Config) Socket() string { return filepath.Join(c.Run, "containerd.sock") }

// File is the path of a configuration file.
func (c Config) File(name string) string { return filepath.Join(c.Dir, name) }

// Write makes the folders and the configuration files. A file that is right stays untouched: kube-proxy ends when its
// configuration is written, whatever was written.
func (c Config) Write() error {
	for _, d := range []string{c.Dir, c.File("cni"), c.File("kubelet"), c.File("containerd"), c.Run, filepath.Join(c.Logs, "pods")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make node's folders: %w", err)
		}
	}
	files := map[string]string{
		"containerd.toml":      c.containerd(),
		"cni/10-pods.conflist": c.network(),
		"kubelet.yaml":         c.kubelet(),
		"kube-proxy.yaml":      c.kubeProxy(),
		"corefile":             c.corefile(),
		"resolv.conf":          "# nothing outside the lab can be reached\n",
	}
	for name, content := range files {
		if was, err := os.ReadFile(c.File(name)); err == nil && string(was) == content {
			continue
		}
		if err := os.WriteFile(c.File(name), []byte(content), 0o644); err != nil {
			return fmt.Errorf("write node's configuration: %w", err)
		}
	}
	return nil
}

// containerd is in version 2 of the configuration's format: Debian's 1.6 reads no other, and 1.7 and 2 read it too.
func (c Config) containerd() string {
	return fmt.Sprintf(`version = 2
root = %[1]q
state = %[2]q
# modprobe and warnings, for snapshotters that nothing here uses
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = %[3]q
[plugins."io.containerd.internal.v1.opt"]
  path = %[4]q
[plugins."io.containerd.grpc.v1.cri"]
  # where root lacks CAP_SYS_RESOURCE, no pod starts without this
  restrict_oom_score_adj = true
  # a profile would be loaded into the machine's kernel
  disable_apparmor = true
  sandbox_image = %[5]q
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %[6]q
    conf_dir = %[7]q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = %[8]q
`, c.File("containerd"), filepath.Join(c.Run, "containerd"), c.Socket(), c.File("opt"), c.PauseImage, c.Plugins, c.File("cni"),
		c.Snapshotter())
}

// DefaultSnapshotter is what containerd unpacks images with when it is not told.
const DefaultSnapshotter = "overlayfs"

// Snapshotter is overlayfs, but where the lab's folder lies on an overlay itself: the kernel takes no overlay on another.
func (c Config) Snapshotter() string {
	var s unix.Statfs_t
	if err := unix.Statfs(c.Dir, &s); err == nil && s.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return "native"
	}
	return DefaultSnapshotter
}

// network gives each pod a point-to-point link. On a bridge, the answers between two pods would pass kube-proxy by, unless
// the machine has br_netfilter loaded and set; routed links need neither.
func (c Config) network() string {
	type m = map[string]any
	return render(m{"cniVersion": "0.4.0", "name": "pods", "plugins": []m{
		{"type": "ptp", "ipMasq": false, "ipam": m{
			"type": "host-local", "dataDir": c.File("cni-addresses"),
			"ranges": [][]m{{{"subnet": podRange}}}, "routes": []m{{"dst": "0.0.0.0/0"}},
		}},
		{"type": "portmap", "capabilities": m{"portMappings": true}},
	}})
}

func (c Config) kubelet() string {
	type m = map[string]any
	return render(m{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"authentication": m{
			"anonymous": m{"enabled": false}, "webhook": m{"enabled": true},
			"x509": m{"clientCAFile": c.PKI.Cert(pki.CA)},
		},
		"authorization": m{"mode": "Webhook"},
		"tlsCertFile":   c.PKI.Cert(pki.KubeletServer), "tlsPrivateKeyFile": c.PKI.Key(pki.KubeletServer),
		"address": cluster.Host, "readOnlyPort": 0,
		"containerRuntimeEndpoint": "unix://" + c.Socket(),
		"cgroupDriver":             "cgroupfs", "cgroupRoot": "/" + c.Cgroup,
		"failCgroupV1": false, "failSwapOn": false,
		"clusterDomain": "cluster.local", "clusterDNS": []string{cluster.DNSAddress}, "resolvConf": c.File("resolv.conf"),
		"podLogsDir": filepath.Join(c.Logs, "pods"), "volumePluginDir": c.File("volume-plugins"),
		"makeIPTablesUtilChains": false,
		// The machine is not the lab's: a disk that is nearly full must not evict the lab's pods before it must.
		"evictionHard":                m{"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
		"imageGCHighThresholdPercent": 100,
		"enforceNodeAllocatable":      []string{"pods"},
		// Changes are seen within seconds in a lab that people watch.
		"nodeStatusReportFrequency": "1m", "configMapAndSecretChangeDetectionStrategy": "Watch",
	})
}

func (c Config) kubeProxy() string {
	type m = map[string]any
	return render(m{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"clientConnection": m{"kubeconfig": c.Kubeconfig(pki.KubeProxy)},
		"mode":             "nftables", "clusterCIDR": cluster.PodRange, "hostnameOverride": cluster.Node,
		"metricsBindAddress": "127.0.0.1:10249", "healthzBindAddress": "127.0.0.1:10256",
		// These settings are the machine's, not the namespace's.
		"conntrack": m{"maxPerCore": 0, "min": 0},
	})
}

// DNSReady is where CoreDNS tells that it is ready.
const DNSReady = "127.0.0.1:8181"

// corefile answers for the cluster; every other name does not exist. Without the second block such names would end in
// SERVFAIL, and resolvers would try again instead of going on to the next search domain.
func (c Config) corefile() string {
	return fmt.Sprintf(`cluster.local:53 in-addr.arpa:53 ip6.arpa:53 {
  bind %[1]s
  errors
  ready %[2]s
  kubernetes cluster.local in-addr.arpa ip6.arpa {
    kubeconfig %[3]s
    pods insecure
    ttl 5
  }
  cache 5
  loadbalance
}
.:53 {
  bind %[1]s
  errors
  template ANY ANY . {
    rcode NXDOMAIN
  }
}
`, cluster.Host, DNSReady, c.Kubeconfig(pki.DNS))
}

// Args returns the arguments of a program of the node.
func (c Config) Args(program string) []string {
	switch program {
	case Containerd:
		return []string{"--config=" + c.File("containerd.toml")}
	case Kubelet:
		return []string{
			Kubelet, "--config=" + c.File("kubelet.yaml"), "--kubeconfig=" + c.Kubeconfig(pki.Kubelet),
			"--root-dir=" + c.File("kubelet"), "--cert-dir=" + c.File("kubelet/pki"),
			"--hostname-override=" + cluster.Node, "--node-ip=" + cluster.Host,
		}
	case KubeProxy:
		return []string{KubeProxy, "--config=" + c.File("kube-proxy.yaml")}
	case DNS:
		return []string{"-conf=" + c.File("corefile")}
	}
	panic("node: no program " + program)
}

func render(v any) string {
	b, err := json.MarshalIndent(v, "", "  ") // JSON is YAML
	if err != nil {
		panic(err) // maps of strings and numbers only
	}
	return string(b) + "\n"
}
