package ads

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that ours stands on
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/runtime/protoiface"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/selvage-mesh/selvage/internal/ads/session"
	"github.com/selvage-mesh/selvage/internal/ref"
	"github.com/selvage-mesh/selvage/internal/xds"
)

// payload is a resource as it goes over the wire: head and then body. All streams share it.
type payload struct {
	// head begins the field `resources` of a DeltaDiscoveryResponse, with a Resource up to the bytes of its Any. The Resource
	// ends with its own field `resource`, which has the number and type of `resources` in a DiscoveryResponse: its end, sotw,
	// serves the state of the world. They are buffers once, so that a response to each of a thousand proxies makes none.
	head, sotw mem.Buffer
	body       mem.Buffer // as it was generated
	refs       []ref.Ref
}

// Field numbers of envoy.service.discovery.v3: Resource, DeltaDiscoveryResponse, DiscoveryResponse.
const (
	resourceVersion, resourceBody, resourceName                             = 1, 2, 3
	deltaResources, deltaTypeURL, deltaNonce, deltaRemoved                  = 2, 4, 5, 6
	sotwVersion, sotwTypeURL, sotwNonce                                     = 1, 4, 5
	anyTypeURL, anyValue                                                    = 1, 2
	clusterType, clusterEDS, edsServiceName                protowire.Number = 2, 3, 2
)

func newResource(kind session.Kind, r xds.Resource) *session.Resource {
	url, value := r.Body.GetTypeUrl(), r.Body.GetValue()
	body := protowire.SizeTag(anyTypeURL) + protowire.SizeBytes(len(url)) + protowire.SizeTag(anyValue) + protowire.SizeBytes(len(value))
	inner := protowire.SizeTag(resourceVersion) + protowire.SizeBytes(len(r.Version)) +
		protowire.SizeTag(resourceName) + protowire.SizeBytes(len(r.Name)) +
		protowire.SizeTag(resourceBody) + protowire.SizeBytes(body)
	b := make([]byte, 0, protowire.SizeTag(deltaResources)+protowire.SizeBytes(inner)-len(value))
	b = protowire.AppendTag(b, deltaResources, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(inner))
	b = appendString(b, resourceVersion, r.Version)
	b = appendString(b, resourceName, r.Name)
	sotw := len(b)
	b = protowire.AppendTag(b, resourceBody, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(body))
	b = appendString(b, anyTypeURL, url)
	b = protowire.AppendTag(b, anyValue, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(value)))
	made := &session.Resource{Name: r.Name, Version: r.Version, Data: &payload{
		head: mem.SliceBuffer(b), sotw: mem.SliceBuffer(b[sotw:]), body: mem.SliceBuffer(value), refs: r.Refs,
	}}
	if kind == session.Clusters {
		made.EndpointName = endpointName(r.Name, value)
	}
	return made
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

// endpointName reads from a serialized cluster the name by which it asks for endpoints, "" when it does not.
func endpointName(name string, cluster []byte) string {
	eds := false
	fields(cluster, func(n protowire.Number, value uint64, bytes []byte) {
		if n == clusterType {
			eds = value == uint64(clusterv3.Cluster_EDS)
		}
		if n != clusterEDS {
			return
		}
		fields(bytes, func(n protowire.Number, _ uint64, bytes []byte) {
			if n == edsServiceName && len(bytes) > 0 {
				name = string(bytes)
			}
		})
	})
	if !eds {
		return ""
	}
	return name
}

// fields calls do for each field of a message that is a number or bytes.
func fields(message []byte, do func(n protowire.Number, value uint64, bytes []byte)) {
	for len(message) > 0 {
		num, typ, n := protowire.ConsumeTag(message)
		if n < 0 {
			return
		}
		message = message[n:]
		if n = protowire.ConsumeFieldValue(num, typ, message); n < 0 {
			return
		}
		switch typ {
		case protowire.VarintType:
			v, _ := protowire.ConsumeVarint(message)
			do(num, v, nil)
		case protowire.BytesType:
			b, _ := protowire.ConsumeBytes(message)
			do(num, 0, b)
		default: // of no interest here
		}
		message = message[n:]
	}
}

// frame is a response whose resources are shared bytes. It is a proto.Message that can only be marshalled.
type frame struct {
	shared mem.BufferSlice // with room for one more
	own    []byte          // type, nonce and the like
	like   protoreflect.ProtoMessage
}

func newFrame(v session.Variant, r session.Response) *frame {
	f := &frame{shared: make(mem.BufferSlice, 0, 2*len(r.Added)+1)}
	if v == session.SotW {
		f.like = (*discoveryv3.DiscoveryResponse)(nil)
		for _, a := range r.Added {
			p := a.Data.(*payload)
			f.shared = append(f.shared, p.sotw, p.body)
		}
		f.own = appendString(f.own, sotwVersion, r.Version)
		f.own = appendString(f.own, sotwTypeURL, r.TypeURL)
		f.own = appendString(f.own, sotwNonce, r.Nonce)
		return f
	}
	f.like = (*discoveryv3.DeltaDiscoveryResponse)(nil)
	for _, a := range r.Added {
		p := a.Data.(*payload)
		f.shared = append(f.shared, p.head, p.body)
	}
	f.own = appendString(f.own, deltaTypeURL, r.TypeURL)
	f.own = appendString(f.own, deltaNonce, r.Nonce)
	for _, n := range r.Removed {
		f.own = appendString(f.own, deltaRemoved, n)
	}
	return f
}

func (f *frame) size() int { return len(f.own) + f.shared.Len() }

// buffers is the message in pieces, none of which is copied.
func (f *frame) buffers() mem.BufferSlice { return append(f.shared, mem.SliceBuffer(f.own)) }

// ProtoReflect lets a server without Codec send the frame too, at the cost of a copy.
func (f *frame) ProtoReflect() protoreflect.Message { return reflected{f.like.ProtoReflect(), f} }

type reflected struct {
	protoreflect.Message
	frame *frame
}

func (r reflected) ProtoMethods() *protoiface.Methods {
	return &protoiface.Methods{
		Flags: protoiface.SupportMarshalDeterministic,
		Size:  func(protoiface.SizeInput) protoiface.SizeOutput { return protoiface.SizeOutput{Size: r.frame.size()} },
		Marshal: func(in protoiface.MarshalInput) (protoiface.MarshalOutput, error) {
			b := in.Buf
			for _, s := range r.frame.shared {
				b = append(b, s.ReadOnlyData()...)
			}
			return protoiface.MarshalOutput{Buf: append(b, r.frame.own...)}, nil
		},
		CheckInitialized: func(protoiface.CheckInitializedInput) (out protoiface.CheckInitializedOutput, err error) { return },
	}
}

// IsValid is true: the message behind is only there for its type.
func (r reflected) IsValid() bool { return true }

// Interface gives the frame back.
func (r reflected) Interface() protoreflect.ProtoMessage { return r.frame }

// Codec is the option by which a gRPC server sends what proxies share without copying it for each of them. It leaves every
// other message to the usual codec.
func Codec() grpc.ServerOption {
	return grpc.ForceServerCodecV2(codec{encoding.GetCodecV2("proto")})
}

type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frame); ok {
		return f.buffers(), nil
	}
	return c.CodecV2.Marshal(v)
}
