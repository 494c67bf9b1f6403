package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"istio.io/api/annotation"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
)

// rules says for every annotation that Istio knows on pods what injection does with it; a test fails when istio.io/api
// has one for pods that is not here. The domain must be istio.io: others are nobody's business here.
var rules map[string]rule

func init() { // not an initializer: nearest reads rules, which would be a cycle
	const read = "read by Decide"
	rules = map[string]rule{
		annotation.SidecarInject.Name:         {ignored: read},
		annotation.SidecarStatus.Name:         {ignored: "written by injection"},
		annotation.InjectTemplates.Name:       {ignored: "read before the others, by selectTemplates"},
		annotation.IoIstioRev.Name:            {ignored: "written by injection"},
		annotation.GalleyAnalyzeSuppress.Name: {ignored: "read by analysis"},
		scrapeTargets:                         {ignored: "read together with Prometheus' own annotations, by scrapeOf"},
		annotation.AmbientRedirection.Name:    {ignored: "written by Istio's ambient mode"},

		annotation.SidecarProxyImage.Name:            {set: setImage},
		annotation.SidecarProxyCPU.Name:              {set: setResource(annotation.SidecarProxyCPU.Name)},
		annotation.SidecarProxyCPULimit.Name:         {set: setResource(annotation.SidecarProxyCPULimit.Name)},
		annotation.SidecarProxyMemory.Name:           {set: setResource(annotation.SidecarProxyMemory.Name)},
		annotation.SidecarProxyMemoryLimit.Name:      {set: setResource(annotation.SidecarProxyMemoryLimit.Name)},
		annotation.SidecarLogLevel.Name:              {set: setParsed(parseEnvoyLevel, func(s *podSettings) *string { return &s.proxyLogLevel })},
		annotation.SidecarComponentLogLevel.Name:     {set: setParsed(parseComponentLevels, func(s *podSettings) *string { return &s.componentLevels })},
		annotation.SidecarAgentLogLevel.Name:         {set: setParsed(parseAgentLevels, func(s *podSettings) *string { return &s.agentLogLevel })},
		annotation.SidecarInterceptionMode.Name:      {set: setInterceptionMode},
		annotation.SidecarNativeSidecar.Name:         {set: setNative},
		annotation.SidecarUserVolume.Name:            {set: setUserVolumes},
		annotation.SidecarUserVolumeMount.Name:       {set: setUserMounts},
		annotation.SidecarRewriteAppHTTPProbers.Name: {set: setBool(func(s *podSettings) *bool { return &s.rewriteProbes })},
		annotation.PrometheusMergeMetrics.Name:       {set: setBool(func(s *podSettings) *bool { return &s.mergeMetrics })},
		annotation.ProxyConfig.Name:                  {set: setProxyConfig},
		annotation.ProxyOverrides.Name:               {set: setOverrides},
		annotation.SidecarStatusPort.Name:            {set: setStatusPort},
		annotation.SidecarBootstrapOverride.Name:     {set: setBootstrap},
		annotation.SidecarProxyImageType.Name:        {set: setImageType},

		// The agent reads these of the pod's annotations.
		annotation.SidecarStatsInclusionPrefixes.Name: {set: setStatNames},
		annotation.SidecarStatsInclusionSuffixes.Name: {set: setStatNames},
		annotation.SidecarStatsInclusionRegexps.Name:  {set: setStatRegexps},
		annotation.SidecarStatsHistogramBuckets.Name:  {set: setHistogramBuckets},
		annotation.SidecarStatsFlushInterval.Name:     {set: setStatsFlush},
		annotation.SidecarStatsEvictionInterval.Name:  {set: setStatsEviction},

		annotation.SidecarStatusReadinessFailureThreshold.Name:    {set: setSeconds(1, func(s *podSettings) *int32 { return &s.readiness.failureThreshold })},
		annotation.SidecarStatusReadinessInitialDelaySeconds.Name: {set: setSeconds(0, func(s *podSettings) *int32 { return &s.readiness.initialDelay })},
		annotation.SidecarStatusReadinessPeriodSeconds.Name:       {set: setSeconds(1, func(s *podSettings) *int32 { return &s.readiness.period })},

		annotation.SidecarTrafficIncludeInboundPorts.Name:     {set: setParsed(parsePortsOrAll, func(s *podSettings) *string { return &s.capture.inboundPorts })},
		annotation.SidecarTrafficExcludeInboundPorts.Name:     {set: setParsed(parsePorts, func(s *podSettings) *string { return &s.capture.excludeInboundPorts })},
		annotation.SidecarTrafficExcludeOutboundPorts.Name:    {set: setParsed(parsePorts, func(s *podSettings) *string { return &s.capture.excludeOutboundPorts })},
		annotation.SidecarTrafficIncludeOutboundIPRanges.Name: {set: setParsed(keyed("includeIPRanges", parseRangesOrAll), func(s *podSettings) *string { return &s.capture.outboundRanges })},
		annotation.SidecarTrafficExcludeOutboundIPRanges.Name: {set: setParsed(keyed("excludeIPRanges", parseRanges), func(s *podSettings) *string { return &s.capture.excludeOutboundRanges })},

		annotation.SidecarTrafficIncludeOutboundPorts.Name: {set: setParsed(parsePorts, func(s *podSettings) *string { return &s.capture.includeOutboundPorts })},
		annotation.SidecarTrafficExcludeInterfaces.Name:    {set: setParsed(parseInterfaces, func(s *podSettings) *string { return &s.capture.excludeInterfaces })},
		annotation.IoIstioRerouteVirtualInterfaces.Name:    {set: setParsed(parseInterfaces, func(s *podSettings) *string { return &s.capture.rerouteInterfaces })},
		annotation.SidecarTrafficKubevirtInterfaces.Name:   {set: setKubevirtInterfaces},

		annotation.SidecarDiscoveryAddress.Name:                {missing: "it is deprecated and has no effect: set discoveryAddress in the annotation " + annotation.ProxyConfig.Name},
		annotation.SidecarStatusReadinessApplicationPorts.Name: {missing: "readiness does not wait for single ports: it has no effect"},
		annotation.SidecarExtraStatTags.Name:                   {missing: statsMissing},
		annotation.SidecarStatsCompression.Name:                {missing: statsMissing},
		annotation.SidecarStatsHistogramBins.Name:              {missing: statsMissing},
		annotation.AmbientBypassInboundCapture.Name:            {missing: ambientMissing},
		annotation.AmbientDnsCapture.Name:                      {missing: ambientMissing},
	}
}

const (
	statsMissing   = "it concerns the standard metrics, which this version makes in another way: it has no effect"
	ambientMissing = "there is no ambient mode here: it has no effect"
)

// setParsed reads a value by a parser that returns its canonical form.
func setParsed(parse func(string) (string, error), field func(*podSettings) *string) func(*podSettings, string) error {
	return func(s *podSettings, value string) error {
		parsed, err := parse(value)
		if err != nil {
			return err
		}
		*field(s) = parsed
		return nil
	}
}

// keyed puts before a parser's error what the values, and Istio's messages, call the thing: people search for that.
func keyed(key string, parse func(string) (string, error)) func(string) (string, error) {
	return func(value string) (string, error) {
		parsed, err := parse(value)
		if err != nil {
			err = fmt.Errorf("%s: %w", key, err)
		}
		return parsed, err
	}
}

func setBool(field func(*podSettings) *bool) func(*podSettings, string) error {
	return func(s *podSettings, value string) error {
		b, err := parseBool(value)
		if err != nil {
			return err
		}
		*field(s) = b
		return nil
	}
}

// parseBool takes what Istio takes (Go's strconv) and nothing else, so that a typo is no "false".
func parseBool(value string) (bool, error) {
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, errors.New("use \"true\" or \"false\"")
	}
	return b, nil
}

// setSeconds reads the numbers of a probe.
func setSeconds(least int32, field func(*podSettings) *int32) func(*podSettings, string) error {
	return func(s *podSettings, value string) error {
		n, err := strconv.ParseInt(value, 10, 32)
		if err != nil || int32(n) < least {
			return fmt.Errorf("use a whole number of at least %d", least)
		}
		*field(s) = int32(n)
		return nil
	}
}

func setNative(s *podSettings, value string) error {
	b, err := parseBool(value)
	if err != nil {
		return err
	}
	s.native = &b
	return nil
}

// setKubevirtInterfaces reads the older name of istio.io/reroute-virtual-interfaces, which comes before it in the order of names and
// wins.
func setKubevirtInterfaces(s *podSettings, value string) error {
	list, err := parseInterfaces(value)
	if err == nil && s.capture.rerouteInterfaces == "" {
		s.capture.rerouteInterfaces = list
	}
	return err
}

func setInterceptionMode(s *podSettings, value string) error {
	n, known := meshv1alpha1.ProxyConfig_InboundInterceptionMode_value[value]
	if !known {
		return errors.New("use REDIRECT, TPROXY or NONE")
	}
	s.mode = meshv1alpha1.ProxyConfig_InboundInterceptionMode(n)
	return s.serves.interception(s.mode)
}

// setStatusPort reads where the agent answers besides its own port; 0 means no readiness probe, and no probes through the agent.
func setStatusPort(s *podSettings, value string) error {
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil {
		return errors.New("use a port, or 0 for no readiness probe")
	}
	s.readiness.off, s.statusPort, s.ownStatusPort = n == 0, int32(n), n != 0
	if err := checkAgentPort(s.statusPort); err != nil {
		return err
	}
	if n > 0 && n < 1024 {
		s.note(annotation.SidecarStatusPort.Name, lowPort(s.statusPort))
	}
	return nil
}

func lowPort(port int32) string {
	return fmt.Sprintf("%d is a port below 1024: the sidecar does not start on nodes whose container runtime keeps these for root", port)
}

// checkAgentPort refuses a port for the agent that Envoy listens on. The readiness port is the agent's already.
func checkAgentPort(port int32) error {
	if port != readinessPort && isMeshPort(port) {
		return fmt.Errorf("port %d is the proxy's own", port)
	}
	return nil
}

func setProxyConfig(s *podSettings, value string) error {
	merged, unknown, err := parseProxyConfig(s.proxy, []byte(value))
	if err != nil {
		return fmt.Errorf("it is no ProxyConfig: %w", err)
	}
	if unknown != nil {
		return fmt.Errorf("ProxyConfig has no field %s", strings.Join(unknown, ", "))
	}
	if err := checkProxyConfig(merged, s.serves); err != nil {
		return err
	}
	s.useProxyConfig(merged)
	return nil
}

// useProxyConfig takes a checked ProxyConfig and what injection itself does with it.
func (s *podSettings) useProxyConfig(pc *meshv1alpha1.ProxyConfig) {
	s.proxy, s.proxyEnv, s.metadata = pc, proxyConfigEnv(pc), nil
	s.mode, s.captureDNS = pc.GetInterceptionMode(), capturesDNS(pc.GetProxyMetadata())
	s.agentPort = agentPort
	if port := pc.GetStatusPort(); port != 0 {
		s.agentPort = port
	}
	for _, name := range sortedKeys(pc.GetProxyMetadata()) {
		s.metadata = append(s.metadata, corev1.EnvVar{Name: name, Value: pc.GetProxyMetadata()[name]})
	}
	if kind := pc.GetImage().GetImageType(); kind != "" {
		s.imageType = kind
	}
	if h := pc.GetHoldApplicationUntilProxyStarts(); h != nil {
		s.hold = h.GetValue()
	}
}

// userList reads the JSON of userVolume and userVolumeMount: an object by name, which Istio's template reads, or an array,
// which its reference describes. each gets every entry's name ("" in an array) and JSON.
func userList(value string, each func(name string, entry json.RawMessage) error) error {
	var byName map[string]json.RawMessage
	if json.Unmarshal([]byte(value), &byName) == nil {
		for _, name := range sortedKeys(byName) {
			if err := each(name, byName[name]); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal([]byte(value), &list); err != nil {
		return errors.New("it is neither a JSON object of name to volume nor a JSON array")
	}
	for i, entry := range list {
		if err := each("", entry); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
	}
	return nil
}
