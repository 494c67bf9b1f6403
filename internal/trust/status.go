package trust

import "time"

// Where people and programs read how the mesh's authority is: ConfigMap StatusObject in the control plane's namespace, key StatusKey.
// While the root changes, every replica of every revision tells there what its own proxies have, under a key that begins with
// ReplicaPrefix. The Secret StatusObject holds the change itself, with the old authority.
const (
	StatusObject  = "selvage-root-rotation"
	StatusKey     = "status.json"
	ReplicaPrefix = "replica."

	// RootSecret holds a self-signed root; SelfSigned begins Status.Source when that signs.
	RootSecret = "istio-ca-secret"
	SelfSigned = "self-signed"
	// External begins Status.Source when an authority outside of the control plane signs.
	External = "external"

	// RequestAnnotation on the Secret of a self-signed root asks for a new root. Its value is anything that was not there before.
	RequestAnnotation = "selvage/rotate-root"
	// UndoRequest is the value that takes back a change that has not retired the former root yet.
	UndoRequest = "undo"
)

// The names of gates.
const (
	NamespacesGate = "namespaces" // have the roots in their ConfigMap
	WebhooksGate   = "webhooks"   // have the roots in their caBundle
	ReplicasGate   = "replicas"   // of the control plane have come to this stage and tell of their proxies
	ProxiesGate    = "proxies"    // use the roots, or have a certificate of the new one
)

// Gate is one condition between two stages.
type Gate struct {
	Name string `json:"name"`
	Count
}

// Identification is one authority, for people.
type Identification struct {
	Subject     string    `json:"subject"`
	Fingerprint string    `json:"sha256"`
	NotAfter    time.Time `json:"notAfter"`
	Signs       bool      `json:"signs,omitempty"` // what is signed now leads to it
}

// Status is how the authority is.
type Status struct {
	Source  string           `json:"source"`  // what signs: "self-signed (Secret istio-ca-secret)", …
	Signing Identification   `json:"signing"` // the certificate that signs
	Roots   []Identification `json:"roots"`   // what is trusted
	Hash    string           `json:"rootsHash"`
	Stage   Stage            `json:"stage"`
	Since   *time.Time       `json:"since,omitempty"` // when the stage began; nil when stable
	Gates   []Gate           `json:"gates,omitempty"`
	KeyLost bool             `json:"formerKeyLost,omitempty"` // of the former root: there is no way back to it
	// Problems are what is wrong, one line each.
	Problems []string `json:"problems,omitempty"`
}

// ReplicaReport is what one replica tells while the root changes.
type ReplicaReport struct {
	Stage   Stage     `json:"stage"`
	Roots   string    `json:"rootsHash"`
	Proxies Count     `json:"proxies"`
	At      time.Time `json:"at"`
}
