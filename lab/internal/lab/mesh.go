package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/selvage-mesh/selvage/lab/internal/cluster"
	"github.com/selvage-mesh/selvage/lab/internal/fault"
	"github.com/selvage-mesh/selvage/lab/internal/image"
	"github.com/selvage-mesh/selvage/lab/internal/pki"
	"github.com/selvage-mesh/selvage/lab/internal/proc"
	"github.com/selvage-mesh/selvage/lab/internal/state"
)

// meshConfig is the lab's MeshConfig over the product's own: access logs that show who spoke, by SPIFFE identity.
const meshConfig = `accessLogFile: /dev/stdout
accessLogEncoding: TEXT
accessLogFormat: >
  [%START_TIME%] "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% %DURATION%ms
  %UPSTREAM_CLUSTER% %UPSTREAM_HOST%
  client=%DOWNSTREAM_PEER_URI_SAN% server=%UPSTREAM_PEER_URI_SAN%
  tls=%DOWNSTREAM_TLS_VERSION%/%UPSTREAM_TLS_VERSION%
`

// namespace of the control plane of the mesh.
const systemNamespace = "istio-system"

// endpoints are where a selvaged outside of the cluster listens, each HOST:PORT.
type endpoints struct{ xds, webhook, http string }

// mesh installs the control plane and waits until pods get sidecars.
func (l *Lab) mesh(ctx context.Context) error {
	if !l.Mesh {
		return nil
	}
	step := l.Progress.Step("installing the mesh")
	if err := l.installMesh(ctx); err != nil {
		step.Fail()
		return err
	}
	step.Done("mesh installed: pods get their sidecars")
	return l.dir.Update(func(s *state.Lab) { s.Mesh = true })
}

func (l *Lab) installMesh(ctx context.Context) error {
	if err := l.dir.Write("mesh.yaml", []byte(meshConfig), 0o644); err != nil {
		return err
	}
	args := []string{"install", "--kubeconfig", l.dir.File("kubeconfig"), "--mesh-config", l.dir.File("mesh.yaml"), "--tag", l.Tag}
	if l.Revision != "" {
		args = append(args, "--revision", l.Revision)
	}
	if l.level == 2 {
		if err := l.run(ctx, "selvage", args...); err != nil {
			return err
		}
		if err := l.restart(ctx, systemNamespace, l.catalogue().Selvaged().Name); err != nil {
			return err
		}
		return l.publish(ctx)
	}
	at, err := l.endpoints(ctx)
	if err != nil {
		return err
	}
	args = append(args, at.flags(l.plane.Host)...)
	// selvaged acts as its own ServiceAccount, with the rights that the installation gives it: those come first.
	if err := l.run(ctx, "selvage", append(args, "--wait=false")...); err != nil {
		return err
	}
	if err := l.startControlPlane(ctx, at); err != nil {
		return err
	}
	if err := l.publishProcess(ctx, at); err != nil {
		return err
	}
	// `selvage status` runs on the machine, where only the published address answers.
	args = append(args, "--status-address", l.dir.Lab().Addresses["http"])
	return l.run(ctx, "selvage", args...)
}

// name is base with the revision, as the product names its objects.
func (l *Lab) name(base string) string {
	if l.Revision == "" || l.Revision == "default" {
		return base
	}
	return base + "-" + l.Revision
}

// endpoints chooses where a selvaged outside of the cluster listens: on the lab's address; on the machine's own network at an
// address of the machine that EndpointSlices take, or on loopback where it has none.
func (l *Lab) endpoints(ctx context.Context) (endpoints, error) {
	ports := l.dir.Lab().Ports
	host := l.plane.Host
	if host != "" {
		return endpoints{net.JoinHostPort(host, "15012"), net.JoinHostPort(host, "15017"), net.JoinHostPort(host, "15014")}, nil
	}
	host = l.dir.Lab().Host
	if ports["xds"] == 0 {
		host = machineAddress()
		for _, name := range []string{"xds", "webhook", "http"} {
			p, err := cluster.FreePort(ctx, host)
			if err != nil {
				return endpoints{}, err
			}
			ports[name] = p
		}
		err := l.dir.Update(func(s *state.Lab) { s.Ports, s.Host = ports, host })
		if err != nil {
			return endpoints{}, err
		}
	}
	at := func(name string) string { return net.JoinHostPort(host, strconv.Itoa(ports[name])) }
	return endpoints{at("xds"), at("webhook"), at("http")}, nil
}

// flags tell the installation where selvaged is.
func (e endpoints) flags(ownNetwork string) []string {
	host, xds, _ := net.SplitHostPort(e.xds)
	_, webhook, _ := net.SplitHostPort(e.webhook)
	_, http, _ := net.SplitHostPort(e.http)
	if ownNetwork == "" && net.ParseIP(host).IsLoopback() {
		return []string{"--webhook-url", "https://" + e.webhook}
	}
	return []string{"--endpoint", fmt.Sprintf("%s:xds=%s,webhook=%s,http=%s", host, xds, webhook, http)}
}

// startControlPlane runs selvaged as a process.
func (l *Lab) startControlPlane(ctx context.Context, at endpoints) error {
	account := l.name("istiod")
	if _, err := os.Stat(l.pki().Cert(selvaged)); err != nil {
		leaf := pki.Leaf{Client: true, CommonName: "system:serviceaccount:" + systemNamespace + ":" + account,
			Organizations: []string{"system:serviceaccounts", "system:serviceaccounts:" + systemNamespace}}
		if err := l.pki().Issue(selvaged, leaf); err != nil {
			return err
		}
	}
	if err := l.writeKubeconfig(selvaged); err != nil {
		return err
	}
	args := []string{
		"--kubeconfig=" + l.plane.Kubeconfig(selvaged), "--namespace=" + systemNamespace,
		"--xds-addr=" + at.xds, "--webhook-addr=" + at.webhook, "--http-addr=" + at.http,
	}
	if l.Revision != "" {
		args = append(args, "--revision="+l.Revision)
	}
	if err := l.ensure(program{name: selvaged, path: l.binary("selvaged"), args: args}); err != nil {
		return err
	}
	return l.await(ctx, selvaged, startLimit, l.answers(at.http, "/ready"))
}

// publishProcess makes the ports of a selvaged process reachable from the machine's loopback.
func (l *Lab) publishProcess(ctx context.Context, at endpoints) error {
	if l.network == "" {
		return l.dir.Update(func(s *state.Lab) {
			s.Addresses["xds"], s.Addresses["webhook"], s.Addresses["http"] = at.xds, at.webhook, at.http
		})
	}
	_, err := l.forward(ctx, forwardMesh, []string{"xds", "webhook", "http"}, []string{at.xds, at.webhook, at.http})
	return err
}

// publish makes the Services of the mesh, and the sample's page, reachable from the machine's loopback.
func (l *Lab) publish(ctx context.Context) error {
	address, err := l.clusterIP(ctx, systemNamespace, l.name("istiod"))
	if err != nil {
		return err
	}
	keys := []string{"xds", "webhook", "http"}
	targets := []string{address + ":15012", address + ":443", address + ":15014"}
	_, err = l.forward(ctx, forwardMesh, keys, targets)
	return err
}

func (l *Lab) clusterIP(ctx context.Context, namespace, name string) (string, error) {
	var s struct {
		Spec struct {
			ClusterIP string `json:"clusterIP"`
		} `json:"spec"`
	}
	err := l.api.Get(ctx, "/api/v1/namespaces/"+namespace+"/services/"+name, &s)
	return s.Spec.ClusterIP, err
}

// sample deploys the shop, waits for its pods and asks for its page.
func (l *Lab) sample(ctx context.Context) error {
	if !l.Mesh || !l.Sample {
		return nil
	}
	step := l.Progress.Step("deploying the sample shop")
	pods, err := l.deploySample(ctx)
	if err == nil {
		err = l.dir.Update(func(s *state.Lab) { s.Sample = true })
	}
	if err != nil {
		step.Fail()
		return err
	}
	if l.level < 2 {
		step.Done(fmt.Sprintf("sample: %d pods made, each with its sidecar (nothing runs them)", pods))
		return nil
	}
	step.Done(fmt.Sprintf("sample: %d pods Ready, each with its sidecar", pods))

	step = l.Progress.Step("asking for the shop's page")
	if err := l.openSample(ctx); err != nil {
		step.Fail()
		return err
	}
	step.Done("the shop answers on http://" + l.dir.Lab().Addresses["sample"] + "/")
	return nil
}

// shop is the namespace of the sample.
const shop = "shop"

func (l *Lab) deploySample(ctx context.Context) (pods int, err error) {
	manifest, err := os.ReadFile(filepath.Join(l.Samples, "shop", "shop.yaml"))
	if err != nil {
		return 0, &fault.Fault{Problem: "cannot read the sample", Cause: err, Next: "run it from a clone, or use --sample=false"}
	}
	manifest = bytes.ReplaceAll(manifest, []byte("selvage/sample:dev"), []byte("selvage/sample:"+l.Tag))
	if l.Revision != "" && l.Revision != "default" {
		manifest = bytes.ReplaceAll(manifest, []byte("istio-injection: enabled"), []byte("istio.io/rev: "+l.Revision))
	}
	if err := l.dir.Write("shop.yaml", manifest, 0o644); err != nil {
		return 0, err
	}
	if err := l.run(ctx, "kubectl", "--kubeconfig", l.dir.File("kubeconfig"), "apply", "-f", l.dir.File("shop.yaml")); err != nil {
		return 0, err
	}
	if err := l.restart(ctx, shop, l.catalogue().Sample().Name, image.Repository+"proxy:"+l.Tag); err != nil {
		return 0, err
	}
	return pods, l.await(ctx, "the sample", startLimit, func(ctx context.Context) (bool, error) {
		pods, err = l.samplePods(ctx)
		return err == nil, err
	})
}

// samplePods counts the sample's pods; an error says which is not as it should be yet.
func (l *Lab) samplePods(ctx context.Context) (int, error) {
	pods, err := l.deployments(ctx, shop)
	if err == nil && pods == 0 {
		err = errors.New("the sample has no Deployment")
	}
	if err != nil {
		return 0, err
	}
	return pods, l.sidecars(ctx)
}

// deployments counts the pods of a namespace's Deployments. An error names one that does not have all of its pods yet: at
// level 2 available, at level 1 made.
func (l *Lab) deployments(ctx context.Context, namespace string) (pods int, err error) {
	var list struct {
		Items []struct {
			Metadata struct {
				Name       string
				Generation int64
			}
			Spec   struct{ Replicas int }
			Status struct {
				ObservedGeneration                           int64
				Replicas, UpdatedReplicas, AvailableReplicas int
			}
		}
	}
	if err := l.api.Get(ctx, "/apis/apps/v1/namespaces/"+namespace+"/deployments", &list); err != nil {
		return 0, err
	}
	for _, d := range list.Items {
		want, s := d.Spec.Replicas, d.Status
		have := s.UpdatedReplicas
		if l.level == 2 {
			have = min(have, s.AvailableReplicas)
		}
		if s.ObservedGeneration < d.Metadata.Generation || s.Replicas != want || have != want {
			return 0, fmt.Errorf("%s/%s has %d of %d pods", namespace, d.Metadata.Name, have, want)
		}
		pods += want
	}
	return pods, nil
}

// sidecars fails when a pod of the sample lacks its sidecar.
func (l *Lab) sidecars(ctx context.Context) error {
	var pods struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct {
				Containers, InitContainers []struct{ Name string }
			}
		}
	}
	if err := l.api.Get(ctx, "/api/v1/namespaces/"+shop+"/pods", &pods); err != nil {
		return err
	}
	for _, p := range pods.Items {
		has := false
		for _, c := range append(p.Spec.Containers, p.Spec.InitContainers...) {
			has = has || c.Name == "istio-proxy"
		}
		if !has {
			return fmt.Errorf("pod %s/%s has no sidecar", shop, p.Metadata.Name)
		}
	}
	return nil
}

// openSample publishes the shop's page and asks for it.
func (l *Lab) openSample(ctx context.Context) error {
	address, err := l.clusterIP(ctx, shop, "web")
	if err != nil {
		return err
	}
	target := address + ":80"
	if _, err := l.forward(ctx, forwardSample, []string{"sample"}, []string{target}); err != nil {
		return err
	}
	return l.await(ctx, "the shop's page", time.Minute, l.answers(target, "/"))
}

// run runs one of the product's programs to its end. Its output is shown only when it fails.
func (l *Lab) run(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, l.binary(program), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = proc.Environ(l.dir.Path()) // it ends with the lab when this run is killed
	log, err := os.OpenFile(l.dir.File("logs", program+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("run %s: %w", program, err)
	}
	defer log.Close()
	fmt.Fprintf(log, "$ %s %s\n", program, strings.Join(args, " "))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = log, &said
	err = cmd.Run()
	_, _ = log.Write(said.Bytes())
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	lines := strings.Split(strings.TrimSpace(said.String()), "\n")
	return &fault.Fault{Problem: program + " " + args[0] + " failed", Cause: errors.New(lines[len(lines)-1]),
		Next: "its log: " + l.shown("logs", program+".log")}
}

// machineAddress returns an address of this machine that is not loopback, or loopback where there is none.
func machineAddress() string {
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	return "127.0.0.1"
}
