package relay

import (
	"context"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/selvage-mesh/selvage/internal/trust"
)

// sender lets the proxy's requests and the agent's own go out on one stream.
type sender struct {
	grpc.ClientStream
	mu     sync.Mutex
	closed bool
}

// SendMsg sends one message after the other.
func (s *sender) SendMsg(m any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	return s.ClientStream.SendMsg(m)
}

// CloseSend ends both.
func (s *sender) CloseSend() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.ClientStream.CloseSend()
}

// reads reports whether the control plane wants to be told what the proxy trusts. It is to be called after the first response.
func reads(up grpc.ClientStream) bool {
	header, err := up.Header()
	return err == nil && len(header.Get(trust.ReportHeader)) > 0
}

// tell reports what the proxy trusts, now and whenever it changes, until ctx ends.
func (r *Relay) tell(ctx context.Context, up *sender, f fields) {
	var said []string
	for {
		names, renewed, accepted := r.config.Report()
		if !slices.Equal(names, said) {
			if err := up.SendMsg(reportFrame(f, names)); err != nil {
				return // RecvMsg of the same stream gives the cause
			}
			said = names
		}
		select {
		case <-ctx.Done():
			return
		case <-renewed:
		case <-accepted:
		}
	}
}

// The field of names that are asked for: resource_names of DiscoveryRequest and resource_names_subscribe of DeltaDiscoveryRequest.
const subscribed protowire.Number = 3

func reportFrame(f fields, names []string) *frame {
	message := protowire.AppendString(protowire.AppendTag(nil, f.typeURL, protowire.BytesType), trust.ReportType)
	for _, name := range names {
		message = protowire.AppendString(protowire.AppendTag(message, subscribed, protowire.BytesType), name)
	}
	return &frame{data: mem.BufferSlice{mem.SliceBuffer(message)}}
}
