// Package helm tests charts/selvage with Helm's own library: that it gives the objects of `selvage install`, and that an upgrade leaves
// alone what the control plane owns.
package helm
