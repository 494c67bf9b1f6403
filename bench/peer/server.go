package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// server is a control plane that can be measured.
type server struct {
	name string
	// command gives the program and where it listens.
	command func(ports ports) *exec.Cmd
	ready   func(ports ports) string // URL that answers 200 when it is ready
}

// ports are free ports of the loopback device.
type ports struct{ xds, secure, webhook, http, monitoring int }

func at(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// istiod is Istio's, as its Deployment runs it, without its webhooks: nothing here calls them.
func istiod(binary, kubeconfig, dir string) server {
	return server{
		name: "istiod",
		command: func(p ports) *exec.Cmd {
			cmd := exec.CommandContext(context.Background(), binary, "discovery", "--kubeconfig", kubeconfig, "--namespace", systemNamespace, "--clusterID", "Kubernetes",
				"--grpcAddr", at(p.xds), "--secureGRPCAddr", at(p.secure), "--httpsAddr", at(p.webhook), "--httpAddr", at(p.http),
				"--monitoringAddr", at(p.monitoring), "--ctrlz_port", "0", "--log_output_level", "default:warn")
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "POD_NAME=istiod-bench", "POD_NAMESPACE="+systemNamespace, "REVISION=default", "CLUSTER_ID=Kubernetes",
				"PILOT_CERT_PROVIDER=istiod", "INJECTION_WEBHOOK_CONFIG_NAME=", "VALIDATION_WEBHOOK_CONFIG_NAME=")
			return cmd
		},
		ready: func(p ports) string { return "http://" + at(p.http) + "/ready" },
	}
}

// selvaged is ours, with its plain listener as well.
func selvaged(binary, kubeconfig, dir string) server {
	return server{
		name: "selvaged",
		command: func(p ports) *exec.Cmd {
			cmd := exec.CommandContext(context.Background(), binary, "--kubeconfig", kubeconfig, "--xds-plain-addr", at(p.xds), "--xds-addr", at(p.secure),
				"--webhook-addr", at(p.webhook), "--http-addr", at(p.http), "--log-level", "warn")
			cmd.Dir = dir
			return cmd
		},
		ready: func(p ports) string { return "http://" + at(p.http) + "/ready" },
	}
}

// process is a running server.
type process struct {
	ports ports
	cmd   *exec.Cmd
	log   string
	gone  chan error
	took  time.Duration // from start to ready
}

// start runs the server and waits until it is ready.
func (s server) start(ctx context.Context, dir string) (*process, error) {
	p := &process{gone: make(chan error, 1), log: filepath.Join(dir, s.name+".log")}
	for _, port := range []*int{&p.ports.xds, &p.ports.secure, &p.ports.webhook, &p.ports.http, &p.ports.monitoring} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		*port = l.Addr().(*net.TCPAddr).Port
		l.Close()
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = s.command(p.ports)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.name, err)
	}
	go func() { p.gone <- p.cmd.Wait() }()
	if err := p.awaitReady(ctx, s.ready(p.ports)); err != nil {
		p.stop()
		return nil, fmt.Errorf("start %s: %w (its log: %s)", s.name, err, p.log)
	}
	p.took = time.Since(began)
	return p, nil
}

func (p *process) awaitReady(ctx context.Context, url string) error {
	late := time.After(2 * time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	last := errors.New("it did not answer")
	for {
		select {
		case err := <-p.gone:
			p.gone <- err
			return fmt.Errorf("it ended: %w", err)
		case <-late:
			return fmt.Errorf("it is not ready after two minutes: %w", last)
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		ask, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		r, err := http.DefaultClient.Do(ask)
		if err != nil {
			last = err
			continue
		}
		r.Body.Close()
		if r.StatusCode == http.StatusOK {
			return nil
		}
		last = errors.New(r.Status)
	}
}

// stop ends the process, at once: how it shuts down is not measured.
func (p *process) stop() {
	_ = p.cmd.Process.Kill()
	err := <-p.gone
	p.gone <- err
}

// ticksPerSecond is the unit of CPU times in /proc on every Linux that Go runs on (USER_HZ).
const ticksPerSecond = 100

// cpu is what the process has used of all processors.
func (p *process) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in brackets, which may have spaces in it; utime and stime are the 14th and 15th.
	words := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var ticks int64
	for _, word := range words[11:13] {
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond, nil
}

// memory is the resident memory in bytes.
func (p *process) memory() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("VmRSS is not in /proc")
}
