package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// TestDefinitionsAreCurrent fails when the committed definitions are not those of the module that go.mod pins.
func TestDefinitionsAreCurrent(t *testing.T) {
	// Reading go.mod here ties the result, also a cached one, to the version it pins.
	if _, err := os.ReadFile("../../../go.mod"); err != nil {
		t.Fatal(err)
	}
	version, raw, err := read()
	if err != nil {
		t.Fatal(err)
	}
	want, err := compact(version, raw)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../crds.gen.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("internal/install/crds.gen.jsonl is not what %s %s gives: run `make generate`", module, version)
	}
}

func TestOnlyProseIsLeftOut(t *testing.T) {
	const crd = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.com, labels: {chart: x}, annotations: {a: b}}
spec:
  versions:
  - name: v1
    additionalPrinterColumns: [{name: Age, description: prose, type: date, jsonPath: .x}]
    schema:
      openAPIV3Schema:
        description: prose
        type: object
        properties:
          description: {type: string, description: prose}
          list:
            description: prose
            type: array
            items: {description: prose, type: object, x-kubernetes-validations: [{rule: "self.size() > 0", message: must say something}]}
          either:
            oneOf: [{description: prose, required: [a]}]
            default: none
`
	out, err := compact("v1.0.0", []byte("---\n"+crd+"\n---\n"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(out)
	if strings.Contains(text, "prose") || strings.Contains(text, "chart") || strings.Contains(text, "annotations") {
		t.Errorf("prose or chart metadata is left:\n%s", text)
	}
	for _, kept := range []string{`"description":{"type":"string"}`, `"rule":"self.size() > 0"`, `"message":"must say something"`, `"default":"none"`, `"required":["a"]`} {
		if !strings.Contains(text, kept) {
			t.Errorf("%s is gone:\n%s", kept, text)
		}
	}
	if _, err := compact("v1.0.0", []byte("# nothing\n")); err == nil {
		t.Error("a file without definitions gives no error")
	}
}
