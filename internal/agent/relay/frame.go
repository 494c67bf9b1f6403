package relay

import (
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// frame is one message as it came, not decoded.
type frame struct{ data mem.BufferSlice }

// codec passes messages on as bytes. Its name is protobuf's, so that the peers see nothing unusual.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) { return v.(*frame).data, nil }

// Unmarshal keeps the buffers: gRPC frees its own reference when this returns. Marshal's caller frees ours.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	data.Ref()
	v.(*frame).data = data
	return nil
}

// peeked is what is read of a request: enough to know what the proxy thinks of what it was sent.
type peeked struct {
	typeURL  string
	nonce    string // of the answer that this request is about; "" for the first request
	rejected bool
	reason   string // the proxy's text, when rejected
}

// The numbers of the fields, in DiscoveryRequest and DeltaDiscoveryRequest (envoy/service/discovery/v3/discovery.proto).
type fields struct{ typeURL, nonce, errorDetail protowire.Number }

var (
	worldFields = fields{typeURL: 4, nonce: 5, errorDetail: 6}
	deltaFields = fields{typeURL: 2, nonce: 6, errorDetail: 7}
)

const statusMessage protowire.Number = 2 // google.rpc.Status.message

// peek reads the few fields of a request that matter here. Bytes that are no message give what was read until there; the control
// plane will say what is wrong with them.
func peek(message []byte, f fields) (p peeked) {
	for len(message) > 0 {
		num, typ, n := protowire.ConsumeTag(message)
		if n < 0 {
			return p
		}
		message = message[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, message); n < 0 {
				return p
			}
			message = message[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(message)
		if n < 0 {
			return p
		}
		message = message[n:]
		switch num {
		case f.typeURL:
			p.typeURL = string(value)
		case f.nonce:
			p.nonce = string(value)
		case f.errorDetail:
			p.rejected, p.reason = true, messageOf(value)
		default:
		}
	}
	return p
}

func messageOf(status []byte) (text string) {
	for len(status) > 0 {
		num, typ, n := protowire.ConsumeTag(status)
		if n < 0 {
			return text
		}
		status = status[n:]
		if num == statusMessage && typ == protowire.BytesType {
			value, n := protowire.ConsumeBytes(status)
			if n < 0 {
				return text
			}
			text = string(value)
		}
		if n = protowire.ConsumeFieldValue(num, typ, status); n < 0 {
			return text
		}
		status = status[n:]
	}
	return text
}
