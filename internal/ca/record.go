package ca

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// The keys of Secret selvage-root-rotation. Those of an authority have a prefix.
const (
	stageKey   = "stage"
	sinceKey   = "since" // RFC 3339
	toKey      = "to"    // fingerprint of the new root
	toRootsKey = "to-roots.pem"
	othersKey  = "other-roots.pem"
	fromPrefix = "from-"
	nextPrefix = "next-"
)

// readRotation gives the change that is under way, nil for none. Of one that is garbled it gives a *recordError.
func (a *Authority) readRotation(ctx context.Context) (*rotation, error) {
	secret, err := a.secret(ctx, rotationName)
	if apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // none
	}
	if err != nil {
		return nil, &unavailableError{rotationName, "get", err}
	}
	r, wrong := decodeRotation(secret)
	for _, issuer := range []**pki.Issuer{&r.from, &r.next} {
		if *issuer != nil {
			*issuer = (*issuer).ServingWith(a.config.Key)
		}
	}
	if len(wrong) > 0 {
		rest := salvage(r, secret.Data)
		return nil, &recordError{secret: secret, wrong: wrong, rest: rest}
	}
	return r, nil
}

// decodeRotation reads a record, and says of each key what is wrong with it; the others are in r all the same.
func decodeRotation(secret *corev1.Secret) (r *rotation, wrong []string) {
	data := secret.Data
	r = &rotation{stage: trust.Stage(data[stageKey]), to: string(data[toKey]), toRoots: data[toRootsKey], others: data[othersKey],
		version: secret.ResourceVersion}
	say := func(key string, err error) {
		if err != nil {
			wrong = append(wrong, "data["+key+"]: "+err.Error())
		}
	}
	if !r.stage.Valid() {
		say(stageKey, fmt.Errorf("%.40q, want distribute, sign or retire", data[stageKey]))
	}
	var err error
	r.since, err = time.Parse(time.RFC3339, string(data[sinceKey]))
	say(sinceKey, err)
	if r.to == "" {
		say(toKey, errors.New("empty"))
	}
	_, err = pki.MergeRoots(r.toRoots)
	say(toRootsKey, err)
	_, err = pki.MergeRoots(r.others)
	say(othersKey, err)
	r.from, err = decodeIssuer(data, fromPrefix)
	say(fromPrefix+"*", err)
	if err == nil && r.from == nil && len(r.others) == 0 && (r.stage == trust.Distribute || r.stage == trust.Sign) {
		say(fromPrefix+"*", errors.New("empty, and there are no other roots: which root was trusted before is lost"))
	}
	r.next, err = decodeIssuer(data, nextPrefix)
	say(nextPrefix+"*", err)
	return r, wrong
}

// salvage makes of what can still be read of a record the one that cuts nobody off: every root in it is trusted, and the former
// authority, which everybody has trusted from the beginning, signs where its key is there.
func salvage(r *rotation, data map[string][]byte) *rotation {
	s := &rotation{stage: trust.Distribute, since: r.since, from: r.from, next: r.next}
	if s.from == nil {
		s.stage = trust.Sign
	}
	for _, key := range slices.Sorted(maps.Keys(data)) {
		for _, cert := range readable(data[key]) {
			s.others = append(s.others, pki.EncodeCertificate(cert)...)
		}
	}
	return s
}

func decodeIssuer(data map[string][]byte, prefix string) (*pki.Issuer, error) {
	if len(data[prefix+certKey])+len(data[prefix+keyKey])+len(data[prefix+chainKey])+len(data[prefix+rootsKey]) == 0 {
		return nil, nil //nolint:nilnil // none
	}
	return pki.ParsePlugged(pki.Plugged{
		Cert: data[prefix+certKey], Key: data[prefix+keyKey], Chain: data[prefix+chainKey], Roots: data[prefix+rootsKey],
	})
}

func encodeRotation(r *rotation, namespace string) (*corev1.Secret, error) {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: rotationName, Namespace: namespace, ResourceVersion: r.version, Labels: map[string]string{ownerLabel: owner}},
		Type:       corev1.SecretTypeOpaque,
		Data: map[string][]byte{
			stageKey: []byte(r.stage), sinceKey: []byte(r.since.UTC().Format(time.RFC3339)), toKey: []byte(r.to), toRootsKey: r.toRoots,
		},
	}
	if len(r.others) > 0 {
		secret.Data[othersKey] = r.others
	}
	for prefix, issuer := range map[string]*pki.Issuer{fromPrefix: r.from, nextPrefix: r.next} {
		if issuer == nil {
			continue
		}
		p, err := issuer.EncodePlugged()
		if err != nil {
			return nil, err
		}
		secret.Data[prefix+certKey], secret.Data[prefix+keyKey] = p.Cert, p.Key
		secret.Data[prefix+chainKey], secret.Data[prefix+rootsKey] = p.Chain, p.Roots
	}
	return secret, nil
}

// writeRotation stores a record over the one with its version, or as the first. Conflict and AlreadyExists are somebody else's who
// was faster.
func (a *Authority) writeRotation(ctx context.Context, r *rotation) error {
	secret, err := encodeRotation(r, a.config.Namespace)
	if err != nil {
		return err
	}
	secrets := a.config.Kubernetes.CoreV1().Secrets(a.config.Namespace)
	if r.version == "" {
		_, err = secrets.Create(ctx, secret, metav1.CreateOptions{FieldManager: fieldManager})
	} else {
		_, err = secrets.Update(ctx, secret, metav1.UpdateOptions{FieldManager: fieldManager})
	}
	return err
}

// removeRotation ends a change: the very record that was looked at.
func (a *Authority) removeRotation(ctx context.Context, r *rotation) error {
	err := a.config.Kubernetes.CoreV1().Secrets(a.config.Namespace).Delete(ctx, rotationName,
		metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &r.version}})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// overtaken reports whether a write failed because somebody else was faster.
func overtaken(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }
