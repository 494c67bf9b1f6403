package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// profiler takes profiles of selvaged, whose debug paths want the token of somebody who may see them.
type profiler struct {
	folder, token string
	running       sync.WaitGroup
}

const (
	operator      = "bench-operator"
	debugAudience = "selvage"
)

func (w *world) newProfiler(ctx context.Context, folder string) (*profiler, error) {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	accounts := w.core.CoreV1().ServiceAccounts(systemNamespace)
	_, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: operator}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, err
	}
	_, err = w.core.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: operator}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: systemNamespace, Name: operator}},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, err
	}
	hour := int64(3600)
	t, err := accounts.CreateToken(ctx, operator, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: []string{debugAudience}, ExpirationSeconds: &hour},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	return &profiler{folder: folder, token: t.Status.Token}, nil
}

// take keeps a profile, such as heap or profile?seconds=20, under a name. It goes on in the background.
func (p *profiler) take(ctx context.Context, of *process, kind, name string) {
	if p == nil {
		return
	}
	p.running.Go(func() {
		if err := p.get(ctx, "http://"+at(of.ports.http)+"/debug/pprof/"+kind, filepath.Join(p.folder, name+".pprof")); err != nil {
			fmt.Fprintln(os.Stderr, "profile:", err)
		}
	})
}

// wait waits for the profiles that are being taken.
func (p *profiler) wait() {
	if p != nil {
		p.running.Wait()
	}
}

func (p *profiler) get(ctx context.Context, url, file string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+p.token)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, answer.Status, body)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(file, body, 0o644)
}
