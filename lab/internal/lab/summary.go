package lab

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/selvage-mesh/selvage/lab/internal/cluster"
	"github.com/selvage-mesh/selvage/lab/internal/progress"
	"github.com/selvage-mesh/selvage/lab/internal/state"
)

// Summary is what a user wants to know about a lab that is ready: where things are, and what to type next.
func Summary(dir *state.Dir) string {
	l := dir.Lab()
	var b strings.Builder
	fmt.Fprintf(&b, "\nA lab of level %d runs: Kubernetes %s.\n", l.Level, l.Kubernetes)
	fmt.Fprintf(&b, "  export KUBECONFIG=%s\n", dir.File("kubeconfig"))
	down := "selvage down"
	if shown := Shown(dir.Path()); shown != ".lab" {
		down += " --dir " + shown
	}
	fmt.Fprintf(&b, "  %s\n", down)
	return b.String()
}

// Attend stays with a lab until ctx ends, and then ends the lab; it returns early when somebody else ended it.
func Attend(ctx context.Context, dir *state.Dir, p *progress.Reporter) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			_, err := Down(context.WithoutCancel(ctx), dir.Path(), p)
			return err
		case <-tick.C:
			if !dir.Exists() || !dir.Lab().Identities[cluster.APIServer].Alive() {
				return fmt.Errorf("the lab in %s has ended", Shown(dir.Path()))
			}
		}
	}
}
