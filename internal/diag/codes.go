package diag

// The codes that Selvage itself finds. A number is never used twice, also after its check is gone.
const (
	// UnsupportedField marks a field or a kind that this version reads but does not carry out.
	UnsupportedField Code = "SEL0001"
	// InvalidField marks a value that cannot be used: out of range, not parsable, contradicting another.
	InvalidField Code = "SEL0002"
	// HostCollision marks two objects that claim one host or address and port; the older one wins.
	HostCollision Code = "SEL0003"
	// SourceUnavailable marks a kind of object that the control plane cannot read (RBAC, CRD missing, watch failing).
	SourceUnavailable Code = "SEL0004"
	// InvalidMeshConfig marks a mesh configuration that cannot be used; the last good one stays in force.
	InvalidMeshConfig Code = "SEL0005"
	// RejectedByProxy marks an object whose configuration a proxy has refused.
	RejectedByProxy Code = "SEL0006"

	// InvalidAnnotation marks a pod annotation whose value injection cannot use.
	InvalidAnnotation Code = "SEL0020"
	// InvalidInjectConfig marks an injector configuration that cannot be used.
	InvalidInjectConfig Code = "SEL0021"
	// InjectionLabel marks a label or annotation about injection that has no effect or leads nowhere.
	InjectionLabel Code = "SEL0022"
	// RivalWebhooks marks a pod that the webhooks of several configurations would inject.
	RivalWebhooks Code = "SEL0023"
	// NotServed marks what injection understands and the agent of this build cannot serve yet: the pod would run and not work.
	NotServed Code = "SEL0024"

	// WebhookDrift marks a webhook configuration whose caBundle is not ours.
	WebhookDrift Code = "SEL0040"
	// WebhookRival marks a webhook configuration that somebody else overwrites again and again.
	WebhookRival Code = "SEL0042"
	// WebhookDeleted marks a webhook configuration of this revision that does not exist.
	WebhookDeleted Code = "SEL0043"
	// InvalidRoot marks a Secret or file that should hold the mesh's root and does not.
	InvalidRoot Code = "SEL0041"
	// StaleWebhook marks a webhook configuration that calls a control plane which is gone.
	StaleWebhook Code = "SEL0045"

	// WebhooksNotHeld marks the policy that holds a revision's webhooks, which is installed and does not do its work.
	WebhooksNotHeld Code = "SEL0046"

	// InjectionNotByPolicy marks a revision whose pods the API server does not inject by its policy, though it is installed.
	InjectionNotByPolicy Code = "SEL0047"

	// WebhookMissing marks a revision whose webhook the API server does not call.
	WebhookMissing Code = "SEL0060"
	// WebhookServiceMissing marks a webhook that leads to a Service or port that does not exist.
	WebhookServiceMissing Code = "SEL0061"
	// WebhookNoEndpoints marks a webhook's Service without a ready endpoint.
	WebhookNoEndpoints Code = "SEL0062"
	// WebhookRefused marks a webhook whose connections are refused.
	WebhookRefused Code = "SEL0063"
	// WebhookTimeout marks a webhook from which the API server gets no answer in time.
	WebhookTimeout Code = "SEL0064"
	// WebhookCertificate marks a webhook whose certificate the API server does not trust.
	WebhookCertificate Code = "SEL0065"
	// WebhookResponse marks a webhook's address at which something else answers.
	WebhookResponse Code = "SEL0066"
	// WebhookTemplate marks a control plane that is called and refuses, for its own configuration.
	WebhookTemplate Code = "SEL0067"
	// ProbeForbidden marks a control plane that may not probe itself.
	ProbeForbidden Code = "SEL0068"
	// ProbeFailed marks a probe that told nothing.
	ProbeFailed Code = "SEL0069"

	// NotMeshed marks a pod that asks for a sidecar and has none at the end of admission.
	NotMeshed Code = "SEL0070"
	// RevisionInUse marks the deletion of what a revision's users hang on.
	RevisionInUse Code = "SEL0071"

	// CertificateExpires marks a certificate that has expired or will soon.
	CertificateExpires Code = "SEL0050"
	// RotationBlocked marks a change of the root that waits for somebody for long.
	RotationBlocked Code = "SEL0051"
	// SignerFailed marks a signer of Kubernetes that gave no certificate, or one that cannot be used.
	SignerFailed Code = "SEL0052"
	// RootLost marks a root whose key was lost, and which is trusted until nobody shows a certificate of it.
	RootLost Code = "SEL0053"
	// RootNotDistributed marks a namespace whose ConfigMap of roots cannot be put right.
	RootNotDistributed Code = "SEL0054"
)

// The codes of findings that `istioctl analyze` has too, under its number.
const (
	// MultipleInjectionLabels marks a namespace with both kinds of label that ask for sidecars.
	MultipleInjectionLabels Code = "IST0123"
)
