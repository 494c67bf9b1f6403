package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// revision is another control plane in a lab of level 1, a process as the lab's own is. It acts as the account that `selvage
// install` made for it, with that account's rights.
type revision struct {
	*lab
	name  string
	where []string // flags of install: where it listens
}

// startRevision installs a revision and runs it until the test ends. The ConfigMaps may be changed before it runs.
func (l *lab) startRevision(t *testing.T, name string, prepare func()) *revision {
	t.Helper()
	r := &revision{lab: l, name: name}
	host := l.meshHost(t)
	xds, webhook, http := freePort(t), freePort(t), freePort(t)
	r.where = []string{"--endpoint", fmt.Sprintf("%s:xds=%s,webhook=%s,http=%s", host, xds, webhook, http)}
	if net.ParseIP(host).IsLoopback() {
		r.where = []string{"--webhook-url", "https://" + net.JoinHostPort(host, webhook)}
	}
	r.install(t)
	t.Cleanup(func() { l.mustSelvage(t, "uninstall", "--revision", name) })
	if prepare != nil {
		prepare()
	}
	at := func(port string) string { return net.JoinHostPort(host, port) }
	cmd := exec.Command(bin("selvage-lab"), "enter", "--dir", l.Dir, "--", bin("selvaged"), "--kubeconfig="+l.actingAs(t, "istiod-"+name), "--namespace=istio-system",
		"--revision="+name, "--xds-addr="+at(xds), "--webhook-addr="+at(webhook), "--http-addr="+at(http))
	log, err := os.Create(filepath.Join(l.Dir, "logs", "selvaged-"+name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // with this test, should it be killed
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		log.Close()
	})
	l.injects(t, l.namespace(t, map[string]string{"istio.io/rev": name}), name)
	return r
}

// install runs `selvage install` for the revision. It waits for nothing: the control plane comes later, or is there.
func (r *revision) install(t *testing.T, args ...string) {
	t.Helper()
	r.mustSelvage(t, append([]string{"install", "--revision", r.name, "--tag", "dev", "--skip-crds", "--wait=false"}, append(r.where, args...)...)...)
}

// meshHost is the address that the lab's control plane listens on, as the API server knows it; loopback where the machine has no
// other.
func (l *lab) meshHost(t *testing.T) string {
	t.Helper()
	list, err := l.Client.DiscoveryV1().EndpointSlices("istio-system").List(t.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=istiod"})
	if err != nil {
		t.Fatal(err)
	}
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			return e.Addresses[0]
		}
	}
	return "127.0.0.1"
}

// freePort is one that nothing listens on. The lab's network is another than the test's, and emptier.
func freePort(t *testing.T) string {
	t.Helper()
	_, port, err := net.SplitHostPort(freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	return port
}
