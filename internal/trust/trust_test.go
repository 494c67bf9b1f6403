package trust

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func TestWhoHasAcknowledged(t *testing.T) {
	ages := Ages{Roots: 10 * time.Minute, Certificate: 24 * time.Hour}
	const both, next, old = "b07", "new", "01d"
	for name, c := range map[string]struct {
		stage     Stage
		proxy     Proxy
		age       time.Duration
		has, aged bool
	}{
		"uses both roots":                                    {Distribute, Proxy{Roots: both, Root: old}, 0, true, false},
		"uses the old root only, however long":               {Distribute, Proxy{Roots: old, Root: old}, 1000 * time.Hour, false, false},
		"cannot say, yet":                                    {Distribute, Proxy{Root: old}, 9 * time.Minute, false, false},
		"cannot say, but has had the time":                   {Distribute, Proxy{Root: old}, 10 * time.Minute, true, true},
		"has a certificate of the new root":                  {Sign, Proxy{Roots: both, Root: next}, 0, true, false},
		"has one of the old, however long":                   {Sign, Proxy{Roots: both, Root: old}, 1000 * time.Hour, false, false},
		"has none at all":                                    {Sign, Proxy{Roots: both}, time.Hour, false, false},
		"cannot say, but its handshake shows the new":        {Sign, Proxy{Root: next}, 0, true, false},
		"cannot say, its handshake shows the old":            {Sign, Proxy{Root: old}, time.Hour, false, false},
		"cannot say, but certificates of the old are over":   {Sign, Proxy{Root: old}, 24 * time.Hour, true, true},
		"trusts the old root still":                          {Retire, Proxy{Roots: "other", Root: next}, time.Hour, false, false},
		"trusts only the new root":                           {Retire, Proxy{Roots: both, Root: next}, 0, true, false},
		"cannot say, and has had the time to forget the old": {Retire, Proxy{}, 10 * time.Minute, true, true},
	} {
		count := Acknowledged(Wanted{Stage: c.stage, Since: began, Roots: both, Root: next}, []Proxy{c.proxy}, ages, began.Add(c.age))
		if (count.Done == 1) != c.has || (count.ByAge == 1) != c.aged || count.Total != 1 || count.Open() != c.has {
			t.Errorf("%s: %+v", name, count)
		}
	}
}

func TestCountsAreAddedAndNameSome(t *testing.T) {
	var proxies []Proxy
	for _, name := range []string{"shop/g", "shop/f", "shop/e", "shop/d", "shop/c", "shop/b", "shop/a"} {
		proxies = append(proxies, Proxy{Name: name, Roots: "01d"})
	}
	c := Acknowledged(Wanted{Stage: Distribute, Roots: "b07"}, proxies, Ages{}, began).Add(Counted(3, []string{"shop/0", "shop/a"}))
	if c.Total != 10 || c.Done != 1 || c.Open() || !slices.Equal(c.Waiting, []string{"shop/0", "shop/a", "shop/b", "shop/c", "shop/d"}) {
		t.Errorf("%+v", c)
	}
}

func TestStagesEnd(t *testing.T) {
	var seen []Stage
	for s := Distribute; s.Valid(); s = s.Next() {
		seen = append(seen, s)
	}
	if !slices.Equal(seen, []Stage{Distribute, Sign, Retire}) || Stable.Valid() {
		t.Errorf("stages %v", seen)
	}
}

func TestReportsAreReadBack(t *testing.T) {
	for _, r := range []Report{{Roots: "ab12"}, {Roots: "ab12", Root: "cd", Begins: time.Unix(1000, 0), Ends: time.Unix(2000, 0)}} {
		if got := ParseReport(r.Encode()); got != r {
			t.Errorf("%+v became %+v", r, got)
		}
	}
}

func TestReportsOfStrangersAreHarmless(t *testing.T) {
	r := ParseReport([]string{"roots=<script>", "root=" + strings.Repeat("a", 200), "begins=x", "ends=-5", "future=1", "", "==", "roots"})
	if r != (Report{}) {
		t.Errorf("%+v", r)
	}
}

func FuzzParseReport(f *testing.F) {
	f.Add("roots=ab", "ends=1")
	f.Fuzz(func(t *testing.T, a, b string) {
		r := ParseReport([]string{a, b})
		if again := ParseReport(r.Encode()); again.Roots != r.Roots || again.Root != r.Root || !again.Ends.Equal(r.Ends) {
			t.Fatalf("%+v became %+v", r, again)
		}
	})
}

func TestEndsAreToldInTime(t *testing.T) {
	const day = 24 * time.Hour
	secret := ref.Ref{Kind: "Secret", Namespace: "istio-system", Name: "cacerts"}
	for name, c := range map[string]struct {
		life, left time.Duration
		says       diag.Severity
	}{
		"a root of ten years, half over":      {3650 * day, 1800 * day, diag.Info},
		"a root of ten years, 91 days left":   {3650 * day, 91 * day, diag.Info},
		"a root of ten years, 90 days left":   {3650 * day, 90 * day, diag.Warning},
		"a root of ten years, a week left":    {3650 * day, 7 * day, diag.Error},
		"over":                                {3650 * day, -day, diag.Error},
		"a day's certificate at half":         {day, 12 * time.Hour, diag.Info},
		"a day's certificate, a quarter left": {day, 6 * time.Hour, diag.Warning},
		"a day's certificate, an hour left":   {day, time.Hour, diag.Error},
		"an intermediate of 30 days, 8 left":  {30 * day, 8 * day, diag.Info},
		"an intermediate of 30 days, 7 left":  {30 * day, 7 * day, diag.Warning},
		"an intermediate of 30 days, 2 left":  {30 * day, 2 * day, diag.Error},
	} {
		cert := Certificate{Use: Intermediate, Object: secret, Subject: "CN=x", Begins: began.Add(c.left - c.life), Ends: began.Add(c.left)}
		got := Expiring([]Certificate{cert}, began)
		if c.says == diag.Info {
			if len(got) != 0 {
				t.Errorf("%s: %v", name, got)
			}
			continue
		}
		if len(got) != 1 || got[0].Severity != c.says || got[0].Code != diag.CertificateExpires || got[0].Object != secret || got[0].Hint == "" {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestTheFirstToEndIsToldFirst(t *testing.T) {
	at := func(name string, left time.Duration) Certificate {
		return Certificate{Use: Workload, Object: ref.Ref{Kind: "Pod", Name: name}, Begins: began.Add(-24 * time.Hour), Ends: began.Add(left)}
	}
	got := Expiring([]Certificate{at("later", time.Hour), at("over", -time.Hour), at("fine", 20*time.Hour)}, began)
	if len(got) != 2 || got[0].Object.Name != "over" || got[1].Object.Name != "later" || !strings.Contains(got[0].Detail, "expired at 2026-01-02T02:04:05Z") {
		t.Errorf("%v", got)
	}
}
