package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"istio.io/api/annotation"
	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/revision"
)

// The states of one type of configuration at one proxy.
const (
	synced   = "SYNCED"   // the proxy has confirmed what was sent last
	stale    = "STALE"    // it was sent and is not confirmed yet
	rejected = "REJECTED" // the proxy has refused it and runs what it had before
	notSent  = "NOT_SENT" // the proxy has not asked for it
)

// typeNames are the columns, in the order in which configuration is sent.
var typeNames = []string{"CDS", "EDS", "LDS", "RDS"}

// syncz is what one replica of the control plane answers on install.DebugPath.
type syncz struct {
	Replica string  `json:"replica"`
	Version string  `json:"version"`
	Proxies []proxy `json:"proxies"`
}

// proxy is one connected proxy.
type proxy struct {
	ID             string              `json:"id"`
	Namespace      string              `json:"namespace"`
	Pod            string              `json:"pod"`
	ServiceAccount string              `json:"serviceAccount"`
	ConnectedAt    time.Time           `json:"connectedAt"`
	EnvoyVersion   string              `json:"envoyVersion"`
	Types          map[string]typeSync `json:"types"`

	Replica        string `json:"replica,omitempty"`        // which one it is connected to: added here
	ReplicaVersion string `json:"replicaVersion,omitempty"` // and its release
}

// typeSync is one type of configuration at one proxy.
type typeSync struct {
	State        string   `json:"state"`
	SentVersion  string   `json:"sentVersion,omitempty"`
	AckedVersion string   `json:"ackedVersion,omitempty"`
	LastError    string   `json:"lastError,omitempty"`
	RejectedRefs []string `json:"rejectedRefs,omitempty"` // Kind/NAMESPACE/NAME of the objects it came from
}

// state is the worst of the proxy's types.
func (p proxy) state() string {
	worst := synced
	for _, t := range p.Types {
		switch t.State {
		case rejected:
			return rejected
		case stale:
			worst = stale
		}
	}
	return worst
}

// mesh is all that `status` knows.
type mesh struct {
	Replicas     []replica      `json:"replicas"`
	Proxies      []proxy        `json:"proxies"`
	NotConnected []notConnected `json:"notConnected"`
	SelfProbe    []selfProbe    `json:"selfProbe"`
	Authority    []string       `json:"authorityProblems,omitempty"`
}

// replica is one of the control plane, and why it did not answer.
type replica struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	Error   string `json:"error,omitempty"`
}

// notConnected is a pod that runs with a sidecar which no replica knows.
type notConnected struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
}

// controlPlane selects the objects of control planes: of one revision, or of all. Istio's carry the same labels: see ours.
func (a *app) controlPlane() string {
	selector := "app=istiod"
	if a.revision != "" {
		selector += "," + label.IoIstioRev.Name + "=" + a.revision
	}
	return selector
}

// ours are those of the items that are Selvage's.
func ours[T any, O interface {
	*T
	GetLabels() map[string]string
}](items []T) []T {
	return slices.DeleteFunc(items, func(item T) bool { return !revision.IsOurs(O(&item).GetLabels()) })
}

// gather asks every replica, and the API server for the pods that should be connected.
func (a *app) gather(ctx context.Context, c *connection, address string) (*mesh, error) {
	targets, err := a.targets(ctx, c, address)
	if err != nil {
		return nil, err
	}
	token, err := readerToken(ctx, c)
	if err != nil {
		return nil, err
	}
	m := &mesh{Replicas: []replica{}, Proxies: []proxy{}, NotConnected: []notConnected{}}
	byID := map[string]proxy{}
	for _, t := range targets {
		answer, err := t.read(ctx, token)
		if err != nil {
			m.Replicas = append(m.Replicas, replica{Name: t.name, Error: err.Error()})
			continue
		}
		m.Replicas = append(m.Replicas, replica{Name: answer.Replica, Version: answer.Version})
		for _, p := range answer.Proxies {
			p.Replica, p.ReplicaVersion = answer.Replica, answer.Version
			if known, twice := byID[p.ID]; !twice || known.ConnectedAt.Before(p.ConnectedAt) {
				byID[p.ID] = p // a proxy that has moved may still be on the list of the replica it left
			}
		}
	}
	if !slices.ContainsFunc(m.Replicas, func(r replica) bool { return r.Error == "" }) {
		next := "is selvaged running there?"
		if !targets[0].outside {
			next = "look with `kubectl get pods -n " + install.Namespace + " -l app=istiod`"
		}
		return nil, fmt.Errorf("no replica of the control plane answers: %s; %s", m.Replicas[0].Error, next)
	}
	for _, p := range byID {
		m.Proxies = append(m.Proxies, p)
	}
	slices.SortFunc(m.Proxies, func(a, b proxy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.ID, b.ID))
	})
	return m, a.addNotConnected(ctx, c, m)
}

// addNotConnected compares the pods that run with a sidecar to the proxies that are connected.
func (a *app) addNotConnected(ctx context.Context, c *connection, m *mesh) error {
	list, err := c.kubernetes.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: label.SecurityTlsMode.Name + "=istio"})
	if err != nil {
		return fmt.Errorf("list pods with a sidecar: %w", err)
	}
	for _, pod := range list.Items {
		revision := pod.Annotations[label.IoIstioRev.Name]
		isOther := a.revision != "" && revision != a.revision
		if pod.Status.Phase != corev1.PodRunning || pod.DeletionTimestamp != nil || isOther || pod.Annotations[annotation.SidecarStatus.Name] == "" {
			continue
		}
		isConnected := slices.ContainsFunc(m.Proxies, func(p proxy) bool { return p.Namespace == pod.Namespace && p.Pod == pod.Name })
		if !isConnected {
			m.NotConnected = append(m.NotConnected, notConnected{Namespace: pod.Namespace, Pod: pod.Name})
		}
	}
	return nil
}

// readerToken makes a short-lived token that may read the debug pages and nothing else. The control plane asks for it because
// the pages show what every namespace's proxies are sent.
func readerToken(ctx context.Context, c *connection) (string, error) {
	seconds := int64(600) // the shortest that Kubernetes gives
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences: []string{install.ReaderAudience}, ExpirationSeconds: &seconds,
	}}
	answer, err := c.kubernetes.CoreV1().ServiceAccounts(install.Namespace).CreateToken(ctx, install.ReaderAccount, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("make a token of ServiceAccount %s/%s: %w", install.Namespace, install.ReaderAccount, err)
	}
	return answer.Status.Token, nil
}

// target is one way to a replica.
type target struct {
	name     string
	revision string // of its control plane, "" when the user has named the address
	outside  bool   // of the cluster
	read     func(ctx context.Context, token string) (*syncz, error)
}

// targets finds the replicas: each pod, through the API server's port-forward; a control plane outside the cluster where its
// Service leads; or the one address that the user has named.
func (a *app) targets(ctx context.Context, c *connection, address string) ([]target, error) {
	if address != "" {
		return []target{outside(address)}, nil
	}
	var targets []target
	pods, err := c.kubernetes.CoreV1().Pods(install.Namespace).List(ctx, metav1.ListOptions{LabelSelector: a.controlPlane()})
	if err != nil {
		return nil, fmt.Errorf("list pods of the control plane: %w", err)
	}
	for _, pod := range ours(pods.Items) {
		if pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil {
			targets = append(targets, target{name: pod.Name, revision: pod.Labels[label.IoIstioRev.Name], read: func(ctx context.Context, token string) (*syncz, error) {
				return c.readPod(ctx, pod.Name, token)
			}})
		}
	}
	services, err := c.kubernetes.CoreV1().Services(install.Namespace).List(ctx, metav1.ListOptions{LabelSelector: a.controlPlane()})
	if err != nil {
		return nil, fmt.Errorf("list services of the control plane: %w", err)
	}
	services.Items = ours(services.Items)
	for _, service := range services.Items {
		if len(service.Spec.Selector) > 0 {
			continue
		}
		addresses, err := c.leadsTo(ctx, &service)
		if err != nil {
			return nil, err
		}
		for _, found := range addresses {
			t := outside(found)
			t.revision = service.Labels[label.IoIstioRev.Name]
			targets = append(targets, t)
		}
	}
	switch {
	case len(targets) > 0:
		return targets, nil
	case len(services.Items) > 0 && len(services.Items[0].Spec.Selector) == 0:
		return nil, fmt.Errorf("the control plane runs outside the cluster, and its Service leads nowhere: give its address with --address HOST:%d", install.HTTPPort)
	case len(services.Items) > 0:
		return nil, fmt.Errorf("no replica of the control plane runs: look with `kubectl get pods -n %s -l app=istiod`", install.Namespace)
	case a.revision != "":
		return nil, fmt.Errorf("the cluster has no control plane of Selvage of revision %s: `%s version` lists those it has", a.revision, a.called())
	}
	return nil, fmt.Errorf("the cluster has no control plane of Selvage: `%s install` makes one", a.called())
}

// leadsTo gives the addresses, HOST:PORT, of the status port behind a Service without a selector. They are asked directly: the
// API server's proxy refuses endpoints that are not pods. An address that the installation was told of goes first.
func (c *connection) leadsTo(ctx context.Context, service *corev1.Service) (addresses []string, err error) {
	if said := service.Annotations[install.StatusAddressAnnotation]; said != "" {
		return []string{said}, nil
	}
	slices, err := c.kubernetes.DiscoveryV1().EndpointSlices(install.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + service.Name,
	})
	if err != nil {
		return nil, fmt.Errorf("list endpointslices of Service %s: %w", service.Name, err)
	}
	for _, slice := range ours(slices.Items) {
		for _, port := range slice.Ports {
			if port.Name == nil || *port.Name != install.HTTPPortName || port.Port == nil {
				continue
			}
			for _, endpoint := range slice.Endpoints {
				for _, address := range endpoint.Addresses {
					addresses = append(addresses, net.JoinHostPort(address, strconv.Itoa(int(*port.Port))))
				}
			}
		}
	}
	return addresses, nil
}

// outside is a control plane that is asked directly.
func outside(address string) target {
	return target{name: address, outside: true, read: func(ctx context.Context, token string) (*syncz, error) {
		answer, err := read(ctx, address, token)
		if err != nil {
			return nil, fmt.Errorf("ask the control plane at %s: %w", address, err)
		}
		return answer, nil
	}}
}

// readPod asks one replica through a forwarded port.
func (c *connection) readPod(ctx context.Context, name, token string) (*syncz, error) {
	address, stop, err := c.forward(ctx, name, install.HTTPPort)
	if err != nil {
		return nil, fmt.Errorf("forward a port to pod %s: %w", name, err)
	}
	defer stop()
	answer, err := read(ctx, address, token)
	if err != nil {
		return nil, fmt.Errorf("ask pod %s: %w", name, err)
	}
	return answer, nil
}

// read asks for the debug page at HOST:PORT.
func read(ctx context.Context, address, token string) (*syncz, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+install.DebugPath, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if errors.Is(err, io.EOF) { // a forwarder takes connections even when nothing is behind it
		return nil, fmt.Errorf("%s: the connection was closed without an answer, as a forwarder does with nothing behind it", install.DebugPath)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", install.DebugPath, cause(err))
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", install.DebugPath, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %s", install.DebugPath, response.Status, strings.TrimSpace(string(body)))
	}
	var s syncz
	if err := json.Unmarshal(body, &s); err != nil {
		return nil, fmt.Errorf("parse %s: %w", install.DebugPath, err)
	}
	return &s, nil
}
