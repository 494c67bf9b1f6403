// Command selvage is the operator's command line; as kubectl-selvage on the path it is `kubectl selvage`.
package main

import (
	"context"
	"flag"
	"io"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/selvage-mesh/selvage/internal/cli"
)

func main() {
	quietClient()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, cli.Config{
		Program: os.Args[0], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv,
	}, os.Args[1:])
	stop()
	os.Exit(code)
}

// quietClient silences the client library, which logs by itself what it also returns as errors. By default it writes errors to
// stderr whatever its output is set to.
func quietClient() {
	flags := flag.NewFlagSet("klog", flag.PanicOnError)
	klog.InitFlags(flags)
	for name, value := range map[string]string{"logtostderr": "false", "alsologtostderr": "false", "stderrthreshold": "FATAL"} {
		if err := flags.Set(name, value); err != nil {
			panic("set klog flag " + name + ": " + err.Error()) // the flags and their values are klog's own
		}
	}
	klog.SetOutput(io.Discard)
}
