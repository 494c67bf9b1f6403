package install

import (
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/revision"
)

// The tag default has taken the injector of the revision of that name for canary. When canary goes it is given back, so a dry run may not
// also say that it would be removed.
func TestADryRunGivesAnInjectorBackOrRemovesItAndNotBoth(t *testing.T) {
	registered := func(rev string) admissionv1.MutatingWebhookConfiguration {
		c := inject.Registration{Revision: rev, Endpoint: inject.Endpoint{Namespace: Namespace, Service: inject.ObjectName(appName, rev)}}.Configuration()
		revision.Own(c.Labels)
		for i := range c.Webhooks {
			c.Webhooks[i].ClientConfig.CABundle = []byte("x")
		}
		return *c
	}
	own, other := registered(DefaultRevision), registered("canary")
	tag, err := revision.SetTag([]admissionv1.MutatingWebhookConfiguration{own, other}, revision.TagRequest{Tag: inject.DefaultTag, Revision: "canary"})
	if err != nil {
		t.Fatal(err)
	}
	taken := tag.After
	taken.TypeMeta = metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: mutatingWebhooks.kind}
	other.TypeMeta = taken.TypeMeta
	var said strings.Builder
	r := &remover{Installer: &Installer{kubernetes: fake.NewClientset(taken, &other), dynamic: dynamicfake.NewSimpleDynamicClient(scheme.Scheme, taken, &other), progress: &said},
		options: Options{Revision: "canary"}, dryRun: true, out: &Removal{}}
	if err := r.giveBackDefault(t.Context(), []string{DefaultRevision}); err != nil {
		t.Fatal(err)
	}
	if err := r.removeOwned(t.Context(), mutatingWebhooks, revisionSelector(r.options)); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.out.Removed, []string{mutatingWebhooks.kind + " " + other.Name}) || strings.Count(said.String(), taken.Name+" ") != 1 ||
		!strings.Contains(said.String(), "would be revision default's again") {
		t.Errorf("removed %v, and it says\n%s", r.out.Removed, said.String())
	}
}
