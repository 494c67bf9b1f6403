// Package kubeapi speaks to a lab's API server: the few requests that bringing a cluster up takes, as plain HTTPS and JSON,
// so that the lab's module needs no client library.
package kubeapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/selvage-mesh/selvage/lab/internal/pki"
)

// fieldManager owns the fields that Apply sets.
const fieldManager = "selvage-lab"

// Client speaks to one API server as one user.
type Client struct {
	base string
	http *http.Client
}

// Object is a Kubernetes object as JSON has it.
type Object = map[string]any

// StatusError is the API server's refusal.
type StatusError struct {
	Code    int
	Message string
}

func (e *StatusError) Error() string { return fmt.Sprintf("%s (%d)", e.Message, e.Code) }

// New gives a client of the server at address (HOST:PORT) that trusts ca (PEM) and shows the certificate of user.
func New(address string, ca []byte, user pki.Pair) (*Client, error) {
	cert, err := tls.X509KeyPair(user.Cert, user.Key)
	if err != nil {
		return nil, fmt.Errorf("make API client: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("make API client: no certificate in the authority's PEM")
	}
	return &Client{base: "https://" + address, http: &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			ForceAttemptHTTP2:   true,
			TLSClientConfig:     &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}},
			TLSHandshakeTimeout: 5 * time.Second,
		},
	}}, nil
}

// Text gets a path as it is, such as /readyz.
func (c *Client) Text(ctx context.Context, path string) (string, error) {
	b, err := c.do(ctx, http.MethodGet, path, "", nil)
	return string(b), err
}

// Get reads an object or a list into v.
func (c *Client) Get(ctx context.Context, path string, v any) error {
	b, err := c.do(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	return nil
}

// Apply makes the object at path be so, by server-side apply.
func (c *Client) Apply(ctx context.Context, path string, o Object) error {
	b, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("apply %s: %w", path, err)
	}
	_, err = c.do(ctx, http.MethodPatch, path+"?force=true&fieldManager="+fieldManager, "application/apply-patch+yaml", b)
	return err
}

// Poll asks check every interval until it says true; an error of check is remembered and returned when ctx ends first.
func Poll(ctx context.Context, interval time.Duration, check func(context.Context) (bool, error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var last error
	for {
		ok, err := check(ctx)
		if ok {
			return nil
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
			last = err
		}
		select {
		case <-ctx.Done():
			if last != nil {
				return fmt.Errorf("%w; last: %w", context.Cause(ctx), last)
			}
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func (c *Client) do(ctx context.Context, method, path, contentType string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask API server: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode >= 300 {
		var status struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(b, &status) != nil || status.Message == "" {
			status.Message = string(bytes.TrimSpace(b))
		}
		return nil, fmt.Errorf("%s %s: %w", method, path, &StatusError{resp.StatusCode, status.Message})
	}
	return b, nil
}
