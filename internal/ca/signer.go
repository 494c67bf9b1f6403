package ca

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
)

const (
	// requestPrefix begins the names of our CertificateSigningRequests.
	requestPrefix = "selvage-"
	// askerLabel tells whose request it is: each process watches its own.
	askerLabel = "selvage/asked-by"
	// ofAnnotation is whose certificate is asked for.
	ofAnnotation = "selvage/certificate-of"

	// maxRequests is how many requests may be open at once; more callers wait. Each costs the API server four writes.
	maxRequests = 64
	// keptRequests is how many requests that went wrong are left for people to look at while this process runs. What one that was killed
	// leaves behind kube-controller-manager removes: denied and failed ones after an hour, unanswered ones after a day.
	keptRequests = 10
	// leastLife is the shortest life that the API server lets a request ask for.
	leastLife = 10 * time.Minute
)

// What certificates are for.
var (
	workloadUsages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment,
		certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth}
	servingUsages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment, certificatesv1.UsageServerAuth}
)

// signer has requests signed by a signer of Kubernetes: a CertificateSigningRequest is made, approved, and removed when it is answered.
type signer struct {
	kubernetes kubernetes.Interface
	name       string        // of the signer
	asker      string        // value of askerLabel
	account    string        // who approves, for people
	answer     time.Duration // how long the signer may take
	log        *slog.Logger
	open       chan struct{} // holds one element for each open request

	mu      sync.Mutex
	waiting map[string]chan *certificatesv1.CertificateSigningRequest // by name; each holds the newest state
	kept    []string                                                  // requests that went wrong, the oldest first
}

func newSigner(client kubernetes.Interface, name, account string, answer time.Duration, log *slog.Logger) *signer {
	return &signer{kubernetes: client, name: name, account: account, answer: answer, log: log, asker: rand.String(10),
		open: make(chan struct{}, maxRequests), waiting: map[string]chan *certificatesv1.CertificateSigningRequest{}}
}

// run watches this process's requests until ctx ends; the channel is closed when it has.
func (s *signer) run(ctx context.Context) <-chan struct{} {
	factory := informers.NewSharedInformerFactoryWithOptions(s.kubernetes, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.LabelSelector = labels.Set{askerLabel: s.asker}.String()
	}))
	informer := factory.Certificates().V1().CertificateSigningRequests().Informer()
	// Neither call can fail on an informer that is not started.
	_ = informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		if apierrors.IsForbidden(err) {
			s.log.Error("watch is forbidden: let the control plane list and watch it (`selvage install --ca-signer` grants it)",
				"resource", "certificatesigningrequests", "error", err)
		}
	})
	_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    s.deliver,
		UpdateFunc: func(_, object any) { s.deliver(object) },
		DeleteFunc: func(object any) {
			if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
				object = gone.Obj
			}
			if r, ok := object.(*certificatesv1.CertificateSigningRequest); ok {
				r = r.DeepCopy()
				r.DeletionTimestamp = ptr.To(metav1.Now())
				s.deliver(r)
			}
		},
	})
	factory.StartWithContext(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		factory.Shutdown()
		s.mu.Lock()
		left := s.kept
		s.kept = nil
		s.mu.Unlock()
		s.remove(context.WithoutCancel(ctx), left)
	}()
	return stopped
}

// deliver gives a request's newest state to who waits for it.
func (s *signer) deliver(object any) {
	r, ok := object.(*certificatesv1.CertificateSigningRequest)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	into := s.waiting[r.Name]
	if into == nil {
		return
	}
	select {
	case <-into: // older, and not looked at
	default:
	}
	into <- r
}

// question is what is asked of a signer.
type question struct {
	request  []byte // PEM, checked: it is signed as it stands
	usages   []certificatesv1.KeyUsage
	lifetime time.Duration               // what the signer makes of it is its own affair
	of       string                      // whose certificate, for people
	check    func(chainPEM []byte) error // takes the answer, or says what is wrong with it
}

// certify has a request signed and checked, and gives the request's name. An error that is not ctx's is a *refusal.
func (s *signer) certify(ctx context.Context, q question) (name string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.answer, errNoAnswer)
	defer cancel()
	select {
	case s.open <- struct{}{}:
	case <-ctx.Done():
		return "", &refusal{signer: s.name, kind: unanswered, detail: fmt.Sprintf("%d requests are open already", maxRequests)}
	}
	name = requestPrefix + rand.String(20)
	news := make(chan *certificatesv1.CertificateSigningRequest, 1)
	s.mu.Lock()
	s.waiting[name] = news
	s.mu.Unlock()
	chain, err := s.ask(ctx, name, q, news)
	if err == nil {
		if wrong := q.check(chain); wrong != nil {
			err = &refusal{request: name, signer: s.name, kind: wrongAnswer, detail: wrong.Error()}
		}
	}
	s.mu.Lock()
	delete(s.waiting, name)
	s.mu.Unlock()
	go func() {
		defer func() { <-s.open }()
		s.tidy(context.WithoutCancel(ctx), name, err)
	}()
	return name, err
}

// ask makes the request, approves it, and waits for the answer.
func (s *signer) ask(ctx context.Context, name string, q question, news <-chan *certificatesv1.CertificateSigningRequest) ([]byte, error) {
	made, err := s.kubernetes.CertificatesV1().CertificateSigningRequests().Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{askerLabel: s.asker, ownerLabel: owner}, Annotations: map[string]string{ofAnnotation: q.of}},
		Spec: certificatesv1.CertificateSigningRequestSpec{Request: q.request, SignerName: s.name, Usages: q.usages,
			ExpirationSeconds: ptr.To(int32(max(q.lifetime, leastLife) / time.Second))},
	}, metav1.CreateOptions{FieldManager: fieldManager})
	if err != nil {
		return nil, s.failed(ctx, name, "create", err)
	}
	if err := s.approve(ctx, made, q); err != nil {
		return nil, err
	}
	for {
		select {
		case <-ctx.Done():
			return nil, s.failed(ctx, name, "", ctx.Err())
		case r := <-news:
			if chain, done, err := s.answered(r); done {
				return chain, err
			}
		}
	}
}

// approve says yes to a request, unless somebody else has said no.
func (s *signer) approve(ctx context.Context, r *certificatesv1.CertificateSigningRequest, q question) error {
	requests := s.kubernetes.CertificatesV1().CertificateSigningRequests()
	for {
		if _, done, err := s.answered(r); done || approved(r) {
			return err // nil: the certificate is there, which the watch tells too
		}
		r = r.DeepCopy()
		r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "IdentityProven",
			Message: s.account + " has checked that " + q.of + " asks for its own certificate",
		})
		_, err := requests.UpdateApproval(ctx, r.Name, r, metav1.UpdateOptions{FieldManager: fieldManager})
		if !apierrors.IsConflict(err) {
			if err != nil {
				return s.failed(ctx, r.Name, "approve", err)
			}
			return nil
		}
		if r, err = requests.Get(ctx, r.Name, metav1.GetOptions{}); err != nil {
			return s.failed(ctx, r.Name, "get", err)
		}
	}
}

func approved(r *certificatesv1.CertificateSigningRequest) bool {
	return condition(r, certificatesv1.CertificateApproved) != nil
}

func condition(r *certificatesv1.CertificateSigningRequest, kind certificatesv1.RequestConditionType) *certificatesv1.CertificateSigningRequestCondition {
	for n := range r.Status.Conditions {
		if c := &r.Status.Conditions[n]; c.Type == kind && c.Status != corev1.ConditionFalse {
			return c
		}
	}
	return nil
}

// answered gives the certificate, or why there will be none; done is false while neither is known.
func (s *signer) answered(r *certificatesv1.CertificateSigningRequest) (chain []byte, done bool, err error) {
	refused := func(kind refusalKind, c *certificatesv1.CertificateSigningRequestCondition) error {
		detail := c.Reason
		if c.Message != "" {
			detail += ": " + c.Message
		}
		return &refusal{request: r.Name, signer: s.name, kind: kind, detail: detail}
	}
	switch no, bad := condition(r, certificatesv1.CertificateDenied), condition(r, certificatesv1.CertificateFailed); {
	case no != nil:
		return nil, true, refused(denied, no)
	case bad != nil:
		return nil, true, refused(failed, bad)
	case len(r.Status.Certificate) > 0:
		return r.Status.Certificate, true, nil
	case r.DeletionTimestamp != nil:
		return nil, true, &refusal{request: r.Name, signer: s.name, kind: failed, detail: "somebody deleted it before it was signed"}
	}
	return nil, false, nil
}

// tidy removes a request that is answered. One that went wrong is left to be looked at, while there are not too many of them.
func (s *signer) tidy(ctx context.Context, name string, err error) {
	remove := []string{name}
	if err != nil {
		s.mu.Lock()
		s.kept, remove = append(s.kept, name), nil
		if more := len(s.kept) - keptRequests; more > 0 {
			remove, s.kept = s.kept[:more], append([]string(nil), s.kept[more:]...)
		}
		s.mu.Unlock()
	}
	s.remove(ctx, remove)
}

func (s *signer) remove(ctx context.Context, names []string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, name := range names {
		err := s.kubernetes.CertificatesV1().CertificateSigningRequests().Delete(ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			s.log.Warn("a CertificateSigningRequest stays behind", "name", name, "error", err)
		}
	}
}
