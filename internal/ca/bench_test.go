package ca

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
)

// certificatesServer serves the authority on loopback, and dials it.
func certificatesServer(b testing.TB, a *Authority) (dial func(certs ...tls.Certificate) *grpc.ClientConn) {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(a.TLSConfig())))
	a.Register(server)
	go func() { _ = server.Serve(listener) }()
	b.Cleanup(server.Stop)
	return func(certs ...tls.Certificate) *grpc.ClientConn {
		conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			RootCAs: a.root.Load().issuer.Pool(), ServerName: a.ServingNames()[0], Certificates: certs,
		})))
		if err != nil {
			b.Fatal(err)
		}
		return conn
	}
}

// manyOfOne lifts the limit of one identity, which is that of every caller of a benchmark.
func manyOfOne(c *Config) { c.CertificatesPerSecond, c.CertificateBurst = 1e9, 1e9 }

// BenchmarkCertificateOverGRPC is a certificate for a caller who has been reviewed or shows a certificate, over gRPC on loopback, 16 in
// flight, client on the same cores: on a connection that is open, and, as sidecars do, on one of its own. CPU is that of both sides.
func BenchmarkCertificateOverGRPC(b *testing.B) {
	a, client := loaded(b, manyOfOne)
	accept(client)
	dial := certificatesServer(b, a)
	in := &securityv1alpha1.IstioCertificateRequest{Csr: csr(b), ValidityDuration: 3600}
	token := metadata.AppendToOutgoingContext(b.Context(), "authorization", "Bearer "+jwt("istio-ca", time.Now().Add(time.Hour), ""))
	cert := workloadCert(b, a, web, time.Hour)
	for _, c := range []struct {
		name  string
		ctx   context.Context
		certs []tls.Certificate
		fresh bool
	}{
		{"mtls/open", b.Context(), []tls.Certificate{cert}, false},
		{"token/open", token, nil, false},
		{"mtls/own-connection", b.Context(), []tls.Certificate{cert}, true},
		{"token/own-connection", token, nil, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			shared := dial(c.certs...)
			defer shared.Close()
			measured(b, func() error {
				conn := shared
				if c.fresh {
					conn = dial(c.certs...)
					defer conn.Close()
				}
				_, err := securityv1alpha1.NewIstioCertificateServiceClient(conn).CreateCertificate(c.ctx, in)
				return err
			})
		})
	}
}

// measured runs do by 16 goroutines and reports how many a second, and the CPU time of this process for each.
func measured(b *testing.B, do func() error) {
	b.Helper()
	b.SetParallelism(8) // times GOMAXPROCS, two here
	var failed atomic.Pointer[error]
	before := cpu()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := do(); err != nil {
				failed.Store(&err)
			}
		}
	})
	b.StopTimer()
	if err := failed.Load(); err != nil {
		b.Fatal(*err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certs/s")
	b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// cpu is what this process has used of the processors.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
