package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"istio.io/api/label"

	"github.com/selvage-mesh/selvage/internal/diag"
	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/ref"
)

// checked is what `inject --check` knows of one object.
type checked struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	At        string `json:"at,omitempty"` // FILE:LINE

	Sidecar  bool     `json:"sidecar"` // a pod that is created now gets one, or is one that has it
	Reason   string   `json:"reason"`  // inject.Reason, or "refused"
	Detail   string   `json:"detail"`
	Asks     string   `json:"asks,omitempty"`     // the label or annotation that asks for a sidecar
	Webhook  string   `json:"webhook,omitempty"`  // that the API server calls, CONFIGURATION/ENTRY
	Selected string   `json:"selected,omitempty"` // the webhook whose labels fit but whose conditions keep the pod out
	Revision string   `json:"revision,omitempty"`
	Tag      string   `json:"tag,omitempty"`
	Refused  []string `json:"refused,omitempty"` // why the webhook refuses the pod, or the API server what it makes of it
	Warnings []string `json:"warnings,omitempty"`
	Next     string   `json:"next,omitempty"` // what to do
	By       string   `json:"by,omitempty"`   // policy or webhook: who puts the sidecar in; `policy explain` alone
	Left     string   `json:"left,omitempty"` // what the policy leaves to the webhook
	Effects  []string `json:"effects,omitempty"`
	Problem  bool     `json:"problem"` // it asks for a sidecar and does not get it, or a running pod lacks it

	Live    bool      `json:"live"`
	Pods    int       `json:"pods"`    // that run; live only
	With    int       `json:"with"`    // of these, those with a sidecar
	Missing []missing `json:"missing"` // of these, those without one although they would get it now
}

// missing is a running pod that has no sidecar and would get one if it were created now.
type missing struct {
	Pod     string    `json:"pod"`
	Created time.Time `json:"created"`
	Why     string    `json:"why"`
}

// refusedReason stands in the place of an inject.Reason where the webhook would refuse the pod.
const refusedReason = "refused"

// checker asks about objects.
type checker struct {
	admission  *inject.Admission
	config     func(revision string) *inject.Config // nil where it is not known
	webhooks   []admissionv1.MutatingWebhookConfiguration
	namespaces map[string]*corev1.Namespace
	unknown    map[string]bool // namespaces that were asked for and are not known
	policies   *explainer      // nil where nobody asks what the policies do
}

func (c *checker) namespace(name string) *corev1.Namespace {
	if ns := c.namespaces[name]; ns != nil {
		return ns
	}
	c.unknown[name] = true
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// check asks about a workload, and about the pods of it that run.
func (c *checker) check(w inject.Workload, live bool, pods []*corev1.Pod) checked {
	ns := c.namespace(w.Object.Namespace)
	e := c.admission.Expect(ns, w.Pod)
	out := checked{Kind: w.Object.Kind, Namespace: w.Object.Namespace, Name: w.Object.Name, Live: live, Missing: []missing{},
		Sidecar: e.Inject || e.Reason == inject.AlreadyInjected, Reason: string(e.Reason), Detail: e.Detail, Asks: e.Asks,
		Revision: e.Revision, Tag: e.Tag, Problem: e.Surprising}
	if e.Webhook != (inject.Called{}) {
		out.Webhook = e.Webhook.String()
	} else if e.Selected != (inject.Called{}) {
		out.Selected = e.Selected.String()
	}
	problems := e.Warnings
	if e.Inject {
		problems = append(problems, c.attempt(w, ns, e.Revision, &out)...)
		c.policies.explain(w.Pod, e.Revision, &out)
	}
	for _, p := range problems {
		if p.Severity >= diag.Warning {
			out.Warnings = append(out.Warnings, printable(inject.Describe(p)))
		}
	}
	for _, pod := range pods {
		out.Pods++
		switch {
		case c.admission.Expect(ns, pod).Reason == inject.AlreadyInjected:
			out.With++
		case e.Inject && len(out.Refused) == 0:
			out.Missing = append(out.Missing, missing{pod.Name, pod.CreationTimestamp.UTC(), c.since(pod, ns, e)})
		}
	}
	switch {
	case len(out.Missing) > 0:
		out.Problem, out.Next = true, restart(w.Object)
	case len(out.Refused) > 0 && out.Next == "":
		out.Next = "Mend the annotations that are named above."
	case len(out.Refused) > 0:
	case out.Problem:
		out.Next = e.Reason.Advice()
	}
	return out
}

// attempt injects, to learn whether the webhook would refuse the pod, or the API server what the webhook makes of it.
func (c *checker) attempt(w inject.Workload, ns *corev1.Namespace, revision string, out *checked) []diag.Problem {
	config := c.config(revision)
	if config == nil {
		return nil
	}
	pod, warnings, err := w.Inject(config)
	var no *inject.RefusedError
	switch {
	case errors.As(err, &no):
		for _, p := range no.Problems {
			out.Refused = append(out.Refused, printable(inject.Describe(p)))
		}
	case err != nil:
		out.Refused = []string{printable(err.Error())}
	default:
		against := againstPodSecurity(ns, pod)
		if against == "" {
			return warnings
		}
		out.Refused, out.Next = []string{printable(against)}, podSecurityAdvice
	}
	out.Sidecar, out.Reason, out.Problem = false, refusedReason, true
	return nil
}

// since says why a pod that would get its sidecar now has none, as far as the times of the objects tell.
func (c *checker) since(pod *corev1.Pod, ns *corev1.Namespace, e inject.Expectation) string {
	created := pod.CreationTimestamp.Time
	for i := range c.webhooks {
		w := &c.webhooks[i]
		if w.Name == e.Webhook.Configuration && !created.After(w.CreationTimestamp.Time) {
			return createdBefore(created, w.CreationTimestamp.Time, "webhook configuration "+w.Name+" was made")
		}
	}
	for _, key := range []string{inject.NamespaceInjection, label.IoIstioRev.Name} {
		if t, found := labelled(ns, key); found && !created.After(t) {
			return createdBefore(created, t, fmt.Sprintf("label %s of namespace %s was written", key, ns.Name))
		}
	}
	return "no webhook was called for it then, or it said something else: the log of the control plane at that time, and the Events of its owner, may tell"
}

// createdBefore says that a pod is older than something. The API server keeps times in whole seconds: of two that are equal the pod,
// which has no sidecar, was most likely the first.
func createdBefore(created, t time.Time, what string) string {
	if created.Equal(t) {
		return fmt.Sprintf("it was created in the same second, %s, and most likely before %s", t.UTC().Format(time.RFC3339), what)
	}
	return fmt.Sprintf("it was created before %s, at %s", what, t.UTC().Format(time.RFC3339))
}

// labelled is when somebody wrote a label last, by what the API server keeps of writers.
func labelled(ns *corev1.Namespace, key string) (at time.Time, found bool) {
	for _, m := range ns.ManagedFields {
		var fields struct {
			Metadata struct {
				Labels map[string]json.RawMessage `json:"f:labels"`
			} `json:"f:metadata"`
		}
		if m.FieldsV1 == nil || m.Time == nil || json.Unmarshal(m.FieldsV1.GetRawBytes(), &fields) != nil {
			continue
		}
		if _, has := fields.Metadata.Labels["f:"+key]; has && m.Time.After(at) {
			at, found = m.Time.Time, true
		}
	}
	return at, found
}

// restart is how a workload's pods are created anew.
func restart(o ref.Ref) string {
	switch o.Kind {
	case "Deployment", "StatefulSet", "DaemonSet":
		return fmt.Sprintf("kubectl rollout restart %s/%s -n %s", strings.ToLower(o.Kind), o.Name, o.Namespace)
	case "Job", "CronJob":
		return "The next run gets it; kubectl delete job ends one that runs."
	case "Pod":
		return fmt.Sprintf("kubectl get pod %s -n %s -o yaml | kubectl replace --force -f -", o.Name, o.Namespace)
	}
	return fmt.Sprintf("Delete its pods one by one: %s/%s makes them anew.", strings.ToLower(o.Kind), o.Name)
}

func (a *app) runCheck(ctx context.Context, flags injectFlags, args []string) error {
	var (
		list []checked
		err  error
	)
	if len(flags.files) > 0 {
		list, err = a.checkFiles(ctx, flags, nil)
	} else {
		if flags.settings.offline || flags.settings.named() {
			return errors.New("--check without -f asks the cluster: --offline and files of settings go with -f")
		}
		list, err = a.checkCluster(ctx, args, nil)
	}
	if err != nil {
		return err
	}
	if err := a.showChecked(list, len(args) > 0 || len(flags.files) > 0); err != nil {
		return err
	}
	if slices.ContainsFunc(list, func(c checked) bool { return c.Problem }) {
		return &problemsError{}
	}
	return nil
}

// checkFiles asks about the objects of files. Namespaces and webhooks are those of the files, then those of the cluster.
// Of what the policies do to them speaks explain, unless it is nil.
func (a *app) checkFiles(ctx context.Context, flags injectFlags, explain *explainer) ([]checked, error) {
	manifests, err := a.manifests(flags.files, flags.recursive)
	if err != nil {
		return nil, err
	}
	s, err := a.injectSettings(ctx, flags.settings)
	if err != nil {
		return nil, err
	}
	c := &checker{namespaces: map[string]*corev1.Namespace{}, unknown: map[string]bool{}, policies: explain,
		config: func(string) *inject.Config { return s.config }}
	explain.whole(s.config)
	if err := a.surroundings(ctx, s, c); err != nil {
		return nil, err
	}
	var own []admissionv1.MutatingWebhookConfiguration
	visit := func(kind string, asJSON []byte) {
		var ns corev1.Namespace
		var w admissionv1.MutatingWebhookConfiguration
		switch {
		case kind == "Namespace" && json.Unmarshal(asJSON, &ns) == nil:
			c.namespaces[ns.Name] = &ns
		case kind == "MutatingWebhookConfiguration" && json.Unmarshal(asJSON, &w) == nil:
			own = append(own, w)
		}
	}
	options := inject.StreamOptions{Namespace: a.manifestNamespace()}
	var workloads []inject.Workload
	var at []string
	wrong := 0
	for _, m := range manifests {
		found, err := options.Workloads(m.data, visit)
		wrong += a.sayUnreadable(m.name, err)
		for _, w := range found {
			workloads = append(workloads, w)
			at = append(at, fmt.Sprintf("%s:%d", m.name, w.Line))
		}
	}
	if wrong > 0 {
		return nil, fmt.Errorf("nothing is checked: %s cannot be read, as told above", plural(wrong, "document", "documents"))
	}
	if len(own) > 0 {
		c.webhooks = own
		c.admission = inject.NewAdmission(own, map[string]*inject.Config{s.config.Revision(): s.config})
	}
	list := []checked{}
	for i, w := range workloads {
		one := c.check(w, false, nil)
		one.At = at[i]
		list = append(list, one)
	}
	for _, name := range slices.Sorted(maps.Keys(c.unknown)) {
		fmt.Fprintf(a.Stderr, "namespace %s is not known here: it is taken to have no labels\n", name)
	}
	return list, nil
}

// sayUnreadable tells of every document of a file that cannot be read, and counts them.
func (a *app) sayUnreadable(name string, err error) (n int) {
	if list, several := err.(interface{ Unwrap() []error }); several {
		for _, one := range list.Unwrap() {
			n += a.sayUnreadable(name, one)
		}
		return n
	}
	if err == nil {
		return 0
	}
	a.sayDocument(name, inject.Document{Err: err})
	return 1
}

// surroundings are the webhooks and namespaces around files.
func (a *app) surroundings(ctx context.Context, s *injectSettings, c *checker) error {
	if s.cluster == nil {
		fmt.Fprintf(a.Stderr, "settings: %s; webhooks are those of an installation of that revision\n", s.source)
		r := inject.Registration{Revision: s.config.Revision(), Endpoint: inject.Endpoint{Namespace: s.config.Namespace(), Service: "istiod"}}
		c.webhooks = []admissionv1.MutatingWebhookConfiguration{*r.Configuration()}
		c.admission = inject.NewAdmission(c.webhooks, map[string]*inject.Config{s.config.Revision(): s.config})
		return nil
	}
	fmt.Fprintf(a.Stderr, "settings, webhooks and namespaces: those of the cluster at %s, beside what is in the files\n", a.host)
	admission, configs, webhooks, err := a.liveAdmission(ctx, s.cluster)
	if err != nil {
		return err
	}
	c.admission, c.webhooks = admission, webhooks
	c.config = func(revision string) *inject.Config { return configs[revision] }
	namespaces, err := s.cluster.kubernetes.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range namespaces.Items {
		c.namespaces[namespaces.Items[i].Name] = &namespaces.Items[i]
	}
	return nil
}

// showChecked writes a page for each of a few objects, or a table and what to do about those that are not as they ask.
func (a *app) showChecked(list []checked, named bool) error {
	const few = 3
	slices.SortStableFunc(list, func(x, y checked) int {
		if x.At != "" || y.At != "" {
			return 0 // the files' order
		}
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.Name, y.Name))
	})
	switch {
	case a.output == "json" || a.output == "yaml":
		return a.print(struct {
			Objects []checked `json:"objects"`
		}{list})
	case len(list) == 0:
		_, err := fmt.Fprintln(a.Stdout, "There is no object with pods.")
		return err
	case named && len(list) <= few:
		for i, c := range list {
			if i > 0 {
				fmt.Fprintln(a.Stdout)
			}
			fmt.Fprint(a.Stdout, c.page())
		}
		return nil
	}
	t := table{header: []string{"OBJECT", "SIDECAR", "NOW", "BY", "REASON"}}
	for _, c := range list {
		t.add(c.object(), c.word(), c.now(), c.by(), c.reason())
	}
	if !slices.ContainsFunc(list, func(c checked) bool { return c.Live }) {
		t.drop("NOW")
	}
	if t.width() > plainWidth {
		t.gap = 1
	}
	if t.width() > plainWidth {
		t.drop("BY")
	}
	if a.color(a.Stdout) {
		t.paint = paintChecked
	}
	if err := t.write(a.Stdout); err != nil {
		return err
	}
	problems := 0
	for _, c := range list {
		if c.Problem {
			problems++
		}
		if c.Problem || len(c.Warnings) > 0 {
			fmt.Fprint(a.Stdout, "\n"+c.page())
		}
	}
	fmt.Fprintf(a.Stdout, "\n%s: %d with a sidecar, %d without; %s.\n", plural(len(list), "object", "objects"),
		len(list)-countWithout(list), countWithout(list), plural(problems, "problem", "problems"))
	return nil
}

func countWithout(list []checked) (n int) {
	for _, c := range list {
		if !c.Sidecar {
			n++
		}
	}
	return n
}

func paintChecked(column int, cell string) string {
	if column == 1 && cell == refusedReason || column > 1 && cell == string(inject.Missed) {
		return "\x1b[31m" + cell + "\x1b[0m"
	}
	return cell
}

func (c checked) object() string { return c.Kind + "/" + c.Namespace + "/" + c.Name }

// word says whether a pod that is created now gets a sidecar.
func (c checked) word() string {
	switch {
	case c.Reason == refusedReason:
		return refusedReason
	case c.Sidecar:
		return "yes"
	}
	return "no"
}

// now is how many of the pods that run have it.
func (c checked) now() string {
	if !c.Live || c.Pods == 0 {
		return "-"
	}
	return fmt.Sprintf("%d/%d", c.With, c.Pods)
}

// by is the revision that decides, with the tag that leads there.
func (c checked) by() string {
	if c.Tag != "" {
		return c.Tag + ">" + c.Revision
	}
	return dash(c.Revision)
}

func (c checked) reason() string {
	if len(c.Missing) > 0 {
		return string(inject.Missed)
	}
	return c.Reason
}

// page is all about one object.
func (c checked) page() string {
	var b strings.Builder
	const indent = "         "
	line := func(name, text string) {
		if text != "" {
			b.WriteString(fmt.Sprintf("%-9s", name) + strings.TrimLeft(wrap(text, indent, plainWidth), " "))
		}
	}
	line("Object", c.object())
	line("File", c.At)
	why := c.Detail
	if c.Asks != "" && !strings.Contains(why, c.Asks) {
		why = c.Asks + "; " + why
	}
	line("Sidecar", c.word()+": "+why)
	line("Reason", c.reason())
	webhook := c.Webhook
	switch {
	case webhook == "" && c.Selected != "":
		webhook = "none is called: the conditions of " + c.Selected + " keep the pod out"
	case webhook == "":
		webhook = "none is called"
	case c.Tag != "":
		webhook += ", tag " + c.Tag + " of revision " + c.Revision
	default:
		webhook += ", revision " + c.Revision
	}
	line("Webhook", webhook)
	for _, r := range c.Refused {
		line("Refused", r)
	}
	if c.Live {
		line("Now", nowText(c))
	}
	const most = 5
	for i, m := range c.Missing {
		if i == most {
			line("Without", fmt.Sprintf("and %d more", len(c.Missing)-most))
			break
		}
		line("Without", fmt.Sprintf("%s, created %s: %s", m.Pod, m.Created.Format(time.RFC3339), m.Why))
	}
	for _, w := range c.Warnings {
		line("Warning", w)
	}
	line("Next", c.Next)
	return b.String()
}

func nowText(c checked) string {
	switch {
	case c.Pods == 0:
		return "no pod runs"
	case c.Kind == "Pod" && c.With == 1:
		return "it has a sidecar"
	case c.Kind == "Pod":
		return "it has no sidecar"
	}
	return fmt.Sprintf("%d of %s with a sidecar", c.With, plural(c.Pods, "pod", "pods"))
}
