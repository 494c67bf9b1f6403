package ca

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/selvage-mesh/selvage/internal/trust"
)

// metrics are Istio's, by name, where Istio counts the same thing.
type metrics struct {
	requests, authenticationFailures, parseErrors, identityErrors, issued prometheus.Counter
	signErrors                                                            *prometheus.CounterVec // error
	limited                                                               prometheus.Counter
	reviews                                                               *prometheus.CounterVec // result
	unusable                                                              *prometheus.GaugeVec   // secret
	expiring                                                              *prometheus.GaugeVec   // severity
}

func newMetrics(registerer prometheus.Registerer, a *Authority) (*metrics, error) {
	if registerer == nil {
		registerer = prometheus.NewRegistry()
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		requests:               counter("citadel_server_csr_count", "Certificate requests received."),
		authenticationFailures: counter("citadel_server_authentication_failure_count", "Certificate requests whose caller could not be authenticated."),
		parseErrors:            counter("citadel_server_csr_parsing_err_count", "Certificate requests that could not be read."),
		identityErrors:         counter("citadel_server_id_extraction_err_count", "Callers whose certificate held no usable identity."),
		issued:                 counter("citadel_server_success_cert_issuance_count", "Certificates issued."),
		signErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "citadel_server_csr_sign_err_count", Help: "Certificate requests that could not be signed.",
		}, []string{"error"}),
		limited: counter("selvage_ca_rate_limited_total", "Certificate requests refused because their identity asked too often."),
		reviews: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "selvage_ca_token_reviews_total", Help: "Bearer tokens looked at, by result: accepted, cached, rejected, limited (not reviewed: too many of the address were rejected), error.",
		}, []string{"result"}),
	}
	expiry := func(use trust.Use, name, help string, value func(end time.Time) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			if end := a.expiry(use); !end.IsZero() {
				return value(end)
			}
			return 0 // none is loaded
		})
	}
	timestamp := func(end time.Time) float64 { return float64(end.Unix()) }
	seconds := func(end time.Time) float64 { return time.Until(end).Seconds() }
	m.unusable = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "selvage_ca_secret_unusable", Help: "1 while a Secret of the CA cannot be used, by its name.",
	}, []string{"secret"})
	m.expiring = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "selvage_certificates_expiring", Help: "Certificates that expire soon (Warning), or very soon or have expired (Error): the CA's, the control plane's, and those of proxies connected here.",
	}, []string{"severity"})
	for _, c := range []prometheus.Collector{
		m.requests, m.authenticationFailures, m.parseErrors, m.identityErrors, m.issued, m.signErrors, m.limited, m.reviews, m.unusable, m.expiring,
		expiry(trust.Root, "citadel_server_root_cert_expiry_timestamp", "When the root ends, in seconds since 1970; 0 without a root.", timestamp),
		expiry(trust.Root, "citadel_server_root_cert_expiry_seconds", "Time until the root ends, in seconds; 0 without a root.", seconds),
		expiry(trust.Intermediate, "citadel_server_cert_chain_expiry_timestamp", "When what signs ends to be believed, in seconds since 1970; 0 without one.", timestamp),
		expiry(trust.Intermediate, "citadel_server_cert_chain_expiry_seconds", "Time until what signs ends to be believed, in seconds; 0 without one.", seconds),
		expiry(trust.Serving, "selvage_serving_cert_expiry_timestamp", "When the control plane's own certificate ends, in seconds since 1970; 0 before the first handshake.", timestamp),
	} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
