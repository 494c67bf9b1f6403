package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"time"

	"golang.org/x/time/rate"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/selvage-mesh/selvage/internal/policy"
)

// manager is the field manager of guards' parameters.
const manager = "selvage-guards"

const (
	// look is how often what no event tells of is looked at again.
	look = time.Minute
	// gather is how long events are gathered before they are looked at.
	gather = time.Second
	// absence is how long a parameter that does not exist is left alone.
	absence = time.Minute
)

// ParameterConfig says which parameter is kept, and what is to be in it.
type ParameterConfig struct {
	Kubernetes kubernetes.Interface
	Dynamic    dynamic.Interface
	Name       string
	// Spec gives the fields that are to be in the parameter; nil takes one out. It is called at every look.
	Spec func(context.Context) (map[string]any, error)
	// Absent is called when there is no such parameter; it may be nil.
	Absent func()
	// AtEnd are fields to write when the keeper ends, nil for none.
	AtEnd map[string]any
	// Stamp is a field that gets the time whenever another one changes, "" for none.
	Stamp string
	// Changed tells that Spec may give something else; nil when only webhook configurations and time do.
	Changed <-chan struct{}
	Log     *slog.Logger
}

// Parameter keeps one parameter object, which others have made. Only the replica that leads runs it.
type Parameter struct{ config ParameterConfig }

// NewParameter gives a keeper that does nothing yet.
func NewParameter(config ParameterConfig) (*Parameter, error) {
	if config.Kubernetes == nil || config.Dynamic == nil || config.Spec == nil || config.Log == nil || config.Name == "" {
		return nil, errors.New("configure an admission parameter: its clients, its name, what is in it and a logger are needed")
	}
	return &Parameter{config}, nil
}

// Run keeps the parameter until ctx ends, and returns nil then. It looks when a webhook configuration or the parameter changes, when it
// is told to, and every minute.
func (p *Parameter) Run(ctx context.Context) error {
	hooks := p.hookEvents(ctx)
	limit := rate.NewLimiter(rate.Every(gather), 2)
	said := ""
	for limit.Wait(ctx) == nil {
		live, err := p.keep(ctx)
		wait := look
		switch {
		case err != nil && ctx.Err() != nil:
		case apierrors.IsNotFound(err):
			wait = absence // what it is for is not installed
			if p.config.Absent != nil {
				p.config.Absent()
			}
		case err != nil && err.Error() != said:
			said = err.Error()
			p.config.Log.Warn("an admission parameter cannot be kept, it is tried again", "parameter", p.config.Name, "error", err,
				"hint", "`selvage install` grants the right to get, watch and patch it")
		case err == nil:
			said = ""
		}
		following, stop := context.WithCancel(ctx)
		var changed <-chan struct{}
		if live != nil {
			changed = follow(following, p.config.Dynamic, live)
		}
		select {
		case <-ctx.Done():
		case <-hooks:
		case <-p.config.Changed:
		case <-changed:
		case <-time.After(wait):
		}
		stop()
	}
	if p.config.AtEnd != nil {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		if err := p.put(ending, p.config.Name, p.config.AtEnd); err != nil && !apierrors.IsNotFound(err) {
			p.config.Log.Warn("an admission parameter was left as it is", "parameter", p.config.Name, "error", err)
		}
	}
	return nil
}

// hookEvents tells of every change of a mutating webhook configuration. It holds one.
func (p *Parameter) hookEvents(ctx context.Context) <-chan struct{} {
	woken := make(chan struct{}, 1)
	wake := func(any) {
		select {
		case woken <- struct{}{}:
		default:
		}
	}
	factory := informers.NewSharedInformerFactoryWithOptions(p.config.Kubernetes, 0, informers.WithTransform(func(object any) (any, error) {
		if c, ok := object.(*admissionv1.MutatingWebhookConfiguration); ok { // nothing of it is read from here
			return &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: c.Name, ResourceVersion: c.ResourceVersion}}, nil
		}
		return object, nil
	}))
	informer := factory.Admissionregistration().V1().MutatingWebhookConfigurations().Informer()
	_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{ // which cannot fail before it is started
		AddFunc: wake, UpdateFunc: func(_, object any) { wake(object) }, DeleteFunc: wake,
	})
	factory.StartWithContext(ctx)
	return woken
}

// keep writes what differs, and gives the parameter as it is then.
func (p *Parameter) keep(ctx context.Context) (*unstructured.Unstructured, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	live, err := p.get(ctx, p.config.Name)
	if err != nil {
		return nil, err
	}
	want, err := p.config.Spec(ctx)
	if err != nil {
		return live, fmt.Errorf("find out what is to be in AdmissionParameter %s: %w", p.config.Name, err)
	}
	patches, err := differences(live, want)
	if err != nil || len(patches) == 0 {
		return live, err
	}
	if p.config.Stamp != "" {
		want[p.config.Stamp] = time.Now().UTC().Format(time.RFC3339)
		if patches, err = differences(live, want); err != nil {
			return live, err
		}
	}
	if live, err = p.patch(ctx, p.config.Name, patches); err != nil {
		return nil, err
	}
	return live, nil
}

// put writes fields into a parameter, if they differ.
func (p *Parameter) put(ctx context.Context, name string, want map[string]any) error {
	live, err := p.get(ctx, name)
	if err != nil {
		return err
	}
	patches, err := differences(live, want)
	if err != nil || len(patches) == 0 {
		return err
	}
	_, err = p.patch(ctx, name, patches)
	return err
}

func (p *Parameter) get(ctx context.Context, name string) (*unstructured.Unstructured, error) {
	return p.config.Dynamic.Resource(policy.ParameterResource).Get(ctx, name, metav1.GetOptions{})
}

// operation is one of a JSON patch. A merge patch would leave in a field what its new value does not have.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

func (p *Parameter) patch(ctx context.Context, name string, patches []operation) (*unstructured.Unstructured, error) {
	body, err := json.Marshal(patches)
	if err != nil {
		return nil, fmt.Errorf("encode AdmissionParameter %s: %w", name, err)
	}
	return p.config.Dynamic.Resource(policy.ParameterResource).Patch(ctx, name, types.JSONPatchType, body, metav1.PatchOptions{FieldManager: manager})
}

// differences are what makes the fields of a parameter those that are wanted; nil takes one out, and others stay.
func differences(live *unstructured.Unstructured, want map[string]any) (out []operation, err error) {
	if want, err = plain(want); err != nil {
		return nil, err
	}
	spec, has, _ := unstructured.NestedMap(live.Object, "spec")
	if !has {
		out = append(out, operation{Op: "add", Path: "/spec", Value: map[string]any{}})
	}
	for field, value := range want { // they do not depend on each other
		switch _, there := spec[field]; {
		case reflect.DeepEqual(spec[field], value):
		case value != nil:
			out = append(out, operation{Op: "add", Path: "/spec/" + field, Value: value})
		case there:
			out = append(out, operation{Op: "remove", Path: "/spec/" + field})
		}
	}
	if !has && len(out) == 1 {
		return nil, nil
	}
	return out, nil
}

// plain gives values as JSON has them, so that they can be compared with what was read.
func plain(fields map[string]any) (out map[string]any, err error) {
	data, err := json.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("encode a parameter: %w", err)
	}
	u := &unstructured.Unstructured{}
	wrapped := append(append([]byte(`{"apiVersion":"v1","kind":"x","spec":`), data...), '}')
	if err := u.UnmarshalJSON(wrapped); err != nil { // whole numbers are int64 then, as in what is read
		return nil, fmt.Errorf("decode a parameter: %w", err)
	}
	out, _, err = unstructured.NestedMap(u.Object, "spec")
	return out, err
}
