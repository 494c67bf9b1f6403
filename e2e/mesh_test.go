package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pods are the pods of the sample with this app label, running and ready or not.
func (l *lab) pods(ctx context.Context, app string) ([]corev1.Pod, error) {
	list, err := l.Client.CoreV1().Pods("shop").List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

func ready(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && pod.DeletionTimestamp == nil
		}
	}
	return false
}

// TestTheShopRunsInTheMesh is the main job: pods are 2/2, the page answers, and what it, the access logs and the counters
// of both Envoys say proves mutual TLS between the services' identities.
func TestTheShopRunsInTheMesh(t *testing.T) {
	l := atLevel(t, 2)
	for _, app := range []string{"web", "cart", "stock"} {
		pods, err := l.pods(t.Context(), app)
		if err != nil || len(pods) == 0 {
			t.Fatalf("pods of %s: %d, %v", app, len(pods), err)
		}
		for _, pod := range pods {
			if !ready(&pod) {
				t.Errorf("pod %s is not Ready", pod.Name)
			}
			names := containers(&pod)
			if !strings.Contains(strings.Join(names, " "), "istio-proxy") {
				t.Errorf("pod %s has containers %v, no istio-proxy", pod.Name, names)
			}
		}
	}
	page := run(t, nil, bin("sample"), "get", "http://"+l.Addresses["sample"]+"/api")
	for _, identity := range []string{"spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/cart"} {
		if !strings.Contains(page, identity) {
			t.Errorf("the page's chain does not show a caller %s:\n%s", identity, page)
		}
	}
	cart, err := l.pods(t.Context(), "cart")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "an access log line of cart's Envoy that names both identities", func(context.Context) string {
		log := l.kubectl(t, "-n", "shop", "logs", cart[0].Name, "-c", "istio-proxy", "--tail=500")
		if regexp.MustCompile(`spiffe://cluster\.local/ns/shop/sa/web`).MatchString(log) {
			return ""
		}
		return "no line with the client's identity"
	})
	if n := l.envoyCounter(t, "shop", cart[0].Name, `listener\.0\.0\.0\.0_15006\.ssl\.handshake`); n == 0 {
		t.Error("cart's Envoy counts no TLS handshake on 15006")
	}
	web, err := l.pods(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	if n := l.envoyCounter(t, "shop", web[0].Name, `cluster\.outbound\|80\|\|cart\.shop\.svc\.cluster\.local;?\.ssl\.handshake`); n == 0 {
		t.Error("web's Envoy counts no TLS handshake towards cart")
	}
}

// envoyCounter is the sum of the Envoy statistics of a pod whose names match.
func (l *lab) envoyCounter(t *testing.T, namespace, pod, name string) (sum int) {
	t.Helper()
	out := l.kubectl(t, "-n", namespace, "exec", pod, "-c", "istio-proxy", "--", "selvage-agent", "request", "GET", "stats")
	for _, line := range regexp.MustCompile(`(?m)^`+name+`: (\d+)$`).FindAllStringSubmatch(out, -1) {
		var n int
		_, _ = fmt.Sscan(line[1], &n)
		sum += n
	}
	return sum
}

// TestStatusShowsEveryProxySynced reads `selvage status` as JSON and compares it with the pods.
func TestStatusShowsEveryProxySynced(t *testing.T) {
	l := atLevel(t, 2)
	eventually(t, "every proxy synced", func(ctx context.Context) string {
		stdout, stderr, code := l.selvage(t, "status", "-o", "json")
		if code != 0 {
			return fmt.Sprintf("exit %d\n%s%s", code, stdout, stderr)
		}
		for _, app := range []string{"web", "cart", "stock"} {
			pods, err := l.pods(ctx, app)
			if err != nil {
				return err.Error()
			}
			for _, pod := range pods {
				if !strings.Contains(stdout, pod.Name) {
					return "no line for pod " + pod.Name
				}
			}
		}
		return ""
	})
	stdout, _, code := l.selvage(t, "status")
	for line := range strings.Lines(stdout) {
		if len([]rune(strings.TrimRight(line, "\n"))) > 80 {
			t.Errorf("a line of selvage status is wider than 80 columns: %q", line)
		}
	}
	if code != 0 {
		t.Errorf("selvage status: exit %d, want 0\n%s", code, stdout)
	}
}

// TestStrictRefusesPlainText speaks plain HTTP to a pod's port, before and after the root namespace asks for STRICT.
func TestStrictRefusesPlainText(t *testing.T) {
	l := atLevel(t, 2)
	pods, err := l.pods(t.Context(), "cart")
	if err != nil || len(pods) == 0 {
		t.Fatalf("pods of cart: %d, %v", len(pods), err)
	}
	url := fmt.Sprintf("http://%s:8080/healthz", pods[0].Status.PodIP)
	plain := func() (string, int) {
		stdout, stderr, code := l.inside(t, bin("sample"), "get", url)
		return stdout + stderr, code
	}
	eventually(t, "a plain request under PERMISSIVE", func(context.Context) string {
		said, code := plain()
		if code != 0 || said != "ok\n" {
			return said
		}
		return ""
	})
	l.kubectlIn(t, `{"apiVersion":"security.istio.io/v1","kind":"PeerAuthentication","metadata":{"name":"default","namespace":"istio-system"},"spec":{"mtls":{"mode":"STRICT"}}}`, "apply", "-f", "-")
	t.Cleanup(func() {
		_, _, _ = command(t, nil, bin("kubectl"), "--kubeconfig", l.kubeconfig(), "-n", "istio-system", "delete", "peerauthentication", "default")
	})
	eventually(t, "a plain request refused under STRICT", func(context.Context) string {
		said, code := plain()
		if code == 0 || !strings.Contains(said, "EOF") && !strings.Contains(said, "connection reset") { // no answer at all is no refusal
			return said
		}
		return ""
	})
	// The mesh itself goes on: the page is asked by a plain client from outside, so ask from within.
	web, err := l.pods(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	answer := l.kubectl(t, "-n", "shop", "exec", web[0].Name, "-c", "web", "--", "/usr/local/bin/sample", "get", "http://cart/api")
	var chain any
	if err := json.Unmarshal([]byte(answer), &chain); err != nil {
		t.Errorf("within the mesh the cart does not answer under STRICT: %s", answer)
	}
}

// TestHeadlessTCPGoesOverMutualTLS calls a pod of stock at its own address. While no service says what listens there, that passes
// in plain text; a headless service makes it mutual TLS, although it says nothing of HTTP.
func TestHeadlessTCPGoesOverMutualTLS(t *testing.T) {
	l := atLevel(t, 2)
	web, err := l.pods(t.Context(), "web")
	if err != nil || len(web) == 0 {
		t.Fatalf("pods of web: %d, %v", len(web), err)
	}
	stock, err := l.pods(t.Context(), "stock")
	if err != nil || len(stock) == 0 {
		t.Fatalf("pods of stock: %d, %v", len(stock), err)
	}
	const caller = "spiffe://cluster.local/ns/shop/sa/web"
	url := fmt.Sprintf("http://%s:8080/", stock[0].Status.PodIP)
	ask := func() string {
		return l.kubectl(t, "-n", "shop", "exec", web[0].Name, "-c", "web", "--", "/usr/local/bin/sample", "get", url)
	}
	if answer := ask(); strings.Contains(answer, caller) {
		t.Fatalf("stock knows its caller although no service names the address that is called:\n%s", answer)
	}
	l.kubectlIn(t, `{"apiVersion":"v1","kind":"Service","metadata":{"name":"stock-peers","namespace":"shop"},"spec":{"clusterIP":"None","selector":{"app":"stock"},"ports":[{"port":8080,"name":"tcp-peers"}]}}`, "apply", "-f", "-")
	t.Cleanup(func() {
		_, _, _ = command(t, nil, bin("kubectl"), "--kubeconfig", l.kubeconfig(), "-n", "shop", "delete", "service", "stock-peers")
	})
	eventually(t, "stock knows its caller", func(context.Context) string {
		if answer := ask(); !strings.Contains(answer, caller) {
			return answer
		}
		return ""
	})
	if n := l.envoyCounter(t, "shop", web[0].Name, `cluster\.outbound\|8080\|\|stock-peers\.shop\.svc\.cluster\.local;?\.ssl\.handshake`); n == 0 {
		t.Error("web's Envoy counts no TLS handshake towards stock-peers")
	}
}

// TestTheWireShowsTheServiceIdentity makes a TLS handshake with a pod as a mesh client without a certificate would: the server
// shows its SPIFFE identity and refuses to go on. By hand: openssl s_client -connect POD:8080 -alpn istio.
func TestTheWireShowsTheServiceIdentity(t *testing.T) {
	l := atLevel(t, 2)
	pods, err := l.pods(t.Context(), "cart")
	if err != nil || len(pods) == 0 {
		t.Fatalf("pods of cart: %d, %v", len(pods), err)
	}
	stdout, stderr, _ := l.inside(t, "env", handshakeVariable+"="+pods[0].Status.PodIP+":8080", os.Args[0])
	said := stdout + stderr
	if !strings.Contains(said, "server: spiffe://cluster.local/ns/shop/sa/cart\n") {
		t.Errorf("the server does not show the identity of cart:\n%s", said)
	}
	if !strings.Contains(said, "certificate required") {
		t.Errorf("a client without a certificate was not refused:\n%s", said)
	}
}

// handshakeVariable makes this test program a TLS client of the address in it: only inside the lab's network pods can be reached.
const handshakeVariable = "SELVAGE_E2E_HANDSHAKE"

// handshake says which identities the server at address shows, and what it answers to a client of the mesh without a certificate.
// The identity is what is looked at here, so no root is asked.
func handshake(address string) int {
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"istio"}})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer conn.Close()
	for _, uri := range conn.ConnectionState().PeerCertificates[0].URIs {
		fmt.Println("server:", uri)
	}
	_, err = conn.Read(make([]byte, 1)) // with TLS 1.3 the server judges the client when the handshake is over
	fmt.Println(err)
	return 1
}
