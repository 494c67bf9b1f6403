package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"istio.io/api/annotation"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/api/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"

	"google.golang.org/protobuf/types/known/durationpb"
)

// The parsers of this file are the only way from a user's text to the arguments of the sidecar's containers. Each returns a
// canonical form that it made itself of parsed numbers, addresses and words; what is not understood is an error, never passed on.

const all = "*"

// parsePorts reads "80, 443" as "80,443"; "" is none.
func parsePorts(value string) (string, error) {
	var b []byte
	for _, item := range items(value) {
		port, err := strconv.ParseUint(item, 10, 16)
		if err != nil || port == 0 {
			return "", fmt.Errorf("%q is no port: use numbers from 1 to 65535, with commas between", item)
		}
		if b != nil {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, port, 10)
	}
	return string(b), nil
}

func parsePortsOrAll(value string) (string, error) {
	if strings.TrimSpace(value) == all {
		return all, nil
	}
	return parsePorts(value)
}

// parseRanges reads "10.0.0.1/8, fd00::/8" as "10.0.0.1/8,fd00::/8"; "" is none. Who reads the arguments ignores the bits behind the
// prefix; they stay, so that people find what they wrote.
func parseRanges(value string) (string, error) {
	var out []string
	for _, item := range items(value) {
		prefix, err := netip.ParsePrefix(item)
		if err != nil || prefix.Addr().Is4In6() {
			return "", fmt.Errorf("%q is no range of addresses: use CIDR form such as 10.0.0.0/8, with commas between", item)
		}
		out = append(out, prefix.String())
	}
	return strings.Join(out, ","), nil
}

func parseRangesOrAll(value string) (string, error) {
	if strings.TrimSpace(value) == all {
		return all, nil
	}
	return parseRanges(value)
}

// interfaceName is a name of a network device: the kernel's has at most 15 bytes.
var interfaceName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.-]{0,14}$`)

// parseInterfaces reads "eth1, net1" as "eth1,net1"; "" is none.
func parseInterfaces(value string) (string, error) {
	list := items(value)
	for _, item := range list {
		if !interfaceName.MatchString(item) {
			return "", fmt.Errorf("%q is no name of a network device: use names such as eth1, with commas between", item)
		}
	}
	return strings.Join(list, ","), nil
}

// items splits at commas. White space around an item is nothing; an empty item counts, except that "" has none.
func items(value string) []string {
	if strings.TrimSpace(value) == "" {
		return nil
	}
	list := strings.Split(value, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}

var envoyLevels = []string{"trace", "debug", "info", "warning", "warn", "error", "critical", "off"}

// parseEnvoyLevel reads Envoy's --log-level.
func parseEnvoyLevel(value string) (string, error) {
	if !slices.Contains(envoyLevels, value) {
		return "", fmt.Errorf("use one of %s", strings.Join(envoyLevels, ", "))
	}
	return value, nil
}

var scopeName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// parseComponentLevels reads Envoy's --component-log-level: "upstream:debug,http:trace".
func parseComponentLevels(value string) (string, error) {
	return parseLevels(value, envoyLevels, false)
}

// parseAgentLevels reads the agent's --log_output_level: "debug", or "default:info,xds:debug".
func parseAgentLevels(value string) (string, error) {
	return parseLevels(value, []string{"debug", "info", "warn", "error", "none"}, true)
}

func parseLevels(value string, levels []string, bare bool) (string, error) {
	list := items(value)
	for _, item := range list {
		scope, level, found := strings.Cut(item, ":")
		if !found && bare {
			scope, level = "default", item
		}
		if !scopeName.MatchString(scope) || !slices.Contains(levels, level) {
			return "", fmt.Errorf("%q is not NAME:LEVEL with one of the levels %s", item, strings.Join(levels, ", "))
		}
	}
	return strings.Join(list, ","), nil
}

var imageReference = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._:@/-]*$`)

func setImage(s *podSettings, value string) error {
	if !imageReference.MatchString(value) || len(value) > 512 {
		return errors.New("it is no image reference")
	}
	s.image, s.ownImage = value, true
	return nil
}

var imageType = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,63}$`)

func setImageType(s *podSettings, value string) error {
	if !imageType.MatchString(value) {
		return errors.New("use a type such as distroless, debug or default")
	}
	s.imageType = value
	return nil
}

// typed is an image of the values with a type at the end of its tag, in place of one of the two that Istio publishes. "default" is
// none. A full reference of the values is taken as it is.
func (c *Config) typed(base image, kind string) string {
	if kind == "" || !base.named {
		return base.reference
	}
	tagged := base.reference
	for _, known := range []string{"-distroless", "-debug"} {
		if cut, found := strings.CutSuffix(tagged, known); found {
			tagged = cut
			break
		}
	}
	if kind == "default" {
		return tagged
	}
	return tagged + "-" + kind
}

// setBootstrap takes the name of a ConfigMap in the pod's namespace.
func setBootstrap(s *podSettings, value string) error {
	if errs := validation.NameIsDNSSubdomain(value, false); len(errs) > 0 {
		return fmt.Errorf("it is no name of a ConfigMap: %s", errs[0])
	}
	s.bootstrap = value
	return nil
}

// Where the agent finds what Envoy merges over its bootstrap. The names are Istio's: people's ConfigMaps have that key.
const (
	bootstrapVolume = "custom-bootstrap-volume"
	bootstrapFolder = "/etc/istio/custom-bootstrap"
	bootstrapKey    = "custom_bootstrap.json"
)

// mountCertificates adds the Secret istio.SERVICEACCOUNT, with a certificate of somebody else's making, where the operator wants it for
// bootstraps and templates that read it from /etc/certs. It may be missing.
func (c *Config) mountCertificates(s *podSettings, pod *corev1.Pod) {
	if !c.settings.Values.Global.MountMTLSCerts {
		return
	}
	const name = "istio-certs"
	yes := true
	s.userMounts = append(s.userMounts[:len(s.userMounts):len(s.userMounts)], corev1.VolumeMount{Name: name, MountPath: "/etc/certs/", ReadOnly: true})
	s.userVolumes = append(s.userVolumes[:len(s.userVolumes):len(s.userVolumes)], corev1.Volume{Name: name,
		VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "istio." + first(pod.Spec.ServiceAccountName, "default"), Optional: &yes}}})
}

// useBootstrap adds the volume of the pod's own bootstrap.
func (s *podSettings) useBootstrap() {
	if s.bootstrap == "" {
		return
	}
	s.userMounts = append(s.userMounts[:len(s.userMounts):len(s.userMounts)], corev1.VolumeMount{Name: bootstrapVolume, MountPath: bootstrapFolder})
	s.userVolumes = append(s.userVolumes[:len(s.userVolumes):len(s.userVolumes)], corev1.Volume{Name: bootstrapVolume,
		VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: s.bootstrap}}}})
}

// setResource notes one of the four resource annotations. Once a pod has one of them, they alone count, as in Istio.
func setResource(name string) func(*podSettings, string) error {
	return func(s *podSettings, value string) error {
		q, err := parseQuantity(value)
		if err != nil {
			return errors.New("it is no quantity such as 100m, 0.5 or 128Mi")
		}
		if q.Sign() < 0 {
			return errors.New("it is negative")
		}
		if s.ownResources == nil {
			s.ownResources = map[string]string{}
		}
		s.ownResources[name] = value
		return nil
	}
}

// useOwnResources makes the container's resources of the annotations. With an error it names the annotation that is wrong.
func (s *podSettings) useOwnResources() (name string, err error) {
	kinds := []struct {
		resource       corev1.ResourceName
		request, limit string
	}{
		{corev1.ResourceCPU, annotation.SidecarProxyCPU.Name, annotation.SidecarProxyCPULimit.Name},
		{corev1.ResourceMemory, annotation.SidecarProxyMemory.Name, annotation.SidecarProxyMemoryLimit.Name},
	}
	s.resources = corev1.ResourceRequirements{}
	set := func(list *corev1.ResourceList, kind corev1.ResourceName, value string) {
		if value == "" {
			return
		}
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[kind] = resource.MustParse(value) // parsed before
	}
	for _, k := range kinds {
		set(&s.resources.Requests, k.resource, s.ownResources[k.request])
		set(&s.resources.Limits, k.resource, s.ownResources[k.limit])
		if err := requestWithinLimit(s.resources, k.resource); err != nil {
			return k.request, err
		}
	}
	return "", nil
}

func requestWithinLimit(r corev1.ResourceRequirements, name corev1.ResourceName) error {
	request, asked := r.Requests[name]
	limit, limited := r.Limits[name]
	if asked && limited && request.Cmp(limit) > 0 {
		return fmt.Errorf("the request is above the limit of %s", limit.String())
	}
	return nil
}

// setUserVolumes adds the pod's own volumes for the sidecar.
func setUserVolumes(s *podSettings, value string) error {
	s.userVolumes = nil
	return userList(value, func(name string, entry json.RawMessage) error {
		var v corev1.Volume
		if err := strictJSON(entry, &v); err != nil {
			return err
		}
		if name != "" {
			v.Name = name
		}
		if errs := validation.NameIsDNSLabel(v.Name, false); len(errs) > 0 {
			return fmt.Errorf("volume name %q: %s", v.Name, errs[0])
		}
		s.userVolumes = append(s.userVolumes, v)
		return nil
	})
}

// setUserMounts adds the pod's own mounts to the sidecar. They cannot hide what the sidecar lives on.
func setUserMounts(s *podSettings, value string) error {
	s.userMounts = nil
	return userList(value, func(name string, entry json.RawMessage) error {
		var m corev1.VolumeMount
		if err := strictJSON(entry, &m); err != nil {
			return err
		}
		if name != "" {
			m.Name = name
		}
		if m.Name == "" || m.MountPath == "" {
			return errors.New("name or mountPath is missing")
		}
		for _, own := range proxyMounts {
			if m.MountPath == own.MountPath {
				return fmt.Errorf("mountPath %s is the sidecar's own", m.MountPath)
			}
		}
		s.userMounts = append(s.userMounts, m)
		return nil
	})
}

// strictJSON refuses unknown fields: a typo would be dropped by the API server without a word.
func strictJSON(data []byte, into any) error {
	if err := CheckQuantities(data); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%s", strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

// checkProxyConfig refuses what the sidecar could not start with, or what would change the path of its traffic.
func checkProxyConfig(pc *meshv1alpha1.ProxyConfig, serves Serves) error {
	if err := checkAddress(pc.GetDiscoveryAddress()); err != nil {
		return fmt.Errorf("discoveryAddress: %w", err)
	}
	if n := pc.GetConcurrency().GetValue(); n < 0 || n > 1024 {
		return fmt.Errorf("concurrency: %d is not from 0 to 1024", n)
	}
	if err := checkDuration("drainDuration", pc.GetDrainDuration()); err != nil {
		return err
	}
	if err := checkDuration("terminationDrainDuration", pc.GetTerminationDrainDuration()); err != nil {
		return err
	}
	if err := checkDuration("fileFlushInterval", pc.GetFileFlushInterval()); err != nil {
		return err
	}
	if n := pc.GetFileFlushMinSizeKb(); n > 65535 {
		return fmt.Errorf("fileFlushMinSizeKb: %d is above 65535", n)
	}
	if m := pc.GetProxyStatsMatcher(); m != nil {
		if err := errors.Join(checkStatNames(m.GetInclusionPrefixes()), checkStatNames(m.GetInclusionSuffixes()), checkStatRegexps(m.GetInclusionRegexps())); err != nil {
			return fmt.Errorf("proxyStatsMatcher: %w", err)
		}
	}
	if kind := pc.GetImage().GetImageType(); kind != "" && !imageType.MatchString(kind) {
		return fmt.Errorf("image.imageType: %q is no type such as distroless", kind)
	}
	if port := pc.GetStatusPort(); port < 0 || port > 65535 || isMeshPort(port) {
		return fmt.Errorf("statusPort: %d is no port, or the proxy's own", port)
	}
	if err := checkProxyMetadata(pc.GetProxyMetadata()); err != nil {
		return err
	}
	if capturesDNS(pc.GetProxyMetadata()) {
		if err := serves.dns(); err != nil {
			return named("proxyMetadata."+dnsCapture, err)
		}
	}
	return named("interceptionMode", serves.interception(pc.GetInterceptionMode()))
}

// checkProxyMetadata looks at what become environment variables of the sidecar.
func checkProxyMetadata(m map[string]string) error {
	for _, name := range sortedKeys(m) {
		if errs := utilvalidation.IsEnvVarName(name); len(errs) > 0 {
			return fmt.Errorf("proxyMetadata: %q is no name of an environment variable", name)
		}
		if strings.ContainsRune(m[name], 0) {
			return fmt.Errorf("proxyMetadata.%s: it has a zero byte", name)
		}
	}
	return nil
}

const dnsCapture = "ISTIO_META_DNS_CAPTURE"

func capturesDNS(metadata map[string]string) bool {
	on, err := strconv.ParseBool(metadata[dnsCapture])
	return err == nil && on
}

func checkDuration(field string, d *durationpb.Duration) error {
	if s := d.GetSeconds(); s < 0 || s > 86400 || d.GetNanos() < 0 {
		return fmt.Errorf("%s: %v is not from 0s to 24h", field, d.AsDuration())
	}
	return nil
}

// checkAddress wants HOST:PORT.
func checkAddress(address string) error {
	host, port, found := strings.Cut(address, ":")
	if i := strings.LastIndex(address, ":"); i >= 0 {
		host, port = address[:i], address[i+1:]
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if !found || err != nil || n == 0 || host == "" || strings.ContainsAny(host, " /\\\"'$`") {
		return fmt.Errorf("%q is not HOST:PORT", address)
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func indexed(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }
