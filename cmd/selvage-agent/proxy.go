package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/selvage-mesh/selvage/internal/agent"
)

// proxyFlags are named as those of Istio's agent, because pods' annotations and people's charts set them.
type proxyFlags struct {
	logLevel, componentLevels, agentLevels string
	concurrency                            int
	domain                                 string
	envoy                                  string
	paths                                  agent.Paths
	ports                                  agent.Ports
}

func proxyCommand(signals <-chan os.Signal) *cobra.Command {
	f := proxyFlags{paths: agent.DefaultPaths(), ports: agent.DefaultPorts()}
	cmd := &cobra.Command{
		Use:   "proxy sidecar",
		Short: "Run Envoy as this pod's sidecar",
		Long: "Run Envoy as this pod's sidecar. What the pod and the mesh are is read from the environment that injection sets\n" +
			"(POD_NAME, POD_NAMESPACE, INSTANCE_IP, SERVICE_ACCOUNT, PROXY_CONFIG, CA_ADDR, TRUST_DOMAIN, ISTIO_META_…).",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] != "sidecar" {
				return fmt.Errorf("run `selvage-agent proxy sidecar`: this agent runs sidecars, not %q", strings.Join(args, " "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := f.config(cmd.Flags().Changed("concurrency"))
			if err != nil {
				return err
			}
			return runProxy(cmd.Context(), config, signals)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.logLevel, "proxyLogLevel", "warning", "Envoy's log `level`: trace, debug, info, warning, error, critical, off")
	flags.StringVar(&f.componentLevels, "proxyComponentLogLevel", "", "log levels of Envoy's `components`, such as http:debug,upstream:info")
	flags.StringVar(&f.agentLevels, "log_output_level", "default:info", "the agent's own log `level`: default:info, debug, …")
	flags.IntVar(&f.concurrency, "concurrency", 0, "Envoy's worker `threads`, 0 for one each CPU (default: PROXY_CONFIG, or the CPU limit)")
	flags.StringVar(&f.domain, "domain", "", "DNS `domain` of the pod (default: NAMESPACE.svc.cluster.local)")
	flags.StringVar(&f.envoy, "envoy", "/usr/local/bin/envoy", "`path` of Envoy")
	flags.StringVar(&f.paths.Bootstrap, "bootstrap", f.paths.Bootstrap, "`path` where Envoy's bootstrap is written")
	flags.StringVar(&f.paths.XDSSocket, "xds-socket", f.paths.XDSSocket, "`path` of the Unix socket for xDS")
	flags.StringVar(&f.paths.SDSSocket, "sds-socket", f.paths.SDSSocket, "`path` of the Unix socket for secrets")
	flags.StringVar(&f.paths.Token, "token", f.paths.Token, "`path` of the service account token")
	flags.StringVar(&f.paths.Root, "root-cert", f.paths.Root, "`path` of the mesh's root certificates")
	flags.StringVar(&f.paths.PodInfo, "podinfo", f.paths.PodInfo, "`folder` with the pod's labels and annotations")
	flags.Uint16Var(&f.ports.Admin, "admin-port", f.ports.Admin, "`port` of Envoy's admin interface, on localhost")
	flags.Uint16Var(&f.ports.EnvoyPrometheus, "prometheus-port", f.ports.EnvoyPrometheus, "`port` of Envoy's own metrics")
	flags.Uint16Var(&f.ports.Readiness, "readiness-port", f.ports.Readiness, "`port` of /healthz/ready")
	flags.Uint16Var(&f.ports.Agent, "agent-port", f.ports.Agent, "`port` of merged metrics and the application's probes")
	flags.Uint16Var(&f.ports.Status, "status-port", 0, "second `port` for all that is on --agent-port; 0 is none")
	flags.Uint16Var(&f.ports.Inbound, "inbound-port", f.ports.Inbound, "`port` that inbound traffic is redirected to")
	return cmd
}

func (f proxyFlags) config(concurrencySet bool) (agent.Config, error) {
	level, err := agentLevel(f.agentLevels)
	if err != nil {
		return agent.Config{}, err
	}
	config, err := agent.FromEnvironment(os.Environ())
	if err != nil {
		return agent.Config{}, err
	}
	config.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	config.Envoy = agent.Envoy{Path: f.envoy, LogLevel: f.logLevel, ComponentLogLevel: f.componentLevels}
	if concurrencySet {
		if f.concurrency < 0 {
			return agent.Config{}, fmt.Errorf("--concurrency %d: want a number of threads, or 0", f.concurrency)
		}
		config.Envoy.Concurrency = &f.concurrency
	}
	if f.domain != "" {
		config.Domain = f.domain
	}
	config.Paths, config.Ports = f.paths, f.ports
	return config, nil
}

// agentLevel reads Istio's form, SCOPE:LEVEL,…: the agent has one scope, so that of default or all counts.
func agentLevel(text string) (slog.Level, error) {
	found := "info"
	for item := range strings.SplitSeq(text, ",") {
		scope, level, scoped := strings.Cut(strings.TrimSpace(item), ":")
		switch {
		case !scoped:
			found = scope
		case scope == "default" || scope == "all":
			found = level
		}
	}
	switch found {
	case "debug":
		return slog.LevelDebug, nil
	case "info", "":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error", "fatal", "none":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("--log_output_level %q: want debug, info, warn, error or none, also as default:LEVEL", text)
}

func runProxy(ctx context.Context, config agent.Config, signals <-chan os.Signal) error {
	a, err := agent.New(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		<-signals
		cancel()
		<-signals
		a.Kill()
	}()
	return a.Run(ctx)
}
