// Package upstream dials the control plane, for configuration and for certificates, and says in a sentence why that fails.
package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/selvage-mesh/selvage/internal/pki"
)

// Config says where a control plane is and how the two sides prove who they are.
type Config struct {
	// Address is HOST:PORT, such as istiod.istio-system.svc:15012.
	Address string
	// ServerName is the name in the control plane's certificate; "" is the host of Address.
	ServerName string
	// RootFile holds the roots that sign the control plane's certificate, in PEM. It is read for every connection.
	RootFile string
	// TokenFile holds this pod's service account token. It is read for every call, because the kubelet renews it.
	TokenFile string
	// Certificate gives the workload's certificate, nil while there is none or when it is expired. Where there is one, it is
	// what the control plane knows the pod by, and the token is not sent. May be nil.
	Certificate func() *tls.Certificate
	// Timeout is how long a connection with its handshake may take; 0 is 10 s.
	Timeout time.Duration
}

// Target is a control plane. It holds no connection.
type Target struct {
	config Config
	dialer net.Dialer
}

// The kernel tells of a peer that has gone without a word after this time, with data on the way (TCP_USER_TIMEOUT) and without
// (keep-alive: idle, then count times interval). gRPC's own pings would need the server's consent.
const (
	deadAfter     = 20 * time.Second
	keepIdle      = 15 * time.Second
	keepInterval  = 5 * time.Second
	keepCount     = 3
	defaultDial   = 10 * time.Second
	authorization = "authorization"
)

// New checks the configuration. Nothing is dialed or read.
func New(c Config) (*Target, error) {
	host, port, err := net.SplitHostPort(c.Address)
	if err != nil || host == "" || port == "" {
		return nil, fmt.Errorf("use control plane address %q: want HOST:PORT, such as istiod.istio-system.svc:15012", c.Address)
	}
	if c.ServerName == "" {
		c.ServerName = host
	}
	if c.Timeout == 0 {
		c.Timeout = defaultDial
	}
	t := &Target{config: c}
	t.dialer = net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepIdle, Interval: keepInterval, Count: keepCount},
		Control:         setUserTimeout,
	}
	return t, nil
}

// Address is HOST:PORT as configured.
func (t *Target) Address() string { return t.config.Address }

// Conn is one connection to the control plane. It is made for one stream or one call and closed after it, so that names, roots and
// credentials are always read afresh and whoever opens the next one decides when.
type Conn struct {
	*grpc.ClientConn
	target  *Target
	trace   *trace
	byToken bool
}

// Connect prepares a connection; the network is used by its first call. The pod shows its certificate if it has one and anonymous
// is false, otherwise its token. An error is a *Failure.
func (t *Target) Connect(anonymous bool) (*Conn, error) {
	roots, err := t.roots()
	if err != nil {
		return nil, &Failure{Reason: NoRoot, Address: t.config.Address, Detail: err.Error()}
	}
	var cert *tls.Certificate
	if t.config.Certificate != nil && !anonymous {
		cert = t.config.Certificate()
	}
	tlsConfig := &tls.Config{ServerName: t.config.ServerName, RootCAs: roots, MinVersion: tls.VersionTLS12}
	if cert != nil {
		// Not Certificates: of those crypto/tls sends none when the server's list of authorities, which holds subjects, lacks the
		// issuer's. The server shall see the certificate and say what is wrong with it.
		tlsConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	tr := &trace{}
	conn, err := grpc.NewClient("passthrough:///"+t.config.Address,
		grpc.WithTransportCredentials(&tracingCredentials{credentials.NewTLS(tlsConfig), tr}),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			c, err := t.dialer.DialContext(ctx, "tcp", addr)
			tr.dialed(err)
			return c, err
		}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: t.config.Timeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, &Failure{Reason: Other, Address: t.config.Address, Detail: err.Error()}
	}
	return &Conn{ClientConn: conn, target: t, trace: tr, byToken: cert == nil}, nil
}

// Context adds the token to the metadata of a call, where the connection has no certificate to show. An error is a *Failure.
func (c *Conn) Context(ctx context.Context) (context.Context, error) {
	if !c.byToken {
		return ctx, nil
	}
	token, err := os.ReadFile(c.target.config.TokenFile)
	if err == nil && len(strings.TrimSpace(string(token))) == 0 {
		err = errors.New("the file is empty")
	}
	if err != nil {
		return nil, &Failure{Reason: NoToken, Address: c.target.config.Address, Detail: err.Error()}
	}
	return metadata.AppendToOutgoingContext(ctx, authorization, "Bearer "+strings.TrimSpace(string(token))), nil
}

// ByToken says that the pod shows its token on this connection and no certificate.
func (c *Conn) ByToken() bool { return c.byToken }

// Explain turns the error of a call on this connection into a *Failure.
func (c *Conn) Explain(err error) *Failure { return explain(c.target.config, c.trace, err) }

func (t *Target) roots() (*x509.CertPool, error) {
	data, err := os.ReadFile(t.config.RootFile)
	if err != nil {
		return nil, err
	}
	certs, err := pki.ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.config.RootFile, err)
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, nil
}
