package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/kube"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// injection keeps the injector's configuration as the ConfigMaps say it. A bad ConfigMap never replaces the last good one.
type injection struct {
	cluster  kubernetes.Interface
	options  options
	log      *slog.Logger
	problems problemLog // used by run alone
	current  atomic.Pointer[inject.Config]
}

func (i *injection) config() *inject.Config { return i.current.Load() }

func (i *injection) ready() error {
	if i.config() == nil {
		return errors.New("the injector's configuration was not read yet")
	}
	return nil
}

func (i *injection) run(ctx context.Context) error {
	meshName := inject.ObjectName("istio", i.options.revision)
	injectorName := inject.ObjectName("istio-sidecar-injector", i.options.revision)
	return kube.FollowConfigMaps(ctx, i.cluster, i.options.namespace, []string{meshName, injectorName}, func(found map[string]*corev1.ConfigMap) {
		var mesh, config, values string
		if cm := found[meshName]; cm != nil {
			mesh = cm.Data["mesh"]
		}
		if cm := found[injectorName]; cm != nil {
			config, values = cm.Data["config"], cm.Data["values"]
		} else if i.config() != nil {
			i.log.Warn("the injector's ConfigMap is gone; the last configuration stays in force", "configMap", injectorName)
			return
		}
		i.use(mesh, config, values)
	})
}

func (i *injection) use(mesh, config, values string) {
	next, problems := inject.ParseConfig([]byte(mesh), []byte(config), []byte(values))
	if next != nil {
		var other []diag.Problem
		next, other = inCluster(next, i.options.clusterID)
		problems = append(problems, other...)
	}
	i.problems.report(problems)
	if next == nil {
		i.log.Error("the injector's configuration cannot be used; the last good one stays in force")
		return
	}
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
