package jwks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/selvage-mesh/selvage/internal/index"
)

// maxBytes is how long an answer may be.
const maxBytes = 1 << 20

// fetch reads a key set, by way of a discovery document where the address is one.
func (f *Fetcher) fetch(ctx context.Context, uri string) (string, error) {
	text, err := f.get(ctx, uri)
	issuer, discovery := strings.CutSuffix(uri, index.Discovery)
	if err != nil || !discovery {
		return text, err
	}
	var document struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if json.Unmarshal([]byte(text), &document) != nil || document.Keys == "" {
		return "", errors.New("the discovery document does not name jwks_uri")
	}
	if strings.TrimSuffix(document.Issuer, "/") != issuer { // OpenID Connect Discovery 1.0, section 4.3
		return "", errors.New("the discovery document is of another issuer")
	}
	if strings.HasPrefix(uri, "https:") && !strings.HasPrefix(document.Keys, "https:") {
		return "", errors.New("the discovery document leads from https to something else")
	}
	return f.get(ctx, document.Keys)
}

func (f *Fetcher) get(ctx context.Context, uri string) (string, error) {
	u, err := url.Parse(uri)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil {
		return "", errors.New("it is no address of http or https without credentials")
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return "", errors.New("it is no address")
	}
	answer, err := f.client.Do(r)
	if err != nil {
		var wrapped *url.Error // which repeats method and address
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		var connection *net.OpError // whose text has a port that is another each time: the same failure would be news
		if errors.As(err, &connection) {
			err = fmt.Errorf("%s: %w", connection.Op, connection.Err)
		}
		return "", err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("it is answered with %s", http.StatusText(answer.StatusCode))
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxBytes+1))
	if err == nil && len(body) > maxBytes {
		err = fmt.Errorf("the answer is longer than %d bytes", maxBytes)
	}
	if err == nil && !utf8.Valid(body) { // no JSON is (RFC 8259), and no message to a proxy can carry it
		err = errors.New("the answer is not in UTF-8")
	}
	return string(body), err
}

// redirect follows few redirections, and none that leaves https.
func redirect(r *http.Request, via []*http.Request) error {
	switch {
	case len(via) > 3:
		return errors.New("it redirects more than three times")
	case via[0].URL.Scheme == "https" && r.URL.Scheme != "https":
		return errors.New("it redirects from https to something else")
	}
	return nil
}

// guarded is a transport that connects to no address that only this machine or its cloud has. It looks at the address that a name
// has led to, at the moment of connecting, and asks no proxy.
func guarded() http.RoundTripper {
	dialer := &net.Dialer{Timeout: defaultTimeout, Control: func(_, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return refuse(to.Addr())
	}}
	return &http.Transport{
		DialContext: dialer.DialContext, TLSHandshakeTimeout: defaultTimeout, ResponseHeaderTimeout: maxTimeout,
		MaxResponseHeaderBytes: 64 << 10, IdleConnTimeout: time.Minute, MaxIdleConns: 10, ForceAttemptHTTP2: true,
	}
}

// metadata are addresses of clouds' metadata services that are not link-local.
var metadata = []netip.Addr{netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("fd20:ce::254"),
	netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("192.0.0.192"), netip.MustParseAddr("168.63.129.16")}

// translated are the prefixes of IPv6 addresses that lead to an IPv4 address, with where that stands in them: NAT64 (RFC 6052), 6to4
// (RFC 3056), IPv4-compatible (RFC 4291).
var translated = map[netip.Prefix]int{
	netip.MustParsePrefix("64:ff9b::/96"): 12, netip.MustParsePrefix("2002::/16"): 2, netip.MustParsePrefix("::/96"): 12,
}

// embedded is the IPv4 address to which an address leads, or the address itself.
func embedded(a netip.Addr) netip.Addr {
	if !a.Is6() || a.IsLoopback() || a.IsUnspecified() {
		return a
	}
	bytes := a.As16()
	for prefix, at := range translated {
		if prefix.Contains(a) {
			return netip.AddrFrom4([4]byte(bytes[at : at+4]))
		}
	}
	return a
}

// refuse says why an address is not asked. Services of the cluster and private networks are: issuers run there.
func refuse(a netip.Addr) error {
	a = embedded(a.Unmap())
	kind := ""
	switch {
	case a.IsLoopback():
		kind = "a loopback address"
	case a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast():
		kind = "a link-local address, such as a cloud's metadata service has"
	case a.IsUnspecified() || a.IsMulticast():
		kind = "no host's address"
	}
	for _, m := range metadata {
		if a == m {
			kind = "the address of a cloud's metadata service"
		}
	}
	if kind == "" {
		return nil
	}
	return fmt.Errorf("%s is %s, which is not asked for keys", a, kind)
}
