// Command selvaged is the control plane: it injects sidecars, issues certificates and pushes configuration. Read run from top
// to bottom: it is the whole flow, from the cluster to the proxies.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/selvage-mesh/selvage/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "selvaged: "+err.Error())
		os.Exit(2)
	}
}

func command() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:           "selvaged",
		Short:         "The control plane of the Selvage service mesh",
		Long:          "The control plane of the Selvage service mesh: injection webhook, certificate authority and xDS.\nEvery flag is also an environment variable: --xds-addr is SELVAGE_XDS_ADDR.",
		Example:       "  selvaged                              # in a cluster\n  selvaged --kubeconfig ~/.kube/config  # outside of it",
		Version:       version.Version,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd, os.LookupEnv); err != nil {
				return err
			}
			log, err := o.logger()
			if err != nil {
				return err
			}
			return run(cmd.Context(), o, log)
		},
	}
	o.register(cmd)
	return cmd
}

func flagNames(cmd *cobra.Command) (names []string) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" && f.Name != "version" {
			names = append(names, f.Name)
		}
	})
	return names
}
