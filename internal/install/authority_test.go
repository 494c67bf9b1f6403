package install_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/selvage-mesh/selvage/internal/install"
)

const signerMesh = `
caCertificates:
- certSigners: [other.example.com/mesh, example.com/mesh]
  pem: |
    -----BEGIN CERTIFICATE-----
    …
    -----END CERTIFICATE-----
`

// rightsOf are what the control plane may do, one line "VERB RESOURCE[/NAME]" for each.
func rightsOf(t *testing.T, o install.Options) (rights []string, rendered string) {
	t.Helper()
	objects, err := install.Render(o)
	if err != nil {
		t.Fatal(err)
	}
	text, err := install.YAML(objects)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range objects {
		if !strings.HasPrefix(u.GetName(), "istiod") || u.GetKind() != "ClusterRole" && u.GetKind() != "Role" {
			continue
		}
		var role rbacv1.ClusterRole
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &role); err != nil {
			t.Fatal(err)
		}
		for _, rule := range role.Rules {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					for _, name := range append(rule.ResourceNames, "")[:max(1, len(rule.ResourceNames))] {
						rights = append(rights, strings.TrimSuffix(fmt.Sprintf("%s %s/%s", verb, resource, name), "/"))
					}
				}
			}
		}
	}
	return rights, string(text)
}

// TestAuthorityElsewhereTakesOnlyItsOwnRights: whoever signs elsewhere, the control plane may read no signing key and make no Secret; and
// only where a signer of Kubernetes signs may it ask and approve, for that one alone.
func TestAuthorityElsewhereTakesOnlyItsOwnRights(t *testing.T) {
	signerRights := []string{"create certificatesigningrequests", "delete certificatesigningrequests", "update certificatesigningrequests/approval", "approve signers/example.com/mesh"}
	keyRights := []string{"get secrets/istio-ca-secret", "get secrets/cacerts", "create secrets"}
	spread := []string{"create configmaps/istio-ca-root-cert", "patch configmaps/istio-ca-root-cert"}
	for name, c := range map[string]struct {
		authority install.Authority
		mesh      string
		may       []string
		mayNot    []string
		has       []string
	}{
		"the control plane": {may: slices.Concat(keyRights, spread), mayNot: signerRights, has: []string{`"caAddress": ""`}},
		"an address": {authority: install.Authority{Address: "csr.cert-manager.svc:443"},
			may:    []string{"get secrets/istiod-tls", "watch secrets/istiod-tls", "watch configmaps/istio-ca-root-cert"},
			mayNot: slices.Concat(keyRights, spread, signerRights),
			has:    []string{"--ca-address=csr.cert-manager.svc:443", `"caAddress": "csr.cert-manager.svc:443"`}},
		"an address with roots of its own": {authority: install.Authority{Address: "csr.cert-manager.svc:443", Roots: "mesh-roots", TLSSecret: "plane"},
			may:    append(slices.Clone(spread), "get secrets/plane", "watch configmaps/mesh-roots"),
			mayNot: slices.Concat(keyRights, signerRights, []string{"get secrets/istiod-tls"}),
			has:    []string{"--ca-roots=mesh-roots", "--ca-tls-secret=plane"}},
		"a signer": {authority: install.Authority{Signer: "example.com/mesh"}, mesh: signerMesh,
			may: slices.Concat(spread, signerRights), mayNot: append(slices.Clone(keyRights), "get secrets/istiod-tls", "approve signers"),
			has: []string{"--ca-signer=example.com/mesh", `"caAddress": ""`}},
	} {
		t.Run(name, func(t *testing.T) {
			o := install.Default("1.0.0")
			o.Authority, o.MeshConfig = c.authority, []byte(c.mesh)
			rights, rendered := rightsOf(t, o)
			for _, right := range c.may {
				if !slices.Contains(rights, right) {
					t.Errorf("it may not %s", right)
				}
			}
			for _, right := range c.mayNot {
				if slices.Contains(rights, right) {
					t.Errorf("it may %s", right)
				}
			}
			for _, want := range c.has {
				if !strings.Contains(rendered, want) {
					t.Errorf("%s is missing", want)
				}
			}
		})
	}
}

func TestAuthorityThatCannotBeIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		authority install.Authority
		says      string
	}{
		"two":                    {install.Authority{Address: "a:1", Signer: "example.com/mesh"}, "one authority signs"},
		"no port":                {install.Authority{Address: "csr.cert-manager.svc"}, "want HOST:PORT"},
		"no domain":              {install.Authority{Signer: "mesh"}, "example.com/mesh"},
		"roots of nobody":        {install.Authority{Roots: "mesh-roots"}, "give its address or a signer"},
		"a name that is none":    {install.Authority{Address: "a:1", Roots: "/etc/roots.pem"}, "no object's name"},
		"a signer without roots": {install.Authority{Signer: "third.example.com/mesh"}, "caCertificates"},
	} {
		o := install.Default("1.0.0")
		o.Authority, o.MeshConfig = c.authority, []byte(signerMesh)
		if _, err := install.Render(o); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}
