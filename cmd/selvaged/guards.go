package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/selvage-mesh/selvage/internal/inject"
	"github.com/selvage-mesh/selvage/internal/policy"
	policylive "github.com/selvage-mesh/selvage/internal/policy/live"
	"github.com/selvage-mesh/selvage/internal/revision/live"
)

// guards keep what the admission policies look at that guard the mesh, of this revision and of all, and what they inject.
type guards struct {
	revision, shared *policylive.Parameter
	injection        *policylive.Injection
	users            *live.Users
	wake, another    chan struct{} // each holds one
}

func newGuards(c clients, o options, config func() *inject.Config, log *slog.Logger) (*guards, error) {
	g := &guards{wake: make(chan struct{}, 1), another: make(chan struct{}, 1)}
	var err error
	g.revision, err = policylive.NewParameter(policylive.ParameterConfig{
		Kubernetes: c.core, Dynamic: c.own, Name: policy.MeshedName(o.revision), Changed: g.wake, Log: log,
		Spec: func(ctx context.Context) (map[string]any, error) {
			injector := config()
			if injector == nil {
				return nil, errors.New("the injector's configuration is not known yet")
			}
			observed, err := c.core.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
			if err != nil {
				return nil, fmt.Errorf("list mutatingwebhookconfigurations: %w", err)
			}
			return policy.Chosen(o.revision, observed.Items, injector), nil
		},
	})
	if err != nil {
		return nil, err
	}
	g.users = live.NewUsers(c.core)
	g.shared, err = policylive.NewParameter(policylive.ParameterConfig{
		Kubernetes: c.core, Dynamic: c.own, Name: policy.RevisionsName, Stamp: "asOf", Changed: g.users.Changed(), Log: log,
		AtEnd: map[string]any{"users": nil}, // what nobody keeps must not stand in the way of a deletion
		Spec: func(ctx context.Context) (map[string]any, error) {
			facts, err := live.ControlPlanes(ctx, c.core)
			if err != nil {
				return nil, err
			}
			unknown := g.users.Add(facts)
			return policy.Users(facts, unknown == nil), nil
		},
	})
	return g, err
}

// recheck tells that the injector's configuration is another one.
func (g *guards) recheck() {
	for _, c := range []chan struct{}{g.wake, g.another} {
		select {
		case c <- struct{}{}:
		default: // one is waiting already
		}
	}
}
