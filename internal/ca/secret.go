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

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// The Secret of a self-signed root: Istio's name, keys and type, so that either control plane takes over the other's root.
const (
	secretName = "istio-ca-secret"
	certKey    = "ca-cert.pem"
	keyKey     = "ca-key.pem"
	secretType = corev1.SecretType("istio.io/ca-root")

	ownerLabel = "app.kubernetes.io/managed-by"
	owner      = "selvage"
)

// watchSecret starts to watch the one Secret. Something is in dirty whenever it may have changed; stop waits for the watch to end.
func (a *Authority) watchSecret(ctx context.Context) (dirty <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan struct{}, 1)
	notify := func() {
		select {
		case events <- struct{}{}:
		default: // one that is not yet seen stands for both
		}
	}
	factory := informers.NewSharedInformerFactoryWithOptions(a.config.Kubernetes, 0,
		informers.WithNamespace(a.config.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, secretName).String()
		}))
	informer := factory.Core().V1().Secrets().Informer()
	// Neither call can fail on an informer that is not started.
	_ = informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		a.log.Debug("watch of the root Secret was interrupted", "error", err) // sync says it when it lasts
		notify()
	})
	_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { notify() },
		UpdateFunc: func(any, any) { notify() },
		DeleteFunc: func(any) { notify() },
	})
	factory.StartWithContext(ctx)
	return events, func() { cancel(); factory.Shutdown() }
}

// sync makes the root in memory and the Secret agree. It reads the Secret itself rather than a cache, so that what it decides on
// is never older than the event that woke it.
func (a *Authority) sync(ctx context.Context) *diag.Problem {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for attempt := 0; ; attempt++ {
		secret, err := a.config.Kubernetes.CoreV1().Secrets(a.config.Namespace).Get(ctx, secretName, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			err = a.create(ctx)
			if apierrors.IsAlreadyExists(err) && attempt < 3 {
				continue // another replica was faster: its root is the mesh's
			}
			if err != nil {
				return a.unavailable("create", err)
			}
			return nil
		case err != nil:
			return a.unavailable("get", err)
		}
		issuer, err := pki.ParseRoot(secret.Data[certKey], secret.Data[keyKey])
		if err == nil && !time.Now().Before(issuer.NotAfter()) {
			err = fmt.Errorf("the root %q expired at %s", issuer.Subject(), issuer.NotAfter().UTC().Format(time.RFC3339))
		}
		if err != nil {
			return a.invalid(secret, err)
		}
		a.adopt(issuer)
		return nil
	}
}

// create writes the Secret: the root in memory when somebody deleted it from under a running mesh, else a new one.
func (a *Authority) create(ctx context.Context) error {
	var issuer *pki.Issuer
	if r := a.root.Load(); r != nil {
		issuer = r.issuer
	} else {
		var err error
		if issuer, err = pki.NewRoot(a.config.TrustDomain, time.Now()); err != nil {
			return err
		}
	}
	certPEM, keyPEM, err := issuer.Encode()
	if err != nil {
		return err
	}
	_, err = a.config.Kubernetes.CoreV1().Secrets(a.config.Namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: secretName, Namespace: a.config.Namespace, Labels: map[string]string{ownerLabel: owner}},
		Type:       secretType,
		Data:       map[string][]byte{certKey: certPEM, keyKey: keyPEM},
	}, metav1.CreateOptions{FieldManager: "selvage-ca"})
	if err != nil {
		return err
	}
	if a.root.Load() != nil {
		a.log.Warn("root Secret was deleted and has been put back", "secret", a.config.Namespace+"/"+secretName)
	} else {
		a.log.Info("new root certificate made", "secret", a.config.Namespace+"/"+secretName)
	}
	a.adopt(issuer)
	return nil
}

// invalid is the problem of a Secret that holds no usable root.
func (a *Authority) invalid(secret *corev1.Secret, cause error) *diag.Problem {
	p := a.secretProblem(diag.InvalidRoot)
	p.Detail = cause.Error()
	switch {
	case len(secret.Data[certKey]) == 0:
		p.Field, p.Detail = "data["+certKey+"]", "the key "+certKey+" is missing or empty"
	case len(secret.Data[keyKey]) == 0:
		p.Field, p.Detail = "data["+keyKey+"]", "the key "+keyKey+" is missing or empty"
	}
	del := fmt.Sprintf("`kubectl -n %s delete secret %s`", a.config.Namespace, secretName)
	if a.root.Load() != nil {
		p.Hint = "put the former content back, or let the root in memory be written again, while this control plane runs: " + del
	} else {
		p.Hint = "put a backup back; without one, " + del + " makes a new root, and every workload must be restarted to trust it"
	}
	return p
}

// unavailable is the problem of a Secret that cannot be read or written.
func (a *Authority) unavailable(verb string, err error) *diag.Problem {
	p := a.secretProblem(diag.SourceUnavailable)
	p.Detail = fmt.Sprintf("cannot %s it: %v", verb, err)
	switch {
	case apierrors.IsForbidden(err):
		p.Hint = fmt.Sprintf("let the control plane get, list, watch and create Secrets in namespace %s: `selvage install` grants it", a.config.Namespace)
	case apierrors.IsNotFound(err):
		p.Hint = fmt.Sprintf("namespace %s does not exist: `selvage install` creates it", a.config.Namespace)
	default:
		p.Hint = "it is tried again until the API server answers"
	}
	return p
}

func (a *Authority) secretProblem(code diag.Code) *diag.Problem {
	return &diag.Problem{Code: code, Severity: diag.Error, Object: ref.Ref{Kind: "Secret", Namespace: a.config.Namespace, Name: secretName}}
}
