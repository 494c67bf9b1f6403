package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/policy"
)

// Stand-ins for words of the values. Each is a word that nothing else in an installation has.
const (
	revisionWord   = "revisionstandin"
	imageWord      = "imagestandin"
	hubWord        = "hubstandin"
	proxyWord      = "proxystandin"
	tagWord        = "tagstandin"
	pullWord       = "pullstandin"
	clusterWord    = "clusterstandin"
	trustWord      = "truststandin"
	levelWord      = "levelstandin"
	meshWord       = "meshstandin"
	resourcesWord  = "resourcesstandin"
	everyWord      = "everystandin"
	nativeWord     = "nativestandin"
	policyWord     = "policystandin."
	mutatingWord   = "mutatingstandin"
	modeWord       = "modestandin."
	addressWord    = "addressstandin.example:15012"
	signerWord     = "signerstandin.example/mesh"
	rootsWord      = "rootsstandin"
	tlsWord        = "tlsstandin"
	replicasNumber = 424242
)

// words are the expressions that stand-ins become.
var words = map[string]string{
	revisionWord: "$revision", imageWord: `include "selvage.image" .`, hubWord: "$proxy.hub", proxyWord: "$proxy.image", tagWord: "$proxy.tag",
	pullWord: ".Values.image.pullPolicy", clusterWord: ".Values.clusterID", trustWord: `include "selvage.trustDomain" .`, levelWord: ".Values.logLevel",
	addressWord: ".Values.ca.address", signerWord: ".Values.ca.signer", rootsWord: ".Values.ca.roots", tlsWord: ".Values.ca.tlsSecret",
	mutatingWord: "$mutating", everyWord: ".Values.everyNamespace", nativeWord: ".Values.nativeSidecars", fmt.Sprint(replicasNumber): "int .Values.replicas",
}

// head begins each template.
const head = "{{- /* " + mark + ` */ -}}
{{- include "selvage.check" . }}
{{- $revision := include "selvage.revision" . }}
{{- $suffix := include "selvage.suffix" . }}
{{- $proxy := include "selvage.proxy" . | fromJson }}
{{- $mutating := include "selvage.mutatingPolicies" . }}
{{- $policies := include "selvage.policies" . | fromJson }}
{{- $meshed := not (has (toString .Values.guards.meshed) (list "Off" "false")) }}
{{- $inUse := not (has (toString (index .Values.guards "in-use")) (list "Off" "false")) }}
{{- $labels := not (has (toString .Values.guards.labels) (list "Off" "false")) }}
{{- $config := not (has (toString .Values.guards.config) (list "Off" "false")) }}
`

// text is an object as YAML with stand-ins, on lines that are never folded.
func text(u *unstructured.Unstructured) (string, error) {
	u = u.DeepCopy()
	if err := standIn(u); err != nil {
		return "", err
	}
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	if err := encoder.Encode(u.Object); err != nil {
		return "", err
	}
	if strings.Contains(b.String(), "{{") {
		return "", fmt.Errorf("%s %s holds {{, which Helm would read as an expression", u.GetKind(), u.GetName())
	}
	return "---\n" + b.String(), nil
}

// standIn puts stand-ins where the options take none.
func standIn(u *unstructured.Unstructured) error {
	switch u.GetKind() {
	case "ConfigMap":
		data := u.Object["data"].(map[string]any)
		if _, isMesh := data["mesh"]; isMesh {
			data["mesh"] = meshWord + "\n"
			return nil
		}
		values, _ := data["values"].(string)
		for was, is := range map[string]string{`"enableNamespacesByDefault": (true|false)`: `"enableNamespacesByDefault": ` + everyWord,
			`"imagePullPolicy": "Always"`:      `"imagePullPolicy": "` + pullWord + `"`,
			`"ENABLE_NATIVE_SIDECARS": "auto"`: `"ENABLE_NATIVE_SIDECARS": "` + nativeWord + `"`} {
			pattern := regexp.MustCompile(was)
			if len(pattern.FindAllString(values, -1)) != 1 {
				return fmt.Errorf("the injector's values do not have %s once", was)
			}
			values = pattern.ReplaceAllString(values, is)
		}
		data["values"] = values
	case "Deployment":
		containers, _, _ := unstructured.NestedSlice(u.Object, "spec", "template", "spec", "containers")
		containers[0].(map[string]any)["resources"], containers[0].(map[string]any)["imagePullPolicy"] = resourcesWord, pullWord
		return unstructured.SetNestedSlice(u.Object, containers, "spec", "template", "spec", "containers")
	case policy.Mutating, policy.MutatingBinding: // every version has the same fields
		u.SetAPIVersion(u.GroupVersionKind().Group + "/" + mutatingWord)
	case policy.ValidatingBinding:
		for _, guard := range policy.AllGuards {
			if strings.HasPrefix(u.GetName(), "selvage-guard-"+string(guard)) {
				return unstructured.SetNestedStringSlice(u.Object, []string{modeWord + string(guard)}, "spec", "validationActions")
			}
		}
	case "ValidatingWebhookConfiguration":
		for _, entry := range u.Object["webhooks"].([]any) {
			if e := entry.(map[string]any); e["failurePolicy"] == "Ignore" { // the probe's own fails closed, always
				e["failurePolicy"] = policyWord + e["name"].(string)
			}
		}
	}
	return nil
}

// expressions puts template expressions in the place of stand-ins.
func expressions(text string) (string, error) {
	text = strings.ReplaceAll(text, "-"+revisionWord, "{{ $suffix }}")
	text = strings.ReplaceAll(text, "mesh: |\n    "+meshWord+"\n", "mesh: |{{ include \"selvage.mesh\" . | nindent 4 }}\n")
	text = strings.ReplaceAll(text, "resources: "+resourcesWord, "resources: {{ toJson .Values.resources }}")
	text = regexp.MustCompile(`failurePolicy: `+regexp.QuoteMeta(policyWord)+`(\S+)`).
		ReplaceAllString(text, `failurePolicy: {{ index $$policies "$1" | default "Ignore" }} # the control plane's once it is there`)
	text = regexp.MustCompile(regexp.QuoteMeta(modeWord)+`(\S+)`).ReplaceAllString(text, `{{ index .Values.guards "$1" }}`)
	text = regexp.MustCompile(`(?m)^ *- --log-level=`+levelWord+"\n").ReplaceAllStringFunc(text, func(line string) string {
		return "{{- if .Values.logLevel }}\n" + line + "{{- end }}\n"
	})
	for word, expression := range words {
		// Where the word is all of a value it may look like a number.
		if word != fmt.Sprint(replicasNumber) && word != everyWord {
			text = regexp.MustCompile(`(?m)((?:^| )- |: )`+word+`$`).ReplaceAllStringFunc(text, func(all string) string {
				return strings.TrimSuffix(all, word) + "{{ " + expression + " | quote }}"
			})
		}
		text = strings.ReplaceAll(text, word, "{{ "+expression+" }}")
	}
	if strings.Contains(text, "standin") {
		return "", fmt.Errorf("a stand-in is left:\n%s", text)
	}
	return text, nil
}

// meshDefaults is the mesh configuration that a value of that name is laid over, as a template of its own.
func meshDefaults(all map[string]*rendering) (string, error) {
	u := all[fmt.Sprint(make([]bool, len(choices)))].objects["ConfigMap "+install.Namespace+"/istio"]
	if u == nil {
		return "", fmt.Errorf("the rendering has no mesh configuration")
	}
	mesh, _, _ := unstructured.NestedString(u.Object, "data", "mesh")
	mesh, err := expressions(mesh)
	return "{{- /* " + mark + " */ -}}\n{{- define \"selvage.meshDefaults\" -}}\n{{- $suffix := include \"selvage.suffix\" . }}\n" + mesh + "{{- end }}\n", err
}

// definitions are Istio's and ours, each a line of JSON, which is YAML too and shorter.
func definitions() (string, error) {
	o := install.Default("dev")
	objects, err := install.Render(o)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("# " + mark + "\n")
	for _, u := range objects {
		if u.GetKind() != definition {
			continue
		}
		b.WriteString("---\n")
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(u.Object); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}
