// Package xds generates what proxies are sent: clusters, listeners and routes once per view, endpoints once per endpoint set.
// Each resource is serialized once, carries its version (a hash of its bytes) and the objects that it came from.
package xds

import (
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/selvage-mesh/selvage/internal/ref"
)

// The type URLs that are served, in the order in which a proxy must be told of new things (make before break).
const (
	ClusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	ListenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	// VirtualHostType are the virtual hosts of route configurations that do not hold theirs (Config.Hosts).
	VirtualHostType = "type.googleapis.com/envoy.config.route.v3.VirtualHost"
)

// Resource is one xDS resource, ready to send and immutable.
type Resource struct {
	Name    string
	Version string // hash of Body: equal versions are equal bytes
	Body    *anypb.Any
	Refs    []ref.Ref // what it came from, sorted
}

// Config is what one view is sent, but for endpoints.
type Config struct {
	Clusters  []Resource // sorted by name, as are the others
	Listeners []Resource
	Routes    []Resource
	// Hosts has the virtual hosts of those Routes that do not hold theirs, by the route configuration's name. Views that have
	// them in common share the pointer.
	Hosts map[string]*Hosts
	// Shared is what the view has in common with others. Who keeps it while the view is in use saves the work of making it again.
	Shared any
}

// Hosts are all virtual hosts of a route configuration, at least one. Each is named ROUTE/NAME, which is also the name that its
// body has: Envoy does not take it away under any other.
type Hosts struct{ All []Resource }
