package inject_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/agent"
	"github.com/selvage-mesh/selvage/internal/inject"
)

// ofTheRuntime are the variables that Go's runtime reads, in any program.
var ofTheRuntime = []string{"GOMEMLIMIT", "GOMAXPROCS", "GOGC", "GODEBUG"}

// everything is a pod with every annotation that makes injection pass something on.
const everything = `
metadata:
  name: web
  namespace: shop
  labels: {topology.istio.io/network: n1}
  annotations:
    traffic.sidecar.istio.io/includeOutboundPorts: "9443"
    traffic.sidecar.istio.io/excludeInterfaces: eth1
    istio.io/reroute-virtual-interfaces: docker0
    sidecar.istio.io/bootstrapOverride: mine
    sidecar.istio.io/logLevel: debug
    sidecar.istio.io/componentLogLevel: http:debug
    sidecar.istio.io/agentLogLevel: debug
    prometheus.io/scrape: "true"
    proxy.istio.io/config: '{proxyMetadata: {ISTIO_META_X: "1", SECRET_TTL: 1h}, holdApplicationUntilProxyStarts: true}'
spec:
  containers:
  - name: web
    readinessProbe: {httpGet: {port: 80}}
`

// TestWhatIsPassedIsRead: the agent has every flag and command that injection uses and reads every variable that it sets.
func TestWhatIsPassedIsRead(t *testing.T) {
	known := agentsWords(t)
	pods := []*corev1.Pod{podFrom(t, everything)}
	for seed := range uint64(50) {
		pods = append(pods, generated(rand.New(rand.NewPCG(seed, 3))))
	}
	for _, pod := range pods {
		for _, cfg := range generatedConfigs(t, asIs) {
			out, _, err := inject.Pod(pod, cfg)
			if err != nil {
				t.Fatal(err)
			}
			for _, list := range [][]corev1.Container{out.Spec.InitContainers, out.Spec.Containers} {
				for i := range list {
					if name := list[i].Name; name == inject.ProxyContainer || name == inject.InitContainer || name == "istio-validation" && list[i].Args != nil {
						checkPassed(t, &list[i], known)
					}
				}
			}
		}
		if t.Failed() {
			return
		}
	}
}

func checkPassed(t *testing.T, c *corev1.Container, known map[string]bool) {
	t.Helper()
	for _, e := range c.Env {
		if !agent.Reads(e.Name) && !slices.Contains(ofTheRuntime, e.Name) && e.Name != "MINE" { // of the user's part in generated pods
			t.Errorf("%s gets %s, which nobody reads", c.Name, e.Name)
		}
	}
	args := slices.Clone(c.Args)
	if h := c.Lifecycle; h != nil {
		for _, hook := range []*corev1.LifecycleHandler{h.PostStart, h.PreStop} {
			if hook != nil && hook.Exec != nil {
				args = append(args, hook.Exec.Command[1])
			}
		}
	}
	for i, arg := range args {
		flag, isFlag := strings.CutPrefix(arg, "--")
		flag, _, _ = strings.Cut(flag, "=")
		isValue := !isFlag && i > 0 && strings.HasPrefix(args[i-1], "--") && !strings.Contains(args[i-1], "=")
		if !isValue && !known[flag] {
			t.Errorf("%s gets the argument %s, which the agent does not know", c.Name, arg)
		}
	}
}

// agentsWords are the flags and commands that the agent's sources declare.
func agentsWords(t *testing.T) map[string]bool {
	t.Helper()
	words := map[string]bool{}
	paths, err := filepath.Glob("../../cmd/selvage-agent/*.go")
	if err != nil || len(paths) == 0 {
		t.Fatal("no sources of the agent", err)
	}
	for _, path := range paths {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr: // flags.StringVar(&f.x, "name", …)
				if f, ok := n.Fun.(*ast.SelectorExpr); ok && strings.HasSuffix(f.Sel.Name, "Var") && len(n.Args) > 1 {
					addWord(words, n.Args[1])
				}
			case *ast.KeyValueExpr: // Use: "proxy sidecar"
				if key, ok := n.Key.(*ast.Ident); ok && key.Name == "Use" {
					addWord(words, n.Value)
				}
			}
			return true
		})
	}
	return words
}

func addWord(words map[string]bool, e ast.Expr) {
	lit, ok := e.(*ast.BasicLit)
	if !ok {
		return
	}
	if text, err := strconv.Unquote(lit.Value); err == nil {
		for _, word := range strings.Fields(text) {
			words[word] = true
		}
	}
}

// TestKnownVariables: those that injection takes for the agent's are the agent's.
func TestKnownVariables(t *testing.T) {
	for _, name := range inject.AgentVariables {
		if !agent.Reads(name) && !slices.Contains(ofTheRuntime, name) {
			t.Errorf("the agent does not read %s", name)
		}
	}
	if agent.Reads("PROXY_XDS_VIA_AGENT") {
		t.Error("the agent reads everything")
	}
}
