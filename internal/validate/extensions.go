package validate

import (
	"regexp"

	extensions "istio.io/api/extensions/v1alpha1"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// Bounds of names, in bytes; Istio's.
const (
	longestSecret = 253
	longestPlugin = 256
	longestLua    = 65536
)

func wasmPlugin(c *check, p *extensions.WasmPlugin) {
	c.targets(p.GetSelector(), p.GetTargetRef(), p.GetTargetRefs())
	c.wasm(spec, p)
	for i, m := range p.GetMatch() {
		ports(c, spec.field("match").index(i), m.GetPorts())
	}
}

func trafficExtension(c *check, e *extensions.TrafficExtension) {
	c.targets(e.GetSelector(), nil, e.GetTargetRefs())
	switch wasm, lua := e.GetWasm(), e.GetLua(); {
	case wasm != nil:
		c.wasm(spec.field("wasm"), wasm)
	case lua != nil:
		code := spec.field("lua").field("inlineCode")
		if c.required(code, lua.GetInlineCode()); len(lua.GetInlineCode()) > longestLua {
			c.errorf(diag.TooLarge, code, "it has %d characters, and may have %d", len(lua.GetInlineCode()), longestLua)
		}
	default:
		c.errorf(diag.NothingSaid, spec, "it extends nothing: wasm or lua is needed")
	}
	for i, m := range e.GetMatch() {
		ports(c, spec.field("match").index(i), m.GetPorts())
	}
}

// module is what both kinds say of a module of WebAssembly.
type module interface {
	GetUrl() string
	GetSha256() string
	GetImagePullSecret() string
	GetPluginName() string
	GetVmConfig() *extensions.VmConfig
}

var sha256 = regexp.MustCompile(`^[a-f0-9]{64}$`)

func (c *check) wasm(at path, m module) {
	c.wasmURL(at.field("url"), m.GetUrl())
	if s := m.GetSha256(); s != "" && !sha256.MatchString(s) {
		c.errorf(diag.WrongForm, at.field("sha256"), "%s is no SHA-256 sum: it is 64 digits of 0 to 9 and a to f", quote(s)).hint("sha256sum prints it")
	}
	if n := len(m.GetImagePullSecret()); n > longestSecret {
		c.errorf(diag.TooLarge, at.field("imagePullSecret"), "it has %d characters, and the name of a Secret has %d at most", n, longestSecret)
	}
	if n := len(m.GetPluginName()); n > longestPlugin {
		c.errorf(diag.TooLarge, at.field("pluginName"), "it has %d characters, and may have %d", n, longestPlugin)
	}
	names := map[string]bool{}
	for i, e := range m.GetVmConfig().GetEnv() {
		where := at.field("vmConfig").field("env").index(i)
		if c.required(where.field("name"), e.GetName()) && names[e.GetName()] {
			c.errorf(diag.Duplicate, where.field("name"), "the variable %s is there twice", quote(e.GetName()))
		}
		names[e.GetName()] = true
		if len(e.GetName()) > longestPlugin {
			c.errorf(diag.TooLarge, where.field("name"), "it has %d characters, and may have %d", len(e.GetName()), longestPlugin)
		}
		if e.GetValueFrom() != extensions.EnvValueSource_INLINE && e.GetValue() != "" {
			c.errorf(diag.Contradiction, where.field("value"), "the value comes from %s", e.GetValueFrom()).hint("take it out, or write valueFrom: INLINE")
		}
	}
}

func ports[P interface{ GetNumber() uint32 }](c *check, at path, ports []P) {
	for i, p := range ports {
		c.port(at.field("ports").index(i).field("number"), p.GetNumber())
	}
}
