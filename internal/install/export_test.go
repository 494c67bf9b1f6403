package install

import corev1 "k8s.io/api/core/v1"

// ProbeResult lets tests read an answer to the probe of the default revision.
func ProbeResult(pod *corev1.Pod, err error) (string, error) { return Options{}.probeResult(pod, err) }

// HeldBack lets tests read a pod's state.
func HeldBack(pod *corev1.Pod) string { return heldBack(pod) }
