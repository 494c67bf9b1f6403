package inject

import (
	"maps"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// SidecarFacts are what the compiled configuration says about every sidecar: for who makes the same pod by other means.
type SidecarFacts struct {
	Network            string // "" for none
	User, Group        int64
	AgentPort          int32
	Busy               []int32  // ports that the sidecar listens on: the application cannot
	Unscrapable        []string // ports that are not the application's, so that scraping them would be a loop
	RewriteProbes      bool
	MergeMetrics       bool
	MountsCertificates bool
}

// Sidecar gives the facts of a pod that has no annotations.
func (c *Config) Sidecar() SidecarFacts {
	s := &c.pod
	f := SidecarFacts{Network: c.network, User: s.uid, Group: s.gid, AgentPort: s.agentPort, RewriteProbes: s.rewriteProbes, MergeMetrics: s.mergeMetrics,
		MountsCertificates: c.settings.Values.Global.MountMTLSCerts}
	for _, port := range []int32{15000, outboundPort, inboundPort, readinessPort, 15053, envoyPromPort, s.agentPort, s.statusPort} {
		if port != 0 {
			f.Busy = append(f.Busy, port)
		}
	}
	for _, port := range s.notTheApplications() {
		f.Unscrapable = append(f.Unscrapable, strconv.Itoa(port))
	}
	return f
}

// InjectedAnnotations are those that every pod gets that does not have them.
func (c *Config) InjectedAnnotations() map[string]string {
	out := map[string]string{}
	maps.Copy(out, c.settings.Injector.InjectedAnnotations)
	return out
}

// ByNamespace reports whether pods that say nothing may get another sidecar in one namespace, or with one label, than in another.
func (c *Config) ByNamespace() bool { return len(c.overlays) > 0 }

// LimitVariables are the variables of a sidecar that has limits of its own.
func LimitVariables() (cpu, memory corev1.EnvVar) {
	return corev1.EnvVar{Name: "ISTIO_CPU_LIMIT", ValueFrom: cpuLimit}, corev1.EnvVar{Name: "GOMEMLIMIT", ValueFrom: memoryLimit}
}
