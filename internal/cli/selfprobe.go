package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/policy"
)

// selfProbe is what a revision's control plane says of itself in its status ConfigMap.
type selfProbe struct {
	Revision   string             `json:"revision"`
	Conditions []metav1.Condition `json:"conditions"`
	Unmeshed   struct {
		Pods int `json:"pods"`
	} `json:"podsWithoutSidecar"`
	Held      policy.State          `json:"heldWebhooks"`
	Injection policy.InjectionState `json:"injectionByPolicy"`
}

// selfProbes reads the status ConfigMaps. Who may not read them is not told of them: `status` is about proxies.
func (a *app) selfProbes(ctx context.Context, c *connection) []selfProbe {
	selector := install.ManagedByLabel + "=" + install.Owner + "," + label.IoIstioRev.Name // the control plane makes them
	if a.revision != "" {
		selector += "=" + a.revision
	}
	list, err := c.kubernetes.CoreV1().ConfigMaps(install.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil
	}
	var out []selfProbe
	for _, cm := range list.Items {
		if !strings.HasPrefix(cm.Name, install.StatusConfigMap) {
			continue
		}
		p := selfProbe{Revision: cm.Labels[label.IoIstioRev.Name]}
		// What somebody has edited so that it cannot be read is as if it was not there.
		_ = yaml.Unmarshal([]byte(cm.Data["conditions"]), &p.Conditions)
		_ = yaml.Unmarshal([]byte(cm.Data["podsWithoutSidecar"]), &p.Unmeshed)
		_ = yaml.Unmarshal([]byte(cm.Data["heldWebhooks"]), &p.Held)
		_ = yaml.Unmarshal([]byte(cm.Data["injectionByPolicy"]), &p.Injection)
		if len(p.Conditions) > 0 || p.Held.Reason != "" || p.Injection.Reason != "" || p.Unmeshed.Pods > 0 {
			out = append(out, p)
		}
	}
	return out
}

// bad reports whether something does not work. What is not known is not bad.
func (p selfProbe) bad() bool {
	for _, c := range p.Conditions {
		if c.Status == metav1.ConditionFalse {
			return true
		}
	}
	return p.Unmeshed.Pods > 0 || p.Held.Wrong() || p.Injection.Wrong()
}

// describe has a line for each condition that is not as it should be, and one for the pods that have no sidecar.
func (p selfProbe) describe(called string, now time.Time) string {
	var b strings.Builder
	for _, c := range p.Conditions {
		if c.Status == metav1.ConditionTrue {
			continue
		}
		what := map[string]string{"InjectionWorks": "Injection", "ValidationWorks": "Validation"}[c.Type]
		state := "does not work"
		if c.Status == metav1.ConditionUnknown {
			state = "is not proven to work"
		}
		fmt.Fprintf(&b, "%s of revision %s %s, for %s:\n%s", cmp.Or(what, printable(c.Type)), p.Revision, state,
			now.Sub(c.LastTransitionTime.Time).Round(time.Second), wrap(printable(c.Message), "  ", plainWidth))
	}
	if p.Held.Wrong() {
		fmt.Fprintf(&b, "The API server does not hold the webhooks of revision %s (SEL0046):\n%s", p.Revision,
			wrap(printable(p.Held.Message+"; "+p.Held.Hint), "  ", plainWidth))
	}
	if p.Injection.Wrong() {
		fmt.Fprintf(&b, "The API server does not inject the pods of revision %s by its policy, the webhook does (SEL0047):\n%s", p.Revision,
			wrap(printable(p.Injection.Message+"; "+p.Injection.Hint), "  ", plainWidth))
	}
	if n := p.Unmeshed.Pods; n > 0 {
		fmt.Fprintf(&b, "%s no sidecar and should have: `%s inject --check` lists them.\n", plural(n, "pod has", "pods have"), called)
	}
	return b.String()
}
