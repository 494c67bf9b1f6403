package ca

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/trust"
)

// The Secret of a self-signed root: Istio's name, keys and type, so that either control plane takes over the other's root.
const (
	secretName = trust.RootSecret
	certKey    = "ca-cert.pem"
	keyKey     = "ca-key.pem"
	secretType = corev1.SecretType("istio.io/ca-root")

	ownerLabel   = "app.kubernetes.io/managed-by"
	markLabel    = "selvage/owner" // on what an installation has made, whatever tool has applied it
	owner        = "selvage"
	fieldManager = "selvage-ca"
)

// The Secret of an authority that somebody else has made, with Istio's name and keys, or with those of cert-manager
// (corev1.TLSCertKey and so on), which win as with Istio.
const (
	pluggedName = "cacerts"
	chainKey    = "cert-chain.pem"
	rootsKey    = "root-cert.pem"
	tlsRootsKey = "ca.crt"
)

// rotationName is the Secret of a change of the root: see rotation.
const rotationName = trust.StatusObject

// watchSecrets starts to watch the Secrets that matter. Something is in dirty whenever one may have changed; stop waits for the
// watches to end.
func (a *Authority) watchSecrets(ctx context.Context) (dirty <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan struct{}, 1)
	notify := func() {
		select {
		case events <- struct{}{}:
		default: // one that is not yet seen stands for both
		}
	}
	var factories []informers.SharedInformerFactory
	for _, name := range a.secrets() {
		// One watch for each: that is what a right to objects of these names allows.
		factory := informers.NewSharedInformerFactoryWithOptions(a.config.Kubernetes, 0,
			informers.WithNamespace(a.config.Namespace),
			informers.WithTweakListOptions(func(o *metav1.ListOptions) {
				o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
			}))
		informer := factory.Core().V1().Secrets().Informer()
		// Neither call can fail on an informer that is not started.
		_ = informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
			a.log.Debug("watch of a Secret of the CA was interrupted", "secret", name, "error", err) // sync says it when it lasts
			notify()
		})
		_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { notify() },
			UpdateFunc: func(any, any) { notify() },
			DeleteFunc: func(any) { notify() },
		})
		factory.StartWithContext(ctx)
		factories = append(factories, factory)
	}
	return events, func() {
		cancel()
		for _, factory := range factories {
			factory.Shutdown()
		}
	}
}

func (a *Authority) secret(ctx context.Context, name string) (*corev1.Secret, error) {
	return a.config.Kubernetes.CoreV1().Secrets(a.config.Namespace).Get(ctx, name, metav1.GetOptions{})
}

// parseSelfSigned reads Secret istio-ca-secret.
func (a *Authority) parseSelfSigned(secret *corev1.Secret) (*pki.Issuer, error) {
	issuer, err := pki.ParseRoot(secret.Data[certKey], secret.Data[keyKey])
	if err != nil {
		return nil, err
	}
	return a.usable(issuer)
}

// parsePlugged reads Secret cacerts.
func (a *Authority) parsePlugged(secret *corev1.Secret) (*pki.Issuer, error) {
	issuer, err := pki.ParsePlugged(pluggedData(secret.Data))
	if err != nil {
		return nil, err
	}
	return a.usable(issuer)
}

func pluggedData(data map[string][]byte) pki.Plugged {
	if len(data[corev1.TLSCertKey]) > 0 {
		return pki.Plugged{Cert: data[corev1.TLSCertKey], Key: data[corev1.TLSPrivateKeyKey], Roots: data[tlsRootsKey]}
	}
	return pki.Plugged{Cert: data[certKey], Key: data[keyKey], Chain: data[chainKey], Roots: data[rootsKey]}
}

// pluggedKeys are the keys that Secret cacerts must have.
func pluggedKeys(data map[string][]byte) []string {
	if len(data[corev1.TLSCertKey]) > 0 {
		return []string{corev1.TLSPrivateKeyKey, tlsRootsKey}
	}
	return []string{certKey, keyKey, rootsKey}
}

// usable lets an authority through that can do the mesh's work now.
func (a *Authority) usable(issuer *pki.Issuer) (*pki.Issuer, error) {
	if now := time.Now(); !now.Before(issuer.NotAfter()) {
		what := "root"
		if !issuer.IsRoot() {
			what = "authority"
		}
		return nil, fmt.Errorf("the %s %q expired at %s", what, issuer.Subject(), issuer.NotAfter().UTC().Format(time.RFC3339))
	} else if err := issuer.Check(a.config.TrustDomain, a.ServingNames(), now); err != nil {
		return nil, err
	}
	return issuer.ServingWith(a.config.Key), nil
}

// heldRoot is the self-signed root that was read last, nil when there was none.
func (a *Authority) heldRoot() *pki.Issuer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.selfSigned
}

func (a *Authority) rootSecret(issuer *pki.Issuer) (*corev1.Secret, error) {
	certPEM, keyPEM, err := issuer.Encode()
	if err != nil {
		return nil, err
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: secretName, Namespace: a.config.Namespace, Labels: map[string]string{ownerLabel: owner}},
		Type:       secretType,
		Data:       map[string][]byte{certKey: certPEM, keyKey: keyPEM},
	}, nil
}

// readRoot gives the self-signed root of the Secret, which it makes when there is none.
func (a *Authority) readRoot(ctx context.Context) (*corev1.Secret, *pki.Issuer, error) {
	for attempt := 0; ; attempt++ {
		secret, err := a.secret(ctx, secretName)
		if apierrors.IsNotFound(err) {
			issuer, err := a.createRoot(ctx)
			if overtaken(err) && attempt < 3 {
				continue // another replica was faster: its root is the mesh's
			}
			if err != nil {
				return nil, nil, &unavailableError{secretName, "create", err}
			}
			return nil, issuer, nil
		}
		if err != nil {
			return nil, nil, &unavailableError{secretName, "get", err}
		}
		issuer, err := a.parseSelfSigned(secret)
		return secret, issuer, err
	}
}
