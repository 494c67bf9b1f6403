package revision

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// Verdict is how a webhook configuration stands.
type Verdict string

// The verdicts.
const (
	Live    Verdict = "live"    // what it calls exists, or its revision lives
	IsGone  Verdict = "waiting" // what it calls is gone, but not for as long as the grace period
	IsStale Verdict = "stale"
	Unknown Verdict = "unknown" // something could not be read; never a reason to remove anything
)

// DefaultGrace is for how long a control plane must have been gone before its webhooks are stale: longer than any upgrade that
// takes the old one away first should need.
const DefaultGrace = 10 * time.Minute

// leaseFresh is how old a lease's renewal may be for its holder to count as running: four times what Kubernetes' own components
// take to lose one.
const leaseFresh = time.Minute

// Judgement is a verdict and its reason.
type Judgement struct {
	Verdict Verdict
	Detail  string // a phrase that names what is missing or could not be read; "" when it works
}

// Judge decides whether a configuration is stale: its every entry calls a Service that does not exist, and its revision has neither
// a control plane in that namespace, nor a lease that is being renewed, nor a connected proxy. missingSince is since when that is so,
// as far as the caller knows: see LastSign. A configuration that also has entries of others is never stale.
func (f *Facts) Judge(w Webhook, missingSince time.Time, grace time.Duration) Judgement {
	if len(w.Services) == 0 || len(w.URLs) > 0 || len(w.Others) > 0 {
		return Judgement{Verdict: Live} // what a URL leads to cannot be seen from here
	}
	for _, s := range w.Services {
		if err := f.unread(Services, s.Namespace); err != nil {
			return Judgement{Unknown, fmt.Sprintf("whether Service %s exists could not be read: %v", s, err)}
		}
		if f.Existing[s] {
			return Judgement{Verdict: Live}
		}
	}
	missing := "Service " + w.Services[0].String() + " does not exist"
	for _, s := range w.Services {
		for _, resource := range []string{Deployments, Leases} {
			if err := f.unread(resource, s.Namespace); err != nil {
				return Judgement{Unknown, fmt.Sprintf("%s, and %s in namespace %s could not be read: %v", missing, resource, s.Namespace, err)}
			}
		}
		if sign := f.sign(w, s.Namespace); sign != "" {
			return Judgement{Live, missing + ", but " + sign}
		}
	}
	if missingSince.IsZero() || f.Now.Sub(missingSince) < grace {
		return Judgement{IsGone, fmt.Sprintf("%s and revision %s has no control plane, not for %s yet", missing, w.Revision, grace)}
	}
	return Judgement{IsStale, fmt.Sprintf("%s, and revision %s has no control plane", missing, w.Revision)}
}

func (f *Facts) unread(resource, namespace string) error {
	if err := f.Unread[Source{resource, ""}]; err != nil {
		return err
	}
	return f.Unread[Source{resource, namespace}]
}

// sign of life of the webhook's revision in a namespace, "" for none.
func (f *Facts) sign(w Webhook, namespace string) string {
	for _, c := range f.ControlPlanes {
		if c.Revision == w.Revision && c.Namespace == namespace {
			return fmt.Sprintf("control plane %s/%s is there", c.Namespace, c.Name)
		}
	}
	for _, l := range f.Leases {
		if l.Namespace == namespace && l.isOf(w.Revision) && f.Now.Sub(l.Renewed) < leaseFresh {
			return fmt.Sprintf("%s renews lease %s/%s", l.Holder, l.Namespace, l.Name)
		}
	}
	for _, p := range f.Proxies {
		if p.Revision == w.Revision {
			return fmt.Sprintf("proxy %s/%s is connected to revision %s", p.Namespace, p.Pod, w.Revision)
		}
	}
	return ""
}

// isOf reports whether a control plane of the revision holds the lease: by the name of Selvage's, or by the holder, which in a cluster
// is a pod of the Deployment.
func (l Lease) isOf(revision string) bool {
	if l.Holder == "" {
		return false
	}
	if l.Name == inject.ObjectName(WebhooksLease, revision) {
		return true
	}
	rest, ok := strings.CutPrefix(l.Holder, inject.ObjectName(ControlPlaneApp, revision)+"-")
	return ok && strings.Count(rest, "-") == 1 // the ReplicaSet's and the pod's own part
}

// WebhooksLease is the base of the name of the lease under which a revision's webhooks are kept.
const WebhooksLease = "selvage-webhooks"

// LastSign is the latest time at which something shows that somebody still cared for the configuration, for those who look once: its
// last change, and the last renewal of its revision's leases.
func (f *Facts) LastSign(w Webhook) time.Time {
	last := w.Changed
	for _, l := range f.Leases {
		if l.isOf(w.Revision) && l.Renewed.After(last) {
			last = l.Renewed
		}
	}
	return last
}

// Consequence says what a stale configuration does to people.
func (w Webhook) Consequence() string {
	if w.Kind == Validating {
		return "where its failurePolicy is Fail, every write of the mesh's configuration that it selects is refused"
	}
	return "where its failurePolicy is Fail, no pod that it selects can be created"
}

// Problem is what to tell about a configuration that is stale, or may be.
func (w Webhook) Problem(j Judgement) diag.Problem {
	severity, hint := diag.Error, "`selvage revision prune` shows and removes it, with undo"
	switch {
	case j.Verdict == Unknown:
		severity, hint = diag.Info, "nothing is removed on a guess: `selvage revision list`, run by somebody who may read all of it, says whether it is stale"
	case w.Ours && !w.Kept:
		hint = "the control plane removes it by itself and keeps it for `selvage revision prune --undo`"
	}
	return diag.Problem{
		Code: diag.StaleWebhook, Severity: severity,
		Object: ref.Ref{Group: "admissionregistration.k8s.io", Kind: w.Kind, Name: w.Name},
		Detail: j.Detail + ": " + w.Consequence(), Hint: hint,
	}
}

// hostOf is the host of a URL, or the whole text of what is none.
func hostOf(text string) string {
	if u, err := url.Parse(text); err == nil && u.Host != "" {
		return u.Host
	}
	return text
}

// shown is how a control plane stands, in a word.
func (c ControlPlane) shown() string {
	if c.Outside {
		return "outside"
	}
	return fmt.Sprintf("%d/%d", c.Ready, c.Replicas)
}
