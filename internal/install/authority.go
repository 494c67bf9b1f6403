package install

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Authority is who signs the mesh's certificates where that is not the control plane: at an address, or a signer of Kubernetes. The
// zero value is the control plane itself.
type Authority struct {
	Address string // HOST:PORT that serves Istio's CreateCertificate, such as istio-csr's
	Signer  string // of certificates.k8s.io, such as example.com/mesh
	// Roots is a ConfigMap in Namespace with what is trusted; "" is istio-ca-root-cert of an Address, whose owner distributes it, and
	// the mesh configuration's caCertificates of a Signer.
	Roots string
	// TLSSecret is a Secret in Namespace with the control plane's own certificate; "" is istiod-tls of an Address, and one that the Signer
	// makes.
	TLSSecret string
}

// elsewhere reports whether somebody else signs.
func (a Authority) elsewhere() bool { return a.Address != "" || a.Signer != "" }

// roots is the ConfigMap of the roots; "" for the mesh configuration.
func (a Authority) roots() string {
	if a.Roots == "" && a.Address != "" {
		return rootConfig
	}
	return a.Roots
}

// tlsSecret is the Secret of the control plane's own certificate; "" where the signer makes it.
func (a Authority) tlsSecret() string {
	if a.TLSSecret == "" && a.Address != "" {
		return "istiod-tls"
	}
	return a.TLSSecret
}

// distributes reports whether the control plane puts the roots into every namespace.
func (a Authority) distributes() bool { return a.roots() != rootConfig }

func (a Authority) validate() error {
	switch {
	case a.Address != "" && a.Signer != "":
		return errors.New("an address and a signer are given: one authority signs for the mesh")
	case !a.elsewhere() && (a.Roots != "" || a.TLSSecret != ""):
		return errors.New("roots and the Secret of the control plane's certificate are for an authority elsewhere: give its address or a signer")
	}
	if a.Address != "" {
		if host, port, err := net.SplitHostPort(a.Address); err != nil || host == "" || port == "" {
			return fmt.Errorf("address %q of the authority: want HOST:PORT, such as cert-manager-istio-csr.cert-manager.svc:443", a.Address)
		}
	}
	if domain, name, ok := strings.Cut(a.Signer, "/"); a.Signer != "" && (!ok || domain == "" || name == "") {
		return fmt.Errorf("signer %q: want the name of a signer of Kubernetes, such as example.com/mesh", a.Signer)
	}
	for _, name := range []string{a.Roots, a.TLSSecret} {
		if problems := validation.IsDNS1123Subdomain(name); name != "" && len(problems) > 0 {
			return fmt.Errorf("%q is no object's name: %s", name, problems[0])
		}
	}
	return nil
}

// knows says what a mesh configuration lacks of the authority.
func (a Authority) knows(mesh *meshv1alpha1.MeshConfig) error {
	if a.Signer == "" || a.Roots != "" {
		return nil
	}
	for _, c := range mesh.GetCaCertificates() {
		if c.GetPem() != "" && slices.Contains(c.GetCertSigners(), a.Signer) {
			return nil
		}
	}
	return fmt.Errorf("use mesh configuration: it has no roots of signer %s: give caCertificates with pem and certSigners: [%s] (--mesh-config), or a ConfigMap (--ca-roots)", a.Signer, a.Signer)
}

// arguments are selvaged's flags about it.
func (a Authority) arguments() (args []string) {
	for _, f := range [][2]string{{"--ca-address", a.Address}, {"--ca-signer", a.Signer}, {"--ca-roots", a.Roots}, {"--ca-tls-secret", a.TLSSecret}} {
		if f[1] != "" {
			args = append(args, f[0]+"="+f[1])
		}
	}
	return args
}

// clusterGrants are the rights that it takes in the whole cluster.
func (a Authority) clusterGrants() (out []grant) {
	if a.distributes() {
		out = append(out, grant{"the mesh's root in every namespace, by apply", "core", "configmaps", rootConfig, "list watch create patch"})
	}
	if a.Signer == "" {
		return out
	}
	return append(out,
		grant{"have certificates signed", "certificates.k8s.io", "certificatesigningrequests", "", "create get list watch delete"},
		grant{"approve what it has checked", "certificates.k8s.io", "certificatesigningrequests/approval", "", "update"},
		grant{"of this signer alone", "certificates.k8s.io", "signers", a.Signer, "approve"})
}

// namespaceGrants are the rights that it takes in the control plane's own namespace.
func (a Authority) namespaceGrants() (out []grant) {
	if !a.elsewhere() {
		return []grant{
			{"the signing key of the mesh", "core", "secrets", rootSecret, "get list watch update"},
			{"a signing key that somebody else has made", "core", "secrets", pluggedSecret, "get list watch"},
			{"the former signing key while the root changes", "core", "secrets", rotationName, "get list watch update delete"},
			{"make the signing key of the mesh", "core", "secrets", "", "create"},
			{"which root was trusted before, when its key is lost", "core", "configmaps", rootConfig, "get"},
		}
	}
	if name := a.tlsSecret(); name != "" {
		out = append(out, grant{"the control plane's own certificate", "core", "secrets", name, "get list watch"})
	}
	if name := a.roots(); name != "" {
		out = append(out, grant{"the roots of the mesh", "core", "configmaps", name, "get list watch"})
	}
	return out
}
