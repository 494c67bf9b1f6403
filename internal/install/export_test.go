package install

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Differences lets tests compare two states of an object.
func Differences(before, after *unstructured.Unstructured) []Field { return differences(before, after) }

// HeldBack lets tests read a pod's state.
func HeldBack(pod *corev1.Pod) string { return heldBack(pod) }
