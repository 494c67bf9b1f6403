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
