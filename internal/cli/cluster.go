package cli

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// connection is one API server.
type connection struct {
	config     *rest.Config
	kubernetes kubernetes.Interface
	dynamic    dynamic.Interface
}

// requestTimeout bounds one request to the API server; admission alone may take 30 s.
const requestTimeout = 40 * time.Second

func (a *app) clientConfig() clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = a.kubeconfig
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: a.context})
}

// connect reads the kubeconfig; it does not talk to the API server yet.
func (a *app) connect() (*connection, error) {
	loader := a.clientConfig()
	if a.context != "" {
		if err := contextExists(loader, a.context); err != nil {
			return nil, err
		}
	}
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, &kubeconfigError{path: a.kubeconfig, program: a.name(), variable: a.Getenv("KUBECONFIG"), err: err}
	}
	a.host = config.Host
	config.QPS, config.Timeout = -1, requestTimeout // the API server limits by itself, fairly
	config.UserAgent = "selvage"
	config.WarningHandler = rest.NewWarningWriter(a.Stderr, rest.WarningWriterOptions{Deduplicate: true})
	c := &connection{config: config}
	if c.kubernetes, err = kubernetes.NewForConfig(config); err != nil {
		return nil, &kubeconfigError{path: a.kubeconfig, program: a.name(), err: err}
	}
	if c.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, &kubeconfigError{path: a.kubeconfig, program: a.name(), err: err}
	}
	return c, nil
}

func contextExists(loader clientcmd.ClientConfig, name string) error {
	raw, unreadable := loader.RawConfig() // what cannot be read is reported by whoever uses it
	if unreadable != nil || raw.Contexts[name] != nil {
		return nil //nolint:nilerr // see above
	}
	return fmt.Errorf("the kubeconfig has no context %q: it has %s", name, contextNames(raw))
}

func contextNames(raw clientcmdapi.Config) string {
	names := slices.Sorted(maps.Keys(raw.Contexts))
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// kubeconfigError is a kubeconfig that leads nowhere.
type kubeconfigError struct {
	path, program string
	variable      string // what KUBECONFIG is set to, "" when it is not
	err           error
}

// isEmpty reports whether there is none at all.
func (e *kubeconfigError) isEmpty() bool { return clientcmd.IsEmptyConfig(e.err) }

func (e *kubeconfigError) Unwrap() error { return e.err }

func (e *kubeconfigError) Error() string {
	switch {
	case e.path != "" && errors.Is(e.err, fs.ErrNotExist):
		return fmt.Sprintf("there is no kubeconfig %s: --kubeconfig takes the path of an existing file", e.path)
	case e.isEmpty() && e.variable != "":
		return fmt.Sprintf("KUBECONFIG is %s, and no such file holds a cluster: set it to an existing kubeconfig, or make a lab on this machine with `%s up`", e.variable, e.program)
	case e.isEmpty():
		return fmt.Sprintf("no cluster is configured: set KUBECONFIG or --kubeconfig, or make a lab on this machine with `%s up`", e.program)
	}
	return fmt.Sprintf("the kubeconfig cannot be used: %s; `kubectl config view` shows it", strings.TrimPrefix(e.err.Error(), "invalid configuration: "))
}

// explain is the one line that a user sees of an error: what went wrong and what to do next.
func (a *app) explain(err error) string {
	var (
		dial      *net.OpError
		transport *url.Error
		unknownCA x509.UnknownAuthorityError
		wrongName x509.HostnameError
	)
	which := "the API server at " + a.host
	choose := "--context and --kubeconfig choose another cluster"
	switch {
	case apierrors.IsUnauthorized(err):
		return fmt.Sprintf("%s does not accept the credentials of the kubeconfig: log in again; %s", which, choose)
	case apierrors.IsForbidden(err):
		return fmt.Sprintf("%v; use a context whose user may (--context), or ask a cluster administrator for this right", err)
	case errors.As(err, &unknownCA), errors.As(err, &wrongName):
		return fmt.Sprintf("%s shows a certificate that the kubeconfig does not trust (%v): is it the kubeconfig of this cluster? %s", which, cause(err), choose)
	case errors.As(err, &dial), errors.As(err, &transport) && (transport.Timeout() || errors.Is(err, context.DeadlineExceeded)):
		return fmt.Sprintf("cannot reach %s: %v; is it running? %s", which, cause(err), choose)
	}
	return err.Error()
}

// cause is the innermost error, without the addresses and verbs around it.
func cause(err error) error {
	var call *os.SyscallError
	if errors.As(err, &call) {
		return call.Err
	}
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
