package validate

import "strings"

// The names of the entries of a validating webhook configuration, Istio's: for objects that name the revision, and for those that
// name none. The second stands for every revision: all of them use such objects.
const (
	RevisionWebhook = "rev.validation.istio.io"
	Webhook         = "validation.istio.io"
)

// ConfigurationName is the name of a revision's ValidatingWebhookConfiguration, Istio's: istio-validator[-REV]-NAMESPACE.
func ConfigurationName(revision, namespace string) string {
	if revision == "" || revision == "default" {
		return "istio-validator-" + namespace
	}
	return "istio-validator-" + revision + "-" + namespace
}

// Resources are the plural names of the kinds, as in URLs.
func Resources() (names []string) {
	for _, k := range kinds {
		names = append(names, k.resource())
	}
	return names
}

// ResourcesOf are those of one group.
func ResourcesOf(group string) (names []string) {
	for _, k := range kinds {
		if k.group == group {
			names = append(names, k.resource())
		}
	}
	return names
}

func (k kind) resource() string {
	name := strings.ToLower(k.name)
	if stem, ok := strings.CutSuffix(name, "y"); ok && name != "gateway" {
		name = stem + "ie"
	}
	return name + "s"
}
