package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

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
		return nil, &kubeconfigError{path: a.kubeconfig, program: a.called(), variable: a.Getenv("KUBECONFIG"), err: err}
	}
	a.host, a.inLab = config.Host, isLab(loader, a.context)
	config.QPS, config.Timeout = -1, requestTimeout // the API server limits by itself, fairly
	config.UserAgent = "selvage"
	config.Wrap(answered)
	config.WarningHandler = rest.NewWarningWriter(a.Stderr, rest.WarningWriterOptions{Deduplicate: true})
	c := &connection{config: config}
	if c.kubernetes, err = kubernetes.NewForConfig(config); err != nil {
		return nil, &kubeconfigError{path: a.kubeconfig, program: a.called(), err: err}
	}
	if c.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, &kubeconfigError{path: a.kubeconfig, program: a.called(), err: err}
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

// isLab reports whether the context is that of a lab's kubeconfig, as the lab names it.
func isLab(loader clientcmd.ClientConfig, chosen string) bool {
	raw, err := loader.RawConfig()
	return err == nil && cmp.Or(chosen, raw.CurrentContext) == labProgram
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
	if text := e.err.Error(); strings.HasSuffix(text, ": "+fs.ErrPermission.Error()) { // the client library keeps only the text
		return fmt.Sprintf("the kubeconfig may not be read: %s; run this as its owner, or give a copy with --kubeconfig", text)
	}
	if file, why, ok := unreadable(e.err.Error()); ok {
		return fmt.Sprintf("%s is no kubeconfig (%s): --kubeconfig and KUBECONFIG name another, `%s up` makes one with its lab", file, why, e.program)
	}
	return fmt.Sprintf("the kubeconfig cannot be used: %s; `kubectl config view` shows it", strings.TrimPrefix(e.err.Error(), "invalid configuration: "))
}

// unreadable takes apart what the client library says of a file that it cannot decode; it keeps only the text.
func unreadable(text string) (file, why string, ok bool) {
	rest, ok := strings.CutPrefix(text, `error loading config file "`)
	if !ok {
		return "", "", false
	}
	file, why, ok = strings.Cut(rest, `": `)
	why = strings.TrimPrefix(why, "couldn't get version/kind; ")
	if _, said, isJSON := strings.Cut(why, "json parse error: "); isJSON { // of what YAML took for a text, a list or the like
		why = strings.TrimPrefix(said, "json: ")
		if before, _, long := strings.Cut(why, " into Go value of type struct"); long {
			why = before + " as one"
		}
	}
	const longest = 200
	if len(why) > longest {
		why = strings.ToValidUTF8(why[:longest], "") + "…"
	}
	return file, oneLine(why), ok
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
