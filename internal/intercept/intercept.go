package intercept

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
)

// Result says what Apply did.
type Result struct {
	Backend Backend
	IPv6    bool // rules for IPv6 are installed too: the pod has an IPv6 address
	Changed bool // false when everything was right before
	// Warnings are what a person should know though the rules are in place.
	Warnings []string
}

// Apply installs the rules in the network namespace of this process, with the backend given or, when it is "", with the best one:
// that which has our rules already, else iptables-legacy when the namespace uses it, else the first of iptables-nft,
// iptables-legacy and nft that works. Running it again changes nothing. The error is one line with the next step.
func Apply(ctx context.Context, o Options, use Backend) (Result, error) {
	if err := o.Validate(); err != nil {
		return Result{}, fmt.Errorf("check options: %w", err)
	}
	families, err := podFamilies(ruled)
	if err != nil {
		return Result{}, err
	}
	result := Result{IPv6: len(families) > 1}
	if result.IPv6 {
		if err := addLoopbackAddress(ipv6.passthrough.Addr()); err != nil {
			result.Warnings = append(result.Warnings, fmt.Sprintf("inbound IPv6 connections will fail: %v", err))
		}
	}
	var failures []error
	for _, b := range order(ctx, o, use) {
		result.Changed, err = b.install(ctx, o, families)
		if err == nil {
			result.Backend = b
			break
		}
		failures = append(failures, fmt.Errorf("%s: %w", b, err))
		if err := b.remove(ctx, o); err != nil { // IPv4 may have succeeded before IPv6 failed
			failures = append(failures, fmt.Errorf("%s: take back: %w", b, err))
		}
	}
	if result.Backend == "" {
		return Result{}, explainInstall(errors.Join(failures...))
	}
	for _, other := range []Backend{IPTablesNFT, IPTablesLegacy, NFT} {
		if other == result.Backend || !other.present(ctx, o) {
			continue
		}
		result.Changed = true
		if err := other.remove(ctx, o); err != nil {
			return Result{}, fmt.Errorf("remove the rules that an earlier run installed with %s: %w", other, err)
		}
	}
	return result, nil
}

// order lists the backends to try, the best first.
func order(ctx context.Context, o Options, use Backend) []Backend {
	if use != "" {
		return []Backend{use}
	}
	var first, then []Backend
	for _, b := range []Backend{IPTablesNFT, IPTablesLegacy, NFT} {
		switch {
		case !b.installed():
		case b.present(ctx, o):
			first = append(first, b)
		case b == IPTablesLegacy && legacyInUse(ipv4):
			then = append([]Backend{b}, then...)
		default:
			then = append(then, b)
		}
	}
	return append(first, then...)
}

// Remove takes away what Apply installed, with whichever backend.
func Remove(ctx context.Context, o Options) error {
	for _, b := range []Backend{IPTablesNFT, IPTablesLegacy, NFT} {
		if err := b.remove(ctx, o); err != nil {
			return explainInstall(fmt.Errorf("%s: %w", b, err))
		}
	}
	return nil
}

// Render shows what Apply would install, as input for iptables-restore and ip6tables-restore, or for nft. "" is iptables.
func Render(o Options, b Backend) (string, error) {
	if err := o.Validate(); err != nil {
		return "", fmt.Errorf("check options: %w", err)
	}
	if b == NFT {
		return nftRuleset(o), nil
	}
	return "# IPv4\n" + restoreInput(natTable{}, chains(o, ipv4)) + "# IPv6, when the pod has an IPv6 address\n" + restoreInput(natTable{}, chains(o, ipv6)), nil
}

// ruled is an IPv6 address that rules are needed for: any but loopback and our own. A link-local one is enough for a neighbour to
// reach an application that listens on ::, also where the cluster has no IPv6.
func ruled(a netip.Addr) bool { return !a.IsLoopback() && a.WithZone("") != ipv6.passthrough.Addr() }

// routable is an IPv6 address that Envoy serves, so that a connection through the rules can be tried.
func routable(a netip.Addr) bool { return a.IsGlobalUnicast() && a != ipv6.passthrough.Addr() }

// podFamilies are the IP versions that the pod has such addresses of, IPv4 always.
func podFamilies(counts func(netip.Addr) bool) ([]family, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the pod's addresses: %w", err)
	}
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Is6() && counts(prefix.Addr()) {
			return []family{ipv4, ipv6}, nil
		}
	}
	return []family{ipv4}, nil
}

const netAdmin = 12 // CAP_NET_ADMIN, capability.h

// explainInstall puts the cause that a person can act on before what the commands said.
func explainInstall(err error) error {
	said := strings.ReplaceAll(err.Error(), "\n", "; ")
	var why string
	switch {
	case os.Geteuid() != 0:
		why = "this program does not run as root: run the init container with runAsUser 0"
	case !hasCapability(netAdmin):
		why = "the container lacks the capability NET_ADMIN: add it to the init container, and check that the namespace's Pod Security level allows it"
	case errors.Is(err, exec.ErrNotFound):
		why = "the image lacks iptables and nft: use the proxy image of this mesh for the init container"
	case strings.Contains(said, "No chain/target/match by that name"), strings.Contains(said, "missing kernel module"),
		strings.Contains(said, "Table does not exist"), strings.Contains(said, "table `nat'"), strings.Contains(said, "No such file or directory"):
		why = "the node's kernel lacks a module for interception: load iptable_nat, nf_nat, xt_REDIRECT and xt_owner on the node (modprobe, or /etc/modules-load.d)"
	case strings.Contains(said, "Permission denied"), strings.Contains(said, "Operation not permitted"):
		why = "the kernel does not let this container change the packet filter: a security module or user namespace forbids it in spite of NET_ADMIN"
	case strings.Contains(said, "Resource temporarily unavailable"), strings.Contains(said, "xtables lock"):
		why = "another program holds the xtables lock of this network namespace: it will be free when that ends"
	default:
		return fmt.Errorf("install interception rules: %s", said)
	}
	return fmt.Errorf("install interception rules: %s (%s)", why, said)
}

// hasCapability reads the effective capabilities of this process.
func hasCapability(bit uint) bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true // not known: let the commands say
	}
	for line := range strings.Lines(string(status)) {
		var set uint64
		if _, err := fmt.Sscanf(line, "CapEff: %x", &set); err == nil {
			return set&(1<<bit) != 0
		}
	}
	return true
}
