package ca

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/selvage-mesh/selvage/internal/trust"
)

// board is ConfigMap selvage-root-rotation: where the leader shows how far it is and the replicas tell of their proxies.
type board struct {
	*Authority
	gone  time.Duration
	every time.Duration // how often a replica speaks at the least

	words map[string]spoken   // by key of the ConfigMap
	live  map[string]struct{} // keys of the replicas that counted last
	// left is when a replica went, or may have: its proxies are on their way to others, and nobody counts them meanwhile.
	left time.Time
}

// comeBack is how long proxies may need to connect to another replica: Envoy tries again after at most 30 s.
const comeBack = 45 * time.Second

// speakEvery is how often a replica says a word while the root changes, also when nothing changes for it.
const speakEvery = 10 * time.Second

// maxSkew is by how much the clocks of two machines may differ before a word of one looks old to the other.
const maxSkew = 2 * time.Minute

// spoken is what a replica said, and when that was noticed here: the clocks of two machines are not compared.
type spoken struct {
	text string
	at   time.Time
}

func newBoard(a *Authority, gone time.Duration) *board {
	return &board{Authority: a, gone: gone, every: speakEvery, words: map[string]spoken{}}
}

// patchBoard changes keys of the ConfigMap, nil removes one, and makes it when it is not there.
func (a *Authority) patchBoard(ctx context.Context, data map[string]*string) error {
	configMaps := a.config.Kubernetes.CoreV1().ConfigMaps(a.config.Namespace)
	patch, err := json.Marshal(map[string]any{"data": data})
	if err != nil {
		return err
	}
	_, err = configMaps.Patch(ctx, trust.StatusObject, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if !apierrors.IsNotFound(err) {
		return err
	}
	made := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: trust.StatusObject, Namespace: a.config.Namespace,
		Labels: map[string]string{ownerLabel: owner}}, Data: map[string]string{}}
	for key, value := range data {
		if value != nil {
			made.Data[key] = *value
		}
	}
	_, err = configMaps.Create(ctx, made, metav1.CreateOptions{FieldManager: fieldManager})
	return err
}

// read gives the ConfigMap's data, nil when there is none.
func (b *board) read(ctx context.Context) (map[string]string, error) {
	cm, err := b.config.Kubernetes.CoreV1().ConfigMaps(b.config.Namespace).Get(ctx, trust.StatusObject, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read ConfigMap %s/%s: %w", b.config.Namespace, trust.StatusObject, err)
	}
	return cm.Data, nil
}

// show writes the status when it is not what stands there. Outside of a change of the root the replicas' words are taken away.
func (b *board) show(ctx context.Context, status trust.Status) error {
	raw, err := json.MarshalIndent(status, "", " ")
	if err != nil {
		return err
	}
	text := string(raw)
	data, err := b.read(ctx)
	if err != nil {
		return err
	}
	patch := map[string]*string{}
	if data[trust.StatusKey] != text {
		patch[trust.StatusKey] = &text
	}
	if status.Stage == trust.Stable {
		for key := range data {
			if strings.HasPrefix(key, trust.ReplicaPrefix) {
				patch[key] = nil
			}
		}
	}
	if len(patch) == 0 {
		return nil
	}
	return b.patchBoard(ctx, patch)
}

// replicas counts the replicas that have come to the stage, and the proxies that they tell of.
func (b *board) replicas(ctx context.Context, want trust.Wanted) (replicas, proxies trust.Count, err error) {
	data, err := b.read(ctx)
	if err != nil {
		return replicas, proxies, err
	}
	pods, err := b.pods(ctx)
	if err != nil {
		return replicas, proxies, err
	}
	var waiting []string
	live := map[string]struct{}{}
	for _, w := range b.spoken(data, pods) {
		pods = slices.DeleteFunc(pods, func(pod string) bool { return pod == w.host })
		live[w.key] = struct{}{}
		replicas.Total++
		if w.report.Stage != want.Stage || w.report.Roots != want.Roots {
			waiting = append(waiting, w.host)
			continue
		}
		replicas.Done++
		proxies = proxies.Add(w.report.Proxies)
	}
	for key := range b.live {
		if _, still := live[key]; still {
			continue
		}
		went := time.Now() // it took its word back
		if _, silent := data[key]; silent {
			went = b.words[key].at.Add(b.every) // it has ended before it would have spoken again
		}
		if went.After(b.left) {
			b.left = went
		}
	}
	b.live = live
	if time.Since(b.left) < comeBack {
		replicas.Total++
		waiting = append(waiting, "proxies of one that has ended, to connect again")
	}
	replicas.Total += len(pods)
	replicas = replicas.Add(trust.Count{Waiting: append(waiting, pods...)})
	if replicas.Total == 0 { // not even this one
		replicas = trust.Counted(1, []string{"every replica"})
	}
	return replicas, proxies, nil
}

// word is what a replica that lives has said last.
type word struct {
	key, host string
	report    trust.ReplicaReport
}

// spoken gives the words of the replicas that live. Of a pod only the newest counts: those before are of processes that ended in it.
func (b *board) spoken(data map[string]string, pods []string) (words []word) {
	newest := map[string]time.Time{} // by pod
	for key, text := range data {
		name, ok := strings.CutPrefix(key, trust.ReplicaPrefix)
		if !ok {
			continue
		}
		if b.words[key].text != text {
			b.words[key] = spoken{text, time.Now()}
		}
		w := word{key: key, host: name[:max(0, strings.LastIndexByte(name, '.'))]}
		if json.Unmarshal([]byte(text), &w.report) != nil {
			w.report = trust.ReplicaReport{At: b.words[key].at} // not at this stage
		}
		if time.Since(b.words[key].at) > b.gone || time.Since(w.report.At) > maxSkew+b.gone {
			continue // of a process that has ended, or of a pod that is asked for
		}
		if slices.Contains(pods, w.host) && w.report.At.After(newest[w.host]) {
			newest[w.host] = w.report.At
		}
		words = append(words, w)
	}
	return slices.DeleteFunc(words, func(w word) bool { at, pod := newest[w.host]; return pod && w.report.At.Before(at) })
}

// pods are the names of the control plane's pods that run, of every revision: each must tell of its proxies.
func (b *board) pods(ctx context.Context) (names []string, err error) {
	list, err := b.config.Kubernetes.CoreV1().Pods(b.config.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod," + ownerLabel + "=" + owner})
	if err != nil {
		return nil, fmt.Errorf("list pods of the control plane: %w", err)
	}
	for _, pod := range list.Items {
		if pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil {
			names = append(names, pod.Name)
		}
	}
	return names, nil
}
