//go:build apiserver

package live_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/policy"
	"github.com/selvage-mesh/selvage/internal/validate"
)

// TestConfigGuard compares what the API server refuses by itself (the kinds' definitions, the guard) with what validate says, for the
// objects of validate's own tests and for changes of them.
func TestConfigGuard(t *testing.T) {
	m := newMesh(t, func(o *install.Options) { o.SkipCRDs, o.Guards = false, policy.Guards{policy.ConfigGuard: policy.Deny} })
	if err := m.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), m.validating(), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err) // nobody answers it
	}
	objects := validated(t)
	c := &configuration{mesh: m, said: &warnings{}}
	config := rest.CopyConfig(m.config)
	config.WarningHandler = c.said
	c.objects = dynamic.NewForConfigOrDie(config)
	inForce := map[string]bool{}
	for _, w := range wrong(t) {
		ask := func() string {
			err := c.create(w.Unstructured)
			if err != nil && strings.Contains(err.Error(), w.says) && strings.Contains(err.Error(), "selvage-guard-config") {
				return ""
			}
			return fmt.Sprintf("%s %v: %v; the guard should say %s", w.GetKind(), w.Object["spec"], err, w.says)
		}
		if !inForce[w.GetKind()] {
			inForce[w.GetKind()] = true
			m.eventually("the guard of "+w.GetKind(), ask)
		} else if pending := ask(); pending != "" {
			t.Error(pending)
		}
		if len(problems(t, w.Unstructured)) == 0 {
			t.Errorf("validate admits %s %v", w.GetKind(), w.Object["spec"])
		}
		objects = append(objects, w)
	}
	t.Run("what validate admits is admitted", func(t *testing.T) {
		refused, left := 0, 0
		for _, o := range objects {
			err := c.create(o.Unstructured)
			byGuard := err != nil && strings.Contains(err.Error(), "selvage-guard-config")
			if byGuard && len(o.problems) == 0 {
				t.Errorf("%s %v: validate admits it, the guard says %v", o.GetKind(), o.Object["spec"], err)
			}
			if len(o.problems) > 0 && err == nil {
				left++
			} else if len(o.problems) > 0 {
				refused++
			}
		}
		t.Logf("of %d objects the API server by itself refuses %d that validate refuses; %d are left to the webhook", len(objects), refused, left)
	})
	t.Run("a change of anything is not refused where validate admits it", func(t *testing.T) { c.changes(t, objects) })
	t.Run("what was wrong before can be changed and goes", c.old)
	for _, mode := range []policy.Mode{policy.Warn, policy.Off} {
		t.Run(string(mode), func(t *testing.T) {
			m.options.Guards = policy.Guards{policy.ConfigGuard: mode}
			if err := m.installer().Apply(t.Context(), m.options); err != nil {
				t.Fatal(err)
			}
			m.eventually("mode "+string(mode), func() string {
				c.said.take()
				err := c.create(wrongGateway())
				if warned := len(c.said.take()) > 0; err != nil || warned != (mode == policy.Warn) {
					return fmt.Sprintf("error %v, warned %v", err, warned)
				}
				return ""
			})
		})
	}
}

type configuration struct {
	*mesh
	objects dynamic.Interface
	said    *warnings
}

// create tries to, as a dry run.
func (c *configuration) create(o *unstructured.Unstructured) error {
	o = o.DeepCopy()
	o.SetNamespace("default")
	o.SetName("selvage-test")
	_, err := c.objects.Resource(resource(sample{Unstructured: o})).Namespace("default").Create(c.Context(), o, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// sample is one object with what validate says about it.
type sample struct {
	*unstructured.Unstructured
	problems []diag.Problem // errors alone
	says     string         // what the guard says of it, where it is alone to do so
}

func resource(s sample) schema.GroupVersionResource {
	k := s.GroupVersionKind()
	plural := strings.ToLower(k.Kind) + "s"
	if stem, ok := strings.CutSuffix(plural, "ys"); ok && k.Kind != "Gateway" {
		plural = stem + "ies"
	}
	return k.GroupVersion().WithResource(plural)
}

// problems are those for which validate refuses an object.
func problems(t *testing.T, o *unstructured.Unstructured) []diag.Problem {
	t.Helper()
	raw, err := json.Marshal(o.Object)
	if err != nil {
		t.Fatal(err)
	}
	all, err := validate.Object(raw)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(p diag.Problem) bool { return p.Severity != diag.Error })
}

// wrong are those of wrongConfig.
func wrong(t *testing.T) (all []sample) {
	t.Helper()
	for _, w := range wrongConfig {
		o := &unstructured.Unstructured{}
		text := fmt.Sprintf("{apiVersion: %s, kind: %s, metadata: {name: a}, spec: %s}", w.apiVersion, w.kind, w.spec)
		if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		all = append(all, sample{Unstructured: o, problems: problems(t, o), says: w.says})
	}
	return all
}

// changes makes many of each object and compares.
func (c *configuration) changes(t *testing.T, objects []sample) {
	const rounds = 3 // for each object, a dry run each
	source := rand.New(rand.NewPCG(6, 1))
	var mu sync.Mutex
	refused, both, alone := 0, 0, 0
	var running sync.WaitGroup
	work := make(chan *unstructured.Unstructured)
	for range 4 {
		running.Go(func() {
			for o := range work {
				err := c.create(o)
				byGuard := err != nil && strings.Contains(err.Error(), "selvage-guard-config")
				if err != nil && !byGuard && !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) {
					t.Errorf("create %v: %v", o.Object, err)
				}
				said := problems(t, o)
				mu.Lock()
				switch {
				case byGuard && len(said) == 0:
					t.Errorf("validate admits %s %v, and the guard says %v", o.GetKind(), o.Object["spec"], err)
				case byGuard:
					refused++
				case err == nil && len(said) > 0:
					alone++
				case err != nil && len(said) > 0:
					both++
				}
				mu.Unlock()
			}
		})
	}
	total := 0
	for _, o := range objects {
		for range rounds {
			changed := o.DeepCopy()
			if spec, ok := changed.Object["spec"].(map[string]any); ok {
				for range 1 + source.IntN(2) {
					change(source, spec)
				}
			}
			total++
			work <- changed
		}
	}
	close(work)
	running.Wait()
	t.Logf("of %d objects the guard refused %d and the definitions %d that validate refuses; %d are left to the webhook", total, refused, both, alone)
	if refused < 100 {
		t.Error("the test does not test")
	}
}

// odd are values that stand at the edge of what is valid somewhere.
var odd = []any{
	"", "*", "a", "*.a", "a.*", "a..b", "a.", "web:80", "::1", "[::1]", "fe80::1%eth0", "::ffff:1.2.3.4", "10.0.0.0/8", "10.0.0.1/8", "[10.0.0.1]", "1.2.3", "ns/host", "/host", "ns/", "./*", "ü",
	strings.Repeat("a", 63), strings.Repeat("a", 64), "*" + strings.Repeat("a", 62), "unix:///a", "127.0.0.1:8080", "[::]:80", "0.0.0.0:x", "HTTP", "http", "SMTP", "MUTUAL", "STATIC", "NONE", "DNS", "REMOVE", "CLUSTER",
	"0080", "80", "65536", "99999999999999999999", "1s", "Upper", "under_score", "UNSPECIFIED",
	int64(0), int64(1), int64(-1), int64(80), int64(299), int64(600), int64(65535), int64(65536), 0.5, 100.5, true, map[string]any{}, []any{},
}

// change changes one thing somewhere in a value.
func change(source *rand.Rand, value map[string]any) {
	keys := slices.Sorted(maps.Keys(value))
	if len(keys) == 0 {
		return
	}
	key := keys[source.IntN(len(keys))]
	switch v := value[key].(type) {
	case map[string]any:
		if source.IntN(5) > 0 && len(v) > 0 {
			change(source, v)
			return
		}
	case []any:
		if source.IntN(5) > 0 && len(v) > 0 {
			at := source.IntN(len(v))
			if inner, ok := v[at].(map[string]any); ok && source.IntN(8) > 0 {
				change(source, inner)
			} else if source.IntN(3) == 0 {
				value[key] = append(slices.Clone(v), v[at])
			} else {
				v[at] = odd[source.IntN(len(odd))]
			}
			return
		}
	}
	if source.IntN(4) == 0 {
		delete(value, key)
		return
	}
	value[key] = odd[source.IntN(len(odd))]
	if list, ok := value[key].([]any); ok { // no two objects share one
		value[key] = slices.Clone(list)
	} else if m, ok := value[key].(map[string]any); ok {
		value[key] = maps.Clone(m)
	}
}

func wrongGateway() *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": map[string]any{"name": "selvage-test", "namespace": "default"},
		"spec": map[string]any{"servers": []any{map[string]any{"port": map[string]any{"number": int64(80), "name": "http", "protocol": "SMTP"}, "hosts": []any{"*"}}}}}}
}

// old is an object that was there before the guard.
func (c *configuration) old(t *testing.T) {
	m, kind := c.mesh, schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "gateways"}
	as := func(mode policy.Mode) {
		t.Helper()
		m.options.Guards = policy.Guards{policy.ConfigGuard: mode}
		if err := m.installer().Apply(t.Context(), m.options); err != nil {
			t.Fatal(err)
		}
		m.eventually("mode "+string(mode), func() string {
			if err := c.create(wrongGateway()); (err != nil) != (mode == policy.Deny) {
				return fmt.Sprint(err)
			}
			return ""
		})
	}
	as(policy.Off)
	gateways := c.objects.Resource(kind).Namespace("default")
	wrong := wrongGateway()
	wrong.SetFinalizers([]string{"selvage.io/test"})
	made, err := gateways.Create(t.Context(), wrong, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	as(policy.Deny)
	made.SetLabels(map[string]string{"a": "b"})
	if made, err = gateways.Update(t.Context(), made, metav1.UpdateOptions{}); err != nil {
		t.Fatalf("change a label: %v", err)
	}
	if err := gateways.Delete(t.Context(), made.GetName(), metav1.DeleteOptions{}); err != nil {
		t.Fatalf("delete it: %v", err)
	}
	if made, err = gateways.Get(t.Context(), made.GetName(), metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	made.SetFinalizers(nil)
	if _, err = gateways.Update(t.Context(), made, metav1.UpdateOptions{}); err != nil {
		t.Fatalf("take the finalizer away: %v", err)
	}
	if _, err = gateways.Get(t.Context(), made.GetName(), metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("it is still there: %v", err)
	}
}
