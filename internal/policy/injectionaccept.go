package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"istio.io/api/annotation"
)

// What of a pod's own wishes the policy carries out, as regular expressions (RE2, which CEL and Go share). A pod with any other annotation
// of Istio's, or another value, is left to the webhook, which carries it out or says what is wrong with it. So nothing that a user has
// written gets into a container's arguments without having passed one of these.
const (
	portPattern      = `([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])`
	octetPattern     = `(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])`
	rangePattern     = octetPattern + `([.]` + octetPattern + `){3}/(3[0-2]|[12]?[0-9])` // IPv4: the canonical form of IPv6 is beyond a pattern
	interfacePattern = `[a-zA-Z][a-zA-Z0-9_.-]{0,14}`
	levelPattern     = `[a-z][a-z0-9_]*:(trace|debug|info|warning|warn|error|critical|off)`
	agentPattern     = `([a-z][a-z0-9_]*:)?(debug|info|warn|error|none)`
	truePattern      = `^(1|t|T|TRUE|true|True)$`
	boolPattern      = `^(1|t|T|TRUE|true|True|0|f|F|FALSE|false|False)$`
	quantityPattern  = `^[0-9]{1,12}([.][0-9]{1,6})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$`
	// plainPattern is what stands in JSON as it is, but for & < and >.
	plainPattern = `^[ !#-\[\]-~]*$`
)

// listOf is a list of at most 64 items with commas and spaces between, or none.
func listOf(item string) string {
	return `^( *` + item + ` *(, *` + item + ` *){0,63}| *)$`
}

// listOrAll is listOf, or a star.
func listOrAll(item string) string {
	return `^( *` + item + ` *(, *` + item + ` *){0,63}| *| *[*] *)$`
}

// accepted are the annotations of Istio's that the policy carries out, and their values.
type accepted struct {
	names   []string
	pattern string
}

// acceptedAnnotations are all of them. Patterns are written without quotes, as they stand in CEL.
func acceptedAnnotations() []accepted {
	return []accepted{
		{[]string{annotation.SidecarInject.Name, annotation.SidecarStatus.Name, annotation.IoIstioRev.Name, annotation.GalleyAnalyzeSuppress.Name,
			annotation.AmbientRedirection.Name}, ""},
		{[]string{annotation.SidecarProxyImage.Name}, `^[a-zA-Z0-9][a-zA-Z0-9._:@/-]{0,511}$`},
		{resourceAnnotations, quantityPattern},
		{[]string{annotation.SidecarLogLevel.Name}, `^(trace|debug|info|warning|warn|error|critical|off)$`},
		{[]string{annotation.SidecarComponentLogLevel.Name}, listOf(levelPattern)},
		{[]string{annotation.SidecarAgentLogLevel.Name}, listOf(agentPattern)},
		{[]string{annotation.SidecarInterceptionMode.Name}, `^REDIRECT$`},
		{[]string{annotation.SidecarNativeSidecar.Name}, truePattern},
		{[]string{annotation.SidecarRewriteAppHTTPProbers.Name, annotation.PrometheusMergeMetrics.Name}, boolPattern},
		{[]string{annotation.SidecarStatsInclusionPrefixes.Name, annotation.SidecarStatsInclusionSuffixes.Name}, listOf(`[!#-+\--\[\]-~]+`)},
		{[]string{annotation.SidecarStatusReadinessInitialDelaySeconds.Name}, `^(0|[1-9][0-9]{0,8})$`},
		{[]string{annotation.SidecarStatusReadinessPeriodSeconds.Name, annotation.SidecarStatusReadinessFailureThreshold.Name}, `^[1-9][0-9]{0,8}$`},
		{[]string{annotation.SidecarTrafficIncludeInboundPorts.Name}, listOrAll(portPattern)},
		{[]string{annotation.SidecarTrafficExcludeInboundPorts.Name, annotation.SidecarTrafficExcludeOutboundPorts.Name,
			annotation.SidecarTrafficIncludeOutboundPorts.Name}, listOf(portPattern)},
		{[]string{annotation.SidecarTrafficIncludeOutboundIPRanges.Name}, listOrAll(rangePattern)},
		{[]string{annotation.SidecarTrafficExcludeOutboundIPRanges.Name}, listOf(rangePattern)},
		{[]string{annotation.SidecarTrafficExcludeInterfaces.Name, annotation.IoIstioRerouteVirtualInterfaces.Name,
			annotation.SidecarTrafficKubevirtInterfaces.Name}, listOf(interfacePattern)},
	}
}

// resourceAnnotations are the requests and limits of the sidecar. Once a pod has one of them, they alone count.
var resourceAnnotations = []string{annotation.SidecarProxyCPU.Name, annotation.SidecarProxyMemory.Name, annotation.SidecarProxyCPULimit.Name, annotation.SidecarProxyMemoryLimit.Name}

// Prometheus' own annotations, by which the agent learns where the application has its metrics.
const (
	prometheusScrape, prometheusPath, prometheusPort = "prometheus.io/scrape", "prometheus.io/path", "prometheus.io/port"
)

// annotationsCEL is true for a pod whose annotations the policy carries out.
func annotationsCEL() string {
	var b strings.Builder
	b.WriteString("variables.annotations.all(k, k.contains('istio.io/') ? (")
	for i, a := range acceptedAnnotations() {
		if i > 0 {
			b.WriteString(" || ")
		}
		b.WriteString("k in " + quoted(a.names...))
		if a.pattern != "" {
			b.WriteString(" && variables.annotations[k].matches(r'" + a.pattern + "')")
		}
	}
	fmt.Fprintf(&b, ") : k.startsWith('prometheus') ? (k == '%s' || k == '%s' ? variables.annotations[k].matches(r'%s') : k == '%s' && variables.annotations[k].matches(r'^(%s)?$')) : ",
		prometheusScrape, prometheusPath, plainPattern, prometheusPort, portPattern)
	b.WriteString("k != 'openshift.io/scc' || !variables.annotations[k].matches('^(restricted|nonroot)'))")
	return b.String()
}

// leftAnnotation says which annotation keeps a pod from the policy, "" for none.
func leftAnnotation(name, value string) string {
	quote := func(why string) string { return fmt.Sprintf("annotation %s=%q %s", name, value, why) }
	switch {
	case strings.Contains(name, "istio.io/"):
		all := acceptedAnnotations()
		at := slices.IndexFunc(all, func(a accepted) bool { return slices.Contains(a.names, name) })
		if at < 0 {
			return quote("is none that the policy carries out")
		}
		if p := all[at].pattern; p != "" && !regexp.MustCompile(p).MatchString(value) {
			return quote("has a value that the policy does not take")
		}
	case strings.HasPrefix(name, "prometheus"):
		pattern, known := map[string]string{prometheusScrape: plainPattern, prometheusPath: plainPattern, prometheusPort: "^(" + portPattern + ")?$"}[name]
		if !known || !regexp.MustCompile(pattern).MatchString(value) {
			return quote("about metrics is none that the policy carries out")
		}
	case name == "openshift.io/scc" && regexp.MustCompile("^(restricted|nonroot)").MatchString(value):
		return quote("may refuse the sidecar, which the webhook says")
	}
	return ""
}
