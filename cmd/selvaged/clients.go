package main

import (
	"fmt"

	istioclient "istio.io/client-go/pkg/clientset/versioned"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/selvage-mesh/selvage/internal/version"
)

// What this process asks of the API server at most, in requests a second and at once. It is for the sake of the API server when a
// thousand namespaces get another root; what comes by watch is not counted.
const (
	requestsPerSecond = 400
	requestsAtOnce    = 800
)

// clients are how this process speaks to the API server. They share one connection.
type clients struct {
	core  kubernetes.Interface // Kubernetes' own kinds, in protobuf, which costs both sides a fraction of JSON
	istio istioclient.Interface
	own   dynamic.Interface // Selvage's own kinds, and Istio's as they stand there
	// reviews asks about tokens without waiting behind other requests: how many are open at once is the CA's to limit.
	reviews authenticationclient.TokenReviewsGetter
}

// newClients reads the kubeconfig, or the pod's own account.
func newClients(o options) (clients, error) {
	var config *rest.Config
	var err error
	if o.kubeconfig == "" {
		config, err = rest.InClusterConfig()
	} else {
		config, err = clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	}
	if err != nil {
		return clients{}, fmt.Errorf("find the cluster: %w (outside of a cluster give --kubeconfig)", err)
	}
	config.UserAgent = "selvaged/" + version.Version
	config.QPS, config.Burst = requestsPerSecond, requestsAtOnce
	istio, err := istioclient.NewForConfig(config)
	if err != nil {
		return clients{}, fmt.Errorf("make a client of Istio's kinds: %w", err)
	}
	own, err := dynamic.NewForConfig(config)
	if err != nil {
		return clients{}, fmt.Errorf("make a client of our own kinds: %w", err)
	}
	config = rest.CopyConfig(config) // custom resources are JSON
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	core, err := kubernetes.NewForConfig(config)
	if err != nil {
		return clients{}, fmt.Errorf("make a Kubernetes client: %w", err)
	}
	config = rest.CopyConfig(config)
	config.QPS = -1
	reviews, err := authenticationclient.NewForConfig(config)
	if err != nil {
		return clients{}, fmt.Errorf("make a client for token reviews: %w", err)
	}
	return clients{core, istio, own, reviews}, nil
}
