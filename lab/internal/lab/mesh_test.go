package lab

import (
	"slices"
	"testing"
)

func TestAnInstallationIsToldWhereSelvagedIs(t *testing.T) {
	for name, c := range map[string]struct {
		at      endpoints
		network string
		want    []string
	}{
		"in the lab's network": {
			endpoints{"10.244.255.1:15012", "10.244.255.1:15017", "10.244.255.1:15014"}, "10.244.255.1",
			[]string{"--endpoint", "10.244.255.1:xds=15012,webhook=15017,http=15014"},
		},
		"at an address of the machine": {
			endpoints{"192.0.2.7:4001", "192.0.2.7:4002", "192.0.2.7:4003"}, "",
			[]string{"--endpoint", "192.0.2.7:xds=4001,webhook=4002,http=4003"},
		},
		"on a machine without a network": { // EndpointSlices take no loopback address
			endpoints{"127.0.0.1:4001", "127.0.0.1:4002", "127.0.0.1:4003"}, "",
			[]string{"--webhook-url", "https://127.0.0.1:4002"},
		},
	} {
		if got := c.at.flags(c.network); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestObjectsCarryTheRevision(t *testing.T) {
	for revision, want := range map[string]string{"": "istiod", "default": "istiod", "asm-1234-1": "istiod-asm-1234-1"} {
		l := &Lab{Config: Config{Revision: revision}}
		if got := l.name("istiod"); got != want {
			t.Errorf("revision %q: %s, want %s", revision, got, want)
		}
	}
}
