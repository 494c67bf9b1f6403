package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/selvage-mesh/selvage/internal/install"
)

// forward opens a port of this machine that leads to a port of a pod, through the API server and the node: the way that
// works whether or not this machine or the API server can reach pods. stop closes it.
func (c *connection) forward(ctx context.Context, pod string, port int) (address string, stop func(), err error) {
	dialer, err := c.dialer(pod)
	if err != nil {
		return "", nil, err
	}
	done, ready, failed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, done, ready, io.Discard, io.Discard)
	if err != nil {
		return "", nil, err
	}
	go func() { failed <- forwarder.ForwardPorts(); close(failed) }()
	select {
	case <-ready:
	case err := <-failed:
		return "", nil, err
	case <-ctx.Done():
		close(done)
		return "", nil, ctx.Err()
	}
	stop = func() {
		close(done)
		for range failed { // closed when it has ended
		}
	}
	ports, err := forwarder.GetPorts()
	if err != nil || len(ports) == 0 {
		stop()
		return "", nil, fmt.Errorf("learn the forwarded port: %w", err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local), stop, nil
}

// dialer speaks WebSocket with API servers that can, and SPDY with older ones.
func (c *connection) dialer(pod string) (httpstream.Dialer, error) {
	config := rest.CopyConfig(c.config)
	config.Timeout = 0 // it bounds the whole life of the connection here
	url := c.kubernetes.CoreV1().RESTClient().Post().Namespace(install.Namespace).Resource("pods").Name(pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	older := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	newer, err := portforward.NewSPDYOverWebsocketDialerForStreaming(url, config)
	if err != nil {
		return nil, err
	}
	return portforward.NewFallbackDialerForStreaming(newer, older, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}), nil
}
