// Command selvage-agent runs beside every workload: as an init container it makes the pod's traffic pass through the proxy, as the
// sidecar it gets the workload's certificate, starts Envoy, connects it to the control plane and answers the kubelet.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/selvage-mesh/selvage/internal/version"
)

func main() {
	// Two signals are told apart: the first begins to take the proxy out of service, the second ends it at once.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if err := command(signals).ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "selvage-agent: "+err.Error())
		os.Exit(2)
	}
}

func command(signals <-chan os.Signal) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "selvage-agent",
		Short: "The sidecar's agent of the Selvage service mesh",
		Example: "  selvage-agent proxy sidecar             # in the sidecar container\n" +
			"  selvage-agent init                      # in the init container, as root with NET_ADMIN\n" +
			"  selvage-agent request GET stats         # asks this pod's Envoy",
		Version:       version.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q: run selvage-agent --help", args[0])
			}
			return cmd.Help()
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	cmd.AddCommand(proxyCommand(signals), initCommand(signals), waitCommand(signals), drainCommand(), requestCommand(), versionCommand())
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			commit := version.Commit()
			if commit == "" {
				commit = "unknown"
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "selvage-agent %s (commit %s, %s)\n", version.Version, commit, runtime.Version())
			return err
		},
	}
}

// untilSignal gives a context that the first signal ends.
func untilSignal(ctx context.Context, signals <-chan os.Signal) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case s := <-signals:
			cancel(fmt.Errorf("stopped by signal: %s", s))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(errors.New("done")) }
}
