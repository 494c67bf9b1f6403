package cli

import (
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	psapi "k8s.io/pod-security-admission/api"
	pspolicy "k8s.io/pod-security-admission/policy"
)

// podSecurityAdvice is the next step for a pod whose sidecar PodSecurity does not let in.
const podSecurityAdvice = "The interception of a pod's traffic needs rights that this level does not give. Label the namespace " +
	psapi.EnforceLevelLabel + "=privileged, or run the pod elsewhere, or without a sidecar."

// podSecurity evaluates as the API server does.
var podSecurity = sync.OnceValue(func() pspolicy.Evaluator {
	e, err := pspolicy.NewEvaluator(pspolicy.DefaultChecks(), nil)
	if err != nil {
		panic(fmt.Sprintf("the built-in checks of PodSecurity are wrong: %v", err))
	}
	return e
})

// againstPodSecurity is why the API server will refuse the pod by the level that its namespace's labels enforce, "" when it will
// not. What an API server's own configuration enforces, and whom it exempts, cannot be seen from outside.
func againstPodSecurity(ns *corev1.Namespace, pod *corev1.Pod) string {
	privileged := psapi.LevelVersion{Level: psapi.LevelPrivileged, Version: psapi.LatestVersion()}
	level, _ := psapi.PolicyToEvaluate(ns.Labels, psapi.Policy{Enforce: privileged, Audit: privileged, Warn: privileged}) // what cannot be read counts as restricted
	result := pspolicy.AggregateCheckResults(podSecurity().EvaluatePod(level.Enforce, &pod.ObjectMeta, &pod.Spec))
	if result.Allowed {
		return ""
	}
	return fmt.Sprintf("PodSecurity %q of namespace %s refuses the pod with its sidecar: %s", level.Enforce, ns.Name, result.ForbiddenDetail())
}
