package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/version"
)

// pages is where the pages of the codes are read.
const pages = "https://github.com/selvage-mesh/selvage/blob/main/docs/codes/"

// The parts of SARIF 2.1.0 that are written (OASIS, sections 3.13 and on).
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool       sarifTool     `json:"tool"`
		ColumnKind string        `json:"columnKind"`
		Results    []sarifResult `json:"results"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name           string      `json:"name"`
		Version        string      `json:"version"`
		InformationURI string      `json:"informationUri"`
		Rules          []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID      string `json:"id"`
		HelpURI string `json:"helpUri"`
	}
	sarifText struct {
		Text string `json:"text"`
	}
	sarifResult struct {
		RuleID    string          `json:"ruleId"`
		RuleIndex int             `json:"ruleIndex"`
		Level     string          `json:"level"`
		Message   sarifText       `json:"message"`
		Locations []sarifLocation `json:"locations"`
	}
	sarifLocation struct {
		Physical sarifPhysical  `json:"physicalLocation"`
		Logical  []sarifLogical `json:"logicalLocations,omitempty"`
	}
	sarifPhysical struct {
		Artifact sarifArtifact `json:"artifactLocation"`
		Region   sarifRegion   `json:"region"`
	}
	sarifArtifact struct {
		URI string `json:"uri"`
	}
	sarifRegion struct {
		StartLine   int `json:"startLine"`
		StartColumn int `json:"startColumn"`
	}
	sarifLogical struct {
		FullyQualifiedName string `json:"fullyQualifiedName"`
	}
)

func writeSARIF(w io.Writer, findings []finding) error {
	driver := sarifDriver{Name: "selvage", Version: version.Version, InformationURI: "https://github.com/selvage-mesh/selvage", Rules: []sarifRule{}}
	run := sarifRun{ColumnKind: "unicodeCodePoints", Results: []sarifResult{}}
	index := map[string]int{}
	for _, f := range findings {
		i, known := index[f.Code]
		if !known {
			i = len(driver.Rules)
			index[f.Code] = i
			driver.Rules = append(driver.Rules, sarifRule{f.Code, pages + f.Code + ".md"})
		}
		level := "error"
		if f.severity != diag.Error {
			level = "warning"
		}
		at := sarifLocation{Physical: sarifPhysical{sarifArtifact{(&url.URL{Path: filepath.ToSlash(f.File)}).EscapedPath()}, sarifRegion{f.Line, f.Column}}}
		if name := strings.Trim(f.object()+" "+f.Field, " "); name != "" {
			at.Logical = []sarifLogical{{name}}
		}
		run.Results = append(run.Results, sarifResult{f.Code, i, level, sarifText{f.sentence()}, []sarifLocation{at}})
	}
	run.Tool.Driver = driver
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	return out.Encode(sarifLog{"https://json.schemastore.org/sarif-2.1.0.json", "2.1.0", []sarifRun{run}})
}

// sentence is the whole of a finding, for those who see nothing but it.
func (f finding) sentence() string {
	var parts []string
	for _, part := range []string{f.object(), f.Field} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	text := strings.Join(append(parts, f.Detail), ": ")
	if f.Hint != "" {
		text += " (" + f.Hint + ")"
	}
	return text
}

var (
	// annotationText and annotationProperty write what commands of GitHub's workflows would take for their own signs.
	annotationText     = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	annotationProperty = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
)

// writeAnnotations writes commands by which a workflow of GitHub's shows findings beside the lines of a change.
func writeAnnotations(w io.Writer, findings []finding) error {
	for _, f := range findings {
		level := "error"
		if f.severity != diag.Error {
			level = "warning"
		}
		_, err := fmt.Fprintf(w, "::%s file=%s,line=%d,col=%d,title=%s::%s\n", level, annotationProperty.Replace(filepath.ToSlash(f.File)), f.Line, f.Column,
			annotationProperty.Replace(f.Code), annotationText.Replace(f.sentence()))
		if err != nil {
			return err
		}
	}
	return nil
}
