package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/selvage-mesh/selvage/internal/ca"
	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/kube"
	"github.com/selvage-mesh/selvage/internal/reconcile"
	"github.com/selvage-mesh/selvage/internal/ref"
)

const (
	// defaultTLSSecret is where istio-csr has cert-manager put the control plane's own certificate.
	defaultTLSSecret = "istiod-tls"
	// trustManagerKey is the key of a ConfigMap of roots that trust-manager and cert-manager write.
	trustManagerKey = "ca.crt"
	// rootsPoll is how often a file of roots is read: the kubelet exchanges it under a symbolic link.
	rootsPoll = 2 * time.Second
)

// elsewhere is the authority outside of this process that the flags name, nil for none.
func (o *options) elsewhere(client kubernetes.Interface) (*ca.Elsewhere, error) {
	e := &ca.Elsewhere{Address: o.caAddress, Signer: o.caSigner, ServingSecret: o.caTLSSecret}
	switch {
	case o.caAddress == "" && o.caSigner == "":
		if o.caRoots != "" || o.caTLSSecret != "" {
			return nil, errors.New("--ca-roots and --ca-tls-secret are for an authority elsewhere: give --ca-address or --ca-signer")
		}
		return nil, nil //nolint:nilnil // there is none
	case o.caAddress != "" && o.caSigner != "":
		return nil, errors.New("give --ca-address or --ca-signer, not both: one authority signs for the mesh")
	case o.caAddress != "":
		if host, port, err := net.SplitHostPort(o.caAddress); err != nil || host == "" || port == "" {
			return nil, fmt.Errorf("--ca-address %q: want HOST:PORT, such as cert-manager-istio-csr.cert-manager.svc:443", o.caAddress)
		}
		if e.ServingSecret == "" {
			e.ServingSecret = defaultTLSSecret
		}
	case !strings.Contains(o.caSigner, "/"):
		return nil, fmt.Errorf("--ca-signer %q: want the name of a signer of Kubernetes, such as example.com/mesh", o.caSigner)
	}
	switch name := o.rootsName(); {
	case filepath.IsAbs(name):
		e.RootsAt = ref.Ref{Kind: "File", Name: name}
		e.Roots = func(ctx context.Context, use func([]byte, error)) error { return followFile(ctx, name, use) }
	case name != "":
		e.RootsAt = ref.Ref{Kind: "ConfigMap", Namespace: o.namespace, Name: name}
		e.Roots = followKey(client, o.namespace, name, rootsOf)
	default:
		name := inject.ObjectName(inject.MeshConfigMap, o.revision)
		e.RootsAt = ref.Ref{Kind: "ConfigMap", Namespace: o.namespace, Name: name}
		e.Roots = followKey(client, o.namespace, name, func(cm *corev1.ConfigMap) ([]byte, error) { return signerRoots(cm, o.caSigner) })
	}
	return e, nil
}

// rootsName is the ConfigMap or file of the roots, "" for the mesh configuration.
func (o *options) rootsName() string {
	if o.caRoots == "" && o.caAddress != "" {
		return reconcile.RootConfigMap
	}
	return o.caRoots
}

// distributes reports whether this control plane puts the roots into every namespace: not where they come from there.
func (o *options) distributes() bool { return o.rootsName() != reconcile.RootConfigMap }

// rootsOf reads a ConfigMap of roots.
func rootsOf(cm *corev1.ConfigMap) ([]byte, error) {
	for _, key := range []string{reconcile.RootKey, trustManagerKey} {
		if text := cm.Data[key]; text != "" {
			return []byte(text), nil
		}
	}
	return nil, fmt.Errorf("it has neither of the keys %s and %s", reconcile.RootKey, trustManagerKey)
}

// signerRoots are the roots of a signer in the mesh configuration (meshConfig.caCertificates).
func signerRoots(cm *corev1.ConfigMap, signer string) ([]byte, error) {
	settings, _ := inject.ParseSettings([]byte(cm.Data[inject.MeshKey]), nil, nil) // its problems are told by who uses the rest
	var roots [][]byte
	for _, c := range settings.Mesh.GetCaCertificates() {
		if slices.Contains(c.GetCertSigners(), signer) && c.GetPem() != "" {
			roots = append(roots, []byte(c.GetPem()))
		}
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("key %s has no caCertificates with pem and certSigners %s", inject.MeshKey, signer)
	}
	return bytes.Join(roots, []byte("\n")), nil
}

// followKey follows what a ConfigMap holds.
func followKey(client kubernetes.Interface, namespace, name string, read func(*corev1.ConfigMap) ([]byte, error)) func(context.Context, func([]byte, error)) error {
	return func(ctx context.Context, use func([]byte, error)) error {
		return kube.FollowConfigMaps(ctx, client, namespace, []string{name}, func(found map[string]*corev1.ConfigMap) {
			cm := found[name]
			if cm == nil {
				use(nil, errors.New("it does not exist"))
				return
			}
			use(read(cm))
		})
	}
}

// followFile reads a file again and again, and tells when it is another.
func followFile(ctx context.Context, path string, use func([]byte, error)) error {
	ticker := time.NewTicker(rootsPoll)
	defer ticker.Stop()
	var last []byte
	var failed string
	for first := true; ; first = false {
		data, err := os.ReadFile(path)
		switch {
		case err != nil && (first || err.Error() != failed):
			failed = err.Error()
			use(nil, err)
		case err == nil && (first || failed != "" || !bytes.Equal(data, last)):
			last, failed = data, ""
			use(data, nil)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
