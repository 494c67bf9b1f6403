package lab

import (
	"os"

	"github.com/selvage-mesh/selvage/lab/internal/fault"
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

// choose settles the level and checks that what it takes is there.
func (l *Lab) choose() (int, error) {
	if err := l.programs("selvage-kube"); err != nil {
		return 0, err
	}
	return 1, nil
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
	case "selvage-kube", "selvage-dns", "kubectl":
		return "make lab"
	}
	return "make lab K8S_VERSION=" + kubernetes
}
