package identity

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/selvage-mesh/selvage/internal/pki"
)

var web = pki.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}

func mustRoot(t *testing.T) *pki.Issuer {
	t.Helper()
	root, err := pki.NewRoot("cluster.local", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// signer certifies with an authority that can be replaced, and fails as often as it is told.
type signer struct {
	t        *testing.T
	issuer   atomic.Pointer[pki.Issuer]
	lifetime time.Duration
	mu       sync.Mutex
	failures int
	asked    []time.Time
}

// times is when certificates were asked for.
func (s *signer) times() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func (s *signer) sign(_ context.Context, requestPEM []byte) ([][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, time.Now())
	if s.failures > 0 {
		s.failures--
		return nil, errors.New("the authority is away")
	}
	request, err := pki.ParseRequest(requestPEM)
	if err != nil {
		return nil, err
	}
	return s.issuer.Load().SignWorkload(request, web, s.lifetime, time.Now())
}

func newSource(t *testing.T, s *signer, rootFile string) (*Source, *bytes.Buffer) {
	t.Helper()
	if s.issuer.Load() == nil {
		s.issuer.Store(mustRoot(t))
	}
	var log bytes.Buffer
	source, err := New(Config{Identity: web, Sign: s.sign, RootFile: rootFile, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return source, &log
}

// during runs the source inside a bubble while f looks at it.
func during(t *testing.T, source *Source, f func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- source.Run(ctx) }()
	f()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestACertificateIsRenewedAtHalfOfItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &signer{t: t, lifetime: 24 * time.Hour}
		source, _ := newSource(t, s, filepath.Join(t.TempDir(), "none"))
		during(t, source, func() {
			<-source.Tried()
			first, changed := source.Current()
			if first.Leaf == nil || source.Certificate() == nil || len(first.RootsPEM) == 0 {
				t.Fatal("no certificate after the first attempt")
			}
			if bytes.Contains(first.ChainPEM, first.RootsPEM) {
				t.Error("the root is in the chain that peers are sent")
			}
			<-changed
			second, _ := source.Current()
			if second.Leaf.SerialNumber.Cmp(first.Leaf.SerialNumber) == 0 || bytes.Equal(second.KeyPEM, first.KeyPEM) {
				t.Error("the same certificate or key after renewal")
			}
			if after := s.times()[1].Sub(s.times()[0]); after < 10*time.Hour+40*time.Minute || after > 13*time.Hour+20*time.Minute {
				t.Errorf("renewed after %s, want 12 h within 5 %% of the life", after)
			}
		})
	})
}

func TestRenewalTimes(t *testing.T) {
	for _, tt := range []struct {
		life          time.Duration
		grace, random float64
		want          time.Duration
	}{
		{24 * time.Hour, 0.5, 0.5, 12 * time.Hour},
		{24 * time.Hour, 0.5, 0, 10*time.Hour + 48*time.Minute},
		{24 * time.Hour, 0.9, 0.5, 2*time.Hour + 24*time.Minute},
		{time.Hour, 0.99, 0, minimumRenew},
		{time.Second, 0.5, 0.5, minimumRenew},
		{-time.Hour, 0.5, 0.5, minimumRenew},
	} {
		if got := renewAfter(tt.life, tt.grace, tt.random).Round(time.Second); got != tt.want {
			t.Errorf("renewAfter(%s, %g, %g) = %s, want %s", tt.life, tt.grace, tt.random, got, tt.want)
		}
	}
}

func TestAnAuthorityThatIsAwayIsAskedWithGrowingPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &signer{t: t, lifetime: time.Hour, failures: 12}
		source, log := newSource(t, s, "")
		during(t, source, func() {
			<-source.Tried()
			if source.Failure() == nil || source.Certificate() != nil {
				t.Error("no failure after the first attempt")
			}
			for {
				m, changed := source.Current()
				if m.Leaf != nil {
					break
				}
				<-changed
			}
			synctest.Wait()
			if err := source.Failure(); err != nil {
				t.Errorf("still %v", err)
			}
		})
		for i := 1; i < len(s.times()); i++ {
			pause, most := s.times()[i].Sub(s.times()[i-1]), min(retryBase<<(i-1), retryMax)
			if pause < most/2 || pause > most {
				t.Errorf("pause %d is %s, want from %s to %s", i, pause, most/2, most)
			}
		}
		if n := bytes.Count(log.Bytes(), []byte("level=WARN")); n != 1 {
			t.Errorf("%d warnings for one cause, want 1:\n%s", n, log)
		}
	})
}

func TestAnExpiredCertificateIsNotShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &signer{t: t, lifetime: time.Hour}
		source, _ := newSource(t, s, "")
		during(t, source, func() {
			<-source.Tried()
			s.mu.Lock()
			s.failures = 1 << 30
			s.mu.Unlock()
			time.Sleep(59 * time.Minute)
			if source.Certificate() == nil {
				t.Error("gone before its end")
			}
			if source.Failure() == nil {
				t.Error("a renewal that fails is not told")
			}
			time.Sleep(2 * time.Minute)
			if source.Certificate() != nil {
				t.Error("an expired certificate is shown")
			}
			if m, _ := source.Current(); m.Leaf == nil {
				t.Error("the proxy's certificate is taken away: it would lose its listeners")
			}
		})
	})
}

func TestNewRootsArePublishedAndCertifiedAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root-cert.pem")
	synctest.Test(t, func(t *testing.T) {
		s := &signer{t: t, lifetime: 24 * time.Hour}
		source, _ := newSource(t, s, path)
		old := s.issuer.Load()
		write := func(data []byte) {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(old.RootPEM())
		during(t, source, func() {
			<-source.Tried()
			// Both roots: the certificate is still of one of them.
			next := mustRoot(t)
			_, changed := source.Current()
			write(append(bytes.Clone(old.RootPEM()), next.RootPEM()...))
			<-changed
			m, changed := source.Current()
			if n := len(s.times()); !bytes.Contains(m.RootsPEM, next.RootPEM()) || n != 1 {
				t.Errorf("asked %d times after a root was added, want 1", n)
			}
			// Half a file, as an editor leaves it: nothing happens.
			write(next.RootPEM()[:100])
			time.Sleep(10 * time.Second)
			if now, _ := source.Current(); now != m {
				t.Error("a damaged file was taken")
			}
			// The new root alone: the certificate is of none.
			s.issuer.Store(next)
			write(next.RootPEM())
			<-changed
			// First the roots are published, then the certificate; a source that does neither ends the test by deadlock.
			for m, changed = source.Current(); m.Root() == nil || !bytes.Equal(m.RootsPEM, next.RootPEM()); m, changed = source.Current() {
				<-changed
			}
			if n := len(s.times()); n != 2 {
				t.Errorf("asked %d times, want 2", n)
			}
			if since := time.Since(s.times()[0]); since > time.Minute {
				t.Errorf("took %s", since)
			}
		})
	})
}

func TestAnswersThatCannotBeUsedAreRefused(t *testing.T) {
	root := mustRoot(t)
	id := web
	key, requestPEM, err := pki.NewRequest(id)
	if err != nil {
		t.Fatal(err)
	}
	request, err := pki.ParseRequest(requestPEM)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := root.SignWorkload(request, id, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if m, rootPEM, err := assemble(chain, key); err != nil || !bytes.Equal(rootPEM, root.RootPEM()) || !bytes.Equal(m.ChainPEM, chain[0]) {
		t.Errorf("a good answer: %v", err)
	}
	otherKey, _, err := pki.NewRequest(id)
	if err != nil {
		t.Fatal(err)
	}
	for name, given := range map[string]struct {
		chain [][]byte
		key   []byte
	}{
		"nothing":       {nil, key},
		"not PEM":       {[][]byte{[]byte("sorry")}, key},
		"another's key": {chain, otherKey},
	} {
		if _, _, err := assemble(given.chain, given.key); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	if _, err := New(Config{Identity: pki.Identity{}}); err == nil {
		t.Error("nobody's identity is taken")
	}
	if _, err := New(Config{Identity: web, GraceRatio: 1}); err == nil {
		t.Error("a ratio of 1 is taken: it would renew all the time")
	}
}
