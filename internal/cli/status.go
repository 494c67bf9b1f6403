package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// plainWidth is the width of output that nobody has said the width of.
const plainWidth = 80

func (a *app) statusCommand() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "status [POD]",
		Short: "Show whether every sidecar runs the configuration it was sent",
		Long: "status asks every replica of the control plane which proxies are connected to it and what they have confirmed.\n" +
			"SYNCED: the proxy runs what it was sent last. STALE: it has not answered yet. REJECTED: it refused and runs what it\n" +
			"had before; `status POD` names the objects that it refused. A dash: it has not asked for that type.\n\n" +
			"Below stands what the control plane has found out by its own probes: that pods get no sidecar, and why, how many\n" +
			"pods have none that should have one, and what is wrong with the mesh's roots.\n\n" +
			"It ends with 1 when a proxy is rejected or stale, a sidecar is not connected, or something of that is told.",
		Example: a.examples(`
			selvage status
			selvage status -n shop
			selvage status web-7d9c5bd5c8-x2x8z -n shop     with the last error and what caused it
			selvage status -o json
			selvage status --address 127.0.0.1:15014        of a control plane outside the cluster`),
		Args:              atMost(1),
		ValidArgsFunction: a.completeProxies,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.checkOutput(cmd, "table", "json", "yaml"); err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			m, err := a.gather(cmd.Context(), c, address)
			if err != nil {
				return err
			}
			if len(args) == 0 && a.namespace == "" { // it is about the whole mesh
				m.SelfProbe = a.selfProbes(cmd.Context(), c)
				if ca, err := a.caStatus(cmd.Context(), c); err == nil { // what is not there or may not be read, `ca status` tells
					m.Authority = ca.Problems
				}
			}
			a.narrow(m, args)
			if len(args) == 1 && len(m.Proxies)+len(m.NotConnected) == 0 {
				return fmt.Errorf("no proxy %s is connected, and no such pod has a sidecar: `%s status` lists all", args[0], a.called())
			}
			if err := a.showStatus(m, len(args) == 1); err != nil {
				return err
			}
			return verdict(m)
		},
	}
	cmd.Flags().StringVar(&address, "address", "", "HOST:PORT of the status port of a control plane outside the cluster (default: where its Service leads)")
	return cmd
}

// narrow leaves what -n and the argument ask for. A pod may be given as POD, NAMESPACE/POD or POD.NAMESPACE.
func (a *app) narrow(m *mesh, args []string) {
	wanted := func(namespace, pod string) bool {
		if a.namespace != "" && namespace != a.namespace {
			return false
		}
		return len(args) == 0 || slices.Contains([]string{pod, namespace + "/" + pod, pod + "." + namespace}, args[0])
	}
	m.Proxies = slices.DeleteFunc(m.Proxies, func(p proxy) bool { return !wanted(p.Namespace, p.Pod) })
	m.NotConnected = slices.DeleteFunc(m.NotConnected, func(p notConnected) bool { return !wanted(p.Namespace, p.Pod) })
}

func silent(r replica) bool { return r.Error != "" }

// verdict is the exit code.
func verdict(m *mesh) error {
	isBad := func(p proxy) bool { return p.state() != synced }
	if slices.ContainsFunc(m.Proxies, isBad) || len(m.NotConnected) > 0 || slices.ContainsFunc(m.Replicas, silent) || slices.ContainsFunc(m.SelfProbe, selfProbe.bad) || len(m.Authority) > 0 {
		return &problemsError{}
	}
	return nil
}

func (a *app) showStatus(m *mesh, detailed bool) error {
	if a.output == "json" || a.output == "yaml" {
		return a.print(m)
	}
	for _, r := range m.Replicas {
		if r.Error != "" {
			fmt.Fprintf(a.Stderr, "warning: replica %s did not answer, its proxies are missing here, or said to be not connected: %s\n", r.Name, r.Error)
		}
	}
	if detailed {
		for _, p := range m.Proxies {
			fmt.Fprint(a.Stdout, describeProxy(p, time.Now()))
		}
	} else if len(m.Proxies) > 0 {
		t := a.statusTable(m.Proxies)
		if err := t.write(a.Stdout); err != nil {
			return err
		}
	}
	for _, p := range m.NotConnected {
		fmt.Fprintf(a.Stdout, "not connected: %s/%s\n", p.Namespace, p.Pod)
	}
	if len(m.NotConnected) > 0 && !slices.ContainsFunc(m.Replicas, silent) { // else they may be connected to that one
		first := m.NotConnected[0]
		fmt.Fprintf(a.Stdout, "Why: kubectl logs -n %s %s -c istio-proxy\n", first.Namespace, first.Pod)
	}
	if !detailed {
		for _, p := range m.SelfProbe {
			fmt.Fprint(a.Stdout, p.describe(a.called(), time.Now()))
		}
		if len(m.Authority) > 0 {
			fmt.Fprintf(a.Stdout, "Of the roots that the mesh trusts (`%s ca status` shows all):\n%s", a.called(), wrap(printable(m.Authority[0]), "  ", plainWidth))
			if more := len(m.Authority) - 1; more > 0 {
				fmt.Fprintf(a.Stdout, "  and %s\n", plural(more, "other problem", "other problems"))
			}
		}
		fmt.Fprintln(a.Stdout, a.summary(m))
	}
	return nil
}

// statusTable has a line for each proxy and is made to fit 80 columns: first the release of Envoy goes, then the gaps shrink.
// Names are never cut, so that they can be copied and parsed.
func (a *app) statusTable(proxies []proxy) *table {
	t := &table{header: []string{"POD", "NAMESPACE", "CDS", "EDS", "LDS", "RDS", "REPLICA", "VERSION"}}
	for _, p := range proxies {
		t.add(p.Pod, p.Namespace, shown(p.Types["CDS"].State), shown(p.Types["EDS"].State), shown(p.Types["LDS"].State),
			shown(p.Types["RDS"].State), shortReplica(p.Replica), p.EnvoyVersion)
	}
	if t.width() > plainWidth {
		t.gap = 1
	}
	if t.width() > plainWidth {
		t.drop("VERSION")
	}
	if a.color(a.Stdout) {
		t.paint = paintState
	}
	return t
}

// shown is a state as a cell.
func shown(state string) string {
	if state == "" || state == notSent {
		return "-"
	}
	return state
}

// shortReplica is what distinguishes a replica's pod from its siblings: the last part of its name, as `kubectl` users know it.
func shortReplica(name string) string {
	if parts := strings.Split(name, "-"); len(parts) > 2 {
		return parts[len(parts)-1]
	}
	return name
}

// paintState makes what is wrong stand out.
func paintState(_ int, cell string) string {
	switch cell {
	case rejected:
		return "\x1b[31m" + cell + "\x1b[0m"
	case stale:
		return "\x1b[33m" + cell + "\x1b[0m"
	}
	return cell
}

// summary is the last line: how many, and what to do about those that are not in step.
func (a *app) summary(m *mesh) string {
	counts := map[string]int{}
	for _, p := range m.Proxies {
		counts[p.state()]++
	}
	switch {
	case len(m.Proxies) == 0 && len(m.NotConnected) > 0:
		return "No proxy is connected, and " + plural(len(m.NotConnected), "pod has", "pods have") + " a sidecar."
	case len(m.Proxies) == 0:
		return "No proxy is connected. Pods get one when their namespace is labelled istio-injection=enabled and they are restarted."
	case counts[synced] == len(m.Proxies):
		return fmt.Sprintf("%s: all synced.", plural(len(m.Proxies), "proxy", "proxies"))
	}
	line := fmt.Sprintf("%s: %d synced, %d stale, %d rejected.", plural(len(m.Proxies), "proxy", "proxies"), counts[synced], counts[stale], counts[rejected])
	if counts[rejected] > 0 {
		n := slices.IndexFunc(m.Proxies, func(p proxy) bool { return p.state() == rejected })
		line += fmt.Sprintf("\nWhy: %s status %s -n %s", a.called(), m.Proxies[n].Pod, m.Proxies[n].Namespace)
	}
	return line
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// describeProxy is the page about one proxy.
func describeProxy(p proxy, now time.Time) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s  %s\n", name, fmt.Sprintf(format, args...))
	}
	line("Pod", "%s/%s", p.Namespace, p.Pod)
	line("Account", "%s/%s", p.Namespace, p.ServiceAccount)
	line("Envoy", "%s", p.EnvoyVersion)
	line("Replica", "%s, Selvage %s", p.Replica, p.ReplicaVersion)
	line("Connected", "%s ago (%s)", now.Sub(p.ConnectedAt).Round(time.Second), p.ConnectedAt.UTC().Format(time.RFC3339))
	b.WriteByte('\n')
	t := table{header: []string{"TYPE", "STATE", "SENT", "CONFIRMED"}}
	for _, name := range typeNames {
		s := p.Types[name]
		t.add(name, shown(s.State), dash(s.SentVersion), dash(s.AckedVersion))
	}
	_ = t.write(&b) // a strings.Builder takes everything
	for _, name := range typeNames {
		s := p.Types[name]
		if s.LastError == "" {
			continue
		}
		when := "refused"
		if s.State != rejected {
			when = "had refused"
		}
		fmt.Fprintf(&b, "\nThe proxy %s %s:\n%s", when, name, wrap(s.LastError, "  ", plainWidth))
		if len(s.RejectedRefs) > 0 {
			fmt.Fprintf(&b, "That came from:\n%s", wrap(strings.Join(s.RejectedRefs, "\n"), "  ", plainWidth))
		}
	}
	return b.String()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
