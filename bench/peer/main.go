// Command peer measures our control plane beside istiod: the same API server with the same objects, the same simulated sidecars,
// one server after the other, several times. `make bench-peer` runs it in a lab; docs/performance.md has figures.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

type options struct {
	kubeconfig, selvage, selvaged, istiod string
	servers, protocol                     string
	services, endpoints, proxies          int
	rounds, changes                       int
	out, report, profiles                 string
}

func main() {
	var o options
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "of the API server; what is on it belongs to the benchmark")
	flag.StringVar(&o.selvage, "selvage", "bin/selvage", "the program")
	flag.StringVar(&o.selvaged, "selvaged", "bin/selvaged", "the program")
	flag.StringVar(&o.istiod, "istiod", "", "the program, as tools/istiod.sh builds it")
	flag.StringVar(&o.servers, "servers", "istiod,selvaged", "what to measure, in this order")
	flag.StringVar(&o.protocol, "protocol", "delta", "delta or sotw")
	flag.IntVar(&o.services, "services", 1000, "services")
	flag.IntVar(&o.endpoints, "endpoints", 5, "endpoints of each service, with a pod behind each")
	flag.IntVar(&o.proxies, "proxies", 500, "simulated sidecars: those of the first pods")
	flag.IntVar(&o.rounds, "rounds", 3, "runs of each server")
	flag.IntVar(&o.changes, "changes", 8, "changes of each of the three kinds")
	flag.StringVar(&o.out, "out", "", "file to which each run is added")
	flag.StringVar(&o.report, "report", "", "print the table of the runs in this file, and do nothing else")
	flag.StringVar(&o.profiles, "profiles", "", "folder for profiles of selvaged")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(2)
	}
}

func run(ctx context.Context, o options) error {
	if o.report != "" {
		results, err := read(o.report)
		if err != nil {
			return err
		}
		fmt.Print(table(results))
		return nil
	}
	if o.proxies > o.services*o.endpoints {
		return fmt.Errorf("%d sidecars want as many pods, and there are %d", o.proxies, o.services*o.endpoints)
	}
	for _, path := range []*string{&o.kubeconfig, &o.selvage, &o.selvaged, &o.istiod} { // the servers run in a folder of their own
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = absolute
	}
	dir, err := os.MkdirTemp("", "bench-peer-")
	if err != nil {
		return err
	}
	say := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
	}
	w, err := newWorld(o.kubeconfig, o.services, o.endpoints)
	if err != nil {
		return err
	}
	say("writing %d services with %d endpoints each", o.services, o.endpoints)
	if err := w.build(ctx, o.selvage, o.kubeconfig); err != nil {
		return err
	}
	if err := w.restore(ctx); err != nil {
		return err
	}
	b := &bench{world: w, proxies: o.proxies, delta: o.protocol == "delta", changes: o.changes, dir: dir, say: say}
	if o.profiles != "" {
		if b.profiles, err = w.newProfiler(ctx, o.profiles); err != nil {
			return err
		}
	}
	servers := map[string]server{"istiod": istiod(o.istiod, o.kubeconfig, dir), "selvaged": selvaged(o.selvaged, o.kubeconfig, dir)}
	var results []*result
	for range o.rounds {
		for name := range strings.SplitSeq(o.servers, ",") {
			s, ok := servers[name]
			if !ok {
				return fmt.Errorf("-servers %s: %q is none", o.servers, name)
			}
			r, err := b.measure(ctx, s)
			if err != nil {
				return err
			}
			if err := add(o.out, r); err != nil {
				return err
			}
			results = append(results, r)
			if err := w.restore(ctx); err != nil {
				return err
			}
			time.Sleep(calmBefore)
		}
	}
	fmt.Print(table(results))
	return os.RemoveAll(dir)
}

// add appends a result to a file, as a line of JSON.
func add(path string, r *result) error {
	if path == "" {
		return nil
	}
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(append(line, '\n'))
	return err
}

func read(path string) (results []*result, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		var r result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		results = append(results, &r)
	}
	return results, nil
}
