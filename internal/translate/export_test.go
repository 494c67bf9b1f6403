package translate

import "github.com/selvage-mesh/selvage/internal/index"

// Refusals are the fields that are refused.
var Refusals = refusals

// Serves reports whether a kind is carried out.
func Serves(name string) bool {
	for _, k := range index.IstioKinds() {
		if k.Name == name {
			return served[k.Kind]
		}
	}
	return false
}
