package ca

import (
	"context"
	"errors"
	"fmt"
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

// readRotation gives the change that is under way, nil for none.
func (a *Authority) readRotation(ctx context.Context) (*rotation, error) {
	secret, err := a.secret(ctx, rotationName)
	if apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // none
	}
	if err != nil {
		return nil, &unavailableError{rotationName, "get", err}
	}
	r, err := decodeRotation(secret)
	if err != nil {
		return nil, &recordError{secret, err}
	}
	for _, issuer := range []**pki.Issuer{&r.from, &r.next} {
		if *issuer != nil {
			*issuer = (*issuer).ServingWith(a.config.Key)
		}
	}
	return r, nil
}

func decodeRotation(secret *corev1.Secret) (*rotation, error) {
	data := secret.Data
	r := &rotation{stage: trust.Stage(data[stageKey]), to: string(data[toKey]), toRoots: data[toRootsKey], others: data[othersKey],
		version: secret.ResourceVersion}
	if !r.stage.Valid() {
		return nil, fmt.Errorf("%s %q: want distribute, sign or retire", stageKey, data[stageKey])
	}
	var err error
	if r.since, err = time.Parse(time.RFC3339, string(data[sinceKey])); err != nil {
		return nil, fmt.Errorf("%s: %w", sinceKey, err)
	}
	if r.to == "" {
		return nil, errors.New(toKey + " is empty")
	}
	if _, err := pki.MergeRoots(r.toRoots, r.others); err != nil {
		return nil, err
	}
	if r.from, err = decodeIssuer(data, fromPrefix); err != nil {
		return nil, fmt.Errorf("former authority: %w", err)
	}
	if r.next, err = decodeIssuer(data, nextPrefix); err != nil {
		return nil, fmt.Errorf("next authority: %w", err)
	}
	return r, nil
}

func decodeIssuer(data map[string][]byte, prefix string) (*pki.Issuer, error) {
	if len(data[prefix+certKey]) == 0 {
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
