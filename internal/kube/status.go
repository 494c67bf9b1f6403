package kube

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strconv"
	"sync"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	applyv1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"
)

// StatusManager is the field manager of the status ConfigMap.
const StatusManager = "selvage-status"

const (
	// statusBurst and statusPerSecond limit the writes of the status ConfigMap, whatever changes and whoever else writes it.
	statusBurst     = 5
	statusPerSecond = 0.5
)

// StatusConfig names the ConfigMap. Log may be nil.
type StatusConfig struct {
	Kubernetes kubernetes.Interface
	Namespace  string
	Name       string
	Labels     map[string]string
	Log        *slog.Logger
}

// Status keeps what a control plane knows about the mesh in one ConfigMap, a text for each key, where the CLI, the doctor, the console
// and people read it. It is written when a text changes, or somebody else has changed it, and never otherwise; whoever leads writes
// it, and takes over what the last one wrote.
type Status struct {
	config StatusConfig
	wake   chan struct{} // holds one

	mu    sync.Mutex
	texts map[string]string // what should be; "" for no such key
	live  map[string]string // what is, nil before the first look
	at    uint64            // the resource version of live
	first chan struct{}     // closed at the first look
}

// NewStatus gives one that does nothing yet.
func NewStatus(c StatusConfig) (*Status, error) {
	if c.Kubernetes == nil || c.Namespace == "" || c.Name == "" {
		return nil, errors.New("make status: the client, the namespace or the name is missing")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Status{config: c, wake: make(chan struct{}, 1), texts: map[string]string{}, first: make(chan struct{})}, nil
}

// Set changes the text of a key; "" takes the key away. What was set before Run, or by another leader, stays until it is set.
func (s *Status) Set(key, text string) {
	s.mu.Lock()
	s.texts[key] = text
	s.mu.Unlock()
	s.poke()
}

// Get gives the text of a key, "" when there is none. It waits until Run has read the ConfigMap, or ctx ends.
func (s *Status) Get(ctx context.Context, key string) string {
	s.mu.Lock()
	first := s.first
	s.mu.Unlock()
	select {
	case <-first:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if text, set := s.texts[key]; set {
		return text
	}
	return s.live[key]
}

func (s *Status) poke() {
	select {
	case s.wake <- struct{}{}:
	default: // one is waiting already
	}
}

// Run writes until ctx ends, and returns nil then. It is to be called while this replica holds a lease, and may be called again.
func (s *Status) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.forget()
	var writing sync.WaitGroup
	defer writing.Wait()
	defer cancel()
	writing.Go(func() { s.write(ctx) })
	return FollowConfigMaps(ctx, s.config.Kubernetes, s.config.Namespace, []string{s.config.Name}, func(found map[string]*corev1.ConfigMap) {
		s.observe(found[s.config.Name])
	})
}

// observe takes in the ConfigMap as it is; nil when there is none.
func (s *Status) observe(cm *corev1.ConfigMap) {
	defer s.poke()
	s.mu.Lock()
	defer s.mu.Unlock()
	at := uint64(0)
	if cm != nil {
		at, _ = strconv.ParseUint(cm.ResourceVersion, 10, 64)
		if at > 0 && at < s.at {
			return // the watch comes after the answer to a write
		}
	}
	if s.live == nil {
		close(s.first)
	}
	s.live, s.at = map[string]string{}, at
	if cm != nil {
		maps.Copy(s.live, cm.Data)
	}
}

// forget makes the next Run start anew.
func (s *Status) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.texts = map[string]string{}
	if s.live != nil {
		s.live, s.at, s.first = nil, 0, make(chan struct{})
	}
}

// wanted is what the ConfigMap should hold; differs says that it does not.
func (s *Status) wanted() (data map[string]string, differs bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live == nil {
		return nil, false
	}
	data = maps.Clone(s.live)
	for key, text := range s.texts {
		if text == "" {
			delete(data, key)
		} else {
			data[key] = text
		}
	}
	return data, !maps.Equal(data, s.live)
}

// write applies what should be whenever it is not what is.
func (s *Status) write(ctx context.Context) {
	limiter := rate.NewLimiter(statusPerSecond, statusBurst)
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		for {
			if _, differs := s.wanted(); !differs || limiter.Wait(ctx) != nil {
				break
			}
			data, _ := s.wanted() // what came while it waited goes along
			cm := applyv1.ConfigMap(s.config.Name, s.config.Namespace).WithLabels(s.config.Labels).WithData(data)
			live, err := s.config.Kubernetes.CoreV1().ConfigMaps(s.config.Namespace).Apply(ctx, cm, metav1.ApplyOptions{FieldManager: StatusManager, Force: true})
			if err == nil {
				s.observe(live)
				said = ""
				break
			}
			if ctx.Err() == nil && err.Error() != said {
				said = err.Error()
				s.config.Log.Warn("the status cannot be written, it is tried again", "configMap", s.config.Namespace+"/"+s.config.Name, "error", err)
			}
		}
	}
}
