package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"istio.io/api/annotation"
	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// A template writes annotations into a container's arguments as they are, for an agent that we know nothing of. So what our own
// agent cannot do is no reason to refuse them, but each must be of its form: nothing else reaches a shell, iptables or the YAML
// of the template's output.
var forms = map[string]func(string) error{
	annotation.SidecarInterceptionMode.Name: oneOf("REDIRECT", "TPROXY", "NONE"),
	annotation.SidecarStatusPort.Name:       portNumber,

	annotation.SidecarStatusReadinessInitialDelaySeconds.Name: number,
	annotation.SidecarStatusReadinessPeriodSeconds.Name:       number,
	annotation.SidecarStatusReadinessFailureThreshold.Name:    number,
	annotation.SidecarStatusReadinessApplicationPorts.Name:    portNumbers("applicationPorts"),

	annotation.SidecarTrafficIncludeInboundPorts.Name:     orAll(portNumbers("includeInboundPorts")),
	annotation.SidecarTrafficExcludeInboundPorts.Name:     portNumbers("excludeInboundPorts"),
	annotation.SidecarTrafficIncludeOutboundPorts.Name:    orAll(portNumbers("includeOutboundPorts")),
	annotation.SidecarTrafficExcludeOutboundPorts.Name:    portNumbers("excludeOutboundPorts"),
	annotation.SidecarTrafficIncludeOutboundIPRanges.Name: orAll(ranges("includeIPRanges")),
	annotation.SidecarTrafficExcludeOutboundIPRanges.Name: ranges("excludeIPRanges"),
	annotation.SidecarTrafficExcludeInterfaces.Name:       interfaces,
	annotation.SidecarTrafficKubevirtInterfaces.Name:      interfaces,
	annotation.IoIstioRerouteVirtualInterfaces.Name:       interfaces,

	annotation.SidecarNativeSidecar.Name:         boolean,
	annotation.SidecarRewriteAppHTTPProbers.Name: boolean,
	annotation.PrometheusMergeMetrics.Name:       boolean,

	annotation.SidecarProxyCPU.Name:         quantity,
	annotation.SidecarProxyCPULimit.Name:    quantity,
	annotation.SidecarProxyMemory.Name:      quantity,
	annotation.SidecarProxyMemoryLimit.Name: quantity,

	annotation.SidecarProxyImage.Name:        matches(imageReference, "it is no image reference"),
	annotation.SidecarProxyImageType.Name:    matches(plainWord, "use a word such as default, debug or distroless"),
	annotation.SidecarLogLevel.Name:          matches(levels, "use a level such as warning"),
	annotation.SidecarComponentLogLevel.Name: matches(levels, "use NAME:LEVEL, with commas between"),
	annotation.SidecarAgentLogLevel.Name:     matches(levels, "use NAME:LEVEL, with commas between"),
	annotation.SidecarBootstrapOverride.Name: matches(plainWord, "it is no name of a ConfigMap"),

	annotation.SidecarUserVolume.Name:      jsonMap,
	annotation.SidecarUserVolumeMount.Name: jsonMap,
}

var (
	plainWord = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
	levels    = regexp.MustCompile(`^[A-Za-z0-9_.,:* -]{0,1000}$`)
)

// checkAnnotations refuses annotations that are not of their form. The error is a *RefusedError.
func (c *Config) checkAnnotations(pod *corev1.Pod, subject ref.Ref) error {
	var problems []diag.Problem
	for _, name := range sortedKeys(pod.Annotations) {
		if check := forms[name]; check != nil {
			if err := check(pod.Annotations[name]); err != nil {
				problems = append(problems, invalidAnnotation(subject, name, pod.Annotations[name], err))
			}
		}
	}
	if problems != nil {
		return &RefusedError{Problems: problems}
	}
	return nil
}

func oneOf(words ...string) func(string) error {
	return func(value string) error {
		for _, w := range words {
			if value == w {
				return nil
			}
		}
		return fmt.Errorf("use %s", strings.Join(words, ", "))
	}
}

func matches(form *regexp.Regexp, message string) func(string) error {
	return func(value string) error {
		if !form.MatchString(value) {
			return errors.New(message)
		}
		return nil
	}
}

func orAll(check func(string) error) func(string) error {
	return func(value string) error {
		if value == all {
			return nil
		}
		return check(value)
	}
}

func portNumber(value string) error {
	if _, err := strconv.ParseUint(value, 10, 16); err != nil {
		return errors.New("use a port, or 0 for none")
	}
	return nil
}

// portNumbers checks a list of ports. key is what the values call it, by which people search.
func portNumbers(key string) func(string) error {
	return func(value string) error {
		for _, item := range items(value) {
			if _, err := strconv.ParseUint(item, 10, 16); err != nil {
				return fmt.Errorf("%s: %q is no port: use numbers, with commas between", key, item)
			}
		}
		return nil
	}
}

func ranges(key string) func(string) error {
	return func(value string) error {
		if _, err := parseRanges(value); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		return nil
	}
}

func interfaces(value string) error {
	_, err := parseInterfaces(value)
	return err
}

func number(value string) error {
	if _, err := strconv.ParseUint(value, 10, 32); err != nil {
		return errors.New("use a whole number")
	}
	return nil
}

func boolean(value string) error {
	_, err := parseBool(value)
	return err
}

func quantity(value string) error {
	if _, err := parseQuantity(value); err != nil {
		return errors.New("it is no quantity such as 100m, 0.5 or 128Mi")
	}
	return nil
}

func jsonMap(value string) error {
	var byName map[string]any
	if err := json.Unmarshal([]byte(value), &byName); err != nil {
		return errors.New("it is no JSON object of name to volume")
	}
	for name := range byName {
		if !plainWord.MatchString(name) {
			return fmt.Errorf("%q is no name of a volume", name)
		}
	}
	return nil
}
