package inject

import (
	"encoding/json"
	"reflect"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// AppendPatch appends the JSON of a patch, the same bytes as encoding/json's. It writes by hand what is in every patch, without
// reflection, and leaves the rest to encoding/json.
func (c *Config) AppendPatch(b []byte, ops []Op) []byte {
	if ops == nil {
		return append(b, "null"...)
	}
	b = append(b, '[')
	for i := range ops {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(append(b, `{"op":`...), ops[i].Op)
		b = appendText(append(b, `,"path":`...), ops[i].Path)
		if ops[i].Value != nil {
			b = c.appendValue(append(b, `,"value":`...), ops[i].Value)
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

func (c *Config) appendValue(b []byte, value any) []byte {
	switch v := value.(type) {
	case string:
		return appendText(b, v)
	case map[string]string:
		return appendTexts(b, v)
	case *corev1.Container:
		return appendContainer(b, v)
	case []corev1.Container:
		return appendList(b, v, appendContainer)
	case *corev1.Volume:
		return c.appendVolume(b, v)
	case []corev1.Volume:
		return appendList(b, v, c.appendVolume)
	case []corev1.EnvVar:
		return appendList(b, v, appendVariable)
	case *corev1.HTTPGetAction:
		return appendGet(b, v)
	}
	return appendAny(b, value)
}

// appendAny is encoding/json.
func appendAny(b []byte, value any) []byte {
	data, err := json.Marshal(value)
	if err != nil {
		panic("encode patch: " + err.Error()) // the API's types, which came from JSON
	}
	return append(b, data...)
}

func appendList[T any](b []byte, list []T, each func([]byte, *T) []byte) []byte {
	if list == nil {
		return append(b, "null"...)
	}
	b = append(b, '[')
	for i := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = each(b, &list[i])
	}
	return append(b, ']')
}

// plainText are the bytes that encoding/json writes as they are.
var plainText = func() (t [256]bool) {
	for c := 0x20; c < 0x7f; c++ {
		t[c] = c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
	}
	return t
}()

func appendText(b []byte, text string) []byte {
	begin := len(b)
	b = append(b, '"')
	from := 0
	for i := range len(text) {
		c := text[i]
		if plainText[c] {
			continue
		}
		if c != '"' && c != '\\' {
			return appendAny(b[:begin], text)
		}
		b = append(append(b, text[from:i]...), '\\')
		from = i
	}
	return append(append(b, text[from:]...), '"')
}

func appendTexts(b []byte, m map[string]string) []byte {
	if m == nil {
		return append(b, "null"...)
	}
	b = append(b, '{')
	for i, key := range sortedKeys(m) {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(append(appendText(b, key), ':'), m[key])
	}
	return append(b, '}')
}

func appendString(b []byte, s *string) []byte { return appendText(b, *s) }

// members writes an object's members, with commas between. Names need no escape.
type members struct {
	b     []byte
	begun bool
}

// name writes a member's name; its value comes next.
func (m *members) name(name string) {
	if m.begun {
		m.b = append(m.b, ',')
	}
	m.begun = true
	m.b = append(append(append(m.b, '"'), name...), '"', ':')
}

func (m *members) text(name, value string) {
	if value != "" {
		m.name(name)
		m.b = appendText(m.b, value)
	}
}

func (m *members) number(name string, value int32) {
	if value != 0 {
		m.name(name)
		m.b = strconv.AppendInt(m.b, int64(value), 10)
	}
}

func (m *members) id(name string, value *int64) {
	if value != nil {
		m.name(name)
		m.b = strconv.AppendInt(m.b, *value, 10)
	}
}

func (m *members) flag(name string, value *bool) {
	if value != nil {
		m.name(name)
		m.b = strconv.AppendBool(m.b, *value)
	}
}

func (m *members) texts(name string, list []string) {
	if len(list) > 0 {
		m.name(name)
		m.b = appendList(m.b, list, appendString)
	}
}

func (m *members) any(name string, value any) {
	m.name(name)
	m.b = appendAny(m.b, value)
}

// braces writes the members that each gives, in braces.
func braces(b []byte, each func(m *members)) []byte {
	m := members{b: append(b, '{')}
	each(&m)
	return append(m.b, '}')
}

// appendContainer writes the fields that injection sets. With any other field it is encoding/json's.
func appendContainer(b []byte, c *corev1.Container) []byte {
	rest := *c
	rest.Name, rest.Image, rest.Args, rest.Ports, rest.Env, rest.Resources = "", "", nil, nil, nil, corev1.ResourceRequirements{}
	rest.RestartPolicy, rest.VolumeMounts, rest.LivenessProbe, rest.ReadinessProbe, rest.StartupProbe = nil, nil, nil, nil, nil
	rest.Lifecycle, rest.ImagePullPolicy, rest.SecurityContext = nil, "", nil
	if !reflect.ValueOf(&rest).Elem().IsZero() {
		return appendAny(b, c)
	}
	return braces(b, func(m *members) {
		m.name("name")
		m.b = appendText(m.b, c.Name)
		m.text("image", c.Image)
		m.texts("args", c.Args)
		if len(c.Ports) > 0 {
			m.name("ports")
			m.b = appendPorts(m.b, c.Ports)
		}
		if len(c.Env) > 0 {
			m.name("env")
			m.b = appendList(m.b, c.Env, appendVariable)
		}
		m.name("resources")
		m.b = appendResources(m.b, &c.Resources)
		if c.RestartPolicy != nil {
			m.name("restartPolicy")
			m.b = appendText(m.b, string(*c.RestartPolicy))
		}
		if len(c.VolumeMounts) > 0 {
			m.name("volumeMounts")
			m.b = appendList(m.b, c.VolumeMounts, appendMount)
		}
		for _, probe := range []struct {
			name string
			p    *corev1.Probe
		}{{"livenessProbe", c.LivenessProbe}, {"readinessProbe", c.ReadinessProbe}, {"startupProbe", c.StartupProbe}} {
			if probe.p != nil {
				m.name(probe.name)
				m.b = appendProbe(m.b, probe.p)
			}
		}
		if c.Lifecycle != nil {
			m.any("lifecycle", c.Lifecycle)
		}
		m.text("imagePullPolicy", string(c.ImagePullPolicy))
		if c.SecurityContext != nil {
			m.name("securityContext")
			m.b = appendSecurity(m.b, c.SecurityContext)
		}
	})
}

func appendPorts(b []byte, list []corev1.ContainerPort) []byte {
	return appendList(b, list, func(b []byte, p *corev1.ContainerPort) []byte {
		return braces(b, func(m *members) {
			m.text("name", p.Name)
			m.number("hostPort", p.HostPort)
			m.name("containerPort")
			m.b = strconv.AppendInt(m.b, int64(p.ContainerPort), 10)
			m.text("protocol", string(p.Protocol))
			m.text("hostIP", p.HostIP)
		})
	})
}

func appendVariable(b []byte, e *corev1.EnvVar) []byte {
	return braces(b, func(m *members) {
		m.name("name")
		m.b = appendText(m.b, e.Name)
		m.text("value", e.Value)
		if e.ValueFrom == nil {
			return
		}
		m.name("valueFrom")
		if f := e.ValueFrom.FieldRef; f != nil && *e.ValueFrom == (corev1.EnvVarSource{FieldRef: f}) {
			m.b = append(m.b, `{"fieldRef":`...)
			m.b = braces(m.b, func(m *members) {
				m.text("apiVersion", f.APIVersion)
				m.name("fieldPath")
				m.b = appendText(m.b, f.FieldPath)
			})
			m.b = append(m.b, '}')
			return
		}
		m.b = appendAny(m.b, e.ValueFrom)
	})
}

func appendResources(b []byte, r *corev1.ResourceRequirements) []byte {
	if r.Claims != nil {
		return appendAny(b, r)
	}
	return braces(b, func(m *members) {
		for _, side := range []struct {
			name string
			list corev1.ResourceList
		}{{"limits", r.Limits}, {"requests", r.Requests}} {
			if len(side.list) == 0 {
				continue
			}
			m.name(side.name)
			m.b = braces(m.b, func(m *members) {
				var keys [8]corev1.ResourceName
				names := keys[:0]
				for name := range side.list {
					names = append(names, name)
				}
				slices.Sort(names)
				for _, name := range names {
					q := side.list[name]
					m.name(string(name))
					m.b = appendText(m.b, q.String())
				}
			})
		}
	})
}

func appendMount(b []byte, v *corev1.VolumeMount) []byte {
	rest := *v
	rest.Name, rest.MountPath = "", ""
	if !reflect.ValueOf(&rest).Elem().IsZero() {
		return appendAny(b, v)
	}
	b = appendText(append(b, `{"name":`...), v.Name)
	return append(appendText(append(b, `,"mountPath":`...), v.MountPath), '}')
}

func appendProbe(b []byte, p *corev1.Probe) []byte {
	if p.HTTPGet == nil || p.ProbeHandler != (corev1.ProbeHandler{HTTPGet: p.HTTPGet}) || p.TerminationGracePeriodSeconds != nil {
		return appendAny(b, p)
	}
	return braces(b, func(m *members) {
		m.name("httpGet")
		m.b = appendGet(m.b, p.HTTPGet)
		m.number("initialDelaySeconds", p.InitialDelaySeconds)
		m.number("timeoutSeconds", p.TimeoutSeconds)
		m.number("periodSeconds", p.PeriodSeconds)
		m.number("successThreshold", p.SuccessThreshold)
		m.number("failureThreshold", p.FailureThreshold)
	})
}

func appendGet(b []byte, g *corev1.HTTPGetAction) []byte {
	if g == nil || g.Port.Type != 0 || len(g.HTTPHeaders) > 0 { // 0 is a number
		return appendAny(b, g)
	}
	return braces(b, func(m *members) {
		m.text("path", g.Path)
		m.name("port")
		m.b = strconv.AppendInt(m.b, int64(g.Port.IntVal), 10)
		m.text("host", g.Host)
		m.text("scheme", string(g.Scheme))
	})
}

func appendSecurity(b []byte, s *corev1.SecurityContext) []byte {
	if s.SELinuxOptions != nil || s.WindowsOptions != nil || s.ProcMount != nil || s.AppArmorProfile != nil {
		return appendAny(b, s)
	}
	return braces(b, func(m *members) {
		if c := s.Capabilities; c != nil {
			m.name("capabilities")
			m.b = braces(m.b, func(m *members) {
				for _, side := range []struct {
					name string
					list []corev1.Capability
				}{{"add", c.Add}, {"drop", c.Drop}} {
					if len(side.list) > 0 {
						m.name(side.name)
						m.b = appendList(m.b, side.list, func(b []byte, c *corev1.Capability) []byte { return appendText(b, string(*c)) })
					}
				}
			})
		}
		m.flag("privileged", s.Privileged)
		m.id("runAsUser", s.RunAsUser)
		m.id("runAsGroup", s.RunAsGroup)
		m.flag("runAsNonRoot", s.RunAsNonRoot)
		m.flag("readOnlyRootFilesystem", s.ReadOnlyRootFilesystem)
		m.flag("allowPrivilegeEscalation", s.AllowPrivilegeEscalation)
		if s.SeccompProfile != nil {
			m.any("seccompProfile", s.SeccompProfile)
		}
	})
}

// appendVolume knows the JSON of the volumes that every sidecar has.
func (c *Config) appendVolume(b []byte, v *corev1.Volume) []byte {
	for i := range c.volumes {
		if *v == c.volumes[i] {
			return append(b, c.volumesJSON[i]...)
		}
	}
	return appendAny(b, v)
}
