package validate

import (
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	istiotype "istio.io/api/type/v1beta1"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// Annotations that objects in a cluster may not carry: Istio marks by the first what its own self-test creates, and by the others
// objects that it makes within its memory and trusts.
const (
	alwaysReject    = "internal.istio.io/webhook-always-reject"
	parentNames     = "internal.istio.io/parents"
	parentNamespace = "internal.istio.io/parent-namespace"
	dryRun          = "istio.io/dry-run"
)

// Annotations of gateways and virtual services that Istio has made of objects of the Gateway API, which allow more.
var fromGatewayAPI = []string{"internal.istio.io/gateway-semantics", "internal.istio.io/route-semantics"}

// derived reports whether the object was made of one of the Gateway API.
func (c *check) derived() bool {
	return c.meta != nil && slices.ContainsFunc(fromGatewayAPI, func(name string) bool { return c.meta.annotations[name] == "gateway" })
}

// annotations checks the annotations that mean something for validation.
func (c *check) annotations(m message) {
	if c.meta == nil {
		return
	}
	at := objectMeta.field("annotations")
	for _, name := range []string{alwaysReject, parentNames, parentNamespace} {
		if _, set := c.meta.annotations[name]; set {
			c.errorf(diag.ForbiddenAnnotation, at.key(name), "objects in a cluster may not have it")
		}
	}
	value, set := c.meta.annotations[dryRun]
	if !set {
		return
	}
	policy, ok := m.(*security.AuthorizationPolicy)
	switch {
	case !ok:
		c.errorf(diag.ForbiddenAnnotation, at.key(dryRun), "only an AuthorizationPolicy can be tried, and this is a %s", c.object.Kind)
	case policy.GetAction() != security.AuthorizationPolicy_ALLOW && policy.GetAction() != security.AuthorizationPolicy_DENY:
		c.errorf(diag.ForbiddenAnnotation, at.key(dryRun), "only the actions ALLOW and DENY can be tried, and this is %s", policy.GetAction())
	default:
		if _, err := strconv.ParseBool(value); err != nil {
			c.errorf(diag.UnknownValue, at.key(dryRun), "it is %s", quote(value)).hint(`write "true" or "false"`)
		}
	}
}

// workloads is a selector of either of the API's types, and what it selects without labels.
func (c *check) workloads(at path, labels map[string]string, without string) {
	for name, value := range sorted(labels) {
		switch {
		case name == "":
			c.errorf(diag.InvalidLabels, at, "a label has no name")
		case strings.Contains(name+value, "*"):
			c.errorf(diag.InvalidLabels, at.key(name), "a selector has no wildcards, and this is %s", quote(name+"="+value))
		case !isLabelName(name) || value != "" && !qualified.MatchString(value):
			c.warnf(diag.InvalidLabels, at.key(name), "no pod can have the label %s: nothing is selected", quote(name+"="+value))
		}
	}
	if len(labels) == 0 {
		c.warnf(diag.SelectsAll, at, "a selector without labels selects %s", without)
	}
}

const allWorkloads = "all workloads"

func (c *check) selector(at path, s *istiotype.WorkloadSelector) {
	if s != nil {
		c.workloads(at.field("matchLabels"), s.GetMatchLabels(), allWorkloads)
	}
}

func (c *check) workloadSelector(s *networking.WorkloadSelector) {
	if s != nil {
		c.workloads(spec.field("workloadSelector").field("labels"), s.GetLabels(), "all workloads of the namespace")
	}
}

// targets checks what a policy is for: the workloads of a selector or the objects of its references, not both.
func (c *check) targets(s *istiotype.WorkloadSelector, one *istiotype.PolicyTargetReference, several []*istiotype.PolicyTargetReference) {
	c.selector(spec.field("selector"), s)
	var set []string
	if s != nil {
		set = append(set, "selector")
	}
	if one != nil {
		set = append(set, "targetRef")
		c.target(spec.field("targetRef"), one)
	}
	if len(several) > 0 {
		set = append(set, "targetRefs")
	}
	for i, t := range several {
		c.target(spec.field("targetRefs").index(i), t)
	}
	if len(set) > 1 {
		c.errorf(diag.Contradiction, spec.field(set[1]), "%s exclude each other", strings.Join(set, " and "))
	}
}

func (c *check) target(at path, t *istiotype.PolicyTargetReference) {
	c.required(at.field("name"), t.GetName())
	if t.GetNamespace() != "" {
		c.errorf(diag.InvalidTarget, at.field("namespace"), "a target is in the policy's own namespace").hint("take the namespace out")
	}
	group, kind := t.GetGroup(), t.GetKind()
	switch {
	case (group == "" || group == "core") && kind == "Service":
	case group == networkingGroup && kind == "ServiceEntry":
	case group == "gateway.networking.k8s.io" && (kind == "Gateway" || kind == "GatewayClass"):
	default:
		c.errorf(diag.InvalidTarget, at.field("kind"), "%s is no target of a policy", quote(strings.TrimPrefix(group+"/"+kind, "/")))
	}
}
