package inject_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// manifests are n documents of mixed kinds and styles, as a folder of an application has them; the same on every call.
func manifests(n int) string {
	kinds := []string{`apiVersion: apps/v1
kind: Deployment
metadata:
  name: web-%[1]d # the front
  namespace: shop
  labels: {app: web-%[1]d}
spec:
  replicas: 2

  selector:
    matchLabels: &labels
      app: web-%[1]d
  template:
    metadata:
      labels: *labels
    spec:
      # one container
      containers:
      - name: web
        image: "example.com/web:1.%[1]d"
        ports:
        - containerPort: 8080
        readinessProbe:
          httpGet: {path: /ready, port: 8080}
          periodSeconds: 5   # often
        env:
        - name: GREETING
          value: 'it''s me'
`, `apiVersion: v1
kind: Service
metadata:
    name:   web-%[1]d
spec: {selector: {app: web-%[1]d}, ports: [{port: 80, targetPort: 8080}]}
`, `apiVersion: apps/v1
kind: StatefulSet
metadata:
    name: db-%[1]d
spec:
    serviceName: db
    template:
        spec:
            containers:
                - name: db
                  image: example.com/db
                  livenessProbe:
                      tcpSocket:
                          port: 5432
            # waits for its disk
            initContainers:
                - name: wait
                  image: example.com/wait
    volumeClaimTemplates: []
`, `apiVersion: v1
kind: ConfigMap
metadata: {name: config-%[1]d}
data:
  script: |
    # no comment
    ---x
    echo %[1]d
`, `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p-%[1]d"}, "spec": {"containers": [{"name": "p", "image": "example.com/p"}]}}
`, `apiVersion: batch/v1
kind: CronJob
metadata:
  name: report-%[1]d
spec:
  schedule: "0 3 * * *"
  jobTemplate:
    spec:
      template:
        metadata:
          annotations: {traffic.sidecar.istio.io/excludeOutboundPorts: "3306"}
        spec: {restartPolicy: Never, containers: [{name: report, image: example.com/report}]}
`, `apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Secret
  metadata: {name: s-%[1]d}
- apiVersion: apps/v1
  kind: DaemonSet
  metadata: {name: log-%[1]d}
  spec:
    template:
      metadata: {labels: {app: log}}
      spec:
        containers:
        - {name: log, image: example.com/log}
`}
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteString("---\n")
		}
		fmt.Fprintf(&b, kinds[i%len(kinds)], i)
	}
	return b.String()
}

// TestStreamOf500: every object with pods gets its sidecar as the webhook would give it, every other byte stays, and a second
// run changes nothing.
func TestStreamOf500(t *testing.T) {
	o := inject.StreamOptions{Config: configFrom(t, "", "", "")}
	in := manifests(500)
	out := checkStream(t, in, o)
	for _, d := range o.Documents([]byte(out)) {
		if d.Err != nil || !bytes.Equal(d.Before, d.After) {
			t.Fatalf("a second run changes document %d (error %v)", d.Number, d.Err)
		}
	}
	if n := strings.Count(out, "sidecar.istio.io/status"); n != 357 { // 500 documents, 5 of 7 with pods
		t.Errorf("%d sidecars", n)
	}
	in = manifests(14)
	if crlf := checkStream(t, strings.ReplaceAll(in, "\n", "\r\n"), o); crlf != strings.ReplaceAll(checkStream(t, in, o), "\n", "\r\n") {
		t.Error("with the line ends of Windows it is not the same")
	}
	for _, kept := range []string{"  name: web-0 # the front\n", "  replicas: 2\n\n  selector:\n", "    matchLabels: &labels\n", `image: "example.com/web:1.0"`, "value: 'it''s me'",
		"periodSeconds: 5   # often\n", "            # waits for its disk\n            initContainers:\n", "    name:   web-1\n"} {
		if !strings.Contains(out, kept) {
			t.Errorf("%q was not kept", kept)
		}
	}
}

// checkStream injects and checks each document: pods are as Workload.Inject makes them, and nothing else has changed.
func checkStream(t testing.TB, in string, o inject.StreamOptions) string {
	t.Helper()
	var out bytes.Buffer
	for _, d := range o.Documents([]byte(in)) {
		out.Write(d.Head)
		out.Write(d.After)
		if d.Err != nil {
			t.Fatal(d.Err)
		}
		if bytes.Equal(d.Before, d.After) {
			continue
		}
		before, err := o.Workloads(d.Before, nil)
		after, err2 := o.Workloads(d.After, nil)
		if err != nil || err2 != nil || len(before) != len(after) {
			t.Fatalf("%v %v: %d workloads became %d:\n%s", err, err2, len(before), len(after), d.After)
		}
		for i := range before {
			want := before[i].Pod
			if v := inject.Decide(want, o.Config); v.Inject || v.Reason == inject.AlreadyInjected {
				if want, _, err = before[i].Inject(o.Config); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(fieldsOf(t, want), fieldsOf(t, after[i].Pod)); diff != "" {
				t.Fatalf("%s (-want +got):\n%s\n%s", before[i].Object, diff, d.After)
			}
		}
		// Beside the pods all is as it was.
		if diff := cmp.Diff(withoutPods(t, d.Before), withoutPods(t, d.After)); diff != "" {
			t.Fatalf("(-before +after):\n%s\n%s", diff, d.After)
		}
	}
	return out.String()
}

func fieldsOf(t testing.TB, pod *corev1.Pod) (fields map[string]any) {
	t.Helper()
	data, err := json.Marshal(pod)
	if err == nil {
		err = json.Unmarshal(data, &fields)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fields
}

// withoutPods is a document without what injection may change.
func withoutPods(t testing.TB, doc []byte) any {
	t.Helper()
	var all any
	unmarshal := func(data []byte, into any) error { return yaml.Unmarshal(data, into) }
	if json.Valid(doc) {
		unmarshal = json.Unmarshal // YAML knows no surrogates
	}
	if err := unmarshal(doc, &all); err != nil {
		t.Fatal(err)
	}
	var strip func(any)
	strip = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if kind, _ := v["kind"].(string); kind == "Pod" || kind == "" { // an item of a PodList has none
				delete(v, "spec")
				delete(v, "metadata")
			}
			delete(v, "template")
			for _, inner := range v {
				strip(inner)
			}
		case []any:
			for _, inner := range v {
				strip(inner)
			}
		}
	}
	strip(all)
	return all
}

// TestStreamKeepsText: where the sidecar's lines are taken out again, the file is as it was.
func TestStreamKeepsText(t *testing.T) {
	o := inject.StreamOptions{Config: configFrom(t, "", "", ""), Namespace: "shop"}
	for name, in := range map[string]string{
		"no end of the last line":     "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels:\n    app: a\n  annotations:\n    x: z\nspec:\n  containers:\n  - name: a",
		"comments in every place":     "# first\napiVersion: v1\nkind: Pod # kind\nmetadata:\n  # name\n  name: a\n\n# spec\nspec:\n  containers:\n  # the one\n  - name: a # a\n    # image\n    image: x\n  # end of containers\n# end\n",
		"a block scalar at the end":   "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - name: a\n    args:\n    - |\n      # not a comment\n\n      text\n",
		"an explicit end":             "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - name: a\n...\n# after\n",
		"indented by four, dashes in": "apiVersion: v1\nkind: Pod\nmetadata:\n    name: a\nspec:\n    volumes:\n        -   name: v\n            emptyDir: {}\n    containers:\n        -   name: a\n",
		"init containers with words":  "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  initContainers:\n  # migrates\n  - name: m\n  containers:\n  - name: a\n",
		"unknown fields":              "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  future: {x: [1, 2.50, ~]}\n  containers:\n  - name: a\n    future: 0x1F\n",
		"a byte order mark":           "\ufeffapiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers:\n  - name: a\n",
	} {
		t.Run(name, func(t *testing.T) {
			out := checkStream(t, in, o)
			if again := checkStream(t, out, o); again != out {
				t.Errorf("a second run changes\n%s\nto\n%s", out, again)
			}
			rest := strings.Split(out, "\n")
			for line := range strings.SplitSeq(in, "\n") {
				i := slices.Index(rest, line)
				if i < 0 {
					t.Fatalf("line %q is lost, or not in its place:\n%s", line, out)
				}
				rest = rest[i+1:]
			}
			if strings.HasSuffix(in, "\n") != strings.HasSuffix(out, "\n") {
				t.Error("the end of the last line changed")
			}
		})
	}
}

// TestStreamForms: what cannot be kept line by line is right all the same, and as near as it goes.
func TestStreamForms(t *testing.T) {
	o := inject.StreamOptions{Config: configFrom(t, "", "", ""), Namespace: "shop"}
	for name, c := range map[string]struct{ in, want string }{
		"flow at the root":   {"{apiVersion: v1, kind: Pod, metadata: {name: a}, # why\n spec: {containers: [{name: a}]}}\n", "kind: Pod"},
		"merge keys":         {"x-c: &c\n  image: example.com/a\n  readinessProbe: {httpGet: {port: 80}}\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: a\n    <<: *c\n", "x-c: &c\n  image: example.com/a\n"},
		"an aliased spec":    {"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nx: &s\n  containers:\n  - name: a\n# here\nspec: *s\n", "x: &s\n  containers:\n  - name: a\n# here\nspec:\n"},
		"a number of 1.1":    {"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  x: 0777\n  y: yes\n  z: 1:30\n  containers:\n  - name: a\n", "  x: 0777\n  y: yes\n  z: 1:30\n"},
		"JSON on one line":   {`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"},"spec":{"containers":[{"name":"a","image":"<\u0026>"}]}}`, `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a",`},
		"JSON as of kubectl": {"{\n    \"apiVersion\": \"v1\",\n    \"kind\": \"Pod\",\n    \"metadata\": {\n        \"name\": \"\\ud83d\\ude00\"\n    },\n    \"spec\": {\n        \"containers\": [\n            {\n                \"name\": \"a\"\n            }\n        ]\n    }\n}\n", "    \"metadata\": {\n        \"name\": \"\\ud83d\\ude00\",\n"},
		"JSON after JSON":    {"{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"a\"},\"spec\":{\"containers\":[{\"name\":\"a\"}]}}\n\n{\"a\": 1,\n \"kind\":\"X\"}\n", "\n\n{\"a\": 1,\n \"kind\":\"X\"}\n"},
		"typed list":         {"apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: a}\n  spec:\n    containers:\n    - name: a\n", "istio-proxy"},
		"list in a list":     {"apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: List\n  items:\n  - apiVersion: v1\n    kind: Pod\n    metadata: {name: a}\n    spec:\n      containers:\n      - name: a\n", "istio-proxy"},
		"OpenShift":          {"apiVersion: apps.openshift.io/v1\nkind: DeploymentConfig\nmetadata: {name: a}\nspec:\n  template:\n    spec:\n      containers:\n      - name: a\n", "namespaces/shop/deploymentconfigs/a"},
		"null metadata":      {"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec:\n  template:\n    metadata:\n      creationTimestamp: null\n      labels:\n    spec:\n      containers:\n      - name: a\n", "      creationTimestamp: null\n      labels:\n        security"},
	} {
		t.Run(name, func(t *testing.T) {
			out := checkStream(t, c.in, o)
			if !strings.Contains(out, c.want) || !strings.Contains(out, "istio-proxy") {
				t.Errorf("want %q in\n%s", c.want, out)
			}
			if again := checkStream(t, out, o); again != out {
				t.Errorf("a second run changes\n%s\nto\n%s", out, again)
			}
		})
	}
}

// TestStreamQuotes: a text that YAML 1.1 takes for something else is quoted, in whatever way it is written.
func TestStreamQuotes(t *testing.T) {
	o := inject.StreamOptions{Config: configFrom(t, "", "", ""), Namespace: "shop"}
	for _, name := range []string{"yes", "On", "y", "N", "null", "~", "true", "0777", "0x1F", "0b11", "1e3", ".5", "1_000", "1:30", "2001-01-01", "+1", "-1", "-x", "--", "---", ".inf", "=", "<<",
		"100m", "1Gi", "80,81", "8_0", "it's", "a: b", "a #b", "#a", "- a", "ü", "a\tb", "?", ":", "a:", " a", "a ", "'", "\"", "\\", "%a", "@a", "`a", "{a", "[a", ",a", "!a", "&a", "*a", "|", ">", ""} {
		quoted, err := json.Marshal(name)
		if err != nil {
			t.Fatal(err)
		}
		// The name becomes the value of a label and of a variable; with the annotation the second runs through the slow path too.
		in := fmt.Sprintf("apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: %s\nspec:\n  template:\n    metadata:\n      labels: {}\n    spec:\n      containers:\n      - name: a\n", quoted)
		out := checkStream(t, in, o)
		checkStream(t, "# flow\n"+fmt.Sprintf("{apiVersion: apps/v1, kind: Deployment, metadata: {name: %s}, spec: {template: {spec: {containers: [{name: a}]}}}}", quoted), o)
		asYAML, err := o.Documents([]byte(fmt.Sprintf(`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":%s},"spec":{"template":{"spec":{"containers":[{"name":"a"}]}}}}`, quoted)))[0].YAML()
		if err != nil {
			t.Fatal(err)
		}
		a, err := o.Workloads([]byte(out), nil)
		b, err2 := o.Workloads(asYAML, nil)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		if diff := cmp.Diff(fieldsOf(t, a[0].Pod), fieldsOf(t, b[0].Pod)); diff != "" || b[0].Object.Name != a[0].Object.Name {
			t.Errorf("%q: %s", name, diff)
		}
	}
}

func TestStreamRefusesTooMuch(t *testing.T) {
	_, err := inject.Stream(&endless{}, &bytes.Buffer{}, inject.StreamOptions{Config: configFrom(t, "", "", "")})
	if err == nil || !strings.Contains(err.Error(), "more than 64 MiB") {
		t.Error(err)
	}
}

// TestStreamRefusesUTF16: YAML's readers take it, and all documents but the first would be lost.
func TestStreamRefusesUTF16(t *testing.T) {
	for mark, order := range map[string]binary.AppendByteOrder{"\xff\xfe": binary.LittleEndian, "\xfe\xff": binary.BigEndian} {
		in := []byte(mark)
		for _, unit := range utf16.Encode([]rune(manifests(2))) {
			in = order.AppendUint16(in, unit)
		}
		out := &bytes.Buffer{}
		_, err := inject.Stream(bytes.NewReader(in), out, inject.StreamOptions{Config: configFrom(t, "", "", "")})
		if err == nil || !strings.Contains(err.Error(), "save it as UTF-8") || out.Len() > 0 {
			t.Errorf("%v: %v, %d bytes written", order, err, out.Len())
		}
	}
}

// endless never ends.
type endless struct{ read int }

func (e *endless) Read(p []byte) (int, error) {
	if e.read += len(p); e.read > 4*inject.MostStream {
		return 0, errors.New("it read on and on")
	}
	copy(p, bytes.Repeat([]byte("# "), len(p)/2+1))
	return len(p), nil
}

// TestStreamNotes: what is passed on and should perhaps not be.
func TestStreamNotes(t *testing.T) {
	o := inject.StreamOptions{Config: configFrom(t, "", "", ""), Namespace: "shop"}
	in := "apiVersion: argoproj.io/v1alpha1\nkind: Rollout\nmetadata: {name: web}\nspec: {template: {spec: {containers: [{name: web}]}}}\n---\n" +
		"replicas: 2\n---\napiVersion: v1\nkind: ConfigMap\ndata: {}\ndata: {a: b}\n"
	var notes []string
	for _, d := range o.Documents([]byte(in)) {
		if d.Err != nil || !bytes.Equal(d.Before, d.After) {
			t.Errorf("document %d: %v\n%s", d.Number, d.Err, d.After)
		}
		for _, n := range d.Notes {
			notes = append(notes, fmt.Sprintf("%d: %s", d.Line, n))
		}
	}
	want := []string{
		"1: Rollout/shop/web has a pod template and is of a kind that is not known here: it is passed on as it is, and its pods get their sidecars from the webhook",
		"6: it has no kind and is passed on as it is",
		`8: key "data" stands twice in one object, first on line 10`,
	}
	if diff := cmp.Diff(want, notes); diff != "" {
		t.Error(diff)
	}
}

// BenchmarkStream is a file of 500 mixed documents, 357 of them with pods.
func BenchmarkStream(b *testing.B) {
	o := inject.StreamOptions{Config: configFrom(b, "", "", "")}
	in := []byte(manifests(500))
	b.ReportAllocs()
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		for _, d := range o.Documents(in) {
			if d.Err != nil {
				b.Fatal(d.Err)
			}
		}
	}
}
