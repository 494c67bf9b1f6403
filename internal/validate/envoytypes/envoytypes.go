// Package envoytypes registers the messages of Envoy's API, so that package validate finds those that an EnvoyFilter names. It is
// imported by programs that judge EnvoyFilters, and costs them some 20 MB; without it their types are not known and not looked into.
package envoytypes

import (
	_ "github.com/cncf/xds/go/udpa/type/v1" // TypedStruct, by its old name
	_ "github.com/cncf/xds/go/xds/type/v3"  // TypedStruct
)

//go:generate ./gen.sh
