// Command suite reads `go test -json` on standard input, prints what failed and one closing line for the suite:
//
//	unit: 412 passed, 0 failed, 0 skipped
//
// It exits 1 when something failed, when no test ran, or, with CI=true, when something was skipped: a skipped test proves
// nothing. Packages are named as they finish, so that a long run shows that it is alive.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"
)

// event is one line of `go test -json` (cmd/test2json; ImportPath and build-* are of `go build -json`).
type event struct {
	Action, Package, ImportPath, Test, Output string
	Elapsed                                   float64
}

type totals struct{ passed, failed, skipped int }

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go test -json PACKAGES | suite NAME")
		os.Exit(2)
	}
	start := time.Now()
	t, bad := read(os.Stdin, os.Stderr)
	fmt.Fprintf(os.Stderr, "%s took %s\n", os.Args[1], time.Since(start).Round(time.Second))
	fmt.Printf("%s: %d passed, %d failed, %d skipped\n", os.Args[1], t.passed, t.failed, t.skipped)
	if bad || t.failed > 0 || t.passed == 0 || (t.skipped > 0 && os.Getenv("CI") == "true") {
		os.Exit(1)
	}
}

// read consumes the events. bad is true when a package failed outside its tests: it did not build, or it crashed.
func read(in io.Reader, progress io.Writer) (t totals, bad bool) {
	output := map[string][]string{} // of what runs now, by package and test
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line == "" && err != nil {
			return t, bad
		}
		var e event
		if json.Unmarshal([]byte(line), &e) != nil {
			fmt.Fprint(progress, line) // what go itself says, such as a module that is missing
			continue
		}
		key := e.Package + "\x00" + e.Test
		switch e.Action {
		case "output":
			output[key] = append(output[key], e.Output)
		case "build-output":
			fmt.Fprint(progress, e.Output)
		case "build-fail":
			bad = true
		case "pass", "fail", "skip":
			bad = finish(e, key, &t, output, progress) || bad
			delete(output, key)
		}
	}
}

// finish counts one finished test or package, and shows the output of a failed or skipped one.
func finish(e event, key string, t *totals, output map[string][]string, progress io.Writer) (bad bool) {
	if e.Test == "" {
		if e.Action == "fail" {
			bad = true
			show(progress, output, e.Package)
		}
		if e.Action != "skip" { // a package without tests
			fmt.Fprintf(progress, "%-4s %6.1fs %s\n", e.Action, e.Elapsed, e.Package)
		}
		return bad
	}
	switch e.Action {
	case "pass":
		t.passed++
	case "fail":
		t.failed++
		fmt.Fprint(progress, strings.Join(output[key], ""))
	case "skip":
		t.skipped++
		fmt.Fprint(progress, strings.Join(output[key], ""))
	}
	return false
}

// show prints what a package and its unfinished tests said: after a crash that is where the reason stands.
func show(progress io.Writer, output map[string][]string, pkg string) {
	var keys []string
	for k := range output {
		if strings.HasPrefix(k, pkg+"\x00") {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	for _, k := range keys {
		fmt.Fprint(progress, strings.Join(output[k], ""))
	}
}
