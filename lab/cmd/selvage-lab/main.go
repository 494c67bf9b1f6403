// Command selvage-lab is the lab: a real Kubernetes on this machine, the mesh and a sample. `selvage up` and `selvage down`
// run it.
package main

import (
	"context"

	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/selvage-mesh/selvage/lab/internal/fault"
	"github.com/selvage-mesh/selvage/lab/internal/forward"
	"github.com/selvage-mesh/selvage/lab/internal/lab"
	"github.com/selvage-mesh/selvage/lab/internal/netns"
	"github.com/selvage-mesh/selvage/lab/internal/proc"
	"github.com/selvage-mesh/selvage/lab/internal/progress"
	"github.com/selvage-mesh/selvage/lab/internal/state"
)

// version is set by the linker; it is the tag of the images.
var version = "dev"

func main() {
	// The first thread is the one that /proc/PID shows: no goroutine that changes its namespaces may ever run on it.
	runtime.LockOSThread()
	os.Exit(run())
}

// run returns 0 when what was asked is so, else 2: a lab is there or could not be made, with nothing between.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use: filepath.Base(os.Args[0]), Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: called()}, Short: "A real Kubernetes, the mesh and a sample on this machine",
		SilenceErrors: true, SilenceUsage: true, CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	// The flag package lets a line run up to five columns over.
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", ".FlagUsagesWrapped 75"))
	root.AddCommand(up(), down(), images(), enter(), forwarder())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "selvage: %v\n", err)
		if next := fault.Next(err); next != "" {
			fmt.Fprintf(os.Stderr, "  next: %s\n", next)
		}
		return 2
	}
	return 0
}

// called is how the user runs this program: `selvage up` starts it under its own name, such as bin/selvage.
func called() string { return os.Args[0] }

func up() *cobra.Command {
	cfg := lab.Config{}
	var level string
	detach := true
	c := &cobra.Command{
		Use: "up", Args: cobra.NoArgs,
		Short: "Bring up a lab: Kubernetes, the mesh, a sample with sidecars",
		Example: fmt.Sprintf(`  sudo %[1]s up           # level 2: with a node that runs the pods
  %[1]s up --level 1      # no root: nothing runs the pods
  %[1]s up --mesh=false   # only Kubernetes`, called()),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cfg.Level, err = lab.ParseLevel(level); err != nil {
				return err
			}
			if err := place(&cfg); err != nil {
				return err
			}
			dir, err := lab.Up(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			fmt.Print(lab.Summary(dir, called()))
			if detach {
				return nil
			}
			fmt.Fprintln(os.Stderr, "Ctrl-C ends the lab.")
			return lab.Attend(cmd.Context(), dir, called(), cfg.Progress)
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Dir, "dir", ".lab", "the lab's folder")
	f.StringVar(&level, "level", "auto", "1: control plane only; 2: with a node (root on Linux); auto: what this machine can")
	f.BoolVar(&detach, "detach", true, "return when all is ready; otherwise stay, and end the lab on Ctrl-C")
	f.StringVar(&cfg.Revision, "revision", "", "install the mesh as this revision")
	f.BoolVar(&cfg.Sample, "sample", true, "deploy the sample application")
	f.BoolVar(&cfg.Mesh, "mesh", true, "install the mesh")
	f.StringVar(&cfg.Kubernetes, "kubernetes", "", "the version of Kubernetes, as built by make lab K8S_VERSION=VERSION")
	f.BoolVar(&cfg.MachineNetwork, "machine-network", false, "level 1 on the machine's own loopback, even for root")
	return c
}

// place finds the folders that belong to this program.
func place(cfg *lab.Config) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	cfg.Bin = filepath.Dir(self)
	cfg.Samples = filepath.Join(filepath.Dir(cfg.Bin), "samples")
	cfg.Cache = filepath.Join(filepath.Dir(cfg.Bin), ".cache")
	cfg.Tag = version
	cfg.Program = called()
	cfg.Progress = progress.New(os.Stderr)
	return nil
}

func down() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "down", Args: cobra.NoArgs,
		Short: "End a lab and clean up after it, also after a crash",
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := lab.Down(cmd.Context(), dir, progress.New(os.Stderr))
			if err == nil && !found {
				fmt.Fprintf(os.Stderr, "there is no lab in %s\n", dir)
			}
			return err
		},
	}
	c.Flags().StringVar(&dir, "dir", ".lab", "the lab's folder")
	return c
}

func images() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "images", Args: cobra.NoArgs,
		Short: "Write the container images as archives, to load into a cluster that you have",
		Example: `  selvage-lab images --out dist
  kind load image-archive dist/selvage-proxy.tar`,
		RunE: func(*cobra.Command, []string) error {
			cfg := lab.Config{}
			if err := place(&cfg); err != nil {
				return err
			}
			files, err := lab.Images(cfg, out)
			for _, f := range files {
				if err == nil {
					fmt.Println(f)
				}
			}
			return err
		},
	}
	c.Flags().StringVar(&out, "out", "dist", "the folder to write to")
	return c
}

func enter() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use: "enter [--dir DIR] -- COMMAND [ARGS]", Args: cobra.MinimumNArgs(1),
		Short:   "Run a command in the lab's network",
		Example: "  sudo selvage-lab enter -- curl http://10.96.0.10:9153/metrics",
		RunE: func(_ *cobra.Command, args []string) error {
			dir, err := state.Open(path)
			if err != nil {
				return err
			}
			if !dir.Exists() {
				return fault.New(called()+" up --dir "+path, "there is no lab in %s", path)
			}
			return execIn(dir.Lab().Namespace, args)
		},
	}
	c.Flags().StringVar(&path, "dir", ".lab", "the lab's folder")
	c.Flags().SetInterspersed(false)
	return c
}

// execIn replaces this process by a program in the network namespace. It runs on the first thread, as all commands do.
func execIn(namespace string, args []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	if namespace != "" {
		if err := netns.Enter(namespace); err != nil {
			if os.Geteuid() != 0 {
				return &fault.Fault{Problem: "cannot enter the lab's network", Next: "run it with sudo", Cause: err}
			}
			return err
		}
	}
	return fmt.Errorf("run %s: %w", args[0], syscall.Exec(path, args, proc.Unmark(os.Environ())))
}

func forwarder() *cobra.Command {
	return &cobra.Command{
		Use: "forward TARGET...", Hidden: true, Args: cobra.MinimumNArgs(1),
		Short: "Serve the sockets handed over by up",
		RunE: func(cmd *cobra.Command, args []string) error {
			log := slog.New(slog.NewTextHandler(os.Stderr, nil))
			return forward.Run(cmd.Context(), args, log)
		},
	}
}
