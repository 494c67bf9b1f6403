package image

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/selvage-mesh/selvage/lab/internal/elfdeps"
)

// Repository is the prefix of every image's name.
const Repository = "docker.io/selvage/"

// Catalogue knows how each image is made from the programs in Bin.
type Catalogue struct {
	Bin string // the folder with selvage-pause, selvaged, selvage-agent, envoy and sample
	Tag string
}

// user is who the mesh's own processes run as: the interception rules leave its traffic alone.
const user = "1337"

var accounts = []File{
	{Path: "/etc/passwd", Mode: 0o644, Content: []byte("root:x:0:0:root:/:/sbin/nologin\nistio-proxy:x:1337:1337:istio-proxy:/:/sbin/nologin\n")},
	{Path: "/etc/group", Mode: 0o644, Content: []byte("root:x:0:\nistio-proxy:x:1337:\n")},
	{Path: "/tmp", Dir: true, Mode: 0o777 | fs.ModeSticky},
}

// Pause is the image of the first container of a pod.
func (c Catalogue) Pause() Spec {
	return Spec{
		Name: c.name("pause"), Entrypoint: []string{"/selvage-pause"}, User: "65535",
		Layers: [][]File{{{Path: "/selvage-pause", Source: c.bin("selvage-pause"), Mode: 0o755}}},
	}
}

// Selvaged is the image of the control plane.
func (c Catalogue) Selvaged() Spec { return c.single("selvaged", user) }

// Sample is the image of the sample application.
func (c Catalogue) Sample() Spec { return c.single("sample", "65532") }

// single is the image of one static program.
func (c Catalogue) single(program, user string) Spec {
	return Spec{
		Name: c.name(program), Entrypoint: []string{"/usr/local/bin/" + program}, User: user,
		Layers: [][]File{accounts, {{Path: "/usr/local/bin/" + program, Source: c.bin(program), Mode: 0o755}}},
	}
}

// Proxy is the image of the sidecar and of the init container: the agent, Envoy, and the programs that write interception
// rules, each with the shared libraries it takes from this machine. It fails where one of them is not installed.
func (c Catalogue) Proxy() (Spec, error) {
	envoy := c.bin("envoy")
	rules, programs, err := interception()
	if err != nil {
		return Spec{}, err
	}
	needs, err := elfdeps.Resolve(append(programs, envoy)...)
	if err != nil {
		return Spec{}, fmt.Errorf("gather image proxy: %w", err)
	}
	system := append(append([]File{}, accounts...), rules...)
	for at, file := range needs.Interpreters {
		system = append(system, File{Path: at, Source: file, Mode: 0o755})
	}
	for _, l := range needs.Libraries {
		at := filepath.Join(needs.Dir(), l.Name)
		if _, loader := needs.Interpreters[at]; !loader {
			system = append(system, File{Path: at, Source: l.Path, Mode: 0o644})
		}
	}
	slices.SortFunc(system, func(a, b File) int { return cmp.Compare(a.Path, b.Path) }) // the key follows the order
	return Spec{
		Name: c.name("proxy"), Entrypoint: []string{"/usr/local/bin/selvage-agent"}, User: user,
		Layers: [][]File{
			system,
			{{Path: "/usr/local/bin/envoy", Source: envoy, Mode: 0o755}},
			{{Path: "/usr/local/bin/selvage-agent", Source: c.bin("selvage-agent"), Mode: 0o755}},
		},
	}, nil
}

// interception returns the files of iptables and nft, and which of them are programs or plug-ins with needs of their own.
func interception() (files []File, elf []string, err error) {
	add := func(at, source string, mode fs.FileMode) {
		files = append(files, File{Path: at, Source: source, Mode: mode})
		elf = append(elf, source)
	}
	found := false
	for _, backend := range []string{"nft", "legacy"} {
		multi := "xtables-" + backend + "-multi"
		source, ok := inPath(multi)
		if !ok {
			continue
		}
		add("/usr/sbin/"+multi, source, 0o755)
		for _, family := range []string{"iptables", "ip6tables"} {
			for _, action := range []string{"", "-save", "-restore"} {
				files = append(files, File{Path: "/usr/sbin/" + family + "-" + backend + action, Link: multi})
				if !found { // the first backend there is has the plain names
					files = append(files, File{Path: "/usr/sbin/" + family + action, Link: multi})
				}
			}
		}
		found = true
	}
	if !found {
		return nil, nil, fmt.Errorf("gather image proxy: there is no iptables (xtables-nft-multi) on this machine")
	}
	if nft, ok := inPath("nft"); ok {
		add("/usr/sbin/nft", nft, 0o755)
	}
	for _, dir := range []string{"/usr/lib/*/xtables", "/usr/lib64/xtables", "/usr/lib/xtables", "/lib/xtables"} {
		plugins, _ := filepath.Glob(filepath.Join(dir, "lib*.so"))
		for _, p := range plugins {
			if info, err := os.Lstat(p); err == nil && info.Mode()&fs.ModeSymlink != 0 {
				target, err := os.Readlink(p)
				if err != nil {
					return nil, nil, fmt.Errorf("gather image proxy: %w", err)
				}
				files = append(files, File{Path: p, Link: target})
				continue
			}
			add(p, p, 0o644)
		}
	}
	return files, elf, nil
}

// inPath finds a program where administrators' programs are, whatever PATH says.
func inPath(name string) (string, bool) {
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"} {
		if real, err := filepath.EvalSymlinks(filepath.Join(dir, name)); err == nil {
			return real, true
		}
	}
	return "", false
}

func (c Catalogue) name(image string) string { return Repository + image + ":" + c.Tag }

func (c Catalogue) bin(program string) string { return filepath.Join(c.Bin, program) }
