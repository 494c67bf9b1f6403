package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/spf13/cobra"
)

// labProgram makes labs. It is a program of its own, because it carries a whole Kubernetes.
const labProgram = "selvage-lab"

func (a *app) upCommand() *cobra.Command {
	return a.labCommand(&cobra.Command{
		Use:   "up [flags]",
		Short: "Make a lab on this machine: Kubernetes, the mesh and a sample shop",
		Long: "up makes a lab on this machine: a real Kubernetes, the mesh, and a sample shop with sidecars. As root on Linux\n" +
			"it has a node that runs the pods; without root it has the API server and the control plane. All of it lives in\n" +
			"one folder and, as root, in a network namespace of its own; `selvage down` removes it.",
		Example: a.examples(`
			sudo selvage up                everything, with a node that runs pods
			selvage up --level 1           without root: pods are injected, nothing runs them
			selvage up --dir /tmp/lab2     one more lab beside the first`),
	})
}

func (a *app) downCommand() *cobra.Command {
	return a.labCommand(&cobra.Command{
		Use:   "down [flags]",
		Short: "End a lab and clean up after it, also after a crash",
		Long:  "down ends the processes of a lab and removes its network namespace, mounts and state, also when a run was killed.",
		Example: a.examples(`
			sudo selvage down
			selvage down --dir /tmp/lab2`),
	})
}

// labCommand hands the arguments over as they are.
func (a *app) labCommand(cmd *cobra.Command) *cobra.Command {
	cmd.DisableFlagParsing = true
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		program, err := findLab()
		if err != nil {
			if slices.ContainsFunc(args, isHelp) {
				return cmd.Help()
			}
			return err
		}
		err = syscall.Exec(program, append([]string{a.called(), cmd.Name()}, args...), os.Environ()) // it calls itself as this was called
		return fmt.Errorf("run %s: %w", program, err)                                                // Exec does not come back when it works
	}
	return cmd
}

func isHelp(arg string) bool { return arg == "--help" || arg == "-h" }

// findLab looks beside this program, then on the path.
func findLab() (string, error) {
	if self, err := os.Executable(); err == nil {
		if self, err = filepath.EvalSymlinks(self); err == nil {
			beside := filepath.Join(filepath.Dir(self), labProgram)
			if info, err := os.Stat(beside); err == nil && !info.IsDir() {
				return beside, nil
			}
		}
	}
	program, err := exec.LookPath(labProgram)
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("the lab's program %s is neither beside this one nor on the path: build it with `make lab` in a clone of Selvage", labProgram)
	}
	if err != nil {
		return "", fmt.Errorf("find %s: %w", labProgram, err)
	}
	return program, nil
}
