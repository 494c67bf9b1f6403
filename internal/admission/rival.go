package admission

import (
	"encoding/json"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// FieldManager owns caBundle, and of validators failurePolicy, of the revision's webhooks, and no other field.
const FieldManager = "selvage-ca-bundle"

// Rival is a writer that changed what is ours.
type Rival struct {
	Manager   string // its field manager; "" when managedFields name nobody
	Operation string // Apply or Update
	// Certain says that managedFields show it as the owner of the field. Else it is the one that wrote to the object last: who only
	// removes a field leaves no trace of its own.
	Certain bool
}

// String names the rival for people.
func (r Rival) String() string {
	switch {
	case r.Manager == "":
		return "a writer that managedFields do not name"
	case r.Manager == FieldManager:
		return "another control plane of this revision, with another root"
	case r.Certain:
		return "field manager " + r.Manager + " (" + r.Operation + ")"
	}
	return "probably field manager " + r.Manager + " (" + r.Operation + "), which wrote to it last"
}

// rivalOf reads managedFields: the owner of a drifted field, or the last writer that is not us.
func rivalOf(managed []metav1.ManagedFieldsEntry, drifts []Drift) Rival {
	var owner, last Rival
	var when time.Time
	for _, m := range managed {
		r := Rival{Manager: m.Manager, Operation: string(m.Operation)}
		if owns(m.FieldsV1, drifts) && (owner.Manager == "" || owner.Manager == FieldManager) {
			owner, owner.Certain = r, true
		}
		if m.Manager == FieldManager || m.Subresource != "" {
			continue
		}
		// Times are of a second's precision: of two writers of one second the later entry stands.
		if t := timeOf(m.Time); last.Manager == "" || !t.Before(when) {
			last, when = r, t
		}
	}
	if owner.Manager != "" {
		return owner
	}
	return last
}

func timeOf(t *metav1.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.Time
}

// owns reports whether a set of fields has one that drifted. The format is that of FieldsV1: f:NAME, and k:KEYS for a list's item.
func owns(fields *metav1.FieldsV1, drifts []Drift) bool {
	type set = map[string]json.RawMessage
	if fields == nil {
		return false
	}
	var top struct {
		Webhooks map[string]struct {
			ClientConfig  set             `json:"f:clientConfig"`
			FailurePolicy json.RawMessage `json:"f:failurePolicy"`
		} `json:"f:webhooks"`
	}
	if json.Unmarshal(fields.GetRawBytes(), &top) != nil {
		return false
	}
	for _, d := range drifts {
		key, err := json.Marshal(map[string]string{"name": d.Name})
		if err != nil {
			continue
		}
		entry, ok := top.Webhooks["k:"+string(key)]
		if !ok {
			continue
		}
		if _, bundle := entry.ClientConfig["f:caBundle"]; bundle && d.Bundle != Right || entry.FailurePolicy != nil && d.Policy != "" {
			return true
		}
	}
	return false
}
