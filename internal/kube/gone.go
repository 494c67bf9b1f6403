package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// gone tells that a pod or service account does not exist any more. A list that follows a broken watch does not say what went
// meanwhile, so then everything may be gone, "".
func (c *Cluster) gone(uid types.UID) {
	if c.config.OnGone != nil {
		c.config.OnGone(uid)
	}
}

// accounts watches service accounts for nothing but their end. Nothing of them is kept.
func (c *Cluster) accounts() *cache.Reflector {
	accounts := c.config.Kubernetes.CoreV1().ServiceAccounts("")
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := accounts.List(ctx, o)
			c.accountsRead(ctx, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return accounts.Watch(ctx, o)
		},
	}
	return cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, c.config.Kubernetes), &corev1.ServiceAccount{}, goneSink{c},
		cache.ReflectorOptions{Name: "serviceaccounts"})
}

func (c *Cluster) accountsRead(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil && isDenied(err) {
		c.log.Warn("cannot watch service accounts: the review of a token is believed for up to ten minutes after its account is gone; `selvage install` grants it",
			"error", err)
	}
}

// goneSink is the store of a reflector of which only deletions matter.
type goneSink struct{ cluster *Cluster }

func (goneSink) Add(any) error    { return nil }
func (goneSink) Update(any) error { return nil }
func (g goneSink) Delete(obj any) error {
	if m, ok := obj.(metav1.Object); ok {
		g.cluster.gone(m.GetUID())
	}
	return nil
}

func (g goneSink) Replace([]any, string) error {
	g.cluster.gone("")
	return nil
}

func (goneSink) Resync() error { return nil }

// Transformer keeps of an account what tells it from others.
func (goneSink) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		a, ok := obj.(*corev1.ServiceAccount)
		if !ok {
			return obj, nil
		}
		return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: a.Namespace, Name: a.Name, UID: a.UID, ResourceVersion: a.ResourceVersion}}, nil
	}
}
