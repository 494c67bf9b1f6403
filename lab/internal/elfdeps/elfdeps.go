// Package elfdeps finds the shared libraries that a program takes, as the dynamic loader would, without running anything.
package elfdeps

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Library is a shared library, or the loader itself, of a program.
type Library struct {
	Name string // its soname: the file name that the loader looks for
	Path string // where it is on this machine, symbolic links resolved
}

// Result is all that a set of programs takes beside themselves.
type Result struct {
	// Interpreters maps the path of a loader, as the programs name it, to the file on this machine.
	Interpreters map[string]string
	// Libraries are in the order of discovery, each name once.
	Libraries []Library
}

// Dir returns the folder of the C library: one that the loader looks into without a configuration file, on every system.
func (r Result) Dir() string {
	for _, l := range r.Libraries {
		if strings.HasPrefix(l.Name, "libc.") {
			return filepath.Dir(l.Path)
		}
	}
	return "/lib"
}

// MissingError names a library that is not on this machine.
type MissingError struct {
	Library, Program string
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s, which %s takes, is not on this machine", e.Library, e.Program)
}

// Resolve follows the needs of the files, transitively. A static program has none. Plug-ins that a program loads by itself
// are named as files of their own.
func Resolve(files ...string) (Result, error) {
	r := resolver{
		result: Result{Interpreters: map[string]string{}},
		seen:   map[string]bool{},
		system: systemDirs("/etc/ld.so.conf"),
	}
	for _, f := range files {
		if err := r.add(f); err != nil {
			return Result{}, err
		}
	}
	return r.result, nil
}

type resolver struct {
	result Result
	seen   map[string]bool // sonames
	system []string
}

func (r *resolver) add(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("read program: %w", err)
	}
	f, err := elf.Open(real)
	if err != nil {
		return fmt.Errorf("read program %s: %w", path, err)
	}
	defer f.Close()
	if err := r.interpreter(f, path); err != nil {
		return err
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("read needs of %s: %w", path, err)
	}
	for _, name := range names {
		if r.seen[name] {
			continue
		}
		found, ok := r.find(f, real, name)
		if !ok {
			return &MissingError{Library: name, Program: path}
		}
		r.seen[name] = true
		r.result.Libraries = append(r.result.Libraries, Library{Name: name, Path: found})
		if err := r.add(found); err != nil {
			return err
		}
	}
	return nil
}

// interpreter records the loader that a program asks for; libraries ask for none.
func (r *resolver) interpreter(f *elf.File, path string) error {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return fmt.Errorf("read loader of %s: %w", path, err)
		}
		name := strings.TrimRight(string(b), "\x00")
		real, err := filepath.EvalSymlinks(name)
		if errors.Is(err, fs.ErrNotExist) {
			return &MissingError{Library: name, Program: path}
		}
		if err != nil {
			return fmt.Errorf("read loader of %s: %w", path, err)
		}
		r.result.Interpreters[name] = real
	}
	return nil
}

// find looks for a library in the order of ld.so(8): RPATH or RUNPATH, then the system's folders. A library of another
// machine type or word size is passed over.
func (r *resolver) find(f *elf.File, program, name string) (string, bool) {
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		values, _ := f.DynString(tag)
		for _, v := range values {
			for _, d := range strings.Split(v, ":") {
				origin := filepath.Dir(program)
				dirs = append(dirs, strings.NewReplacer("$ORIGIN", origin, "${ORIGIN}", origin).Replace(d))
			}
		}
	}
	for _, dir := range append(dirs, r.system...) {
		real, err := filepath.EvalSymlinks(filepath.Join(dir, name))
		if err == nil && sameMachine(f, real) {
			return real, true
		}
	}
	return "", false
}

func sameMachine(f *elf.File, path string) bool {
	lib, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer lib.Close()
	return lib.Class == f.Class && lib.Machine == f.Machine
}

// systemDirs are those of the loader's configuration, then the ones built into it.
func systemDirs(config string) []string {
	dirs := configured(config, 0)
	for _, pattern := range []string{"/lib/*-linux-gnu*", "/usr/lib/*-linux-gnu*", "/lib64", "/usr/lib64", "/lib", "/usr/lib"} {
		found, _ := filepath.Glob(pattern)
		dirs = append(dirs, found...)
	}
	return dirs
}

// configured reads ld.so.conf and what it includes.
func configured(path string, depth int) (dirs []string) {
	const deepest = 8 // a file may include itself
	f, err := os.Open(path)
	if err != nil || depth > deepest {
		return nil
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		line, _, _ := strings.Cut(s.Text(), "#")
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0:
		case fields[0] == "include":
			for _, pattern := range fields[1:] {
				if !filepath.IsAbs(pattern) {
					pattern = filepath.Join(filepath.Dir(path), pattern)
				}
				files, _ := filepath.Glob(pattern)
				for _, file := range files {
					dirs = append(dirs, configured(file, depth+1)...)
				}
			}
		default:
			dirs = append(dirs, fields[0])
		}
	}
	return dirs
}
