package inject

import (
	"errors"
	"fmt"
	"regexp"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/selvage-mesh/selvage/internal/jsonscan"
)

// longExponent is a quantity for which Kubernetes' parser computes a power of ten with thousands of digits or more: 1e-30000000 takes it
// a minute. No resource has such a quantity.
var longExponent = regexp.MustCompile(`^"?[-+]?[0-9.]+[eE][-+]?[0-9]{4,}"?$`)

// parseQuantity is resource.ParseQuantity for text that anyone may have written.
func parseQuantity(value string) (resource.Quantity, error) {
	if len(value) > 64 || longExponent.MatchString(value) {
		return resource.Quantity{}, errors.New("it has too many digits")
	}
	return resource.ParseQuantity(value)
}

// isQuantity reports whether a field of a pod is a quantity, or a map of them.
func isQuantity(field string) bool {
	switch field {
	case "limits", "requests", "overhead", "sizeLimit", "divisor":
		return true
	}
	return false
}

// CheckQuantities looks through JSON, before it is decoded into types of the API, for quantities that take their parser for ever. What is
// no JSON is no error: the decoder says more.
func CheckQuantities(data []byte) error { return checkQuantities(data, false) }

// checkQuantities is CheckQuantities for a value whose own values are quantities, or not.
func checkQuantities(data []byte, quantities bool) (err error) {
	var walk func(s *jsonscan.Scanner, quantity bool) error
	walk = func(s *jsonscan.Scanner, quantity bool) error {
		switch s.Kind() {
		case '{':
			return s.Object(func(name []byte) error {
				return walk(s, quantity || isQuantity(string(name)))
			})
		case '[':
			return s.Array(func(int) error { return walk(s, false) })
		}
		raw, scanErr := s.Raw()
		if scanErr == nil && quantity && longExponent.Match(raw) && err == nil {
			err = fmt.Errorf("%s is no quantity of a resource: it has too many digits", raw)
		}
		return scanErr
	}
	_ = walk(jsonscan.New(data), quantities)
	return err
}
