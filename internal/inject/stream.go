package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// MostStream is how many bytes a stream may have. Read as a tree, a document takes some fifty times its size.
const MostStream = 64 << 20

// StreamOptions say how a stream is injected.
type StreamOptions struct {
	Config *Config
	// Namespace is that of objects that name none; "" is "default".
	Namespace string
}

// Outcome is what became of one object that has pods.
type Outcome struct {
	Document int     // counted from 1
	Line     int     // of the stream, where the object begins, counted from 1
	Object   ref.Ref // the object that has the pods: a Deployment rather than a Pod
	Verdict  Verdict
	Warnings []diag.Problem
}

// Document is one document of a stream and what became of it. Before and After together over all documents are the streams.
type Document struct {
	Number int    // counted from 1
	Line   int    // of the stream, where its first line stands, counted from 1
	Head   []byte // the separator line before it, "" for the first
	Before []byte
	After  []byte // the same slice as Before when nothing changed
	// Outcomes are in the document's order. With an Err there are none.
	Outcomes []Outcome
	// Notes are sentences about what is passed on as it is and should perhaps not be.
	Notes []string
	// Err is a *DocumentError, nil when all is well.
	Err error
}

// DocumentError says where in a stream something is wrong.
type DocumentError struct {
	Document, Line int
	Err            error // a *RefusedError where an object cannot have a sidecar as it is written
}

func (e *DocumentError) Error() string {
	return fmt.Sprintf("document %d, line %d: %v", e.Document, e.Line, e.Err)
}

func (e *DocumentError) Unwrap() error { return e.Err }

// Stream reads a stream of YAML or JSON documents and writes it with sidecars: Pods, Deployments, StatefulSets, DaemonSets,
// ReplicaSets, ReplicationControllers, Jobs, CronJobs, OpenShift's DeploymentConfigs, and Lists of them. A document in which
// nothing changes is written byte for byte as it was read; so is what a changed one does not change of itself. With an error,
// which tells of every document that is wrong, nothing is written.
func Stream(in io.Reader, out io.Writer, o StreamOptions) ([]Outcome, error) {
	all, err := ReadStream(in)
	if err != nil {
		return nil, err
	}
	var outcomes []Outcome
	var wrong []error
	docs := o.Documents(all)
	for i := range docs {
		outcomes = append(outcomes, docs[i].Outcomes...)
		if docs[i].Err != nil {
			wrong = append(wrong, docs[i].Err)
		}
	}
	if len(wrong) > 0 {
		return outcomes, errors.Join(wrong...)
	}
	for i := range docs {
		for _, part := range [][]byte{docs[i].Head, docs[i].After} {
			if _, err := out.Write(part); err != nil {
				return outcomes, fmt.Errorf("write stream: %w", err)
			}
		}
	}
	return outcomes, nil
}

// ReadStream reads all of a stream, which must not have more than MostStream bytes.
func ReadStream(in io.Reader) ([]byte, error) {
	all, err := io.ReadAll(io.LimitReader(in, MostStream+1))
	if err != nil {
		return nil, fmt.Errorf("read stream: %w", err)
	}
	if len(all) > MostStream {
		return nil, fmt.Errorf("read stream: it has more than %d MiB: split it into several", MostStream>>20)
	}
	for _, mark := range []string{"\xff\xfe", "\xfe\xff"} { // a reader of YAML takes it, and only the first document
		if bytes.HasPrefix(all, []byte(mark)) {
			return nil, errors.New("read stream: it is UTF-16, as the PowerShell of Windows writes: save it as UTF-8")
		}
	}
	return all, nil
}

// Documents injects every document of a stream, several at a time.
func (o StreamOptions) Documents(all []byte) []Document {
	if o.Namespace == "" {
		o.Namespace = metav1.NamespaceDefault
	}
	docs := splitDocuments(all)
	next := make(chan *Document)
	var running sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(docs)) {
		running.Go(func() {
			for d := range next {
				o.inject(d)
			}
		})
	}
	for i := range docs {
		next <- &docs[i]
	}
	close(next)
	running.Wait()
	return docs
}

// Workload is an object of a stream that has pods, and the pod that it would make.
type Workload struct {
	Document, Line int
	Object         ref.Ref
	Pod            *corev1.Pod

	workload workload
}

// Inject is Pod for the workload's pod, with messages that name the workload.
func (w Workload) Inject(c *Config) (out *corev1.Pod, warnings []diag.Problem, err error) {
	return c.inject(w.Pod, w.workload, w.Object)
}

// Workloads reads a stream without injecting. visit is called for every other object of the stream, with its JSON; it may be
// nil. The error tells of every document that is wrong.
func (o StreamOptions) Workloads(all []byte, visit func(kind string, asJSON []byte)) (list []Workload, err error) {
	if o.Namespace == "" {
		o.Namespace = metav1.NamespaceDefault
	}
	var wrong []error
	for _, d := range splitDocuments(all) {
		p := o.parse(&d)
		p.visit = func(w *podObject) error {
			list = append(list, Workload{d.Number, p.line(w.path), w.subject, w.pod, w.workload})
			return nil
		}
		p.other = visit
		if err := p.run(); err != nil {
			wrong = append(wrong, err)
		}
	}
	return list, errors.Join(wrong...)
}

// splitDocuments cuts at the lines that begin with "---" (YAML 1.2.2, 9.1.2: they separate documents wherever they stand at
// the beginning of a line), and between JSON objects that follow each other, as kubectl does. Nothing is lost: heads and bodies
// together are the input.
func splitDocuments(all []byte) (docs []Document) {
	var cur Document
	start := 0
	done := func(end int) {
		cur.Before = all[start:end]
		docs = append(docs, splitJSON(cur)...)
	}
	for at := 0; at < len(all); {
		end := len(all)
		if n := bytes.IndexByte(all[at:], '\n'); n >= 0 {
			end = at + n + 1
		}
		if text := all[at:end]; separates(text) {
			if at > 0 {
				done(at)
			}
			// What follows "--- " on the line is part of the document, unless it is a comment.
			cur = Document{Head: text}
			if rest := bytes.TrimSpace(text[3:]); len(rest) > 0 && rest[0] != '#' {
				cur.Head = text[:4]
				end = at + 4
			}
			start = end
		}
		at = end
	}
	done(len(all))
	number := 0
	for i := range docs {
		if !onlyComments(docs[i].Before) {
			number++ // as people count
		}
		docs[i].Number = max(number, 1)
		docs[i].Line = 1
		if i > 0 {
			last := docs[i-1]
			docs[i].Line = last.Line + bytes.Count(last.Before, []byte("\n"))
		}
		docs[i].Line += bytes.Count(docs[i].Head, []byte("\n"))
		docs[i].After = docs[i].Before
	}
	return docs
}

// splitJSON cuts a document of several JSON objects into one for each.
func splitJSON(d Document) []Document {
	if text := bytes.TrimSpace(d.Before); len(text) == 0 || text[0] != '{' || json.Valid(text) {
		return []Document{d}
	}
	var parts []Document
	decoder := json.NewDecoder(bytes.NewReader(d.Before))
	start := 0
	for {
		var value json.RawMessage
		err := decoder.Decode(&value)
		if errors.Is(err, io.EOF) {
			parts[len(parts)-1].Before = append(parts[len(parts)-1].Before, d.Before[start:]...)
			return parts
		}
		if err != nil || value[0] != '{' {
			return []Document{d} // it is YAML, or says itself what is wrong
		}
		end := int(decoder.InputOffset())
		parts = append(parts, Document{Before: d.Before[start:end:end]})
		parts[0].Head = d.Head
		start = end
	}
}

func separates(line []byte) bool {
	return bytes.HasPrefix(line, []byte("---")) && (len(line) == 3 || strings.IndexByte(" \t\r\n", line[3]) >= 0)
}

// onlyComments reports whether the document has nothing but comments and directives (%YAML 1.1), which alone are no document.
func onlyComments(body []byte) bool {
	for line := range bytes.Lines(body) {
		line = bytes.TrimSpace(bytes.TrimPrefix(line, []byte("\ufeff")))
		if len(line) > 0 && line[0] != '#' && line[0] != '%' && string(line) != "..." {
			return false
		}
	}
	return true
}

// inject fills in what becomes of a document.
func (o StreamOptions) inject(d *Document) {
	p := o.parse(d)
	var ops []Op
	var refused RefusedError
	refusedLine := 0
	p.visit = func(w *podObject) error {
		outcome := Outcome{Document: d.Number, Line: p.line(w.path), Object: w.subject, Verdict: Decide(w.pod, o.Config)}
		if outcome.Verdict.Inject || outcome.Verdict.Reason == AlreadyInjected {
			after, warnings, err := o.Config.inject(w.pod, w.workload, w.subject)
			var no *RefusedError
			if errors.As(err, &no) {
				refused.Problems = append(refused.Problems, no.Problems...)
				if refusedLine == 0 {
					refusedLine = p.problemLine(w, no.Problems[0])
				}
				return nil
			}
			if err != nil {
				return p.wrong(w.path, err)
			}
			outcome.Warnings = warnings
			ops = append(ops, prefixed(Patch(w.pod, after), w.path+w.at)...)
		}
		d.Outcomes = append(d.Outcomes, outcome)
		return nil
	}
	err := p.run()
	d.Notes = p.notes
	if err == nil && len(refused.Problems) > 0 {
		err = &DocumentError{d.Number, refusedLine, &refused}
	}
	if err == nil && len(ops) > 0 {
		if p.isJSON {
			d.After, err = applyToJSON(d.Before, ops)
		} else {
			d.After, err = applyToYAML(d.Before, p.asJSON, p.root, ops)
		}
		if err != nil {
			err = p.wrong("", err)
		}
	}
	if err != nil {
		d.Err, d.Outcomes, d.After = err, nil, d.Before
	}
}
