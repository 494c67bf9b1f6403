package inject

import (
	"errors"
	"fmt"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
)

// Serves says what the agent and the control plane can serve besides the ordinary sidecar with interception by REDIRECT. Injection
// makes the right pod for all of it; what is not served is refused (diag.NotServed), because the pod would run and not work.
type Serves struct {
	// TPROXY is interception that keeps the client's address.
	TPROXY bool
	// NoInterception is interceptionMode NONE: applications address the proxy themselves.
	NoInterception bool
	// CNI is interception by a CNI plugin, in place of an init container.
	CNI bool
	// Gateways are proxies of the kind `router`.
	Gateways bool
	// ProxylessGRPC are applications whose gRPC library takes its configuration from the agent.
	ProxylessGRPC bool
	// DNSCapture is DNS that the agent answers.
	DNSCapture bool
}

// ThisBuild is what the agent and the control plane of this build serve.
func ThisBuild() Serves { return Serves{} }

// Everything is for judging pods by themselves: nothing is refused because nobody serves it.
func Everything() Serves {
	return Serves{TPROXY: true, NoInterception: true, CNI: true, Gateways: true, ProxylessGRPC: true, DNSCapture: true}
}

// notServedError is about something that is understood and not served.
type notServedError struct{ detail, hint string }

func (e *notServedError) Error() string { return e.detail }

const leaveOut = "or leave the pod out of the mesh with the label sidecar.istio.io/inject: \"false\""

// template says whether pods of a built-in template are served.
func (s Serves) template(name string) error {
	switch {
	case name == "gateway" && !s.Gateways:
		return &notServedError{"this version's agent runs sidecars and no gateways: the pod would listen on no port of its own", "leave the gateway to the mesh that runs it now, " + leaveOut}
	case name == "grpc-agent" && !s.ProxylessGRPC:
		return &notServedError{"this version's agent serves no configuration to gRPC applications without a proxy: they would not start", "take the ordinary sidecar, " + leaveOut}
	}
	return nil
}

// interception says whether a mode is served.
func (s Serves) interception(mode meshv1alpha1.ProxyConfig_InboundInterceptionMode) error {
	served := mode == meshv1alpha1.ProxyConfig_REDIRECT || mode == meshv1alpha1.ProxyConfig_TPROXY && s.TPROXY || mode == meshv1alpha1.ProxyConfig_NONE && s.NoInterception
	if !served {
		return &notServedError{fmt.Sprintf("this version does not intercept by %s: the pod's traffic would not pass the proxy", mode), "use REDIRECT, " + leaveOut}
	}
	return nil
}

// dns says whether DNS capture is served.
func (s Serves) dns() error {
	if !s.DNSCapture {
		return &notServedError{"DNS capture is not carried out yet, and DNS sent to nobody would be an outage", "set it to \"false\": pods ask the cluster's DNS"}
	}
	return nil
}

// cni says whether interception by a CNI plugin is served.
func (s Serves) cni() error {
	if !s.CNI {
		return &notServedError{"interception by a CNI plugin is not supported yet: pods would be left without interception", "set it to false"}
	}
	return nil
}

// named puts where a thing was asked for before an error about it; the kind of the error stays.
func named(where string, err error) error {
	var refused *notServedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return &notServedError{where + ": " + refused.detail, refused.hint}
	}
	return fmt.Errorf("%s: %w", where, err)
}
