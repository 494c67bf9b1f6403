package ca

import (
	"bytes"
	"testing"
	"time"

	"github.com/selvage-mesh/selvage/internal/pki"
	"github.com/selvage-mesh/selvage/internal/trust"
)

func newIssuer(t testing.TB) *pki.Issuer {
	t.Helper()
	i, err := pki.NewRoot("cluster.local", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func trusts(t *testing.T, i *pki.Issuer, roots ...*pki.Issuer) {
	t.Helper()
	var want []byte
	for _, r := range roots {
		want = append(want, r.RootPEM()...)
	}
	a, errA := pki.BundleHash(i.RootPEM())
	b, errB := pki.BundleHash(want)
	if errA != nil || errB != nil || a != b {
		t.Errorf("trusts %d bytes of roots, want %d: %v %v", len(i.RootPEM()), len(want), errA, errB)
	}
}

func TestWhoSignsAtEachStage(t *testing.T) {
	old, next, third := newIssuer(t), newIssuer(t), newIssuer(t)
	record := func(stage trust.Stage, change func(*rotation)) *rotation {
		r := begin(stage, old, next, time.Now())
		if stage == trust.Retire {
			r.from = nil
		}
		if change != nil {
			change(r)
		}
		return r
	}
	for name, c := range map[string]struct {
		source *pki.Issuer
		record *rotation
		signs  *pki.Issuer
		trusts []*pki.Issuer
	}{
		"no change": {old, nil, old, []*pki.Issuer{old}},
		"the new root is stored, and not in its Secret yet": {old, record(trust.Distribute, func(r *rotation) { r.next = next }), old, []*pki.Issuer{old, next}},
		"the new root is in its Secret":                     {next, record(trust.Distribute, nil), old, []*pki.Issuer{old, next}},
		"the new signs":                                     {next, record(trust.Sign, nil), next, []*pki.Issuer{old, next}},
		"the old is retired":                                {next, record(trust.Retire, nil), next, []*pki.Issuer{next}},
		"the new cannot be used at first":                   {nil, record(trust.Distribute, nil), old, []*pki.Issuer{old, next}},
		"the new cannot be used any more":                   {nil, record(trust.Sign, nil), old, []*pki.Issuer{old, next}},
		"it is another by now, at first":                    {third, record(trust.Distribute, nil), old, []*pki.Issuer{old, third}},
		"it is another by now, and the new has signed":      {third, record(trust.Sign, nil), old, []*pki.Issuer{old, next, third}},
		"it is taken back":                                  {old, record(trust.Distribute, nil), old, []*pki.Issuer{old}},
		"it is taken back after the new has signed":         {old, record(trust.Sign, nil), old, []*pki.Issuer{old, next}},
		"it is another by now, and the old is retired":      {third, record(trust.Retire, nil), third, []*pki.Issuer{next, third}},
		"nobody knows the old one's key":                    {next, record(trust.Sign, func(r *rotation) { r.from = nil; r.others = old.RootPEM() }), next, []*pki.Issuer{old, next}},
		"a third was overtaken":                             {next, record(trust.Sign, func(r *rotation) { r.others = third.RootPEM() }), next, []*pki.Issuer{old, next, third}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := effective(c.source, c.record)
			if err != nil || got == nil {
				t.Fatalf("nobody signs: %v", err)
			}
			if !sameRoot(got, c.signs) {
				t.Error("another signs")
			}
			trusts(t, got, c.trusts...)
			if !bytes.HasPrefix(got.RootPEM(), c.signs.RootPEM()) {
				t.Error("the root that signs is not the first")
			}
			if c.record == nil {
				return
			}
			secret, err := encodeRotation(c.record, "istio-system")
			if err != nil {
				t.Fatal(err)
			}
			again, wrong := decodeRotation(secret)
			if len(wrong) > 0 {
				t.Fatal(wrong)
			}
			if after, err := effective(c.source, again); err != nil || !after.Equal(got) {
				t.Errorf("a replica that reads the Secret does otherwise: %v", err)
			}
		})
	}
}

func TestWhichSourceNeedsStages(t *testing.T) {
	old, next := newIssuer(t), newIssuer(t)
	oldKnowsNext, err := old.Trusting(next.RootPEM())
	if err != nil {
		t.Fatal(err)
	}
	nextKnowsOld, err := next.Trusting(old.RootPEM())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		current, source *pki.Issuer
		stage           trust.Stage
		want            trust.Stage
	}{
		"the same":                  {old, old, trust.Stable, ""},
		"another root":              {old, next, trust.Stable, trust.Distribute},
		"another root is announced": {old, oldKnowsNext, trust.Stable, ""},
		"an announced root signs, both stay trusted":          {oldKnowsNext, nextKnowsOld, trust.Stable, ""},
		"an announced root signs, and the former goes":        {oldKnowsNext, next, trust.Stable, trust.Sign},
		"the former root goes after it has":                   {nextKnowsOld, next, trust.Stable, ""},
		"the record was deleted before everybody had the new": {oldKnowsNext, next, trust.Distribute, trust.Distribute},
	} {
		got := change(&root{issuer: c.current, stage: c.stage}, nil, c.source, time.Now())
		if (got == nil) != (c.want == "") || got != nil && got.stage != c.want {
			t.Errorf("%s: %+v, want %q", name, got, c.want)
		}
	}
	if change(nil, nil, next, time.Now()) != nil {
		t.Error("a start is no change")
	}
}

// While the new root signs, its source changes once more: all three stay trusted until the end.
func TestAChangeDuringAChangeForgetsNoRoot(t *testing.T) {
	old, next, third := newIssuer(t), newIssuer(t), newIssuer(t)
	record := begin(trust.Sign, old, next, time.Now())
	record.version = "7"
	now, err := effective(next, record)
	if err != nil {
		t.Fatal(err)
	}
	for name, after := range map[string]*rotation{
		"a replica that knows the new key": change(&root{issuer: now, stage: trust.Sign}, record, third, time.Now()),
		"one that begins only now":         record.redirected(third, time.Now()),
	} {
		if after == nil || after.version != "7" || after.stage != trust.Distribute {
			t.Fatalf("%s: %+v", name, after)
		}
		got, err := effective(third, after)
		if err != nil || sameRoot(got, third) {
			t.Errorf("%s: the third signs unheard of: %v", name, err)
		}
		trusts(t, got, old, next, third)
		later, err := effective(third, after.advance(time.Now()))
		if err != nil || !sameRoot(later, third) {
			t.Errorf("%s: the third does not sign: %v", name, err)
		}
		trusts(t, later, old, next, third)
	}
}
