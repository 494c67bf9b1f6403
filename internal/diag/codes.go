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

// The codes of what is wrong with one object of Istio's API, looked at alone.
const (
	// UnknownField marks a field that the kind does not have.
	UnknownField Code = "SEL0300"
	// WrongForm marks a value of the wrong form, such as a list where an object belongs.
	WrongForm Code = "SEL0301"
	// MissingValue marks a value that must be there and is not.
	MissingValue Code = "SEL0302"
	// UnknownValue marks a value that is none of the names that may stand there.
	UnknownValue Code = "SEL0303"
	// OutOfRange marks a number that is too small or too large.
	OutOfRange Code = "SEL0304"
	// InvalidPort marks a port that cannot be one.
	InvalidPort Code = "SEL0305"
	// InvalidDuration marks a duration that cannot be used.
	InvalidDuration Code = "SEL0306"
	// InvalidHost marks a host that is no DNS name, or one that may not stand there.
	InvalidHost Code = "SEL0307"
	// InvalidAddress marks an address that is none.
	InvalidAddress Code = "SEL0308"
	// InvalidRegex marks a regular expression that Envoy does not read.
	InvalidRegex Code = "SEL0309"
	// InvalidLabels marks labels that no pod can have.
	InvalidLabels Code = "SEL0310"
	// InvalidName marks a name that Kubernetes or Istio would not accept.
	InvalidName Code = "SEL0311"
	// InvalidHeader marks the name or the value of a header that cannot be used.
	InvalidHeader Code = "SEL0312"
	// InvalidURL marks a URL that cannot be used.
	InvalidURL Code = "SEL0313"
	// Duplicate marks something that is there twice and may be only once.
	Duplicate Code = "SEL0314"
	// Contradiction marks fields that exclude each other.
	Contradiction Code = "SEL0315"
	// NothingSaid marks an object, or a part of one, that says nothing.
	NothingSaid Code = "SEL0316"
	// NotSupported marks a field that has no meaning where it stands.
	NotSupported Code = "SEL0317"
	// InvalidTLS marks TLS settings that do not fit their mode.
	InvalidTLS Code = "SEL0318"
	// InvalidTarget marks a reference to an object that cannot be a target.
	InvalidTarget Code = "SEL0319"
	// InvalidKeys marks a set of keys that cannot be read.
	InvalidKeys Code = "SEL0320"
	// InvalidExpression marks a CEL expression that cannot be parsed.
	InvalidExpression Code = "SEL0321"
	// InvalidPath marks a template of a path that cannot be used.
	InvalidPath Code = "SEL0322"
	// InvalidLocality marks a locality, or weights of localities, that cannot be used.
	InvalidLocality Code = "SEL0323"
	// UnknownAttribute marks a condition on something that requests do not have.
	UnknownAttribute Code = "SEL0324"
	// TooLarge marks a value that is larger than it may be.
	TooLarge Code = "SEL0325"
	// ForbiddenAnnotation marks an annotation that this kind of object may not have.
	ForbiddenAnnotation Code = "SEL0326"

	// PatchValue marks the value of an EnvoyFilter that Envoy's schema does not allow.
	PatchValue Code = "SEL0330"
	// PatchRule marks the value of an EnvoyFilter that breaks a rule of Envoy's.
	PatchRule Code = "SEL0331"
	// PatchMatch marks a match of an EnvoyFilter that does not fit what it patches.
	PatchMatch Code = "SEL0332"
	// PatchType marks a type in an EnvoyFilter that is not known.
	PatchType Code = "SEL0333"

	// Deprecated marks what works and will not for ever.
	Deprecated Code = "SEL0340"
	// SelectsAll marks a selector without labels, which selects everything.
	SelectsAll Code = "SEL0341"
	// NoEffect marks a value that is ignored.
	NoEffect Code = "SEL0342"
	// DeniesTCP marks a policy that denies more than it says, on ports whose protocol is not HTTP.
	DeniesTCP Code = "SEL0343"
	// ProxyInternals marks an object that hangs on what a version of the proxy is like inside.
	ProxyInternals Code = "SEL0344"
	// PrivateKey marks a private key where only public ones belong.
	PrivateKey Code = "SEL0345"
	// MoreProblems marks an object that has more problems than are shown.
	MoreProblems Code = "SEL0346"
	// CheckFailed marks an object that could not be checked, by a fault of Selvage's.
	CheckFailed Code = "SEL0347"
)

// The codes of findings that `istioctl analyze` has too, under its number.
const (
	// ReferenceNotFound marks an object that names another that does not exist.
	ReferenceNotFound Code = "IST0101"
	// MultipleInjectionLabels marks a namespace with both kinds of label that ask for sidecars.
	MultipleInjectionLabels Code = "IST0123"
	// UnreachableRoute marks a route that no request reaches, because routes before it take all.
	UnreachableRoute Code = "IST0130"
	// IneffectiveMatch marks a match that no request reaches, because another before it takes all.
	IneffectiveMatch Code = "IST0131"
)
