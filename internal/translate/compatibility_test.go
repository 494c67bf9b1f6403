package translate_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "istio.io/api/extensions/v1alpha1"
	_ "istio.io/api/networking/v1alpha3"
	_ "istio.io/api/networking/v1beta1"
	_ "istio.io/api/security/v1beta1"
	_ "istio.io/api/telemetry/v1alpha1"

	"github.com/selvage-mesh/selvage/internal/translate"
)

const compatibilityPage = "../../docs/compatibility.md"

// specs are the messages of the kinds of Istio's API.
var specs = []protoreflect.FullName{
	"istio.extensions.v1alpha1.TrafficExtension", "istio.extensions.v1alpha1.WasmPlugin",
	"istio.networking.v1alpha3.DestinationRule", "istio.networking.v1alpha3.EnvoyFilter", "istio.networking.v1alpha3.Gateway",
	"istio.networking.v1alpha3.ServiceEntry", "istio.networking.v1alpha3.Sidecar", "istio.networking.v1alpha3.VirtualService",
	"istio.networking.v1alpha3.WorkloadEntry", "istio.networking.v1alpha3.WorkloadGroup", "istio.networking.v1beta1.ProxyConfig",
	"istio.security.v1beta1.AuthorizationPolicy", "istio.security.v1beta1.PeerAuthentication", "istio.security.v1beta1.RequestAuthentication",
	"istio.telemetry.v1alpha1.Telemetry",
}

// fieldsOf walks the fields that an object of a kind can have.
func fieldsOf(t *testing.T, kind protoreflect.FullName, into map[string]protoreflect.FieldDescriptor) {
	t.Helper()
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(kind)
	if err != nil {
		t.Fatal(err)
	}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			name := strings.TrimPrefix(string(f.FullName()), "istio.")
			if _, ok := into[name]; ok {
				continue
			}
			into[name] = f
			if _, refused := translate.Refusals[f.FullName()]; refused {
				continue // with all that stands in it
			}
			if f.IsMap() {
				f = f.MapValue()
			}
			if next := f.Message(); next != nil && strings.HasPrefix(string(next.FullName()), "istio.") {
				walk(next)
			}
		}
	}
	walk(d.(protoreflect.MessageDescriptor))
}

// TestEveryFieldHasARow walks Istio's API and the rows of docs/compatibility.md: a field works, and names the test that shows it, or it
// is refused with a code. No field is in neither column, and none is said to be refused that is not, or the other way round.
func TestEveryFieldHasARow(t *testing.T) {
	text, err := os.ReadFile(compatibilityPage)
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("^\\| `([^`]+)` \\| (works|refused) \\| (.+) \\|$")
	rows := map[string][2]string{} // state and what shows it, by field or message
	for line := range strings.Lines(string(text)) {
		m := row.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		if _, twice := rows[m[1]]; twice {
			t.Errorf("%s has two rows", m[1])
		}
		rows[m[1]] = [2]string{m[2], m[3]}
	}
	used := map[string]bool{}
	for _, kind := range specs {
		name := strings.TrimPrefix(string(kind), "istio.")
		if r, ok := rows[name]; ok { // as a whole
			used[name] = true
			if r[0] == "works" || translate.Serves(name[strings.LastIndexByte(name, '.')+1:]) {
				t.Errorf("%s is carried out: it needs a row for each field", name)
			}
			continue
		}
		fields := map[string]protoreflect.FieldDescriptor{}
		fieldsOf(t, kind, fields)
		for name, f := range fields {
			used[name] = true
			r, ok := rows[name]
			_, refused := translate.Refusals[f.FullName()]
			switch {
			case !ok:
				t.Errorf("%s is in neither column", name)
			case refused != (r[0] == "refused"):
				t.Errorf("%s is said to be %q, but refused by the translator: %t", name, r[0], refused)
			case r[0] == "works" && !strings.Contains(r[1], "Test"):
				t.Errorf("%s works, but no test is named: %s", name, r[1])
			case r[0] == "refused" && !strings.Contains(r[1], "SEL0001"):
				t.Errorf("%s is refused without a code: %s", name, r[1])
			}
		}
	}
	for name := range rows {
		if !used[name] {
			t.Errorf("%s has a row, and no kind that is carried out has the field", name)
		}
	}
	tests := regexp.MustCompile(`Test\w+`)
	known := functions(t, "../xds", "../translate", "../index", "../kube")
	for name, r := range rows {
		for _, of := range tests.FindAllString(r[1], -1) {
			if !slices.Contains(known, of) {
				t.Errorf("%s names %s, and there is no such test", name, of)
			}
		}
	}
}

// functions are the tests in some folders.
func functions(t *testing.T, folders ...string) (names []string) {
	t.Helper()
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	for _, folder := range folders {
		entries, err := os.ReadDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), "_test.go") {
				continue
			}
			text, err := os.ReadFile(folder + "/" + e.Name())
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range declared.FindAllStringSubmatch(string(text), -1) {
				names = append(names, m[1])
			}
		}
	}
	return names
}
