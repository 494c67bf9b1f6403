package translate

import (
	"cmp"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// refusals are the fields of the kinds that are carried out which are not, with what that means. An object that sets one is told so. A
// field is either here or it works: docs/compatibility.md has a row for each, and a test compares the two.
var refusals = map[protoreflect.FullName]string{
	"istio.networking.v1alpha3.DestinationRule.workload_selector":                   "the rule has no effect: without the field it would hold for every client of its namespace",
	"istio.networking.v1alpha3.TrafficPolicy.tunnel":                                "connections are made without a tunnel",
	"istio.networking.v1alpha3.TrafficPolicy.RetryBudget.budget_interval":           "retries are counted as they are under way",
	"istio.networking.v1alpha3.LoadBalancerSettings.zone_aware_lb_setting":          "zones do not count",
	"istio.networking.v1alpha3.LocalityLoadBalancerSetting.failover_priority":       "priorities are by region, zone and subzone",
	"istio.networking.v1alpha3.ClientTLSSettings.credential_name":                   "no secret is read for sidecars; name files in the sidecar's container",
	"istio.networking.v1alpha3.OutlierDetection.consecutive_errors":                 "the API has replaced it by consecutive5xxErrors and consecutiveGatewayErrors",
	"istio.networking.v1alpha3.OutlierDetection.outlier_detection_http_error_codes": "the errors that count are those of status 5xx",
	"istio.networking.v1alpha3.VirtualService.tls":                                  "connections go to the service that the client called",
	"istio.networking.v1alpha3.VirtualService.tcp":                                  "connections go to the service that the client called",
	"istio.networking.v1alpha3.HTTPMatchRequest.source_labels":                      "the match never holds",
	"istio.networking.v1alpha3.WorkloadEntry.network":                               "the address is called as it is",
	"istio.networking.v1alpha3.HTTPFaultInjection.Delay.exponential_delay":          "nothing is delayed",
	"istio.networking.v1alpha3.HTTPFaultInjection.Abort.http2_error":                "nothing is ended",
	"istio.security.v1beta1.AuthorizationPolicy.targetRef":                          attached, "istio.security.v1beta1.AuthorizationPolicy.targetRefs": attached,
	"istio.security.v1beta1.RequestAuthentication.targetRef": attached, "istio.security.v1beta1.RequestAuthentication.targetRefs": attached,
}

const attached = "it attaches the object to a gateway, a service or a waypoint: the object has no effect on sidecars"

// refusedFields finds the fields of a spec that are set and refused, wherever they stand.
func refusedFields(object ref.Ref, spec proto.Message) (problems []diag.Problem) {
	r := reader{object: object}
	r.refused(spec.ProtoReflect(), "spec")
	slices.SortFunc(r.problems, func(a, b diag.Problem) int { return cmp.Compare(a.Field, b.Field) })
	return r.problems
}

func (r *reader) refused(m protoreflect.Message, at string) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		here := at + "." + f.JSONName()
		if why, ok := refusals[f.FullName()]; ok {
			r.add(diag.UnsupportedField, diag.Error, here, "this version does not carry the field out: "+why, "take it out, or leave it if that does no harm")
			return true
		}
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
					r.refused(v.Message(), fmt.Sprintf("%s[%q]", here, k.String()))
					return true
				})
			}
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				r.refused(v.List().Get(i).Message(), fmt.Sprintf("%s[%d]", here, i))
			}
		default:
			r.refused(v.Message(), here)
		}
		return true
	})
}
