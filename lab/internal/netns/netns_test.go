package netns

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/selvage-mesh/selvage/lab/internal/testneed"
)

func lab(t *testing.T) (string, Network) {
	t.Helper()
	testneed.Root(t)
	_, services, _ := net.ParseCIDR("10.96.0.0/16")
	name := fmt.Sprintf("selvage-test-%d", os.Getpid())
	t.Cleanup(func() {
		if err := Delete(name); err != nil {
			t.Error(err)
		}
	})
	return name, Network{Device: "lab", Address: net.IPv4(10, 244, 255, 1).To4(), Ranges: []*net.IPNet{services}}
}

// routes shows all of the calling thread's routes, rules aside, and its devices' names.
func routes(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	rs, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		fmt.Fprintln(&b, r)
	}
	for _, l := range links {
		fmt.Fprintln(&b, l.Attrs().Name)
	}
	forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		t.Fatal(err)
	}
	return b.String() + "ip_forward " + string(forward)
}

func TestALabsNetworkLeavesTheMachinesAlone(t *testing.T) {
	name, n := lab(t)
	before := routes(t)
	if err := Create(name, n); err != nil {
		t.Fatal(err)
	}
	if after := routes(t); after != before {
		t.Errorf("the machine's network changed from\n%s\nto\n%s", before, after)
	}
	err := Do(name, func() error {
		out, err := exec.Command("cat", "/proc/net/route", "/proc/sys/net/ipv4/ip_forward").Output() // a process started inside is inside
		if err != nil {
			return err
		}
		if s := string(out); !strings.Contains(s, "lab\t0000600A\t") || !strings.HasSuffix(s, "\n1\n") || strings.Contains(s, "\t00000000\t00000000\t0003") {
			return fmt.Errorf("inside: %s", s)
		}
		l, err := net.Listen("tcp4", "10.244.255.1:0")
		if err != nil {
			return err
		}
		return l.Close()
	})
	if err != nil {
		t.Error(err)
	}
	if err := Create(name, n); err == nil {
		t.Error("the same name was given twice")
	}
	if err := Delete(name); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(Path(name)); Exists(name) || err == nil {
		t.Error("it is still there")
	}
	if err := Delete(name); err != nil {
		t.Errorf("to delete what is gone is an error: %v", err)
	}
}
