// Command licences lists the licence of every module that the programs link and fails on one that cannot be shipped with
// Apache-2.0 software, or that it cannot recognise. Run it from the root of the module to check:
//
//	licences ./cmd/...
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// allowed are licences that ask for no more than their text to be kept.
var allowed = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0", "Unlicense", "0BSD", "CC0-1.0"}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: licences PACKAGE…")
		os.Exit(2)
	}
	modules, err := linked(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "licences:", err)
		os.Exit(2)
	}
	failed := false
	for _, m := range modules {
		ids := licencesOf(m.dir)
		if len(ids) == 0 {
			failed = true
			fmt.Printf("%s: no licence recognised in %s\n", m.path, m.dir)
		}
		for _, id := range ids {
			if !slices.Contains(allowed, id) {
				failed = true
				fmt.Printf("%s: licence %s is not on the list of allowed ones\n", m.path, id)
			}
		}
	}
	if failed {
		os.Exit(1)
	}
	fmt.Printf("%d modules, all with licences that may be shipped\n", len(modules))
}

type module struct{ path, dir string }

// linked are the modules, but our own, whose packages the given ones need.
func linked(packages []string) (modules []module, err error) {
	args := append([]string{"list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}\t{{.Dir}}{{end}}{{end}}"}, packages...)
	out, err := exec.Command("go", args...).Output()
	if err != nil {
		return nil, fmt.Errorf("list the packages: %w", err)
	}
	seen := map[string]bool{}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		path, dir, ok := strings.Cut(lines.Text(), "\t")
		if ok && !seen[path] {
			seen[path] = true
			modules = append(modules, module{path, dir})
		}
	}
	return modules, nil
}

// licencesOf are the identifiers (SPDX) of the licence files at the root of a module.
func licencesOf(dir string) (ids []string) {
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		name := strings.ToUpper(f.Name())
		if f.IsDir() || !strings.HasPrefix(name, "LICEN") && !strings.HasPrefix(name, "COPYING") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			continue
		}
		for _, match := range licensecheck.Scan(text).Match {
			if !match.IsURL && !slices.Contains(ids, match.ID) {
				ids = append(ids, match.ID)
			}
		}
	}
	return ids
}
