package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/kube"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// injection keeps the injector's configuration as the ConfigMaps say it. A bad ConfigMap never replaces the last good one; it is
// told by an Event on the ConfigMap, once, by the replica that leads.
type injection struct {
	cluster  kubernetes.Interface
	options  options
	log      *slog.Logger
	problems problemLog // used by run alone
	events   record.EventRecorder
	changed  func() // called after another configuration is in force; may be nil
	current  atomic.Pointer[inject.Config]
	invalid  prometheus.Gauge

	mu      sync.Mutex
	seen    *documents                        // what was read last
	bad     map[string]corev1.ObjectReference // ConfigMaps that cannot be used
	message map[string]string                 // why, by the same names
	told    map[string]string                 // what an Event says already
	leading bool
}

// documents are the parts of the two ConfigMaps that count, and where they stand.
type documents struct{ mesh, config, values string }

func newInjection(cluster kubernetes.Interface, o options, events record.EventRecorder, metrics prometheus.Registerer, log *slog.Logger) (*injection, error) {
	i := &injection{cluster: cluster, options: o, log: log, problems: problemLog{log: log}, events: events, told: map[string]string{},
		invalid: prometheus.NewGauge(prometheus.GaugeOpts{Name: "selvage_injector_config_invalid",
			Help: "1 while the injector's ConfigMaps cannot be used and the last good configuration stays in force, else 0."})}
	if err := metrics.Register(i.invalid); err != nil {
		return nil, fmt.Errorf("register metrics of the injector's configuration: %w", err)
	}
	return i, nil
}

func (i *injection) config() *inject.Config { return i.current.Load() }

func (i *injection) ready() error {
	if i.config() == nil {
		return errors.New("the injector's configuration was not read yet, or cannot be used: the control plane's log says why")
	}
	return nil
}

func (i *injection) run(ctx context.Context) error {
	meshName := inject.ObjectName(inject.MeshConfigMap, i.options.revision)
	injectorName := inject.ObjectName(inject.InjectorConfigMap, i.options.revision)
	return kube.FollowConfigMaps(ctx, i.cluster, i.options.namespace, []string{meshName, injectorName}, func(found map[string]*corev1.ConfigMap) {
		var d documents
		if cm := found[meshName]; cm != nil {
			d.mesh = cm.Data[inject.MeshKey]
		}
		if cm := found[injectorName]; cm != nil {
			d.config, d.values = cm.Data[inject.InjectorKey], cm.Data[inject.ValuesKey]
		} else if i.config() != nil {
			if i.seen != nil {
				i.log.Warn("the injector's ConfigMap is gone; the last configuration stays in force", "configMap", injectorName)
			}
			i.seen = nil // should it come back, it is read anew
			return
		}
		if i.seen != nil && *i.seen == d {
			return // another field, or the same again
		}
		i.seen = &d
		i.use(d, found)
	})
}

func (i *injection) use(d documents, found map[string]*corev1.ConfigMap) {
	next, problems := inject.ParseConfig([]byte(d.mesh), []byte(d.config), []byte(d.values))
	if next != nil {
		var other []diag.Problem
		next, other = inCluster(next, i.options.clusterID)
		problems = append(problems, other...)
	}
	i.problems.report(problems)
	i.judge(next == nil, problems, found)
	if next == nil {
		i.invalid.Set(1)
		i.log.Error("the injector's configuration cannot be used; the last good one stays in force", "lastGood", i.config() != nil)
		return
	}
	i.invalid.Set(0)
	if info, err := i.cluster.Discovery().ServerVersion(); err == nil {
		var major, minor int
		if _, err := fmt.Sscanf(info.Major+"."+info.Minor, "%d.%d", &major, &minor); err == nil {
			next = next.ForKubernetes(major, minor)
		}
	} else {
		i.log.Warn("the API server's version cannot be read; sidecars stay as the configuration says", "error", err)
	}
	i.current.Store(next)
	i.log.Info("injector configuration in force")
	if i.changed != nil {
		i.changed()
	}
}

// judge notes which ConfigMaps cannot be used, and why, and tells it where this replica leads.
func (i *injection) judge(refused bool, problems []diag.Problem, found map[string]*corev1.ConfigMap) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.bad, i.message = map[string]corev1.ObjectReference{}, map[string]string{}
	for _, p := range problems {
		cm := found[i.nameOf(p)]
		if !refused || p.Severity != diag.Error || cm == nil {
			continue
		}
		i.bad[cm.Name] = corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: cm.Namespace, Name: cm.Name, UID: cm.UID, ResourceVersion: cm.ResourceVersion}
		if i.message[cm.Name] != "" {
			i.message[cm.Name] += "; "
		}
		i.message[cm.Name] += inject.Describe(diag.Problem{Code: p.Code, Object: p.Object, Field: p.Field, Detail: p.Detail, Hint: p.Hint})
	}
	if i.leading {
		i.tell(found)
	}
}

// nameOf is the ConfigMap that a problem is about. A document that cannot be parsed does not say its revision.
func (i *injection) nameOf(p diag.Problem) string {
	base := inject.MeshConfigMap
	if strings.HasPrefix(p.Object.Name, inject.InjectorConfigMap) {
		base = inject.InjectorConfigMap
	}
	return inject.ObjectName(base, i.options.revision)
}

// lead makes this replica the one that writes Events, until ctx ends.
func (i *injection) lead(ctx context.Context) error {
	i.mu.Lock()
	i.leading = true
	i.tell(nil)
	i.mu.Unlock()
	<-ctx.Done()
	i.mu.Lock()
	i.leading = false
	clear(i.told) // another one tells now
	i.mu.Unlock()
	return nil
}

// tell writes an Event for each ConfigMap that became bad, in another way than before, or good again. i.mu is held.
func (i *injection) tell(found map[string]*corev1.ConfigMap) {
	const longest = 1000 // bytes; Events are not for documents
	for name, cm := range i.bad {
		message := "injection goes on with the last good configuration: " + i.message[name]
		if i.config() == nil {
			message = "no pod can be injected: " + i.message[name]
		}
		if len(message) > longest {
			message = strings.ToValidUTF8(message[:longest], "") + "…"
		}
		if i.told[name] != message {
			i.told[name] = message
			i.events.Event(&cm, corev1.EventTypeWarning, "InvalidConfiguration", message)
		}
	}
	for name := range i.told {
		if _, still := i.bad[name]; still {
			continue
		}
		delete(i.told, name)
		if cm := found[name]; cm != nil {
			i.events.Event(&corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: cm.Namespace, Name: cm.Name, UID: cm.UID, ResourceVersion: cm.ResourceVersion},
				corev1.EventTypeNormal, "ConfigurationAccepted", "the configuration can be used again and is in force")
		}
	}
}

// inCluster is c for pods of the control plane's cluster where its values name none. Where they name another, the sidecars say
// that they are of that one, and this control plane's CA refuses their tokens.
func inCluster(c *inject.Config, cluster string) (*inject.Config, []diag.Problem) {
	switch named := c.ClusterID(); named {
	case "":
		return c.ForCluster(cluster, ""), nil
	case cluster:
		return c, nil
	default:
		return c, []diag.Problem{{
			Code: diag.InvalidInjectConfig, Severity: diag.Warning,
			Object: ref.Ref{Kind: "ConfigMap", Namespace: c.Namespace(), Name: inject.ObjectName(inject.InjectorConfigMap, c.Revision())},
			Field:  "data.values.global.multiCluster.clusterName",
			Detail: fmt.Sprintf("it is %q, and this control plane serves cluster %q: sidecars get no certificate", named, cluster),
			Hint:   "set it to " + cluster + ", or start selvaged with --cluster-id=" + named,
		}}
	}
}

// problemLog logs each problem when it appears, and not again while it stays: every stage tells all that are present.
type problemLog struct {
	log     *slog.Logger
	present map[diag.Problem]bool
}

func (l *problemLog) report(problems []diag.Problem) {
	present := make(map[diag.Problem]bool, len(problems))
	for _, p := range problems {
		present[p] = true
		if l.present[p] {
			continue
		}
		level := slog.LevelInfo
		switch p.Severity {
		case diag.Error:
			level = slog.LevelError
		case diag.Warning:
			level = slog.LevelWarn
		case diag.Info:
		}
		l.log.Log(context.Background(), level, "problem", "code", p.Code, "object", p.Object.String(), "field", p.Field, "detail", p.Detail, "hint", p.Hint)
	}
	for p := range l.present {
		if !present[p] {
			l.log.Info("problem mended", "code", p.Code, "object", p.Object.String(), "field", p.Field)
		}
	}
	l.present = present
}
