package inject

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"istio.io/api/annotation"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// podSettings is how one pod's sidecar is to be: the Config's, changed by the pod's annotations.
type podSettings struct {
	image           string
	resources       corev1.ResourceRequirements
	proxyLogLevel   string // Envoy's: "warning"
	componentLevels string // Envoy's components: "misc:error"
	agentLogLevel   string // the agent's: "default:info"
	capture         capture
	readiness       readiness
	proxy           *meshv1alpha1.ProxyConfig
	proxyEnv        string // proxy as PROXY_CONFIG
	hold            bool   // holdApplicationUntilProxyStarts
	native          *bool  // the pod's own wish
	rewriteProbes   bool
	mergeMetrics    bool
	userVolumes     []corev1.Volume
	userMounts      []corev1.VolumeMount
	overrides       *overrides // of the annotation
	uid, gid        int64      // of the sidecar's container: the interception leaves them alone
	serves          Serves
	mode            meshv1alpha1.ProxyConfig_InboundInterceptionMode
	captureDNS      bool
	agentPort       int32 // where the agent answers: metrics, the application's probes and hooks
	statusPort      int32 // where it answers too, and the interception leaves alone; 0 when the status is off
	ownStatusPort   bool  // statusPort is the pod's own wish: the kubelet's probes go there
	scrape          scrape
	imageType       string // "distroless": ends the tag of an image that has no type of its own
	ownImage        bool   // image is the pod's own, as a whole
	bootstrap       string // ConfigMap with what Envoy merges over its bootstrap
	metadata        []corev1.EnvVar
	statsFlush      time.Duration
	statsEviction   time.Duration

	ownResources map[string]string // the four resource annotations, checked together at the end
	notes        []note
}

// note is something about a value that can be used, but not for everything that the user may expect of it.
type note struct{ annotation, detail string }

func (s *podSettings) note(annotation, detail string) {
	s.notes = append(s.notes, note{annotation, detail})
}

// capture is what the interception rules take, each field in the form of the init container's arguments.
type capture struct {
	inboundPorts          string // "*", "" or ports
	excludeInboundPorts   string
	outboundRanges        string // "*", "" or CIDRs
	excludeOutboundRanges string
	excludeOutboundPorts  string
	includeOutboundPorts  string // captured outside of the ranges too
	excludeInterfaces     string // network devices
	rerouteInterfaces     string
}

// readiness is the sidecar's readiness probe; off when the status port is 0.
type readiness struct {
	off                                    bool
	initialDelay, period, failureThreshold int32
}

// rule is what injection does with one annotation: it has exactly one of set, ignored, and missing.
type rule struct {
	// set reads the value into the settings. Its error says what is wrong with the value.
	set func(*podSettings, string) error
	// ignored says why the annotation rightly has no effect here: it is read elsewhere, or written by the mesh.
	ignored string
	// missing says what this version cannot do. The pod is injected with a warning, or refused where an effect that the user
	// counts on would be missing on the data path.
	missing string
	refuse  bool
}

// settingsOf reads the annotations of a pod. Warnings are for the user; err is a *RefusedError.
func (c *Config) settingsOf(pod *corev1.Pod, subject ref.Ref) (s podSettings, warnings []diag.Problem, err error) {
	s = c.pod
	var names []string
	for name := range pod.Annotations {
		if strings.HasSuffix(prefixOf(name), "istio.io") {
			names = append(names, name)
		}
	}
	c.mergeProxyConfigs(&s, pod)
	if len(names) == 0 && s.proxy == c.pod.proxy {
		c.mountCertificates(&s, pod)
		s.useStatusPort()
		if err := s.useScrape(pod.Annotations); err != nil {
			return s, nil, notScrapable(subject, err)
		}
		return s, nil, nil
	}
	slices.Sort(names)
	var refused []diag.Problem
	for _, name := range names {
		p, ok := s.apply(name, pod.Annotations[name], subject)
		switch {
		case ok:
		case p.Severity == diag.Error:
			refused = append(refused, p)
		default:
			warnings = append(warnings, p)
		}
	}
	if s.ownResources != nil {
		if name, err := s.useOwnResources(); err != nil {
			refused = append(refused, invalidAnnotation(subject, name, s.ownResources[name], err))
		}
	}
	if err := s.checkStatsIntervals(); err != nil {
		name := annotation.SidecarStatsEvictionInterval.Name
		refused = append(refused, invalidAnnotation(subject, name, pod.Annotations[name], err))
	}
	c.mountCertificates(&s, pod)
	s.useStatusPort()
	if err := s.useScrape(pod.Annotations); err != nil {
		refused = append(refused, notScrapable(subject, err).Problems...)
	}
	s.useBootstrap()
	if !s.ownImage {
		s.image = c.typed(c.baseImage, s.imageType)
	}
	for _, n := range s.notes {
		p := annotationProblem(subject, n.annotation, diag.UnsupportedField, diag.Warning)
		p.Detail = n.detail
		warnings = append(warnings, p)
	}
	if pod.Annotations[annotation.ProxyConfig.Name] != "" && s.proxy != c.pod.proxy {
		warnings = append(warnings, s.proxyConfigWarnings(subject)...)
	}
	if refused != nil {
		return s, warnings, &RefusedError{Problems: refused}
	}
	return s, warnings, nil
}

// apply reads one annotation; ok is false when p is a problem.
func (s *podSettings) apply(name, value string, subject ref.Ref) (p diag.Problem, ok bool) {
	r, known := rules[name]
	switch {
	case !known:
		p = annotationProblem(subject, name, diag.InvalidAnnotation, diag.Warning)
		p.Detail = "there is no such annotation: it has no effect"
		if other := nearest(name); other != "" {
			p.Hint = "did you mean " + other + "?"
		}
		return p, false
	case r.set != nil:
		if err := r.set(s, value); err != nil {
			return invalidAnnotation(subject, name, value, err), false
		}
	case r.missing != "":
		p = annotationProblem(subject, name, diag.UnsupportedField, diag.Warning)
		p.Detail = r.missing
		if r.refuse {
			p.Severity, p.Hint = diag.Error, "take the annotation away, or leave the pod out of the mesh with the label sidecar.istio.io/inject: \"false\""
		}
		return p, false
	}
	return p, true
}

func annotationProblem(subject ref.Ref, name string, code diag.Code, severity diag.Severity) diag.Problem {
	return diag.Problem{Code: code, Severity: severity, Object: subject, Field: "metadata.annotations[" + name + "]"}
}

// invalidAnnotation names the annotation, the value and the cause. Long values are cut: the message goes into Events.
func invalidAnnotation(subject ref.Ref, name, value string, err error) diag.Problem {
	const most = 200
	if len(value) > most {
		value = strings.ToValidUTF8(value[:most], "") + "…"
	}
	p := annotationProblem(subject, name, diag.InvalidAnnotation, diag.Error)
	p.Detail = fmt.Sprintf("cannot use %q: %v", value, err)
	var notServed *notServedError
	if errors.As(err, &notServed) {
		p.Code, p.Hint = diag.NotServed, notServed.hint
	}
	return p
}

// proxyConfigWarnings reports the fields that proxy.istio.io/config set and that have no effect. Fields of the mesh's default
// configuration were reported when that was read.
func (s *podSettings) proxyConfigWarnings(subject ref.Ref) (out []diag.Problem) {
	for _, field := range notCarriedOut(s.proxy) {
		p := annotationProblem(subject, annotation.ProxyConfig.Name, diag.UnsupportedField, diag.Warning)
		p.Detail = field + " is not carried out yet: it has no effect"
		out = append(out, p)
	}
	return out
}

// nearest finds the annotation that differs from name only in case, or in its domain.
func nearest(name string) string {
	_, short, _ := strings.Cut(name, "/")
	var best string
	for known := range rules {
		_, other, _ := strings.Cut(known, "/")
		if strings.EqualFold(known, name) {
			return known
		}
		if strings.EqualFold(other, short) && (best == "" || known < best) {
			best = known
		}
	}
	return best
}
