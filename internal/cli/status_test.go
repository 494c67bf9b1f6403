package cli_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// shop is a mesh where all is well: the pods of a sample with names as Kubernetes makes them.
const shop = `{"replica":"istiod-6d8c7b9f4d-q7x2p","version":"1.0.0","proxies":[
 {"id":"sidecar~10.244.0.7~web-7d9c5bd5c8-x2x8z.shop~shop.svc.cluster.local","namespace":"shop","pod":"web-7d9c5bd5c8-x2x8z","serviceAccount":"web",
  "connectedAt":"2026-01-02T03:04:05Z","envoyVersion":"1.40.0","types":{
  "CDS":{"state":"SYNCED","sentVersion":"a1b2","ackedVersion":"a1b2"},"EDS":{"state":"SYNCED","sentVersion":"9","ackedVersion":"9"},
  "LDS":{"state":"SYNCED","sentVersion":"c3d4","ackedVersion":"c3d4"},"RDS":{"state":"SYNCED","sentVersion":"e5","ackedVersion":"e5"}}},
 {"id":"sidecar~10.244.0.8~stock-66d5b4d5c9-abcde.shop~shop.svc.cluster.local","namespace":"shop","pod":"stock-66d5b4d5c9-abcde","serviceAccount":"stock",
  "connectedAt":"2026-01-02T03:04:05Z","envoyVersion":"1.40.0","types":{
  "CDS":{"state":"SYNCED"},"EDS":{"state":"SYNCED"},"LDS":{"state":"SYNCED"},"RDS":{"state":"NOT_SENT"}}}]}`

// rejecting is shop with one proxy that has refused its listeners.
var rejecting = strings.Replace(shop, `"LDS":{"state":"SYNCED","sentVersion":"c3d4","ackedVersion":"c3d4"}`,
	`"LDS":{"state":"REJECTED","sentVersion":"c3d4","ackedVersion":"0f0f","lastError":"Error adding/updating listener(s) virtualInbound: `+
		`Failed to load certificate chain from inline: a cause that is longer than a line","rejectedRefs":["PeerAuthentication/shop/default","Service/shop/web"]}`, 1)

func raw(body string) json.RawMessage { return json.RawMessage(body) }

func TestStatusOfAMeshWhereAllIsWell(t *testing.T) {
	c := &cluster{syncz: raw(shop)}
	home, kubeconfig := c.start(t)
	got := run(t, home, "", "status", "--kubeconfig", kubeconfig)
	want := `POD                    NAMESPACE CDS    EDS    LDS    RDS    REPLICA VERSION
stock-66d5b4d5c9-abcde shop      SYNCED SYNCED SYNCED -      q7x2p   1.40.0
web-7d9c5bd5c8-x2x8z   shop      SYNCED SYNCED SYNCED SYNCED q7x2p   1.40.0
2 proxies: all synced.
`
	if got.code != 0 || got.stdout != want || got.stderr != "" {
		t.Errorf("exit code %d, stderr %q, stdout:\n%s\nwant:\n%s", got.code, got.stderr, got.stdout, want)
	}
	if c.sawToken != "reader-token" || len(c.sawAudience) != 1 || c.sawAudience[0] != "selvage" {
		t.Errorf("the debug page was asked with token %q, made for %q; want the reader's, for audience selvage", c.sawToken, c.sawAudience)
	}
}

func TestStatusOfAnAddress(t *testing.T) {
	c := &cluster{syncz: raw(shop), nowhere: true}
	home, kubeconfig := c.start(t)
	other := &cluster{syncz: raw(shop)}
	other.start(t)
	got := run(t, home, "", "status", "--kubeconfig", kubeconfig, "--address", other.leadsTo.String())
	if got.code != 0 || !strings.Contains(got.stdout, "2 proxies: all synced.") || other.sawToken != "reader-token" {
		t.Errorf("exit code %d, token %q, stderr %q:\n%s", got.code, other.sawToken, got.stderr, got.stdout)
	}
	c.annotations = map[string]string{"selvage/status-address": other.leadsTo.String()}
	if got := run(t, home, "", "status", "--kubeconfig", kubeconfig); got.code != 0 || !strings.Contains(got.stdout, "2 proxies: all synced.") {
		t.Errorf("by the Service's annotation: exit code %d, stderr %q:\n%s", got.code, got.stderr, got.stdout)
	}
}

func TestStatusEndsWithOneWhenAProxyRejects(t *testing.T) {
	home, kubeconfig := (&cluster{syncz: raw(rejecting)}).start(t)
	got := run(t, home, "", "status", "--kubeconfig", kubeconfig)
	if got.code != 1 || !strings.Contains(got.stdout, "REJECTED") {
		t.Errorf("exit code %d, want 1 and the word REJECTED:\n%s", got.code, got.stdout)
	}
	if !strings.Contains(got.stdout, "2 proxies: 1 synced, 0 stale, 1 rejected.\nWhy: selvage status web-7d9c5bd5c8-x2x8z -n shop\n") {
		t.Errorf("the summary does not say how to go on:\n%s", got.stdout)
	}
	stale := strings.Replace(shop, `"state":"SYNCED","sentVersion":"9"`, `"state":"STALE","sentVersion":"10"`, 1)
	home, kubeconfig = (&cluster{syncz: raw(stale)}).start(t)
	if got := run(t, home, "", "status", "--kubeconfig", kubeconfig); got.code != 1 || !strings.Contains(got.stdout, "1 synced, 1 stale, 0 rejected") {
		t.Errorf("with a stale proxy: exit code %d, want 1:\n%s", got.code, got.stdout)
	}
}

func TestStatusOfOnePodNamesTheCauseAndTheObjects(t *testing.T) {
	home, kubeconfig := (&cluster{syncz: raw(rejecting)}).start(t)
	for _, args := range [][]string{{"web-7d9c5bd5c8-x2x8z", "-n", "shop"}, {"shop/web-7d9c5bd5c8-x2x8z"}, {"web-7d9c5bd5c8-x2x8z.shop"}} {
		got := run(t, home, "", append([]string{"status", "--kubeconfig", kubeconfig}, args...)...)
		out := regexp.MustCompile(`\S+ ago`).ReplaceAllString(got.stdout, "AGE ago")
		want := `Pod         shop/web-7d9c5bd5c8-x2x8z
Account     shop/web
Envoy       1.40.0
Replica     istiod-6d8c7b9f4d-q7x2p, Selvage 1.0.0
Connected   AGE ago (2026-01-02T03:04:05Z)

TYPE  STATE     SENT  CONFIRMED
CDS   SYNCED    a1b2  a1b2
EDS   SYNCED    9     9
LDS   REJECTED  c3d4  0f0f
RDS   SYNCED    e5    e5

The proxy refused LDS:
  Error adding/updating listener(s) virtualInbound: Failed to load certificate
  chain from inline: a cause that is longer than a line
That came from:
  PeerAuthentication/shop/default
  Service/shop/web
`
		if got.code != 1 || out != want {
			t.Errorf("%s: exit code %d, stdout:\n%s\nwant:\n%s", args, got.code, out, want)
		}
	}
	got := run(t, home, "", "status", "nobody", "--kubeconfig", kubeconfig)
	if got.code != 2 || !strings.Contains(got.stderr, "no proxy nobody is connected") {
		t.Errorf("a pod that does not exist: exit code %d, stderr %q", got.code, got.stderr)
	}
}

func TestStatusNamesSidecarsThatAreNotConnected(t *testing.T) {
	lost := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "lost", Namespace: "shop",
		Annotations: map[string]string{"sidecar.istio.io/status": "{}", "istio.io/rev": "default"}}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	starting := *lost.DeepCopy()
	starting.Name, starting.Status.Phase = "starting", corev1.PodPending
	known := *lost.DeepCopy()
	known.Name = "web-7d9c5bd5c8-x2x8z"
	home, kubeconfig := (&cluster{syncz: raw(shop), pods: []corev1.Pod{lost, starting, known}}).start(t)
	got := run(t, home, "", "status", "--kubeconfig", kubeconfig)
	const shown = "not connected: shop/lost\nWhy: kubectl logs -n shop lost -c istio-proxy\n2 proxies: all synced.\n"
	if got.code != 1 || strings.Count(got.stdout, "not connected:") != 1 || !strings.HasSuffix(got.stdout, shown) {
		t.Errorf("exit code %d, want 1 and shop/lost alone:\n%s", got.code, got.stdout)
	}
	got = run(t, home, "", "status", "-n", "other", "--kubeconfig", kubeconfig)
	if got.code != 0 || strings.Contains(got.stdout, "lost") {
		t.Errorf("another namespace: exit code %d, want 0:\n%s", got.code, got.stdout)
	}
}

// Pods that have a sidecar must not be told how to get one.
func TestStatusWhenNoSidecarIsConnected(t *testing.T) {
	lost := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "stock-65f8486db5-65n7g", Namespace: "shop",
		Annotations: map[string]string{"sidecar.istio.io/status": "{}", "istio.io/rev": "default"}}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	home, kubeconfig := (&cluster{syncz: raw(`{"replica":"istiod-6d8c7b9f4d-q7x2p","version":"1.0.0","proxies":[]}`), pods: []corev1.Pod{lost}}).start(t)
	got := run(t, home, "", "status", "--kubeconfig", kubeconfig)
	const want = `not connected: shop/stock-65f8486db5-65n7g
Why: kubectl logs -n shop stock-65f8486db5-65n7g -c istio-proxy
No proxy is connected, and 1 pod has a sidecar.
`
	if got.code != 1 || got.stdout != want {
		t.Errorf("exit code %d, stdout:\n%s\nwant 1 and\n%s", got.code, got.stdout, want)
	}
}

func TestStatusAsJSON(t *testing.T) {
	home, kubeconfig := (&cluster{syncz: raw(rejecting)}).start(t)
	got := run(t, home, "", "status", "-o", "json", "--kubeconfig", kubeconfig)
	var m struct {
		Replicas []struct{ Name, Version string }
		Proxies  []struct {
			Pod, Replica string
			Types        map[string]struct {
				State        string
				RejectedRefs []string
			}
		}
		NotConnected []any
	}
	if err := json.Unmarshal([]byte(got.stdout), &m); err != nil {
		t.Fatalf("%v:\n%s", err, got.stdout)
	}
	if got.code != 1 || len(m.Proxies) != 2 || m.Proxies[1].Types["LDS"].State != "REJECTED" || m.Proxies[1].Replica != "istiod-6d8c7b9f4d-q7x2p" ||
		len(m.Proxies[1].Types["LDS"].RejectedRefs) != 2 || m.NotConnected == nil || m.Replicas[0].Version != "1.0.0" {
		t.Errorf("exit code %d, %+v", got.code, m)
	}
	if yaml := run(t, home, "", "status", "-o", "yaml", "--kubeconfig", kubeconfig); yaml.code != 1 || !strings.Contains(yaml.stdout, "state: REJECTED") {
		t.Errorf("yaml: exit code %d:\n%s", yaml.code, yaml.stdout)
	}
}

// TestStatusFitsEightyColumns takes names of the length that Kubernetes makes of ordinary ones, in every state.
func TestStatusFitsEightyColumns(t *testing.T) {
	for name, body := range map[string]string{
		"synced": shop, "rejected": strings.ReplaceAll(shop, `"SYNCED"`, `"REJECTED"`),
		"a longer namespace": strings.ReplaceAll(shop, `"shop"`, `"storefront-prod"`),
	} {
		home, kubeconfig := (&cluster{syncz: raw(body)}).start(t)
		got := run(t, home, "", "status", "--kubeconfig", kubeconfig)
		for line := range strings.Lines(got.stdout) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
				t.Errorf("%s: a line of %d columns: %s", name, n, line)
			}
		}
		if strings.Contains(got.stdout, "\x1b") {
			t.Errorf("%s: colours in output that is no terminal", name)
		}
	}
}

func TestStatusWhenItCannotLook(t *testing.T) {
	for name, c := range map[string]struct {
		cluster *cluster
		want    string
	}{
		"no control plane": {&cluster{noService: true}, "the cluster has no control plane of Selvage: `selvage install` makes one"},
		"nothing listens":  {&cluster{dead: true}, "connection refused"},
		"leads nowhere":    {&cluster{nowhere: true}, "--address HOST:15014"},
		"no token":         {&cluster{synczCode: 401, syncz: "a token is needed"}, "401 Unauthorized: a token is needed"},
		"no right":         {&cluster{forbid: "/api/v1/namespaces/istio-system/pods"}, `User "jane" cannot list resource "pods"`},
		"no JSON":          {&cluster{syncz: "hello"}, "parse /debug/syncz"},
	} {
		home, kubeconfig := c.cluster.start(t)
		got := run(t, home, "", "status", "--kubeconfig", kubeconfig)
		if got.code != 2 || !strings.Contains(got.stderr, c.want) || strings.Count(got.stderr, "\n") != 1 || got.stdout != "" {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q; want 2 and one line with %q", name, got.code, got.stdout, got.stderr, c.want)
		}
	}
}

func TestVersion(t *testing.T) {
	home, kubeconfig := (&cluster{syncz: raw(shop)}).start(t)
	got := run(t, home, "", "version", "--kubeconfig", kubeconfig)
	if got.code != 0 || !strings.HasPrefix(got.stdout, "selvage dev (") ||
		!strings.Contains(got.stdout, "REVISION  VERSION  READY    CONTROL PLANE\ndefault   1.0.0    outside  at 127.0.0.1:") {
		t.Errorf("exit code %d, stderr %q, stdout:\n%s", got.code, got.stderr, got.stdout)
	}
	if alone := run(t, t.TempDir(), "", "version"); alone.code != 0 || strings.Count(alone.stdout, "\n") != 1 || alone.stderr != "" {
		t.Errorf("without a cluster: exit code %d, stdout %q, stderr %q", alone.code, alone.stdout, alone.stderr)
	}
	if client := run(t, home, "", "version", "--client", "-o", "json", "--kubeconfig", home+"/nowhere"); client.code != 0 || !strings.Contains(client.stdout, `"controlPlanes": []`) {
		t.Errorf("--client: exit code %d, stdout %q", client.code, client.stdout)
	}
}

func TestLabCommandsSayWhatIsMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for _, command := range []string{"up", "down"} {
		got := run(t, t.TempDir(), "", command, "--level", "1")
		if got.code != 2 || !strings.Contains(got.stderr, "make lab") || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%s: exit code %d, stderr %q; want 2 and one line with the command that builds it", command, got.code, got.stderr)
		}
	}
}
