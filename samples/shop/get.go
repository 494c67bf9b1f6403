package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"time"
)

// runGet requests one URL and prints the answer: a bare container has no curl.
func runGet(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("sample get", flag.ContinueOnError)
	http2 := flags.Bool("http2", false, "HTTP/2 without TLS")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("get: give one URL, such as http://cart/")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, flags.Arg(0), nil)
	if err != nil {
		return fmt.Errorf("get: %w", err)
	}
	client := &http.Client{Transport: newTransport(*http2), Timeout: 10 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("get: %w", err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(out, io.LimitReader(response.Body, 16<<20)); err != nil {
		return fmt.Errorf("get %s: %w", flags.Arg(0), err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: HTTP %d from %s", errFailed, response.StatusCode, flags.Arg(0))
	}
	return nil
}
