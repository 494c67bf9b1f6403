package intercept

import (
	"errors"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

var backends = []Backend{IPTablesNFT, IPTablesLegacy, NFT}

func TestTrafficGoesWhereTheRulesSay(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			p := newPods(t, true)
			o := usual()
			o.ExcludeInboundPorts = append(o.ExcludeInboundPorts, 9999)
			o.ExcludeOutboundPorts = []uint16{9443}
			o.ExcludeOutboundRanges, _ = ParseRangeList("10.88.0.128/25,fd88:0:0:0:1::/80")
			if r := p.apply(o, b); r.Backend != b || !r.Changed || !r.IPv6 {
				t.Errorf("Apply = %+v", r)
			}
			p.serve(p.pod, "outbound", ":15001")
			p.serve(p.pod, "inbound", ":15006")
			p.serve(p.pod, "app", ":8080")
			p.serve(p.pod, "excluded", ":9999")
			p.serve(p.peer, "peer", ":8080")
			p.serve(p.peer, "peer", ":9443")
			ip(t, "-n", p.peer, "addr", "add", "10.88.0.130/24", "dev", "eth0")
			for _, ad := range []struct{ pod, peer, self, loop, through string }{
				{podIP4, peerIP4, podIP4, "127.0.0.1", "127.0.0.6"},
				{"[" + podIP6 + "]", "[" + peerIP6 + "]", podIP6, "[::1]", "::6"},
			} {
				bare := strings.Trim(ad.peer, "[]")
				podBare := strings.Trim(ad.pod, "[]")
				for _, tt := range []struct {
					name, ns string
					uid      uint32
					from, to string
					want     string
				}{
					{"a call from outside comes to the inbound port", p.peer, 0, "", ad.pod + ":8080", "inbound " + ad.pod + ":8080 from " + bare},
					{"also to a port where nothing listens", p.peer, 0, "", ad.pod + ":7", "inbound " + ad.pod + ":7 from " + bare},
					{"but not to an excluded port", p.peer, 0, "", ad.pod + ":9999", "excluded " + ad.pod + ":9999 from " + bare},
					{"a call of the application comes to the outbound port", p.pod, 0, "", ad.peer + ":8080", "outbound " + ad.peer + ":8080 from " + podBare},
					{"as any other user's", p.pod, 1000, "", ad.peer + ":8080", "outbound " + ad.peer + ":8080 from " + podBare},
					{"but not to an excluded port", p.pod, 0, "", ad.peer + ":9443", "peer " + ad.peer + ":9443 from " + podBare},
					{"a call of the proxy leaves the pod", p.pod, 1337, "", ad.peer + ":8080", "peer " + ad.peer + ":8080 from " + podBare},
					{"the application calls itself directly", p.pod, 0, "", ad.pod + ":8080", "app " + ad.pod + ":8080 from " + podBare},
					{"and on localhost", p.pod, 0, "", ad.loop + ":8080", "app " + ad.loop + ":8080 from " + strings.Trim(ad.loop, "[]")},
					{"the proxy calls localhost directly", p.pod, 1337, "", ad.loop + ":8080", "app " + ad.loop + ":8080 from " + strings.Trim(ad.loop, "[]")},
					{"the proxy's call to its own pod enters by the inbound side", p.pod, 1337, "", ad.pod + ":8080", "inbound " + ad.pod + ":8080 from " + podBare},
					{"the proxy hands a call to the application", p.pod, 0, ad.through, ad.pod + ":8080", "app " + ad.pod + ":8080 from " + ad.through},
				} {
					if got := p.call(tt.ns, tt.uid, tt.from, tt.to); got != tt.want {
						t.Errorf("%s: %s as %d: got %q, want %q", tt.name, tt.to, tt.uid, got, tt.want)
					}
				}
			}
			if got, want := p.call(p.pod, 0, "", "10.88.0.130:8080"), "peer 10.88.0.130:8080 from 10.88.0.2"; got != want {
				t.Errorf("an excluded range: got %q, want %q", got, want)
			}
		})
	}
}

func TestOnlyListedPortsAndRangesAreCaptured(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			p := newPods(t, false)
			o := usual()
			o.InboundPorts, _ = ParsePorts("8080")
			o.OutboundRanges, _ = ParseRanges("10.88.0.128/25,2001:db8::/32")
			if r := p.apply(o, b); !r.IPv6 {
				t.Error("no rules for IPv6 in a pod with a link-local address only: a neighbour can go around the proxy by it")
			}
			ip(t, "-n", p.peer, "addr", "add", "10.88.0.130/24", "dev", "eth0")
			p.serve(p.pod, "outbound", ":15001")
			p.serve(p.pod, "inbound", ":15006")
			p.serve(p.pod, "app", ":8081")
			p.serve(p.peer, "peer", ":8080")
			for to, want := range map[string]string{"10.88.0.130:8080": "outbound", peerIP4 + ":8080": "peer"} {
				if got := p.call(p.pod, 0, "", to); !strings.HasPrefix(got, want+" ") {
					t.Errorf("call to %s: %q, want %s", to, got, want)
				}
			}
			for to, want := range map[string]string{podIP4 + ":8080": "inbound", podIP4 + ":8081": "app"} {
				if got := p.call(p.peer, 0, "", to); !strings.HasPrefix(got, want+" ") {
					t.Errorf("call from outside to %s: %q, want %s", to, got, want)
				}
			}
		})
	}
}

// TestPortsAndDevices: a port that is captured wherever it leads, a device that is left alone, and one behind which is a virtual
// machine, whose calls are outbound ones.
func TestPortsAndDevices(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			p := newPods(t, true)
			addDevice(p, "eth1", "10.89.0")
			addDevice(p, "vm0", "10.90.0")
			o := usual()
			o.OutboundRanges, _ = ParseRanges("10.91.0.0/16")
			o.ExcludeOutboundRanges, _ = ParseRangeList("10.88.0.130/32")
			o.IncludeOutboundPorts, o.ExcludeInterfaces, o.RerouteInterfaces = []uint16{9443}, []string{"eth1"}, []string{"vm0"}
			p.apply(o, b)
			if r := p.apply(o, b); r.Changed {
				t.Error("a second run changes the rules")
			}
			ip(t, "-n", p.peer, "addr", "add", "10.88.0.130/24", "dev", "eth0")
			p.serve(p.pod, "outbound", ":15001")
			p.serve(p.pod, "inbound", ":15006")
			p.serve(p.pod, "app", ":8080")
			p.serve(p.peer, "peer", ":9443")
			p.serve(p.peer, "peer", ":8080")
			for to, want := range map[string]string{
				peerIP4 + ":9443":  "outbound " + peerIP4 + ":9443", // by its port
				peerIP4 + ":8080":  "peer",
				"10.88.0.130:9443": "peer", // an excluded range comes first
				"10.89.0.3:9443":   "peer", // by the device that is left alone
			} {
				if got := p.call(p.pod, 0, "", to); !strings.HasPrefix(got, want) {
					t.Errorf("call to %s: %q, want %s", to, got, want)
				}
			}
			for _, c := range []struct{ from, to, want string }{
				{"10.88.0.3", podIP4 + ":8080", "inbound"},
				{"10.89.0.3", "10.89.0.2:8080", "app"},
				{"10.90.0.3", "10.91.0.1:80", "outbound 10.91.0.1:80"}, // what the machine calls
				{"10.90.0.3", "10.90.0.2:9443", "outbound 10.90.0.2:9443"},
				{"10.90.0.3", "10.90.0.2:8080", "app"},
			} {
				if got := p.call(p.peer, 0, c.from, c.to); !strings.HasPrefix(got, c.want) {
					t.Errorf("call from %s to %s: %q, want %s", c.from, c.to, got, c.want)
				}
			}
			in(t, p.pod, func() {
				if notes, err := Verify(t.Context(), Options{ProxyPort: 15011, InboundPort: 15016, ProxyUID: 1337, ProxyGID: 1337, ExcludeInterfaces: []string{"eth0", "eth1", "vm0"},
					OutboundRanges: Ranges{All: true}}); err != nil || !strings.Contains(strings.Join(notes, " "), "outbound capture was not tried") {
					t.Errorf("without a device that is captured: notes %q, error %v", notes, err)
				}
			})
		})
	}
}

// addDevice joins the two namespaces by another cable: .2 is the pod's end and .3 the peer's, which sends 10.91.0.0/16 through vm0.
func addDevice(p pods, name, net string) {
	ip(p.t, "link", "add", name, "netns", p.pod, "type", "veth", "peer", "name", name, "netns", p.peer)
	for ns, host := range map[string]string{p.pod: ".2", p.peer: ".3"} {
		ip(p.t, "-n", ns, "addr", "add", net+host+"/24", "dev", name)
		ip(p.t, "-n", ns, "link", "set", name, "up")
	}
	if name == "vm0" {
		ip(p.t, "-n", p.peer, "route", "add", "10.91.0.0/16", "via", net+".2")
	}
}

// dump is everything in the pod's packet filter, of every backend, without counters.
func (p pods) dump() string {
	return p.run("iptables-nft-save", "-t", "nat") + p.run("ip6tables-nft-save", "-t", "nat") +
		p.run("iptables-legacy-save", "-t", "nat") + p.run("ip6tables-legacy-save", "-t", "nat") + p.run("nft", "-s", "list", "ruleset")
}

// withoutTimes drops the comments, which have the time of day.
func withoutTimes(dump string) string {
	var kept []string
	for line := range strings.Lines(dump) {
		if !strings.HasPrefix(line, "#") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

func TestASecondRunChangesNothing(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			p := newPods(t, true)
			o := usual()
			o.ExcludeOutboundRanges, _ = ParseRangeList("10.88.0.128/25,0.0.0.0/0,2001:db8::/32,fd00::1,::/0")
			o.ExcludeOutboundPorts = []uint16{22, 3306}
			p.apply(o, b)
			before := withoutTimes(p.dump())
			for _, again := range []Backend{b, ""} { // and a run that chooses by itself finds the same
				if r := p.apply(o, again); r.Changed || r.Backend != b {
					t.Errorf("second run with %q: %+v", again, r)
				}
			}
			if after := withoutTimes(p.dump()); after != before {
				t.Errorf("changed from\n%s\nto\n%s", before, after)
			}
		})
	}
}

func TestOtherRulesStayAndOursAreReplaced(t *testing.T) {
	for _, b := range []Backend{IPTablesNFT, IPTablesLegacy} {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			p := newPods(t, false)
			tool := string(b)
			p.run(tool, "-t", "nat", "-N", "OTHERS")
			p.run(tool, "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "7777", "-j", "OTHERS")
			p.run(tool, "-t", "filter", "-A", "INPUT", "-p", "tcp", "--dport", "6666", "-j", "DROP")
			p.run(tool, "-t", "nat", "-N", "ISTIO_OUTPUT") // half of another run
			p.run(tool, "-t", "nat", "-A", "ISTIO_OUTPUT", "-j", "RETURN")
			p.run(tool, "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "ISTIO_OUTPUT")
			p.run(tool, "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "ISTIO_OUTPUT")
			o := usual()
			if r := p.apply(o, ""); r.Backend != b {
				t.Errorf("chose %s where our chains are in %s", r.Backend, b)
			}
			o.ExcludeOutboundPorts = []uint16{5432}
			if r := p.apply(o, ""); !r.Changed {
				t.Error("an option changed, the rules did not")
			}
			save := p.run(tool + "-save")
			for line, n := range map[string]int{
				"-A OUTPUT -p tcp -m tcp --dport 7777 -j OTHERS\n":             1,
				"-A INPUT -p tcp -m tcp --dport 6666 -j DROP\n":                1,
				"-A OUTPUT -p tcp -j ISTIO_OUTPUT\n":                           1,
				"-A PREROUTING -p tcp -j ISTIO_INBOUND\n":                      1,
				"-A ISTIO_OUTPUT -j RETURN\n":                                  0,
				"-A ISTIO_OUTPUT -p tcp -m tcp --dport 5432 -j RETURN\n":       1,
				"-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\n":      1,
				"-A ISTIO_OUTPUT -p tcp -m owner --uid-owner 1337 -j RETURN\n": 1,
			} {
				if got := strings.Count(save, line); got != n {
					t.Errorf("%d times %q, want %d:\n%s", got, line, n, save)
				}
			}
			var err error
			in(t, p.pod, func() { err = Remove(t.Context(), o) })
			if err != nil {
				t.Fatal(err)
			}
			if save := p.run(tool + "-save"); strings.Contains(save, "ISTIO") || !strings.Contains(save, "OTHERS") || !strings.Contains(save, "6666") {
				t.Errorf("after removal:\n%s", save)
			}
		})
	}
}

func TestAnotherBackendsRulesOfOursGo(t *testing.T) {
	t.Parallel()
	p := newPods(t, true)
	p.apply(usual(), NFT)
	if r := p.apply(usual(), IPTablesLegacy); !r.Changed {
		t.Error("nothing changed")
	}
	if rules := p.run("nft", "list", "ruleset"); strings.Contains(rules, nftTable) {
		t.Errorf("rules of nft are left:\n%s", rules)
	}
}

func TestVerifyProvesTheRules(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			p := newPods(t, true)
			o := usual()
			verify := func() (notes []string, err error) {
				in(t, p.pod, func() { notes, err = Verify(t.Context(), o) })
				return notes, err
			}
			if _, err := verify(); !errors.Is(err, ErrNotIntercepted) {
				t.Errorf("without rules: %v, want ErrNotIntercepted", err)
			}
			p.apply(o, b)
			start := time.Now()
			if notes, err := verify(); err != nil || len(notes) > 0 {
				t.Errorf("with rules: %q, %v", notes, err)
			}
			t.Logf("verified in %s", time.Since(start))
			// A rule of somebody else before ours: installed, but without effect.
			switch b {
			case NFT:
				p.run("nft", "add table ip x; add chain ip x o { type nat hook output priority -150; }; add rule ip x o tcp dport 80 dnat to 127.0.0.1:9")
			default:
				p.run(string(b), "-t", "nat", "-I", "OUTPUT", "-p", "tcp", "-j", "ACCEPT")
			}
			if _, err := verify(); !errors.Is(err, ErrNotIntercepted) {
				t.Errorf("with another's rule before ours: %v, want ErrNotIntercepted", err)
			}
		})
	}
}

func TestVerifySaysWhatItCouldNotTry(t *testing.T) {
	t.Parallel()
	p := newPods(t, false)
	o := usual()
	p.apply(o, "")
	ip(t, "-n", p.pod, "addr", "flush", "dev", "eth0")
	verify := func() (notes []string, err error) {
		in(t, p.pod, func() { notes, err = Verify(t.Context(), o) })
		return notes, err
	}
	if notes, err := verify(); err != nil || len(notes) != 1 || !strings.Contains(notes[0], "no route") {
		t.Errorf("without a route: %q, %v", notes, err)
	}
	var l net.Listener
	var listenErr error
	in(t, p.pod, func() {
		for range 1000 { // Verify's own listener may be going still
			if l, listenErr = net.Listen("tcp4", ":15001"); listenErr == nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	if listenErr != nil {
		t.Fatal(listenErr)
	}
	defer l.Close()
	if notes, err := verify(); err != nil || len(notes) != 1 || !strings.Contains(notes[0], "port 15001 is in use") {
		t.Errorf("with the proxy running: %q, %v", notes, err)
	}
}

func TestFailuresSayWhatIsMissing(t *testing.T) {
	for said, want := range map[string]error{
		"the image lacks iptables and nft":     exec.ErrNotFound,
		"the node's kernel lacks a module":     errors.New("iptables-restore: line 9 failed: No chain/target/match by that name"),
		"another program holds the xtables":    errors.New("Another app is currently holding the xtables lock"),
		"the kernel does not let this contain": errors.New("Could not process rule: Operation not permitted"),
		"install interception rules: odd":      errors.New("odd"),
	} {
		if got := explainInstall(want).Error(); !strings.Contains(got, said) || strings.Contains(got, "\n") {
			t.Errorf("explain %v: %q, want %q in one line", want, got, said)
		}
	}
}
