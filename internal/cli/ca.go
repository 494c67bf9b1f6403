package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-mesh/selvage/internal/install"
	"github.com/selvage-mesh/selvage/internal/trust"
)

func (a *app) caCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Show what signs the mesh's certificates, and change its root",
		Long: "ca shows the authority of the mesh and changes its root in stages, each of which waits until every namespace,\n" +
			"webhook, replica and proxy has acknowledged it.",
		Args: subcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.caStatusCommand(), a.caRotateCommand())
	return cmd
}

func (a *app) caStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show what signs, what is trusted, and how far a change of the root is",
		Long: "status shows the authority of the mesh, when its certificates expire, and the gates of a change of the root.\n" +
			"What it shows is the word of the control plane; the last line says which replica keeps it, and for how long nobody has.\n\n" +
			"It ends with 1 when a certificate expires soon, a Secret of the authority cannot be used, a namespace cannot be given\n" +
			"the roots, or no control plane is alive.",
		Example: a.examples(`
			selvage ca status
			selvage ca status -o json`),
		Args: atMost(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkOutput(cmd, "table", "json", "yaml"); err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			status, err := a.caStatus(cmd.Context(), c)
			if err != nil {
				return err
			}
			alive := readKeeper(cmd.Context(), c)
			if a.output == "json" || a.output == "yaml" {
				err = a.print(struct {
					*trust.Status
					Keeper keeper `json:"keeper"`
				}{status, alive})
			} else if err = a.showAuthority(status); err == nil {
				fmt.Fprint(a.Stdout, wrap(alive.describe(time.Now()), "", plainWidth))
			}
			if err == nil && (len(status.Problems) > 0 || alive.gone(time.Now())) {
				err = &problemsError{}
			}
			return err
		},
	}
}

// caStatus reads what the control plane shows of its authority.
func (a *app) caStatus(ctx context.Context, c *connection) (*trust.Status, error) {
	cm, err := c.kubernetes.CoreV1().ConfigMaps(install.Namespace).Get(ctx, trust.StatusObject, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("the control plane has not shown its authority yet (ConfigMap %s/%s): does it run? `%s version` says", install.Namespace, trust.StatusObject, a.called())
	}
	if err != nil {
		return nil, fmt.Errorf("read ConfigMap %s/%s: %w", install.Namespace, trust.StatusObject, err)
	}
	status := &trust.Status{}
	if err := json.Unmarshal([]byte(cm.Data[trust.StatusKey]), status); err != nil {
		return nil, fmt.Errorf("parse key %s of ConfigMap %s/%s: %w", trust.StatusKey, install.Namespace, trust.StatusObject, err)
	}
	return status, nil
}

func (a *app) showAuthority(s *trust.Status) error {
	now := time.Now()
	fmt.Fprintf(a.Stdout, "authority: %s\n", s.Source)
	if s.Signing.Subject == "" {
		fmt.Fprintln(a.Stdout, "signs with: nothing. No certificate is issued, and sidecars go on with those they have until these end")
		return a.showProblems(s)
	}
	fmt.Fprintf(a.Stdout, "signs with: %s, until %s\n\n", s.Signing.Subject, until(s.Signing.NotAfter, now))
	t := &table{header: []string{"ROOT", "SHA256", "SIGNS", "EXPIRES"}}
	for _, r := range s.Roots {
		signs := "-"
		if r.Signs {
			signs = "yes"
		}
		t.add(printable(r.Subject), r.Fingerprint[:min(16, len(r.Fingerprint))], signs, until(r.NotAfter, now))
	}
	if err := t.write(a.Stdout); err != nil {
		return err
	}
	if s.Stage != trust.Stable {
		fmt.Fprintf(a.Stdout, "\nchange of the root: %s\n", stageLine(s, now))
		for _, line := range gateLines(s) {
			fmt.Fprintln(a.Stdout, "  "+line)
		}
	}
	return a.showProblems(s)
}

func (a *app) showProblems(s *trust.Status) error {
	for _, p := range s.Problems {
		fmt.Fprint(a.Stdout, wrap(p, "", plainWidth))
	}
	return nil
}

// until is a day and how far it is.
func until(end, now time.Time) string {
	return fmt.Sprintf("%s (%d days)", end.UTC().Format("2006-01-02"), int(end.Sub(now).Hours()/24))
}

// stageNames say what a stage is for.
var stageNames = map[trust.Stage]string{
	trust.Distribute: "the old root signs, both are trusted",
	trust.Sign:       "the new root signs, both are trusted",
	trust.Retire:     "only the new root is trusted",
	trust.Stable:     "done",
}

func stageLine(s *trust.Status, now time.Time) string {
	line := string(s.Stage) + ": " + stageNames[s.Stage]
	if s.Since != nil {
		line += ", for " + now.Sub(*s.Since).Round(time.Second).String()
	}
	return line
}

// gateLines has a line for each gate.
func gateLines(s *trust.Status) (lines []string) {
	for _, g := range s.Gates {
		mark, line := "open  ", fmt.Sprintf("%-10s  %s", g.Name, g.Count)
		if !g.Open() {
			mark = "closed"
			line += ", waiting for " + strings.Join(g.Waiting, ", ")
			if more := g.Total - g.Done - len(g.Waiting); more > 0 {
				line += fmt.Sprintf(" and %d more", more)
			}
		}
		lines = append(lines, mark+"  "+printable(line))
	}
	return lines
}

func (a *app) caRotateCommand() *cobra.Command {
	var undo, detach bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Change the root of the mesh, in stages and without losing a request",
		Long: "rotate asks the control plane for a new self-signed root and shows each stage and its gates until the new root alone is\n" +
			"trusted. Interrupting it, or the end of any process, does not stop the change; `ca status` shows how far it is, and\n" +
			"`ca rotate` again watches it on.\n\n" +
			"An authority of your own is changed by replacing Secret cacerts: the same stages follow by themselves.",
		Example: a.examples(`
			selvage ca rotate
			selvage ca rotate --detach     ask, and do not wait
			selvage ca rotate --undo       back to the former root, until that is retired`),
		Args: atMost(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			before, err := a.caStatus(cmd.Context(), c)
			if err != nil {
				return err
			}
			if err := a.mayRotate(before, undo); err != nil {
				return err
			}
			if under := before.Stage != trust.Stable; under && !undo { // whoever has begun it: this one watches
				fmt.Fprintf(a.Stderr, "The root is being changed already, so no other change is asked for.\n")
			} else if err := requestRoot(cmd.Context(), c, rotateValue(undo)); err != nil {
				return err
			}
			if detach {
				return nil
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return a.followRotation(ctx, c, before, undo)
		},
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "take a change back that has not retired the former root yet")
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait for the end")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Minute, "how long to wait")
	return cmd
}

// mayRotate says what a request would not do.
func (a *app) mayRotate(s *trust.Status, undo bool) error {
	switch {
	case s.Signing.Subject == "" && len(s.Problems) > 0:
		return fmt.Errorf("nothing signs now, so there is no root that another could follow: mend what `%s ca status` names first", a.called())
	case undo && s.KeyLost:
		return errors.New("the key of the former root is lost, so nothing can sign with it: the change goes on; a backup of Secret " +
			install.Namespace + "/" + trust.RootSecret + ", put back, takes over in stages")
	case !undo && s.Stage != trust.Stable:
		return nil // it is watched, whatever changes
	case strings.HasPrefix(s.Source, trust.External):
		return fmt.Errorf("the authority is %s: change its root there, and let the mesh trust both roots as long as certificates of the old one live", s.Source)
	case !strings.HasPrefix(s.Source, trust.SelfSigned):
		return fmt.Errorf("the authority is %s: replace its content by hand; another root then takes over in the same stages", s.Source)
	case undo && s.Stage != trust.Distribute && s.Stage != trust.Sign:
		return fmt.Errorf("there is no change of the root that can be taken back: `%s ca status` shows what there is", a.called())
	}
	return nil
}

// rotateValue is what the request says.
func rotateValue(undo bool) string {
	if undo {
		return trust.UndoRequest
	}
	return time.Now().UTC().Format(time.RFC3339Nano)
}

// requestRoot writes the request onto the root's Secret, without reading the key in it.
func requestRoot(ctx context.Context, c *connection, value string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{trust.RequestAnnotation: value}}})
	if err != nil {
		return err
	}
	_, err = c.kubernetes.CoreV1().Secrets(install.Namespace).Patch(ctx, trust.RootSecret, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "selvage-cli"})
	if err != nil {
		return fmt.Errorf("annotate Secret %s/%s: %w", install.Namespace, trust.RootSecret, err)
	}
	return nil
}

// followRotation shows stages and gates as they change, until the change is over.
func (a *app) followRotation(ctx context.Context, c *connection, before *trust.Status, undo bool) error {
	const look = 500 * time.Millisecond
	began, shown := time.Now(), ""
	moved := undo
	for {
		s, err := a.caStatus(ctx, c)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("the change of the root is not over after %s; it goes on: `%s ca status` shows who is waited for", time.Since(began).Round(time.Second), a.called())
		}
		moved = moved || s.Stage != trust.Stable || s.Hash != before.Hash
		if moved {
			if text := strings.Join(gateLines(s), "\n"); s.Stage != trust.Stable && string(s.Stage)+text != shown {
				shown = string(s.Stage) + text
				fmt.Fprintf(a.Stderr, "%4ds  %s: %s\n", int(time.Since(began).Seconds()), s.Stage, stageNames[s.Stage])
				for _, line := range gateLines(s) {
					fmt.Fprintf(a.Stderr, "       %s\n", line)
				}
			}
			if s.Stage == trust.Stable {
				fmt.Fprintf(a.Stdout, "the mesh trusts %s alone, after %s\n", cmp.Or(printable(s.Roots[0].Subject), s.Hash), time.Since(began).Round(time.Second))
				return nil
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(look):
		}
	}
}
