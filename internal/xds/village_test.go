package xds_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/index"
	"github.com/selvage-mesh/selvage/internal/mesh"
	"github.com/selvage-mesh/selvage/internal/translate"
)

// village is a town whose mesh is made of Kubernetes' and Istio's objects, as a cluster's is: what a person applies is what two real
// Envoys do.
type village struct {
	*town
	builder  *index.Builder
	model    *mesh.Model
	problems []diag.Problem
}

// villageObjects are a client in region eu, zone a, and two versions of a server: v1 in its zone, v2 in region us.
const villageObjects = `
kind: Namespace
metadata: {name: shop}
---
kind: Node
metadata: {name: near, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: a}}
---
kind: Node
metadata: {name: far, labels: {topology.kubernetes.io/region: us, topology.kubernetes.io/zone: b}}
---
kind: Pod
metadata: {namespace: shop, name: client, labels: {app: client, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: client, nodeName: near}
status: {podIP: 10.77.0.2}
---
kind: Pod
metadata: {namespace: shop, name: server, labels: {app: web, version: v1, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: server, nodeName: near}
status: {podIP: 10.77.0.3}
---
kind: Pod
metadata: {namespace: shop, name: server-v2, labels: {app: web, version: v2, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: server, nodeName: far}
status: {podIP: 10.77.0.4}
---
kind: Service
metadata: {namespace: shop, name: web}
spec:
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: http-alt, port: 81, targetPort: 7070}
---
kind: EndpointSlice
addressType: IPv4
metadata: {namespace: shop, name: web, labels: {kubernetes.io/service-name: web}}
ports: [{name: http, port: 8080}, {name: http-alt, port: 7070}]
endpoints:
- {addresses: [10.77.0.3], nodeName: near, targetRef: {kind: Pod, name: server}}
- {addresses: [10.77.0.4], nodeName: far, targetRef: {kind: Pod, name: server-v2}}
---
kind: Service
metadata: {namespace: shop, name: other}
spec:
  clusterIP: 10.96.0.11
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
kind: EndpointSlice
addressType: IPv4
metadata: {namespace: shop, name: other, labels: {kubernetes.io/service-name: other}}
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.77.0.3], targetRef: {kind: Pod, name: server}}
---
kind: Service
metadata: {namespace: shop, name: secure}
spec:
  clusterIP: 10.96.0.12
  ports: [{name: http, port: 80, targetPort: 8443}]
---
kind: EndpointSlice
addressType: IPv4
metadata: {namespace: shop, name: secure, labels: {kubernetes.io/service-name: secure}}
ports: [{name: http, port: 8443}]
endpoints:
- {addresses: [10.77.0.3]}
---
kind: Service
metadata: {namespace: shop, name: pass}
spec:
  clusterIP: 10.77.0.5
  ports: [{name: http, port: 8080}]
`

func newVillage(t *testing.T) *village {
	t.Helper()
	w := newTown(t)
	w.serverNet.ip("addr add 10.77.0.5/32 dev lo")
	b, err := index.New(index.Config{Namespace: "istio-system"})
	if err != nil {
		t.Fatal(err)
	}
	v := &village{town: w, builder: b}
	v.set(villageObjects)
	v.show()
	eventually(t, "the village is there", func() error { return v.get("http://10.96.0.10:81/", "web.shop").err() })
	return v
}

// objects reads YAML; an object of Istio's API without a namespace is of shop.
func (v *village) objects(text string) (all []any) {
	v.t.Helper()
	for doc := range strings.SplitSeq("\n"+text, "\n---") {
		if strings.TrimSpace(doc) == "" {
			continue
		}
		var head struct{ Kind string }
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			v.t.Fatalf("%v\n%s", err, doc)
		}
		var o any
		switch head.Kind {
		case "Namespace":
			o = &corev1.Namespace{}
		case "Node":
			o = &corev1.Node{}
		case "Pod":
			o = &corev1.Pod{}
		case "Service":
			o = &corev1.Service{}
		case "ConfigMap":
			o = &corev1.ConfigMap{}
		case "EndpointSlice":
			o = &discoveryv1.EndpointSlice{}
		default:
			i := slices.IndexFunc(index.IstioKinds(), func(k index.IstioKind) bool { return k.Name == head.Kind })
			k := index.IstioKinds()[i]
			doc = strings.TrimSpace(doc) + "\napiVersion: " + k.Group + "/" + k.Versions[0] + "\n"
			o = &unstructured.Unstructured{}
		}
		if err := yaml.Unmarshal([]byte(doc), o); err != nil {
			v.t.Fatalf("%v\n%s", err, doc)
		}
		if u, ok := o.(*unstructured.Unstructured); ok && u.GetNamespace() == "" {
			u.SetNamespace("shop")
		}
		all = append(all, o)
	}
	return all
}

func (v *village) set(text string) {
	v.t.Helper()
	for _, o := range v.objects(text) {
		if err := v.builder.Set(o); err != nil {
			v.t.Fatal(err)
		}
	}
}

// show gives both sidecars what the objects come to.
func (v *village) show() {
	v.t.Helper()
	v.model, v.problems = translate.Model(v.model, v.builder.Snapshot())
	v.client.set(v.model, "client")
	v.server.set(v.model, "server")
}

// apply adds objects for one test. None of them may have a problem.
func (v *village) apply(t *testing.T, text string) {
	t.Helper()
	v.applyWithProblems(t, text)
	for _, p := range v.problems {
		if p.Object.Group != "" {
			t.Errorf("there is a problem: %s", p)
		}
	}
}

func (v *village) applyWithProblems(t *testing.T, text string) {
	t.Helper()
	objects := v.objects(text)
	v.set(text)
	v.show()
	t.Cleanup(func() {
		for _, o := range objects {
			if err := v.builder.Delete(o); err != nil {
				t.Error(err)
			}
		}
		v.set(villageObjects)
		v.show()
	})
}

// ask sends a request to web, port 80.
func (v *village) ask(path string, header ...string) result {
	return get(v.http, "http://10.96.0.10"+path, headers(header), "web")
}

// headers reads "Name: value".
func headers(lines []string) http.Header {
	h := http.Header{}
	for _, l := range lines {
		if name, value, ok := strings.Cut(l, ": "); ok {
			h.Add(name, value)
		}
	}
	return h
}

// spread counts which pod answers n requests; a request that fails counts for its status.
func (v *village) spread(n int, header ...string) map[string]int {
	seen := map[string]int{}
	for range n {
		r := v.ask("/", header...)
		if r.err() != nil {
			seen[fmt.Sprint(r.err())]++
			continue
		}
		seen[versionOf(r)]++
	}
	return seen
}

func versionOf(r result) string {
	host, _, _ := strings.Cut(r.Local, ":")
	return map[string]string{"10.77.0.3": "v1", "10.77.0.4": "v2"}[host]
}

// becomes waits until n requests in a row are answered as wanted.
func (v *village) becomes(t *testing.T, n int, want map[string]int, header ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d requests go to %v", n, want), func() error {
		if got := v.spread(n, header...); fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("they go to %v", got)
		}
		return nil
	})
}

// answers waits until a request is answered with a status.
func (v *village) answers(t *testing.T, path string, status int, header ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s %v is answered with %d", path, header, status), func() error {
		if r := v.ask(path, header...); r.error != nil || r.status != status {
			return fmt.Errorf("it is %d, %w", r.status, r.error)
		}
		return nil
	})
}
