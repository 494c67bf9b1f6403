package main

import (
	"bytes"
	"encoding/json"
	"errors"
	stdlog "log"
	"log/slog"
	"os"
	"testing"
	"time"

	"k8s.io/klog/v2"
)

// Whoever reads the log with a program reads every line of it, also those of the Kubernetes client.
func TestEveryLineOfTheLogIsJSON(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(&out, slog.LevelInfo)
	t.Cleanup(func() { newLogger(os.Stderr, slog.LevelInfo) }) // what stays for other tests
	log.Info("webhook configuration written", "took", 1500*time.Millisecond)
	klog.ErrorS(errors.New("no route"), "Failed to watch", "type", "*v1.Secret")
	klog.Warningf("an old one: %d", 7)
	stdlog.Print("http: TLS handshake error")
	klog.Flush()
	var lines []map[string]any
	for line := range bytes.Lines(out.Bytes()) {
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatalf("a line is no JSON: %v: %s", err, line)
		}
		lines = append(lines, fields)
	}
	if len(lines) != 4 || lines[0]["took"] != "1.5s" || lines[1]["msg"] != "Failed to watch" || lines[1]["err"] != "no route" || lines[1]["component"] == nil {
		t.Errorf("%v", lines)
	}
}
