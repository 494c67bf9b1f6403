package cluster

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/selvage-mesh/selvage/lab/internal/pki"
)

func config(host string) Config {
	return Config{
		PKI: pki.Set{Dir: "/lab/pki"}, Data: "/lab/etcd", Ports: StandardPorts(), Host: host,
		Kubeconfig: func(user string) string { return "/lab/pki/" + user + ".kubeconfig" },
	}
}

// On the machine's own network nothing but this machine may reach the lab.
func TestWithoutANetworkOfItsOwnEverythingListensOnLoopback(t *testing.T) {
	for _, program := range []string{Etcd, APIServer, ControllerManager, Scheduler} {
		args := config("").Args(program)
		if args[0] != program {
			t.Errorf("the multi-call binary is told to be %s, not %s", args[0], program)
		}
		bound := false
		for _, a := range args {
			if name, value, _ := strings.Cut(a, "="); name == "--bind-address" || strings.HasPrefix(name, "--listen-") {
				bound = true
				if value != "127.0.0.1" && !strings.HasPrefix(value, "https://127.0.0.1:") {
					t.Errorf("%s: %s", program, a)
				}
			}
		}
		if !bound {
			t.Errorf("%s does not say where it listens", program)
		}
	}
	if args := config("").Args(APIServer); !slices.Contains(args, "--endpoint-reconciler-type=none") {
		t.Error("the API server would try for ever to publish a loopback address, which is not allowed")
	}
}

func TestOnlyHoldersOfTheLabsCertificatesReachItsEtcd(t *testing.T) {
	args := config(Host).Args(Etcd)
	for _, want := range []string{"--client-cert-auth", "--peer-client-cert-auth", "--trusted-ca-file=/lab/pki/ca.crt"} {
		if !slices.Contains(args, want) {
			t.Errorf("etcd runs without %s", want)
		}
	}
	api := config(Host).Args(APIServer)
	if !slices.Contains(api, "--etcd-cafile=/lab/pki/ca.crt") || !slices.Contains(api, "--etcd-servers=https://127.0.0.1:2379") {
		t.Errorf("the API server would take any etcd: %v", api)
	}
}

func TestFreePortsDiffer(t *testing.T) {
	ports, err := FreePorts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]string{}
	for name, p := range ports {
		if other, ok := seen[p]; ok || p == 0 {
			t.Errorf("%s and %q have port %d", name, other, p)
		}
		seen[p] = name
	}
	if len(seen) != len(StandardPorts()) {
		t.Errorf("%d ports, want %d", len(seen), len(StandardPorts()))
	}
}

func TestAKubeconfigNeedsNoOtherFile(t *testing.T) {
	b, err := Kubeconfig("127.0.0.1:6443", []byte("CA"), pki.Pair{Cert: []byte("C"), Key: []byte("K")})
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Current  string `json:"current-context"`
		Clusters []struct {
			Cluster struct {
				Server string
				CA     []byte `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct {
				Cert []byte `json:"client-certificate-data"`
				Key  []byte `json:"client-key-data"`
			}
		}
	}
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	if c.Current == "" || c.Clusters[0].Cluster.Server != "https://127.0.0.1:6443" || string(c.Clusters[0].Cluster.CA) != "CA" ||
		string(c.Users[0].User.Cert) != "C" || string(c.Users[0].User.Key) != "K" {
		t.Errorf("kubeconfig: %s", b)
	}
}
