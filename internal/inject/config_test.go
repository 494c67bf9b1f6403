package inject_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
)

// TestRenderedSettingsReadBack: what is installed is what was meant, for the defaults and for changed settings, and the same
// bytes each time.
func TestRenderedSettingsReadBack(t *testing.T) {
	changed := inject.Default("canary")
	changed.Mesh.AccessLogFile = "/dev/stdout"
	changed.Mesh.TrustDomain = "example.org"
	changed.Mesh.DefaultConfig.DrainDuration = durationpb.New(45e9)
	changed.Injector.InjectedAnnotations = map[string]string{"example.com/a": "b"}
	changed.Values.Global.Tag = "1.30"
	changed.Values.Global.Proxy.Resources.Limits["memory"] = nil
	for name, want := range map[string]inject.Settings{"default": inject.Default(""), "changed": changed} {
		t.Run(name, func(t *testing.T) {
			mesh, config, values, err := want.Documents()
			if err != nil {
				t.Fatal(err)
			}
			got, problems := inject.ParseSettings(mesh, config, values)
			if len(problems) != 0 {
				t.Errorf("problems: %v", problems)
			}
			again, config2, values2, err := got.Documents()
			if err != nil || !bytes.Equal(mesh, again) || !bytes.Equal(config, config2) || !bytes.Equal(values, values2) {
				t.Errorf("rendered again (error %v):\n%s%s%s\nfirst:\n%s%s%s", err, again, config2, values2, mesh, config, values)
			}
			if diff := cmp.Diff(want.Mesh, got.Mesh, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
			if cfg, problems := got.Compile(); cfg == nil || len(problems) != 0 {
				t.Errorf("compile: %v", problems)
			}
		})
	}
}

func TestConfigMapNames(t *testing.T) {
	for revision, want := range map[string]string{"": "istio istio-sidecar-injector", "default": "istio istio-sidecar-injector", "asm-1234-1": "istio-asm-1234-1 istio-sidecar-injector-asm-1234-1"} {
		maps, err := inject.Default(revision).ConfigMaps()
		if err != nil {
			t.Fatal(err)
		}
		if got := maps[0].Name + " " + maps[1].Name; got != want {
			t.Errorf("revision %q: %s, want %s", revision, got, want)
		}
		if maps[0].Data["mesh"] == "" || maps[1].Data["config"] == "" || maps[1].Data["values"] == "" {
			t.Errorf("revision %q: a key is empty: %v", revision, maps)
		}
	}
}

// TestUnusableSettings: each is refused with a message that names the ConfigMap and the key, and gives no Config, so that the
// last good one stays.
func TestUnusableSettings(t *testing.T) {
	for _, c := range []struct{ name, mesh, config, values, want string }{
		{"mesh is no YAML", "a: [", "", "", "ConfigMap/istio-system/istio data.mesh: cannot read it"},
		{"mesh is a list", "[]", "", "", "data.mesh: cannot read it: it is not a map of fields"},
		{"mesh has a wrong type", "trustDomain: [a]", "", "", "data.mesh: cannot read it"},
		{"TPROXY", "defaultConfig: {interceptionMode: TPROXY}", "", "", "SEL0024 ConfigMap/istio-system/istio data.mesh.defaultConfig: interceptionMode"},
		{"a port of the proxy for the agent", "defaultConfig: {statusPort: 15006}", "", "", "data.mesh.defaultConfig: statusPort: 15006 is no port, or the proxy's own"},
		{"a port of the proxy for the status", "", "", `{"global":{"proxy":{"statusPort":15090}}}`, "data.values.global.proxy.statusPort: port 15090 is the proxy's own"},
		{"address without port", "defaultConfig: {discoveryAddress: istiod}", "", "", `"istiod" is not HOST:PORT`},
		{"trust domain", "trustDomain: a/b", "", "", `data.mesh.trustDomain: "a/b" is no domain name`},
		{"config is no YAML", "", "policy: [", "", "ConfigMap/istio-system/istio-sidecar-injector data.config: cannot read it"},
		{"unknown policy", "", "policy: maybe", "", `data.config.policy: it is "maybe" (hint: use enabled or disabled)`},
		{"no selector", "", "neverInjectSelector: [{matchExpressions: [{key: a, operator: Is}]}]", "", "data.config.neverInjectSelector[0]: it is no label selector"},
		{"a template that does not parse", "", "templates: {a: \"\\n\\n{{ if }}\"}", "", "data.config.templates.a: line 3: missing value for if"},
		{"a function that is not there", "", "templates: {a: '{{ nothing }}'}", "", `data.config.templates.a: line 1: function "nothing" not defined`},
		{"a function that reads the clock", "", "templates: {a: '{{ now }}'}", "", `line 1: function "now" not defined: functions that give something else on each run are not available`},
		{"a template that fails", "", "templates: {sidecar: \"spec:\\n  {{ .Spec.NoSuch }}\"}", "", "data.config.templates.sidecar: it fails for a simple pod: line 2: executing"},
		{"a template that gives no YAML", "", "templates: {sidecar: \"spec:\\n a: b: c\"}", "", `it fails for a simple pod: what it gives is no YAML: line 2: mapping values are not allowed in this context: "a: b: c" (line 2 is that of the output)`},
		{"a template that gives no pod", "", "templates: {sidecar: 'spec: {containers: [{name: a, tty: 7}]}'}", "", "it fails for a simple pod: what it gives does not fit into a pod"},
		{"a template that gives something else", "", "templates: {sidecar: 'containers: []'}", "", `what it gives has the field "containers", and a pod has metadata and spec`},
		{"a template that loops", "", "templates: {sidecar: '{{ range 1000000000 }}{{ end }}'}", "", "it takes more than 100000 steps: does it loop?"},
		{"a template that calls itself", "", "templates: {sidecar: '{{ define \"a\" }}{{ template \"a\" }}{{ end }}{{ template \"a\" }}'}", "", "its templates call each other more than 100 deep: does one call itself?"},
		{"a template that grows", "", "templates: {sidecar: '{{ $x := \"a\" }}{{ range until 60 }}{{ $x = print $x $x }}{{ end }}'}", "", "what it is given is too large for a pod"},
		{"a template that makes a long list", "", "templates: {sidecar: '{{ until 1000000000 }}'}", "", "the result is too large for a pod"},
		{"a template that writes much", "", "templates: {sidecar: '{{ range until 9999 }}{{ repeat 1000 \"a\" }}{{ end }}'}", "", "the result is too large for a pod"},
		{"unknown default template", "", "defaultTemplates: [none]", "", `data.config.defaultTemplates: there is no template "none" (hint: there are gateway, grpc-agent, sidecar)`},
		{"default template that cannot be served", "", "defaultTemplates: [gateway]", "", `data.config.defaultTemplates: template "gateway" cannot be used yet`},
		{"unknown template of an alias", "", "aliases: {both: [sidecar, none]}", "", `data.config.aliases.both: there is no template "none" (hint: there are both, gateway, grpc-agent, sidecar)`},
		{"an alias of an alias", "", "aliases: {one: [sidecar], two: [one]}", "", `data.config.aliases.two: "one" is an alias too, and an alias stands for templates only (hint: write sidecar in its place)`},
		{"our annotations for every pod", "", "injectedAnnotations: {sidecar.istio.io/proxyCPU: 1m}", "", "data.config.injectedAnnotations: sidecar.istio.io/proxyCPU is read by injection itself"},
		{"values are no JSON", "", "", "{", "data.values: cannot read it"},
		{"hostile image", "", "", `{"global":{"proxy":{"image":"a b/$(rm)"}}}`, "data.values.global.proxy.image"},
		{"hostile ports", "", "", `{"global":{"proxy":{"excludeInboundPorts":"80; rm -rf /"}}}`, `cannot use "80; rm -rf /": "80; rm -rf /" is no port`},
		{"request above limit", "", "", `{"global":{"proxy":{"resources":{"requests":{"cpu":"3"}}}}}`, "data.values.global.proxy.resources.requests.cpu: the request is above the limit of 2"},
		{"CNI", "", "", `{"pilot":{"cni":{"enabled":true}}}`, "data.values.pilot.cni.enabled: interception by a CNI plugin is not supported yet"},
		{"revision in the name", "", "policy: maybe", `{"revision":"canary"}`, "ConfigMap/istio-system/istio-sidecar-injector-canary data.config.policy"},
		{"native sidecars", "", "", `{"pilot":{"env":{"ENABLE_NATIVE_SIDECARS":"maybe"}}}`, `ENABLE_NATIVE_SIDECARS: it is "maybe"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, problems := inject.ParseConfig([]byte(c.mesh), []byte(c.config), []byte(c.values))
			if cfg != nil {
				t.Error("it was accepted")
			}
			var all []string
			for _, p := range problems {
				all = append(all, p.String())
			}
			if text := strings.Join(all, "\n"); !strings.Contains(text, c.want) {
				t.Errorf("problems:\n%s\nwant: %s", text, c.want)
			}
		})
	}
}

// TestToldSettings: what has no effect is said, and the rest works.
func TestToldSettings(t *testing.T) {
	cfg, problems := inject.ParseConfig(
		[]byte("defaultConfig: {tracing: {sampling: 10}, proxyMetadata: {A: b}, statNameLength: 189}\nfuture: 1\naccessLogFile: /dev/stdout"),
		[]byte("neverInjectSelectors: []"),
		[]byte(`{"global":{"tag":1.30,"logAsJson":true,"proxy":{"statusPort":123}},"gateways":{"a":1}}`))
	if cfg == nil {
		t.Fatalf("refused: %v", problems)
	}
	var got []string
	for _, p := range problems {
		if p.Severity != diag.Warning {
			t.Errorf("not a warning: %s", p)
		}
		got = append(got, p.Field)
	}
	want := []string{"data.config.neverInjectSelectors", "data.mesh.future", "data.values.global.proxy.statusPort",
		"data.mesh.defaultConfig.proxyMetadata.A", "data.mesh.defaultConfig.tracing", "data.values.global.logAsJson"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if log := cfg.Mesh().GetAccessLogFile(); log != "/dev/stdout" {
		t.Errorf("the rest of the mesh configuration is lost: access log %q", log)
	}
	if address := cfg.Mesh().GetDefaultConfig().GetDiscoveryAddress(); address != "istiod.istio-system.svc:15012" {
		t.Errorf("a partial defaultConfig loses the default address: %q", address)
	}
}
