package policy

import (
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// configured is one kind of Istio's API that the config guard looks at. Types, enumerations, durations and what else the definitions
// of the kinds say is refused by the API server itself; here stands what they do not say and package validate does. Nothing is flagged
// that validate admits: where CEL cannot be as exact, it lets more through.
type configured struct {
	group, resource string
	variables       []string // pairs of a name and an expression
	checks          []configCheck
}

// configCheck flags one thing.
type configCheck struct {
	at  string // the path of what is looked at, without numbers
	bad string // CEL of a list of strings that show what is wrong with it, none when nothing is
	say string // what is wrong
}

// configs are the kinds of which more can be said than their definitions do.
var configs = []configured{
	destinationRules, envoyFilters, gateways, serviceEntries, sidecars, virtualServices, authorizationPolicies, peerAuthentications,
}

// name is that of the guard of the kind.
func (c configured) name() string { return configName + "-" + c.resource }

// guard flags objects of Istio's API that mean nothing. An object that is wrong already can still be changed in everything but its
// spec, and go: finalizers are no reason to look at it.
func (c configured) guard(mode Mode) []runtime.Object {
	ignore, equivalent := admissionv1.Ignore, admissionv1.Equivalent
	meta := sharedMeta(c.name())
	spec := admissionv1.ValidatingAdmissionPolicySpec{
		FailurePolicy: &ignore,
		MatchConstraints: &admissionv1.MatchResources{MatchPolicy: &equivalent,
			ResourceRules: []admissionv1.NamedRuleWithOperations{rule(c.group, writes, c.resource)}},
		MatchConditions: []admissionv1.MatchCondition{
			{Name: "stays", Expression: "!has(object.metadata.deletionTimestamp)"},
			// What a control plane has made of the Gateway API's objects may lead to what does not exist: validate asks less of it.
			{Name: "written", Expression: "!has(object.metadata.annotations) || !object.metadata.annotations.exists(k, object.metadata.annotations[k] == 'gateway')"},
			{Name: "changes", Expression: "request.operation == 'CREATE' || !has(oldObject.spec) || !has(object.spec) || object.spec != oldObject.spec"},
		},
		Variables: variables(append([]string{"spec", "has(object.spec) ? object.spec : {}"}, c.variables...)...),
	}
	for i, check := range c.checks {
		found := fmt.Sprintf("found%d", i)
		spec.Variables = append(spec.Variables, admissionv1.Variable{Name: found, Expression: check.bad})
		spec.Validations = append(spec.Validations, admissionv1.Validation{
			Expression: "size(variables." + found + ") == 0",
			MessageExpression: fmt.Sprintf("'%s: %s: ' + (variables.%s.join(', ').size() > %d ? variables.%s.join(', ').substring(0, %d) + '…' : variables.%s.join(', ')) + ': %s'",
				diag.InvalidField, check.at, found, maxShown, found, maxShown, found, check.say),
		})
	}
	return []runtime.Object{
		&admissionv1.ValidatingAdmissionPolicy{TypeMeta: typeMeta(Validating), ObjectMeta: meta, Spec: spec},
		&admissionv1.ValidatingAdmissionPolicyBinding{TypeMeta: typeMeta(ValidatingBinding), ObjectMeta: meta,
			Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
				PolicyName: meta.Name, ValidationActions: []admissionv1.ValidationAction{admissionv1.ValidationAction(mode)},
			}},
	}
}

// maxShown bounds what a message shows of an object, in characters.
const maxShown = 300

// The CEL of parts. All of them take an expression, and x below an object that has a field or not.

// field is a field of an object, empty when it is not there.
func field(x, name, empty string) string { return x + ".?" + name + ".orValue(" + empty + ")" }

// items is a list that may not be there.
func items(x, name string) string { return field(x, name, "[]") }

// shown gives a list with one text when a condition holds, else none.
func shown(condition, text string) string {
	return "(" + condition + ") ? [" + text + "] : []"
}

// filtered shows the items of a list that a condition flags. v is the variable's name.
func filtered(list, v, condition, show string) string {
	return fmt.Sprintf("%s.filter(%s, %s).map(%s, string(%s))", list, v, condition, v, show)
}

// nested shows the items of lists in the items of a list that a condition flags.
func nested(outer, v, inner, w, condition, show string) string {
	return fmt.Sprintf("%s.filter(%s, %s.exists(%s, %s)).map(%s, %s.filter(%s, %s).map(%s, string(%s)).join(', '))",
		outer, v, inner, w, condition, v, inner, w, condition, w, show)
}

// inQuotes shows a string.
func inQuotes(x string) string { return "'\"' + string(" + x + ") + '\"'" }

const hostLabel = `[a-zA-Z0-9_\\[\\]-]`

// badHost is validate's check of a host. What has two colons passes: whether it is an address of IPv6 is more than is asked here.
func badHost(x string) string {
	return fmt.Sprintf("(size(%s) > 255 || !%s.matches('^((\\\\*%s{0,62}|%s{1,63})(\\\\.%s{1,63})*\\\\.?|[^:]*:[^:]*:.*)$'))", x, x, hostLabel, hostLabel, hostLabel)
}

// badNamespaced is that of [NAMESPACE/]HOST.
func badNamespaced(x string) string {
	return fmt.Sprintf("(%s.contains('/') ? %s.startsWith('/') || %s : %s)", x, x, badHost(x+".substring("+x+".indexOf('/') + 1)"), badHost(x))
}

// badAddress is that of an address, alone or as a block. What has a colon is looked at by its characters only.
func badAddress(x string) string {
	return fmt.Sprintf("(%s.contains(':') ? !%s.matches('^[\\\\[\\\\]0-9a-fA-F:.]+(%%.*)?(/[0-9]{1,3})?$') : !isIP(%s.replace('[', '').replace(']', '')) && !isCIDR(%s))", x, x, x, x)
}

// badPort is that of a port that must be given.
func badPort(x string) string { return fmt.Sprintf("(int(%s) < 1 || int(%s) > 65535)", x, x) }

// badLabels shows what cannot be the labels of a pod.
func badLabels(x, name string) string {
	const text = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
	const value = "[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
	const prefix = "([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
	labels := field(x, name, "{}")
	return fmt.Sprintf("%s.filter(k, !k.matches('^%s%s$') || !%s[k].matches('^(%s)?$')).map(k, k + '=' + string(%s[k]))", labels, prefix, text, labels, value, labels)
}

// badWeights is that of the weights of a route's destinations.
func badWeights(list string) string {
	weight := field("d", "weight", "0")
	return fmt.Sprintf("(%s.exists(d, int(%s) < 0) || size(%s) > 1 && %s.all(d, int(%s) == 0))", list, weight, list, list, weight)
}

// badPercent is that of a field that is an object with a percentage as value.
func badPercent(x, name string) string {
	value := x + ".?" + name + ".?value.orValue(0)"
	return fmt.Sprintf("(double(%s) < 0.0 || double(%s) > 100.0)", value, value)
}

// twice shows a name or a number that two items of a list have.
func twice(list, get string) string {
	return fmt.Sprintf("%s.map(i, string(%s)).filter(n, %s.filter(j, string(%s) == n).size() > 1)", list, get, list, strings.ReplaceAll(get, "i.", "j."))
}

// badSubset is that of the name of a subset.
func badSubset(x string) string {
	return fmt.Sprintf("(size(%s) > 63 || !%s.matches('^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?$'))", x, x)
}

// protocols is what validate takes, in capitals.
var protocols = quoted("HTTP", "HTTPS", "HTTP2", "HTTP_PROXY", "GRPC", "GRPC-WEB", "TCP", "TLS", "UDP", "MONGO", "REDIS", "MYSQL", "HBONE", "DOUBLEHBONE")

const protocolSay = "it is no protocol; HTTP, HTTPS, HTTP2, GRPC, GRPC-WEB, TCP, TLS, UDP, MONGO, REDIS and MYSQL are"
