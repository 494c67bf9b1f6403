package intercept

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// usual are the options of a pod without annotations.
func usual() Options {
	return Options{
		ProxyPort: 15001, InboundPort: 15006, ProxyUID: 1337, ProxyGID: 1337,
		InboundPorts: Ports{All: true}, ExcludeInboundPorts: []uint16{15020, 15021, 15090},
		OutboundRanges: Ranges{All: true},
	}
}

func TestPortsAreNumbersAndNothingElse(t *testing.T) {
	for in, want := range map[string][]uint16{
		"":                  nil,
		" , ":               nil,
		"80":                {80},
		"8080, 80,443,80":   {80, 443, 8080},
		"65535,1":           {1, 65535},
		"15020,15021,15090": {15020, 15021, 15090},
	} {
		got, err := ParsePortList(in)
		if err != nil || !cmp.Equal(got, want) {
			t.Errorf("ParsePortList(%q) = %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"0", "65536", "-1", "+80", "80-90", "http", "80 -j ACCEPT", "8 0", "80;reboot", "*", "1,*", "80\n-A"} {
		if got, err := ParsePortList(in); err == nil {
			t.Errorf("ParsePortList(%q) = %v, want an error", in, got)
		}
	}
	if got, err := ParsePorts("*"); err != nil || !got.All {
		t.Errorf(`ParsePorts("*") = %v, %v`, got, err)
	}
}

func TestRangesAreAddressesAndNothingElse(t *testing.T) {
	for in, want := range map[string]string{
		"10.1.2.3/8":                       "10.0.0.0/8",
		"10.0.0.1":                         "10.0.0.1/32",
		"192.168.0.0/16,10.0.0.0/8":        "10.0.0.0/8 192.168.0.0/16",
		"2001:db8::1/32, 10.0.0.0/8,::1/0": "10.0.0.0/8 ::/0 2001:db8::/32",
		"10.0.0.0/8,10.9.9.9/8":            "10.0.0.0/8",
	} {
		got, err := ParseRangeList(in)
		var texts []string
		for _, p := range got {
			texts = append(texts, p.String())
		}
		if err != nil || strings.Join(texts, " ") != want {
			t.Errorf("ParseRangeList(%q) = %v, %v, want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"10.0.0.0/33", "10.0.0/8", "fe80::1%eth0", "::ffff:10.0.0.0/104", "example.com", "*", "10.0.0.0/8 -j ACCEPT", "010.0.0.1/8"} {
		if got, err := ParseRangeList(in); err == nil {
			t.Errorf("ParseRangeList(%q) = %v, want an error", in, got)
		}
	}
}

func TestInterfacesAreNamesAndNothingElse(t *testing.T) {
	if got, err := ParseInterfaces(" eth1,br-0a.1, eth1"); err != nil || !cmp.Equal(got, []string{"br-0a.1", "eth1"}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, in := range []string{"-i", "--", "eth0;reboot", "eth0 -j ACCEPT", "a\nb", "$(id)", "eth+", "0eth", "abcdefghijklmnop", `a"b`} {
		if got, err := ParseInterfaces(in); err == nil {
			t.Errorf("ParseInterfaces(%q) = %v, want an error", in, got)
		}
	}
}

func FuzzParsedTextIsSafe(f *testing.F) {
	f.Add("80,443", "10.0.0.0/8,2001:db8::/32")
	f.Add("80\nCOMMIT", "0.0.0.0/0 -j ACCEPT")
	f.Fuzz(func(t *testing.T, ports, ranges string) {
		o := usual()
		var err error
		if o.ExcludeOutboundPorts, err = ParsePortList(ports); err != nil {
			return
		}
		if o.ExcludeOutboundRanges, err = ParseRangeList(ranges); err != nil {
			return
		}
		for _, b := range []Backend{IPTablesNFT, NFT} {
			out, err := Render(o, b)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(out) {
				if strings.ContainsAny(line, "\r;`$'\\") && b != NFT {
					t.Errorf("%q in the rules", line)
				}
			}
			if n := strings.Count(out, "COMMIT"); b != NFT && n != 2 {
				t.Errorf("%d transactions", n)
			}
		}
	})
}

func TestOptionsThatWouldBypassTheMeshAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"no outbound port": func(o *Options) { o.ProxyPort = 0 },
		"no inbound port":  func(o *Options) { o.InboundPort = 0 },
		"one port":         func(o *Options) { o.InboundPort = o.ProxyPort },
		"proxy is root":    func(o *Options) { o.ProxyUID = 0 },
		"proxy's group 0":  func(o *Options) { o.ProxyGID = 0 },
	} {
		o := usual()
		change(&o)
		if _, err := Render(o, ""); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestRulesOfIPTables(t *testing.T) {
	o := usual()
	o.InboundPorts = Ports{List: []uint16{8080}}
	o.ExcludeInboundPorts = nil
	o.ExcludeOutboundPorts = []uint16{3306}
	o.IncludeOutboundPorts = []uint16{9443}
	o.ExcludeInterfaces, o.RerouteInterfaces = []string{"eth1"}, []string{"vm0"}
	o.ExcludeOutboundRanges, _ = ParseRangeList("10.9.0.0/16,2001:db8:9::/48")
	o.OutboundRanges, _ = ParseRanges("10.0.0.0/8,2001:db8::/32")
	const want = `*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
-A ISTIO_INBOUND -i eth1 -p tcp -j RETURN
-A ISTIO_INBOUND -i vm0 -p tcp -m tcp --dport 3306 -j RETURN
-A ISTIO_INBOUND -d 2001:db8:9::/48 -i vm0 -p tcp -j RETURN
-A ISTIO_INBOUND -i vm0 -p tcp -m tcp --dport 9443 -j ISTIO_REDIRECT
-A ISTIO_INBOUND -d 2001:db8::/32 -i vm0 -p tcp -j ISTIO_REDIRECT
-A ISTIO_INBOUND -i vm0 -p tcp -j RETURN
-A ISTIO_INBOUND -p tcp -m tcp --dport 8080 -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -o eth1 -p tcp -j RETURN
-A ISTIO_OUTPUT -s ::6/128 -o lo -p tcp -j RETURN
-A ISTIO_OUTPUT ! -d ::1/128 -o lo -p tcp -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT ! -d ::1/128 -o lo -p tcp -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -p tcp -j RETURN
-A ISTIO_OUTPUT -p tcp -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -p tcp -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -p tcp -m tcp --dport 3306 -j RETURN
-A ISTIO_OUTPUT -d 2001:db8:9::/48 -p tcp -j RETURN
-A ISTIO_OUTPUT -p tcp -m tcp --dport 9443 -j ISTIO_REDIRECT
-A ISTIO_OUTPUT -d 2001:db8::/32 -p tcp -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -p tcp -j ISTIO_OUTPUT
COMMIT
`
	if diff := cmp.Diff(want, restoreInput(natTable{}, chains(o, ipv6))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestTransactionRepairsWhatIsThere(t *testing.T) {
	want := chains(usual(), ipv4)
	const save = `*nat
:PREROUTING ACCEPT [0:0]
:OTHERS - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j OTHERS
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A OUTPUT -d 10.0.0.0/8 -j ISTIO_OUTPUT
-A OTHERS -p tcp -j REDIRECT --to-ports 9
-A ISTIO_OUTPUT -p tcp -m comment --comment "an older run" -j RETURN
COMMIT
`
	table := parseSave(save, want)
	if table.equal(want) {
		t.Error("taken for complete")
	}
	got := restoreInput(table, want)
	for _, line := range []string{"-D OUTPUT -p tcp -j ISTIO_OUTPUT\n-D OUTPUT -p tcp -j ISTIO_OUTPUT\n", "-D OUTPUT -d 10.0.0.0/8 -j ISTIO_OUTPUT\n", "-A OUTPUT -p tcp -j ISTIO_OUTPUT\n"} {
		if !strings.Contains(got, line) {
			t.Errorf("lacks %q:\n%s", line, got)
		}
	}
	for _, line := range []string{"OTHERS", "-D PREROUTING", "-A PREROUTING", "an older run"} {
		if strings.Contains(got, line) {
			t.Errorf("has %q:\n%s", line, got)
		}
	}
	removed := removeInput(table, want)
	if strings.Contains(removed, "OTHERS") || !strings.Contains(removed, "-X ISTIO_OUTPUT") || !strings.Contains(removed, "-D PREROUTING -p tcp -j ISTIO_INBOUND") {
		t.Errorf("removal:\n%s", removed)
	}
}
