//go:build apiserver

package main

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// TestABadConfigMapIsToldOnIt: against the API server of SELVAGE_TEST_KUBECONFIG, a ConfigMap that cannot be used leaves the last
// good configuration in force and gets an Event that names the field, also when it is written again; one that is good again gets
// another.
func TestABadConfigMapIsToldOnIt(t *testing.T) {
	path := os.Getenv("SELVAGE_TEST_KUBECONFIG")
	if path == "" {
		t.Fatal("SELVAGE_TEST_KUBECONFIG is not set: it names the kubeconfig of an API server for tests, such as a lab's")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const namespace, revision = "selvage-test-injector", "canary"
	if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.CoreV1().Namespaces().Delete(context.Background(), namespace, metav1.DeleteOptions{})
	})
	maps := client.CoreV1().ConfigMaps(namespace)
	name := inject.ObjectName(inject.InjectorConfigMap, revision)
	write := func(config, annotation string) {
		t.Helper()
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"n": annotation}},
			Data: map[string]string{inject.InjectorKey: config, inject.ValuesKey: `{"revision":"canary"}`}}
		_, err := maps.Update(ctx, cm, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			_, err = maps.Create(ctx, cm, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	_ = maps.Delete(ctx, name, metav1.DeleteOptions{})
	events, err := client.CoreV1().Events(namespace).Watch(ctx, metav1.ListOptions{FieldSelector: "involvedObject.kind=ConfigMap,involvedObject.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
	// An Event that is told again is the same object, changed: only new ones are read.
	next := func() *corev1.Event {
		t.Helper()
		for e := range events.ResultChan() {
			if event, ok := e.Object.(*corev1.Event); ok && e.Type == watch.Added {
				return event
			}
		}
		t.Fatal("there came no Event")
		return nil
	}

	o := options{namespace: namespace, revision: revision, clusterID: inject.DefaultCluster}
	recorder, stop := newRecorder(client, o)
	defer stop()
	registry := prometheus.NewRegistry()
	i, err := newInjection(client, o, recorder, registry, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	changed := make(chan struct{}, 10)
	i.changed = func() { changed <- struct{}{} }
	write("policy: enabled", "")
	running, halt := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); _ = i.run(running) }()
	go func() { _ = i.lead(running) }()
	defer func() { halt(); <-done }()
	<-changed
	good := i.config()

	write("policy: sometimes", "")
	event := next()
	if event.Type != corev1.EventTypeWarning || event.Reason != "InvalidConfiguration" || event.InvolvedObject.UID == "" ||
		!strings.Contains(event.Message, `data.config.policy: it is "sometimes"`) || !strings.Contains(event.Message, "last good") {
		t.Errorf("the Event is %s %s: %s", event.Type, event.Reason, event.Message)
	}
	if i.config() != good || gauge(t, registry) != 1 {
		t.Errorf("the bad configuration replaced the good one, or the gauge is %v", gauge(t, registry))
	}
	write("policy: sometimes", "the same, written again")
	write("policy: [", "")
	event = next() // would be that of the repetition
	if !strings.Contains(event.Message, "data.config") || strings.Contains(event.Message, "sometimes") || event.Reason != "InvalidConfiguration" {
		t.Errorf("the Event is %s %s: %s", event.Type, event.Reason, event.Message)
	}
	write("policy: disabled", "")
	<-changed
	event = next()
	if event.Type != corev1.EventTypeNormal || event.Reason != "ConfigurationAccepted" {
		t.Errorf("the Event is %s %s: %s", event.Type, event.Reason, event.Message)
	}
	if i.config() == good || gauge(t, registry) != 0 {
		t.Errorf("the new configuration is not in force, or the gauge is %v", gauge(t, registry))
	}
}

func gauge(t *testing.T, registry *prometheus.Registry) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil || len(families) != 1 {
		t.Fatalf("metrics %v, error %v", families, err)
	}
	return families[0].GetMetric()[0].GetGauge().GetValue()
}
