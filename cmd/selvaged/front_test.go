package main

import (
	"net"
	"strings"
	"testing"
)

func TestPortInUseNamesTheFlag(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := taken.Addr().String()
	_, err = listen(t.Context(), "--webhook-addr", address)
	if want := "listen on " + address + ": another program does already; choose another address with --webhook-addr"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if _, err := listen(t.Context(), "--xds-addr", "127.0.0.1:x"); err == nil || !strings.Contains(err.Error(), "(--xds-addr)") {
		t.Errorf("a bad address: %v", err)
	}
}

// TestPlainListenerIsForThisMachine: an address that others reach needs a flag of its own.
func TestPlainListenerIsForThisMachine(t *testing.T) {
	for _, x := range []struct {
		address string
		allowed bool
		serves  bool
	}{
		{"127.0.0.1:0", false, true}, {"localhost:0", false, true},
		{":0", false, false}, {"0.0.0.0:0", false, false}, {"192.0.2.7:15010", false, false},
		{"0.0.0.0:0", true, true},
	} {
		f := front{options: options{xdsPlainAddr: x.address, allowPlaintext: x.allowed}}
		l, err := f.listenPlain(t.Context())
		if (err == nil) != x.serves {
			t.Errorf("%q, allowed %t: %v", x.address, x.allowed, err)
		}
		if err != nil && (!strings.Contains(err.Error(), "--allow-plaintext-xds") || !strings.Contains(err.Error(), x.address)) {
			t.Errorf("%q: the error does not say what to do: %v", x.address, err)
		}
		if l != nil {
			l.Close()
		}
	}
	l, err := (&front{}).listenPlain(t.Context())
	if l != nil || err != nil {
		t.Errorf("it is not off by default: %v, %v", l, err)
	}
}
