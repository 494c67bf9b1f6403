package lab

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/selvage-mesh/selvage/lab/internal/fault"
	"github.com/selvage-mesh/selvage/lab/internal/progress"
	"github.com/selvage-mesh/selvage/lab/internal/state"
)

// Summary is what a user wants to know about a lab that is ready: where things are, and what to type next.
// program is how the user runs this one.
func Summary(dir *state.Dir, program string) string {
	l := dir.Lab()
	var b strings.Builder
	fmt.Fprintf(&b, "\nThe lab is ready: Kubernetes %s, level %d%s.\n\n", l.Kubernetes, l.Level, meshText(l))
	if at := l.Addresses["sample"]; at != "" {
		fmt.Fprintf(&b, "  open http://%s/\n", at)
	}
	fmt.Fprintf(&b, "  export KUBECONFIG=%s\n", dir.File("kubeconfig"))
	if l.Mesh && l.Level == 2 {
		b.WriteString("  " + program + " status" + revisionFlag(l) + "\n")
	}
	switch {
	case l.Sample && l.Level == 2:
		b.WriteString("  bin/kubectl -n shop get pods\n")
	case l.Sample:
		b.WriteString("  bin/kubectl -n shop get pods   # Pending: this lab has no node\n")
	case !l.Mesh:
		b.WriteString("  bin/kubectl get namespaces\n")
	}
	down := program + " down"
	if l.Level == 2 || l.Namespace != "" {
		down = "sudo " + down
	}
	if shown := Shown(dir.Path()); shown != ".lab" {
		down += " --dir " + shown
	}
	fmt.Fprintf(&b, "  %s\n", down)
	return b.String()
}

func revisionFlag(l state.Lab) string {
	if l.Revision == "" {
		return ""
	}
	return " --revision " + l.Revision
}

func meshText(l state.Lab) string {
	switch {
	case !l.Mesh:
		return ", no mesh"
	case l.Revision != "":
		return ", the mesh as revision " + l.Revision
	}
	return ", the mesh"
}

// Attend stays with a lab until ctx ends, and then ends the lab. It returns early when somebody else ended it, or when one of
// its programs ended.
func Attend(ctx context.Context, dir *state.Dir, program string, p *progress.Reporter) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			_, err := Down(context.WithoutCancel(ctx), dir.Path(), p)
			return err
		case <-tick.C:
			if !dir.Exists() {
				p.Note("another command ended the lab")
				return nil
			}
			for name, id := range dir.Lab().Identities {
				if !id.Alive() && dir.Exists() {
					return fault.New(program+" up mends it; its log: "+Shown(dir.File("logs", name+".log")), "%s of the lab has ended", name)
				}
			}
		}
	}
}
