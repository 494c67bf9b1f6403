package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/selvage-mesh/selvage/internal/intercept"
)

type initFlags struct {
	proxyPort, inboundPort                                 uint16
	uid, gid                                               uint32
	inboundPorts, excludeInboundPorts                      string
	outboundRanges, excludeOutboundRanges, excludeOutbound string
	includeOutbound, excludeInterfaces, rerouteInterfaces  string
	ownPorts, mode                                         string
	backend                                                string
	dryRun, remove, verify, verifyOnly, captureDNS         bool
}

func initCommand(signals <-chan os.Signal) *cobra.Command {
	var f initFlags
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make this pod's TCP traffic pass through its proxy",
		Long: "Make this pod's TCP traffic pass through its proxy: installs the packet filter's rules in this network namespace, in one\n" +
			"transaction, and checks them by a real connection. A second run changes nothing. It wants root and NET_ADMIN.",
		Example: "  selvage-agent init --exclude-inbound-ports 15020,15021,15090\n" +
			"  selvage-agent init --outbound-ranges 10.0.0.0/8 --exclude-outbound-ports 3306 --dry-run",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := untilSignal(cmd.Context(), signals)
			defer cancel()
			cmd.SetContext(ctx)
			return f.run(cmd, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.Uint16Var(&f.proxyPort, "proxy-port", 15001, "`port` of the proxy for outbound connections")
	flags.Uint16Var(&f.inboundPort, "inbound-port", 15006, "`port` of the proxy for inbound connections")
	flags.Uint32Var(&f.uid, "proxy-uid", 1337, "`user` that the proxy runs as: its connections are not captured")
	flags.Uint32Var(&f.gid, "proxy-gid", 1337, "`group` that the proxy runs as: its connections are not captured")
	flags.StringVar(&f.inboundPorts, "inbound-ports", "*", "inbound `ports` to capture, comma-separated; * is all, \"\" none")
	flags.StringVar(&f.excludeInboundPorts, "exclude-inbound-ports", "", "inbound `ports` not to capture")
	flags.StringVar(&f.outboundRanges, "outbound-ranges", "*", "destinations to capture, as `CIDRs`; * is all, \"\" none")
	flags.StringVar(&f.excludeOutboundRanges, "exclude-outbound-ranges", "", "destinations not to capture, as `CIDRs`")
	flags.StringVar(&f.excludeOutbound, "exclude-outbound-ports", "", "outbound `ports` not to capture")
	flags.StringVar(&f.includeOutbound, "include-outbound-ports", "", "outbound `ports` to capture also outside of --outbound-ranges")
	flags.StringVar(&f.excludeInterfaces, "exclude-interfaces", "", "network `devices` whose traffic is not captured")
	flags.StringVar(&f.rerouteInterfaces, "reroute-interfaces", "", "network `devices` of virtual machines or inner containers: what comes in by them counts as outbound")
	flags.StringVar(&f.ownPorts, "own-ports", "15020,15021,15090", "`ports` where the sidecar itself answers: they are never captured")
	flags.StringVar(&f.mode, "interception-mode", "REDIRECT", "how inbound traffic comes to the proxy: `REDIRECT`")
	flags.BoolVar(&f.captureDNS, "capture-dns", false, "lead DNS queries to the agent (not carried out yet)")
	flags.StringVar(&f.backend, "backend", "auto", "`name` of what programs the kernel: auto, iptables-nft, iptables-legacy, nft")
	flags.BoolVar(&f.dryRun, "dry-run", false, "print the rules and change nothing")
	flags.BoolVar(&f.remove, "remove", false, "take the rules away")
	flags.BoolVar(&f.verify, "verify", true, "check the rules by a real connection")
	flags.BoolVar(&f.verifyOnly, "verify-only", false, "install nothing, and check the rules that another program has installed; as the proxy's user, without NET_ADMIN")
	return cmd
}

func (f initFlags) run(cmd *cobra.Command, out io.Writer) error {
	ctx := cmd.Context()
	options, backend, err := f.options()
	if err != nil {
		return err
	}
	if f.dryRun {
		rules, err := intercept.Render(options, backend)
		if err != nil {
			return err
		}
		_, err = io.WriteString(out, rules)
		return err
	}
	if f.remove {
		return intercept.Remove(ctx, options)
	}
	if f.verifyOnly {
		return verifyOnly(ctx, options, out)
	}
	began := time.Now()
	result, err := intercept.Apply(ctx, options, backend)
	if err != nil {
		return err
	}
	families := "IPv4"
	if result.IPv6 {
		families = "IPv4 and IPv6"
	}
	did := "installed"
	if !result.Changed {
		did = "are in place already"
	}
	for _, warning := range result.Warnings {
		fmt.Fprintln(os.Stderr, "selvage-agent: warning: "+warning)
	}
	if !f.verify {
		fmt.Fprintf(out, "interception rules %s with %s for %s (not verified)\n", did, result.Backend, families)
		return nil
	}
	notes, err := intercept.Verify(ctx, options)
	for _, note := range notes {
		fmt.Fprintln(os.Stderr, "selvage-agent: note: "+note)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "interception rules %s with %s for %s, verified, in %s\n", did, result.Backend, families, time.Since(began).Round(time.Millisecond))
	return nil
}

// verifyOnly is the whole work of istio-validation: a CNI plugin has set up the interception before any container starts.
func verifyOnly(ctx context.Context, options intercept.Options, out io.Writer) error {
	notes, err := intercept.Verify(ctx, options)
	for _, note := range notes {
		fmt.Fprintln(os.Stderr, "selvage-agent: note: "+note)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, "interception is in place")
	return err
}

// options parses what injection passes on from a pod's annotations; each error names its flag.
func (f initFlags) options() (o intercept.Options, b intercept.Backend, err error) {
	o = intercept.Options{ProxyPort: f.proxyPort, InboundPort: f.inboundPort, ProxyUID: f.uid, ProxyGID: f.gid}
	var errs []error
	note := func(flag string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", flag, err))
		}
	}
	o.InboundPorts, err = intercept.ParsePorts(f.inboundPorts)
	note("inbound-ports", err)
	o.ExcludeInboundPorts, err = intercept.ParsePortList(f.excludeInboundPorts)
	note("exclude-inbound-ports", err)
	o.OutboundRanges, err = intercept.ParseRanges(f.outboundRanges)
	note("outbound-ranges", err)
	o.ExcludeOutboundRanges, err = intercept.ParseRangeList(f.excludeOutboundRanges)
	note("exclude-outbound-ranges", err)
	o.ExcludeOutboundPorts, err = intercept.ParsePortList(f.excludeOutbound)
	note("exclude-outbound-ports", err)
	o.IncludeOutboundPorts, err = intercept.ParsePortList(f.includeOutbound)
	note("include-outbound-ports", err)
	o.ExcludeInterfaces, err = intercept.ParseInterfaces(f.excludeInterfaces)
	note("exclude-interfaces", err)
	o.RerouteInterfaces, err = intercept.ParseInterfaces(f.rerouteInterfaces)
	note("reroute-interfaces", err)
	o.OwnPorts, err = intercept.ParsePortList(f.ownPorts)
	note("own-ports", err)
	if f.mode != "REDIRECT" {
		note("interception-mode", fmt.Errorf("%q: this version intercepts by REDIRECT only", f.mode))
	}
	if f.captureDNS {
		note("capture-dns", errors.New("this version does not answer DNS: queries would be sent to nobody"))
	}
	b, err = intercept.ParseBackend(f.backend)
	note("backend", err)
	note("proxy-port", o.Validate())
	return o, b, errors.Join(errs...)
}
