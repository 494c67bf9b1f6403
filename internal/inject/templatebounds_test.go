package inject_test

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/selvage-mesh/selvage/internal/inject"
)

// hostile are templates that would take for ever, or all memory, and what their author is told.
var hostile = map[string]string{
	`{{ range 1000000000 }}{{ end }}`: "it takes more than 100000 steps: does it loop?",
	`{{ range until 9999 }}{{ $x := regexMatch "(a+)+b" (repeat 10000 "a") }}{{ end }}`:                                                 "steps: does it loop?",
	`{{ $l := list }}{{ range until 9999 }}{{ $l = append $l . }}{{ end }}{{ len (uniq $l) }}`:                                          "steps: does it loop?",
	`{{ range until 9999 }}{{ $x := repeat 100000 "a" | sha256sum }}{{ end }}`:                                                          "steps: does it loop?",
	`{{ define "a" }}{{ template "a" }}{{ end }}{{ template "a" }}`:                                                                     "its templates call each other more than 100 deep: does one call itself?",
	`{{ define "a" }}{{ if . }}{{ template "b" . }}{{ end }}{{ end }}{{ define "b" }}{{ template "a" . }}{{ end }}{{ template "a" 1 }}`: "more than 100 deep",
	strings.Repeat("{{ if 1 }}", 300) + strings.Repeat("{{ end }}", 300):                                                                "its blocks stand in each other more than 200 deep",
	`{{ $d := dict }}{{ $_ := set $d "a" $d }}{{ $d }}`:                                                                                 "what it is given is too large for a pod",
	`{{ $d := dict }}{{ $_ := set $d "a" $d }}{{ toJson $d }}`:                                                                          "what it is given is too large for a pod",
	`{{ $d := dict }}{{ $_ := set $d "a" $d }}{{ range list $d }}{{ . }}{{ end }}`:                                                      "what it is given is too large for a pod",
	`{{ $l := list "a" }}{{ range until 64 }}{{ $l = list $l $l }}{{ end }}{{ $l }}`:                                                    "what it is given is too large for a pod",
	`{{ $l := list "a" }}{{ range until 64 }}{{ $l = list $l $l }}{{ end }}{{ toString $l | len }}`:                                     "what it is given is too large for a pod",
	`{{ $l := list "a" }}{{ range until 64 }}{{ $l = list $l $l }}{{ end }}{{ if deepEqual $l 1 }}{{ end }}`:                            "what it is given is too large for a pod",
	`{{ $s := "\\" }}{{ range until 64 }}{{ $s = js $s }}{{ end }}`:                                                                     "too large for a pod",
	`{{ $s := "\\" }}{{ range until 64 }}{{ $s = toJson $s }}{{ end }}`:                                                                 "too large for a pod",
	`{{ nindent 1000000000000 "a" }}`:                                                                                                   "the result is too large for a pod",
	`{{ indent 1000000000000 "a\nb" }}`:                                                                                                 "the result is too large for a pod",
	`{{ repeat 1000000000000 "a" }}`:                                                                                                    "the result is too large for a pod",
	`{{ replace "" (repeat 1000000 "a") (repeat 1000000 "b") }}`:                                                                        "too large for a pod",
	`{{ regexReplaceAll "" (repeat 100000 "b") (repeat 100000 "a") }}`:                                                                  "the result is too large for a pod",
	`{{ regexMatch (repeat 100000 "(a|b)") "x" }}`:                                                                                      "the result is too large for a pod",
	`{{ wrapWith 1 (repeat 100000 "b") (repeat 100000 "a") }}`:                                                                          "the result is too large for a pod",
	`{{ join (repeat 100000 "b") (until 9999) }}`:                                                                                       "the result is too large for a pod",
	`{{ printf "%1000000d" 1 }}`:                                                                                                        "the result is too large for a pod",
	`{{ printf "%*d" 1000000 1 }}`:                                                                                                      "the result is too large for a pod",
	`{{ splitList "" (repeat 100000 "a") | len }}`:                                                                                      "the result is too large for a pod",
	`{{ untilStep 0 1000000000 1 }}`:                                                                                                    "the result is too large for a pod",
	`{{ seq 1000000000 }}`:                                                                                                              "the result is too large for a pod",
}

// TestHostileTemplates: each is refused where it is compiled, with the line where it is one's, and takes little memory until then.
func TestHostileTemplates(t *testing.T) {
	for text, want := range hostile {
		config, err := yaml.Marshal(map[string]any{"templates": map[string]string{"mine": "\n" + text}, "defaultTemplates": []string{"mine"}})
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		cfg, problems := inject.ParseConfig(nil, config, nil)
		runtime.ReadMemStats(&after)
		if cfg != nil || len(problems) == 0 || !strings.Contains(problems[0].Detail, want) || problems[0].Field != "data.config.templates.mine" {
			t.Errorf("%.100s: problems %v, want %s", text, problems, want)
		}
		if mb := (after.TotalAlloc - before.TotalAlloc) >> 20; mb > 256 {
			t.Errorf("%.100s: it took %d MB until it was refused", text, mb)
		}
	}
}

// TestPrintedAsBefore: what looks at what a template writes does not change it.
func TestPrintedAsBefore(t *testing.T) {
	cfg := withTemplate(t, `{{ $l := list 1 "a" }}{{ $n := "" }}metadata: {annotations: {missing: "{{ .Values.nothing }}", list: "{{ $l }}", none: "{{ $n }}", map: "{{ dict "a" nil }}", bool: "{{ .NativeSidecars }}", pointer: "{{ .Spec.TerminationGracePeriodSeconds }}", range: "{{ range $i, $v := $l }}{{ $i }}{{ . }}{{ end }}", printf: "{{ printf "%5.1f|%-3s" 1.25 "a" }}"}}`, "")
	out, _, err := inject.Pod(podFrom(t, simplePod), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"missing": "<no value>", "list": "[1 a]", "none": "", "map": "map[a:<nil>]", "bool": "true", "pointer": "<nil>", "range": "011a", "printf": "  1.2|a  "} {
		if got := out.Annotations[name]; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// TestUntil: a limit of the caller's ends templates, and the pod's owner hears which one.
func TestUntil(t *testing.T) {
	cfg := withTemplate(t, "metadata: {annotations: {n: \"{{ range until 500 }}{{ . }}{{ end }}\"}}", "")
	pod := podFrom(t, simplePod)
	asked := 0
	if _, _, err := inject.Pod(pod, cfg.Until(func() error { asked++; return nil })); err != nil || asked == 0 {
		t.Errorf("asked %d times, error %v", asked, err)
	}
	_, _, err := inject.Pod(pod, cfg.Until(func() error { return errors.New("it ran for an hour") }))
	if err == nil || !strings.Contains(err.Error(), `Pod/shop/web: template "mine": it ran for an hour (mend config.templates.mine in ConfigMap/istio-system/istio-sidecar-injector)`) {
		t.Errorf("error %v", err)
	}
	if _, _, err := inject.Pod(pod, cfg); err != nil {
		t.Errorf("the next pod: %v", err)
	}
}
