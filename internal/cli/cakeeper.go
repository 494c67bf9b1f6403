package cli

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/install"
)

// keeper is who keeps the root and what is shown of it: the holder of the lease that all revisions share.
type keeper struct {
	Holder  string     `json:"holder,omitempty"`  // "" when nobody holds the lease, or it cannot be read
	Renewed *time.Time `json:"renewed,omitempty"` // nil when that is not known
	Unknown string     `json:"unknown,omitempty"` // why it is not known
}

// keeperGone is after how long without a renewal nobody is alive: other replicas take a lease over after 15 s.
const keeperGone = 30 * time.Second

// readKeeper reads the lease.
func readKeeper(ctx context.Context, c *connection) (k keeper) {
	lease, err := c.kubernetes.CoordinationV1().Leases(install.Namespace).Get(ctx, install.RootsLease, metav1.GetOptions{})
	if apierrors.IsNotFound(err) { // nobody ever had it, or it went with the installation
		return k
	}
	if err != nil {
		k.Unknown = err.Error()
		return k
	}
	if lease.Spec.HolderIdentity != nil {
		k.Holder = *lease.Spec.HolderIdentity
	}
	if lease.Spec.RenewTime != nil {
		k.Renewed = &lease.Spec.RenewTime.Time
	}
	return k
}

// gone reports whether it is certain that nobody is alive.
func (k keeper) gone(now time.Time) bool {
	return k.Unknown == "" && (k.Holder == "" || k.Renewed == nil || now.Sub(*k.Renewed) > keeperGone)
}

func (k keeper) describe(now time.Time) string {
	lease := install.Namespace + "/" + install.RootsLease
	switch {
	case k.Unknown != "":
		return fmt.Sprintf("whether a control plane is alive is not known: read Lease %s: %s", lease, k.Unknown)
	case k.Renewed == nil:
		return fmt.Sprintf("No control plane is alive: nobody has Lease %s. What stands above is what the last one wrote.", lease)
	}
	age := now.Sub(*k.Renewed).Round(time.Second)
	if !k.gone(now) {
		return fmt.Sprintf("kept by %s, alive %s ago", k.Holder, age)
	}
	last := "the last one gave it back"
	if k.Holder != "" {
		last = "the last one was " + k.Holder
	}
	return fmt.Sprintf("No control plane is alive: Lease %s was renewed %s ago, %s. What stands above was so then: certificates are not issued, "+
		"webhooks and roots not repaired. `kubectl -n %s get pods -l app=istiod` shows why.", lease, age, last, install.Namespace)
}
