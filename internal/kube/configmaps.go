package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// FollowConfigMaps reads the named ConfigMaps of a namespace and calls changed with all that exist, by name: once when each
// was looked for, then after every change. Calls come one after the other. It blocks until ctx ends. Each name is a watch of
// its own, so nothing else of the namespace is read.
func FollowConfigMaps(ctx context.Context, client kubernetes.Interface, namespace string, names []string, changed func(map[string]*corev1.ConfigMap)) error {
	wake := make(chan struct{}, 1)
	poke := func() {
		select {
		case wake <- struct{}{}:
		default: // one wake-up is already waiting, and it will see this change too
		}
	}
	var synced []cache.InformerSynced
	var stores []cache.Store
	for _, name := range names {
		factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace),
			informers.WithTweakListOptions(func(o *metav1.ListOptions) {
				o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
			}))
		informer := factory.Core().V1().ConfigMaps().Informer()
		handler, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { poke() },
			UpdateFunc: func(_, _ any) { poke() },
			DeleteFunc: func(any) { poke() },
		})
		if err != nil {
			return fmt.Errorf("follow ConfigMap %s/%s: %w", namespace, name, err)
		}
		synced, stores = append(synced, handler.HasSynced), append(stores, informer.GetStore())
		factory.Start(ctx.Done())
		defer factory.Shutdown()
	}
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil // ctx ended first
	}
	for {
		found := map[string]*corev1.ConfigMap{}
		for _, store := range stores {
			for _, item := range store.List() {
				if cm, ok := item.(*corev1.ConfigMap); ok {
					found[cm.Name] = cm
				}
			}
		}
		changed(found)
		select {
		case <-wake:
		case <-ctx.Done():
			return nil
		}
	}
}
