package lab

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/selvage-mesh/selvage/lab/internal/fault"
	"github.com/selvage-mesh/selvage/lab/internal/netns"
	"github.com/selvage-mesh/selvage/lab/internal/node"
)

// Level is how much of a Kubernetes a lab has.
type Level int

// At Level1 there is a control plane and no node: pods are made and admitted, and nothing runs them. Level2 adds a node.
const (
	LevelAuto Level = 0
	Level1    Level = 1
	Level2    Level = 2
)

// ParseLevel reads auto, 1 or 2.
func ParseLevel(s string) (Level, error) {
	switch s {
	case "auto", "":
		return LevelAuto, nil
	case "1":
		return Level1, nil
	case "2":
		return Level2, nil
	}
	return 0, fault.New("choose --level auto, 1 or 2", "there is no level %q", s)
}

// choose settles the level and checks that all it takes is there, before anything is started.
func (l *Lab) choose() (int, error) {
	level := l.Level
	if level != Level1 {
		if err := missing(l.Program); err != nil && level == Level2 {
			return 0, err
		} else if err != nil {
			level = Level1
			l.Progress.Note("level 1: pods are admitted and get sidecars, but nothing runs them.")
			l.Progress.Note("level 2 cannot be had: " + err.Error())
			l.Progress.Note("for level 2: " + fault.Next(err))
		} else {
			level = Level2
		}
	}
	return int(level), l.complete(int(level))
}

// complete fails when a program is missing that a lab like this one runs.
func (l *Lab) complete(level int) error {
	needs := []string{"selvage-kube"}
	if l.Mesh {
		needs = append(needs, "selvage", "selvaged", "kubectl")
	}
	if level == 2 {
		needs = append(needs, "selvage-dns", "selvage-pause")
		if l.Mesh {
			needs = append(needs, "selvage-agent", "envoy")
		}
		if l.Mesh && l.Sample {
			needs = append(needs, "sample")
		}
	}
	return l.programs(needs...)
}

// missing says why there can be no node here, nil when there can.
func missing(program string) error {
	if os.Geteuid() != 0 {
		return fault.New("sudo "+program+" up", "a node that runs pods wants root")
	}
	if !netns.Possible() {
		return fault.New("run it on the machine itself or in a privileged container", "this root may not make network namespaces")
	}
	var packages []string
	for program, pkg := range map[string]string{
		node.Containerd: "containerd", "ctr": "containerd", "runc": "runc", "nft": "nftables", "iptables": "iptables",
	} {
		if _, err := lookPath(program); err != nil && !strings.Contains(strings.Join(packages, " "), pkg) {
			packages = append(packages, pkg)
		}
	}
	if _, err := pluginDir(); err != nil {
		packages = append(packages, "containernetworking-plugins")
	}
	if len(packages) > 0 {
		return fault.New("apt-get install "+strings.Join(packages, " ")+" (or what your distribution calls them)",
			"a node that runs pods wants %s", strings.Join(packages, ", "))
	}
	return nil
}

// lookPath finds a program on the lab's search path.
func lookPath(name string) (string, error) {
	for _, dir := range filepath.SplitList(path()) {
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fault.New("sudo make up installs what is missing", "there is no %s on this machine", name)
}

// pluginDir finds the CNI programs.
func pluginDir() (string, error) {
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"} {
		complete := true
		for _, plugin := range []string{"ptp", "host-local", "portmap", "loopback"} {
			_, err := os.Stat(filepath.Join(dir, plugin))
			complete = complete && err == nil
		}
		if complete {
			return dir, nil
		}
	}
	return "", fault.New("sudo make up installs what is missing", "there are no CNI plugins on this machine")
}

// programs fails with the command that builds the first program which is missing.
func (l *Lab) programs(names ...string) error {
	for _, name := range names {
		if name == "selvage-kube" {
			name = kubeName(l.Kubernetes)
		}
		if info, err := os.Stat(l.binary(name)); err == nil && info.Mode()&0o111 != 0 {
			continue
		}
		return fault.New(target(name, l.Kubernetes), "%s is not there", Shown(l.binary(name)))
	}
	return nil
}

// target is the command that builds a program.
func target(name, kubernetes string) string {
	switch name {
	case "selvage", "selvaged", "selvage-agent", "sample":
		return "make build"
	case "envoy":
		return "make envoy"
	case "selvage-kube", "selvage-dns", "selvage-pause", "kubectl":
		return "make lab"
	}
	return "make lab K8S_VERSION=" + kubernetes
}
