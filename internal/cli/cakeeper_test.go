package cli_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

const wellSigned = `{"source":"self-signed (Secret istio-ca-secret)","signing":{"subject":"CN=r","sha256":"ab","notAfter":"2036-01-02T03:04:05Z"},
 "roots":[{"subject":"CN=r","sha256":"ab","notAfter":"2036-01-02T03:04:05Z","signs":true}],"rootsHash":"cd","stage":"stable"PROBLEMS}`

// What `ca status` shows is what a control plane wrote: with nobody alive it says so, and for how long, and fails.
func TestCAStatusSaysWhetherAnybodyIsAlive(t *testing.T) {
	for name, c := range map[string]struct {
		renewed time.Duration
		forbid  string
		code    int
		says    string
	}{
		"alive":           {renewed: 3 * time.Second, says: "kept by istiod-6d8c7b9f4d-q7x2p, alive 3s ago"},
		"dead":            {renewed: 10 * time.Minute, code: 1, says: "No control plane is alive: Lease istio-system/selvage-roots was renewed 10m0s ago, the last one was istiod-6d8c7b9f4d-q7x2p."},
		"nobody's lease":  {code: 1, says: "No control plane is alive: nobody has Lease istio-system/selvage-roots."},
		"may not be read": {renewed: 3 * time.Second, forbid: "/apis/coordination.k8s.io", says: "whether a control plane is alive is not known"},
	} {
		home, kubeconfig := (&cluster{authority: strings.Replace(wellSigned, "PROBLEMS", "", 1), renewed: c.renewed, forbid: c.forbid}).start(t)
		got := run(t, home, "", "ca", "status", "--kubeconfig", kubeconfig)
		if text := strings.Join(strings.Fields(got.stdout), " "); got.code != c.code || !strings.Contains(text, c.says) {
			t.Errorf("%s: exit code %d, stderr %q:\n%s\nwant %d and %q", name, got.code, got.stderr, got.stdout, c.code, c.says)
		}
		got = run(t, home, "", "ca", "status", "-o", "json", "--kubeconfig", kubeconfig)
		var out struct {
			Source string
			Keeper struct{ Holder, Unknown string }
		}
		if err := json.Unmarshal([]byte(got.stdout), &out); err != nil || got.code != c.code || out.Source == "" || (c.renewed == 0) == (out.Keeper.Holder+out.Keeper.Unknown != "") {
			t.Errorf("%s: in JSON: exit code %d, %v: %s", name, got.code, err, got.stdout)
		}
	}
}

// A namespace that cannot be given the roots is told where people look.
func TestStatusTellsWhatIsWrongWithTheRoots(t *testing.T) {
	problem := `,"problems":["SEL0054 Error ConfigMap/shop/istio-ca-root-cert immutable: it is immutable", "another"]`
	home, kubeconfig := (&cluster{syncz: raw(shop), authority: strings.Replace(wellSigned, "PROBLEMS", problem, 1)}).start(t)
	got := run(t, home, "", "status", "--kubeconfig", kubeconfig)
	if got.code != 1 || !strings.Contains(got.stdout, "`selvage ca status` shows all") || !strings.Contains(got.stdout, "SEL0054") || !strings.Contains(got.stdout, "and 1 other problem") {
		t.Errorf("exit code %d, stderr %q:\n%s", got.code, got.stderr, got.stdout)
	}
}

func TestAGraceIsNotNegative(t *testing.T) {
	home, kubeconfig := (&cluster{}).start(t)
	for _, command := range []string{"prune", "list"} {
		got := run(t, home, "", "revision", command, "--grace", "-5m", "--kubeconfig", kubeconfig)
		if got.code != 2 || !strings.Contains(got.stderr, "--grace -5m0s is negative") {
			t.Errorf("%s: exit code %d: %s", command, got.code, got.stderr)
		}
	}
}

// A change of the root that runs already is watched; nothing else is asked of the API server, which here would refuse it.
func TestRotateWatchesAChangeThatRuns(t *testing.T) {
	running := strings.Replace(strings.Replace(wellSigned, "PROBLEMS", "", 1), `"stable"`, `"sign","since":"2026-01-02T03:04:05Z"`, 1)
	home, kubeconfig := (&cluster{authority: running, renewed: time.Second}).start(t)
	got := run(t, home, "", "ca", "rotate", "--detach", "--kubeconfig", kubeconfig)
	if got.code != 0 || !strings.Contains(got.stderr, "The root is being changed already") {
		t.Errorf("exit code %d: %s", got.code, got.stderr)
	}
	got = run(t, home, "", "ca", "rotate", "--timeout", "100ms", "--kubeconfig", kubeconfig)
	if got.code != 2 || !strings.Contains(got.stderr, "sign: the new root signs, both are trusted") || !strings.Contains(got.stderr, "it goes on") {
		t.Errorf("exit code %d: %s", got.code, got.stderr)
	}
	lost := strings.Replace(running, `"stage"`, `"formerKeyLost":true,"stage"`, 1)
	home, kubeconfig = (&cluster{authority: lost, renewed: time.Second}).start(t)
	if got := run(t, home, "", "ca", "rotate", "--undo", "--kubeconfig", kubeconfig); got.code != 2 || !strings.Contains(got.stderr, "the key of the former root is lost") {
		t.Errorf("undo of a lost root: exit code %d: %s", got.code, got.stderr)
	}
}
