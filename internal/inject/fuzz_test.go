package inject_test

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"istio.io/api/annotation"
	corev1 "k8s.io/api/core/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// argument is what may stand in an argument of the interception: numbers, addresses, the star, names of devices.
var argument = regexp.MustCompile(`^(\*|[0-9a-fA-F.:/,]*|[a-zA-Z][a-zA-Z0-9_.,-]*)$`)

// FuzzAnnotation gives any value to any annotation. Either the pod is refused with the annotation's name, or nothing but parsed
// values reaches the containers' arguments, and injecting twice changes nothing.
func FuzzAnnotation(f *testing.F) {
	var names []string
	for _, a := range annotation.AllResourceAnnotations() {
		if slices.Contains(a.Resources, annotation.Pod) {
			names = append(names, a.Name)
		}
	}
	slices.Sort(names)
	for i, value := range []string{"", "*", "80,443", "--", "80;id", "$(id)", "10.0.0.0/8", "fd00::/8,0.0.0.0/0", "true", "0", "-1", "1e3", "100m", "{}", "[]", `{"a":{}}`,
		"concurrency: 2", "discoveryAddress: a:1", "warning", "default:info,xds:debug", "65536", "+80", "0x50", "80,", " 80 , 81 ", "::1%eth0/64", "\x00", "a\nb", "1e-30000000", `{"a":{"emptyDir":{"sizeLimit":"1e-30000000"}}}`} {
		for j := range names {
			if (i+j)%3 == 0 {
				f.Add(uint16(j), value)
			}
		}
	}
	cfg := configFrom(f, "", "", "")
	f.Fuzz(func(t *testing.T, which uint16, value string) {
		name := names[int(which)%len(names)]
		pod := &corev1.Pod{}
		pod.Name, pod.Namespace, pod.Annotations = "web", "shop", map[string]string{name: value}
		pod.Spec.Containers = []corev1.Container{{Name: "web"}}
		out, _, err := inject.Pod(pod, cfg)
		if err != nil {
			if !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "Pod/shop/web") {
				t.Errorf("the error does not name the pod and %s: %v", name, err)
			}
			if len(value) < 100 && !strings.Contains(err.Error(), strconv.Quote(value)) {
				t.Errorf("the error does not show the value %q: %v", value, err)
			}
			return
		}
		args := out.Spec.InitContainers[slices.IndexFunc(out.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == inject.InitContainer })].Args
		for i := 1; i < len(args); i += 2 {
			if !strings.HasPrefix(args[i], "--") || !argument.MatchString(args[i+1]) {
				t.Errorf("%s: %q became the arguments %q", name, value, args)
			}
		}
		checkPod(t, pod, cfg)
	})
}

// FuzzStream: no stream crashes it, what it wrote it reads and leaves alone, and pods are as they are anywhere else.
func FuzzStream(f *testing.F) {
	f.Add("kind: Pod\napiVersion: v1\nmetadata: {name: a}\nspec: {containers: [{name: a}]}\n---\n# x\n")
	f.Add("---\n--- {a: b}\n...\n%YAML 1.1\n---\n\"a\"\n")
	f.Add(`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"template":{"spec":{"containers":[]}}}}]}`)
	f.Add("apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: c}\nspec: {jobTemplate: {spec: {template: {metadata: null, spec: &s {containers: [{name: a, readinessProbe: {tcpSocket: {port: 1}}}]}}}}}\n")
	f.Add("x-c: &c\n  image: a\napiVersion: v1\nkind: PodList\nitems:\n- metadata: &m {name: a}\n  spec:\n    containers:\n    - <<: *c\n      name: a # a\n- metadata: *m\n  spec: {containers: [{name: istio-proxy}]}\n")
	f.Add(manifests(7))
	o := inject.StreamOptions{Config: configFrom(f, "", "", "")}
	f.Fuzz(func(t *testing.T, in string) {
		docs := o.Documents([]byte(in))
		var whole strings.Builder
		for _, d := range docs {
			whole.Write(d.Head)
			whole.Write(d.Before)
		}
		if whole.String() != in {
			t.Fatalf("%q was cut into %q", in, whole.String())
		}
		if slices.ContainsFunc(docs, func(d inject.Document) bool { return d.Err != nil }) {
			return
		}
		out := checkStream(t, in, o)
		if again := checkStream(t, out, o); again != out {
			t.Errorf("a second run of\n%s\ngives\n%s\nfirst\n%s", in, again, out)
		}
	})
}

// FuzzParsers: what the parsers of annotations let through has only what may stand in an argument, and is what they make of it again.
func FuzzParsers(f *testing.F) {
	for _, value := range []string{"", "*", "80,443", " 1 , 2 ", "0", "65536", "+1", "0x1", "80;id", "$(id)", "10.0.0.0/8", "10.1.2.3/8,fd00::1/8", "::ffff:1.2.3.4/100", "::1%eth0/64", "eth0,net1", "eth 0", "a/b", "-",
		"100m", "0.5", "1e3", "1e-30000000", "1E9999", "128Mi", "-1", "8080:/metrics,9100", "15020", "80:", "concurrency: 2", "{proxyMetadata: {A: b}}", "a: &a [*a]", "a: &a {b: &b [c]}\nd: [*a, *b]", "{", "%", "!!binary x", "? a", "1: 2", "concurrency: 1e99",
		"proxyMetadata:\n  ? [a]\n  : b", "drainDuration: 1s", "drainDuration: -999999999999s", "tracing: {zipkin: {address: a}}", "!!map {concurrency: .inf}"} {
		f.Add(value)
	}
	plain := regexp.MustCompile(`^[0-9a-fA-F.:/,*]*$`)
	names := regexp.MustCompile(`^[A-Za-z0-9._,-]*$`)
	f.Fuzz(func(t *testing.T, value string) {
		for name, parse := range inject.Parsers {
			got, err := parse(value)
			if err != nil {
				if err.Error() == "" || !utf8.ValidString(err.Error()) && utf8.ValidString(value) {
					t.Errorf("%s %q: the error %q says nothing", name, value, err)
				}
				continue
			}
			allowed := plain
			if name == "interfaces" {
				allowed = names
			}
			if name != "config" && name != "quantity" && !allowed.MatchString(got) {
				t.Errorf("%s %q: it becomes %q", name, value, got)
			}
			if again, err := parse(got); err != nil || again != got {
				t.Errorf("%s %q: it becomes %q, and that %q (error %v)", name, value, got, again, err)
			}
		}
	})
}
