package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"github.com/selvage-mesh/selvage/internal/revision"
)

const (
	// UndoConfigMap holds the webhook configurations that were removed, one in each entry.
	UndoConfigMap = "selvage-removed-webhooks"
	// undoFallback is where it is when the mesh's namespace is gone.
	undoFallback = metav1.NamespaceSystem
	// mostKept bounds its size, in bytes: a ConfigMap takes 1 MiB. The oldest are forgotten first.
	mostKept = 768 << 10
)

// ErrChanged says that a configuration is not any more what was judged: nothing was removed.
var ErrChanged = errors.New("it has changed since it was looked at")

// Removed is a webhook configuration that was removed.
type Removed struct {
	Kind      string          `json:"kind"`
	Name      string          `json:"name"`
	RemovedAt time.Time       `json:"removedAt"`
	By        string          `json:"by"` // a control plane's replica, or the command
	Object    json.RawMessage `json:"object"`

	namespace string // of the ConfigMap
}

// key of the ConfigMap's entry.
func key(kind, name string) string { return kind + "." + name }

// Keeper removes webhook configurations and brings them back.
type Keeper struct {
	Kubernetes kubernetes.Interface
	By         string
}

// Remove writes the configuration down and then deletes the very object that was judged, by UID and resource version.
func (k Keeper) Remove(ctx context.Context, w revision.Webhook) error {
	object, err := k.read(ctx, w)
	if apierrors.IsNotFound(err) {
		return nil // somebody else was faster
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", w.Subject(), err)
	}
	if string(object.GetUID()) != w.UID || object.GetResourceVersion() != w.ResourceVersion {
		return fmt.Errorf("remove %s: %w", w.Subject(), ErrChanged)
	}
	raw, err := json.Marshal(object)
	if err != nil {
		return fmt.Errorf("write down %s: %w", w.Subject(), err)
	}
	record := Removed{Kind: w.Kind, Name: w.Name, RemovedAt: time.Now().UTC().Truncate(time.Second), By: k.By, Object: raw}
	namespace, err := k.keep(ctx, record)
	if err != nil {
		return fmt.Errorf("write down %s before removing it, in ConfigMap %s/%s: %w", w.Subject(), namespace, UndoConfigMap, err)
	}
	uid := types.UID(w.UID)
	options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &w.ResourceVersion}}
	hooks := k.Kubernetes.AdmissionregistrationV1()
	if w.Kind == revision.Mutating {
		err = hooks.MutatingWebhookConfigurations().Delete(ctx, w.Name, options)
	} else {
		err = hooks.ValidatingWebhookConfigurations().Delete(ctx, w.Name, options)
	}
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case apierrors.IsConflict(err):
		return errors.Join(fmt.Errorf("remove %s: %w", w.Subject(), ErrChanged), k.forget(ctx, namespace, w.Kind, w.Name))
	case err != nil:
		return errors.Join(fmt.Errorf("delete %s: %w", w.Subject(), err), k.forget(ctx, namespace, w.Kind, w.Name))
	}
	return nil
}

// read gets the whole object, with its kind.
func (k Keeper) read(ctx context.Context, w revision.Webhook) (metav1.Object, error) {
	hooks := k.Kubernetes.AdmissionregistrationV1()
	meta := metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: w.Kind}
	if w.Kind == revision.Mutating {
		c, err := hooks.MutatingWebhookConfigurations().Get(ctx, w.Name, metav1.GetOptions{})
		if c != nil {
			c.TypeMeta = meta
		}
		return c, err
	}
	c, err := hooks.ValidatingWebhookConfigurations().Get(ctx, w.Name, metav1.GetOptions{})
	if c != nil {
		c.TypeMeta = meta
	}
	return c, err
}

// keep adds a record to the ConfigMap of the mesh's namespace, or of the fallback where that is gone.
func (k Keeper) keep(ctx context.Context, r Removed) (namespace string, err error) {
	value, err := json.Marshal(r)
	if err != nil {
		return revision.MeshNamespace, err
	}
	for _, namespace = range []string{revision.MeshNamespace, undoFallback} {
		err = k.change(ctx, namespace, func(data map[string]string) {
			data[key(r.Kind, r.Name)] = string(value)
			trim(data, key(r.Kind, r.Name))
		})
		if !isNoNamespace(err) {
			return namespace, err
		}
	}
	return namespace, err
}

// isNoNamespace reports whether a create failed because the namespace is not there, or is going.
func isNoNamespace(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

// trim forgets the oldest records until the rest fits; never the one that was just added.
func trim(data map[string]string, added string) {
	total := 0
	keys := make([]string, 0, len(data))
	for key, value := range data {
		total += len(key) + len(value)
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b string) int { return removedAt(data[a]).Compare(removedAt(data[b])) })
	for _, key := range keys {
		if total <= mostKept {
			return
		}
		if key != added {
			total -= len(key) + len(data[key])
			delete(data, key)
		}
	}
}

func removedAt(value string) time.Time {
	var r Removed
	_ = json.Unmarshal([]byte(value), &r) // garbage is the oldest
	return r.RemovedAt
}

// change edits the ConfigMap's entries; it is made when it is not there, and goes with the last entry. A rival's write is not lost: the edit is tried again.
func (k Keeper) change(ctx context.Context, namespace string, edit func(map[string]string)) error {
	maps := k.Kubernetes.CoreV1().ConfigMaps(namespace)
	again := func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }
	return retry.OnError(retry.DefaultBackoff, again, func() error {
		cm, err := maps.Get(ctx, UndoConfigMap, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			cm = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: UndoConfigMap, Labels: map[string]string{revision.ManagedByLabel: revision.Owner}},
				Data: map[string]string{}}
			if edit(cm.Data); len(cm.Data) == 0 {
				return nil
			}
			_, err = maps.Create(ctx, cm, metav1.CreateOptions{})
			return err
		}
		if err != nil {
			return err
		}
		if cm.Data == nil {
			cm.Data = map[string]string{}
		}
		if edit(cm.Data); len(cm.Data) == 0 {
			uid := cm.UID
			return maps.Delete(ctx, UndoConfigMap, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &cm.ResourceVersion}})
		}
		_, err = maps.Update(ctx, cm, metav1.UpdateOptions{})
		return err
	})
}

// forget takes one record back.
func (k Keeper) forget(ctx context.Context, namespace, kind, name string) error {
	err := k.change(ctx, namespace, func(data map[string]string) { delete(data, key(kind, name)) })
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("take the record of %s %s out of ConfigMap %s/%s: %w", kind, name, namespace, UndoConfigMap, err)
	}
	return nil
}

// Removed lists what can be brought back, the newest first.
func (k Keeper) Removed(ctx context.Context) ([]Removed, error) {
	var all []Removed
	for _, namespace := range []string{revision.MeshNamespace, undoFallback} {
		cm, err := k.Kubernetes.CoreV1().ConfigMaps(namespace).Get(ctx, UndoConfigMap, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read ConfigMap %s/%s: %w", namespace, UndoConfigMap, err)
		}
		for _, value := range cm.Data {
			r := Removed{namespace: namespace}
			if err := json.Unmarshal([]byte(value), &r); err == nil && r.Kind != "" {
				all = append(all, r)
			}
		}
	}
	slices.SortFunc(all, func(a, b Removed) int { return b.RemovedAt.Compare(a.RemovedAt) })
	return all, nil
}

// Restore brings a removed configuration back as it was, with an annotation that keeps the control plane from removing it again.
func (k Keeper) Restore(ctx context.Context, r Removed) error {
	hooks := k.Kubernetes.AdmissionregistrationV1()
	var err error
	switch r.Kind {
	case revision.Mutating:
		var c admissionv1.MutatingWebhookConfiguration
		if err = json.Unmarshal(r.Object, &c); err == nil {
			renew(&c)
			_, err = hooks.MutatingWebhookConfigurations().Create(ctx, &c, metav1.CreateOptions{})
		}
	case revision.Validating:
		var c admissionv1.ValidatingWebhookConfiguration
		if err = json.Unmarshal(r.Object, &c); err == nil {
			renew(&c)
			_, err = hooks.ValidatingWebhookConfigurations().Create(ctx, &c, metav1.CreateOptions{})
		}
	default:
		err = errors.New("it is no kind of webhook configuration")
	}
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("restore %s %s: one of that name is there again; look at it with `kubectl get %s %s -o yaml`", r.Kind, r.Name, r.Kind, r.Name)
	}
	if err != nil {
		return fmt.Errorf("restore %s %s: %w", r.Kind, r.Name, err)
	}
	return k.forget(ctx, r.namespace, r.Kind, r.Name)
}

// renew takes off what belongs to the object that is gone.
func renew(m metav1.Object) {
	m.SetUID("")
	m.SetResourceVersion("")
	m.SetGeneration(0)
	m.SetCreationTimestamp(metav1.Time{})
	m.SetManagedFields(nil)
	m.SetOwnerReferences(nil) // Kubernetes would collect it again if its owner is gone
	annotations := m.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[revision.KeepAnnotation] = "restored"
	m.SetAnnotations(annotations)
}
