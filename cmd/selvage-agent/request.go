package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// waitCommand is the postStart hook that holds the application until its proxy is ready.
func waitCommand(signals <-chan os.Signal) *cobra.Command {
	var port uint16
	var timeout, period time.Duration
	cmd := &cobra.Command{
		Use:   "wait",
		Short: "Wait until this pod's proxy is ready",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := untilSignal(cmd.Context(), signals)
			defer cancel()
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
			return waitReady(ctx, local(port, "/healthz/ready"), period)
		},
	}
	cmd.Flags().Uint16Var(&port, "readiness-port", 15021, "`port` of /healthz/ready")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait")
	cmd.Flags().DurationVar(&period, "period", 250*time.Millisecond, "how often to ask")
	return cmd
}

func waitReady(ctx context.Context, url string, period time.Duration) error {
	tick := time.NewTicker(period)
	defer tick.Stop()
	last := "it did not answer"
	for {
		text, err := ask(ctx, http.MethodGet, url)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err.Error()
			if text != "" {
				last = text
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the proxy: %w; the last answer was: %s", context.Cause(ctx), last)
		}
	}
}

// drainCommand is the preStop hook of a native sidecar.
func drainCommand() *cobra.Command {
	var port uint16
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Begin to take this pod's proxy out of service",
		Long: "Begin to take this pod's proxy out of service: inbound connections are ended politely, new ones are still taken, outbound\n" +
			"ones go on. Meant as the preStop hook of a native sidecar, which gets SIGTERM only after the application has ended.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := ask(cmd.Context(), http.MethodPost, local(port, "/drain"))
			return err
		},
	}
	cmd.Flags().Uint16Var(&port, "agent-port", 15020, "`port` of the agent")
	return cmd
}

// requestCommand stands in for curl, which the image does not have.
func requestCommand() *cobra.Command {
	var port uint16
	cmd := &cobra.Command{
		Use:     "request METHOD PATH",
		Short:   "Ask this pod's Envoy, or with --debug-port 15020 the agent",
		Example: "  selvage-agent request GET stats\n  selvage-agent request POST 'logging?level=debug'\n  selvage-agent request GET /healthz/ready --debug-port 15021",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := ask(cmd.Context(), strings.ToUpper(args[0]), local(port, "/"+strings.TrimPrefix(args[1], "/")))
			if text != "" {
				fmt.Fprintln(cmd.OutOrStdout(), strings.TrimRight(text, "\n"))
			}
			return err
		},
	}
	cmd.Flags().Uint16Var(&port, "debug-port", 15000, "`port` to ask on localhost")
	return cmd
}

func local(port uint16, path string) string {
	return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))) + path
}

// ask gives the answer's body, also when its status is an error.
func ask(ctx context.Context, method, url string) (body string, err error) {
	request, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		return string(data), err
	}
	if answer.StatusCode != http.StatusOK {
		return string(data), errors.New(answer.Status)
	}
	return string(data), nil
}
