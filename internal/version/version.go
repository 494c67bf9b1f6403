// Package version says which Selvage this is.
package version

import "runtime/debug"

// Version is the release, set by the linker (-X); "dev" when built from a work tree. Images carry it as their tag.
var Version = "dev"

// Commit is the git revision that the Go tool recorded in the binary, "" when it recorded none.
func Commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return ""
}
