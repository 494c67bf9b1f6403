package validate

import (
	"slices"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/selvage-mesh/selvage/internal/diag"
)

// methods are those that may be asked for by a page of another origin.
var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"}

func (c *check) cors(at path, p *networking.CorsPolicy) {
	if p == nil {
		return
	}
	for i, o := range p.GetAllowOrigins() {
		where := at.field("allowOrigins").index(i)
		if o.GetExact() == "" && o.GetPrefix() == "" && o.GetRegex() == "" {
			c.errorf(diag.MissingValue, where, "it is empty: exact, prefix or regex is needed")
			continue
		}
		c.stringMatch(where, o)
	}
	for i, m := range p.GetAllowMethods() {
		if !slices.Contains(methods, m) {
			told := c.errorf(diag.UnknownValue, at.field("allowMethods").index(i), "%s is no method of HTTP", quote(m))
			if near := nearest(m, methods); near != "" {
				told.hint("did you mean %s?", near)
			}
		}
	}
	for _, l := range []values{{"allowHeaders", p.GetAllowHeaders()}, {"exposeHeaders", p.GetExposeHeaders()}} {
		for i, name := range l.items {
			if name != "*" && !headerName.MatchString(name) {
				c.errorf(diag.InvalidHeader, at.field(l.field).index(i), "%s is no name of a header", quote(name))
			}
		}
	}
	c.duration(at.field("maxAge"), p.GetMaxAge())
	if p.GetMaxAge().GetNanos() > 0 {
		c.errorf(diag.InvalidDuration, at.field("maxAge"), "browsers count whole seconds").hint("write a duration such as 24h")
	}
}

func (c *check) fault(at path, f *networking.HTTPFaultInjection) {
	if f == nil {
		return
	}
	if f.GetAbort() == nil && f.GetDelay() == nil {
		c.errorf(diag.NothingSaid, at, "it injects nothing: abort or delay is needed")
	}
	if d := f.GetDelay(); d != nil {
		where := at.field("delay")
		c.fraction(where, d.GetPercentage())
		switch t := d.GetHttpDelayType().(type) {
		case *networking.HTTPFaultInjection_Delay_FixedDelay:
			c.duration(where.field("fixedDelay"), t.FixedDelay)
		case *networking.HTTPFaultInjection_Delay_ExponentialDelay:
			c.errorf(diag.NotSupported, where.field("exponentialDelay"), "proxies do not have it").hint("use fixedDelay")
		}
	}
	if a := f.GetAbort(); a != nil {
		where := at.field("abort")
		c.fraction(where, a.GetPercentage())
		switch t := a.GetErrorType().(type) {
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			c.status(where.field("httpStatus"), int64(t.HttpStatus))
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			c.grpcStatus(where.field("grpcStatus"), t.GrpcStatus)
		case *networking.HTTPFaultInjection_Abort_Http2Error:
			c.errorf(diag.NotSupported, where.field("http2Error"), "proxies do not have it").hint("use httpStatus or grpcStatus")
		default:
			c.warnf(diag.NoEffect, where, "it does not say with what to abort").hint("add httpStatus or grpcStatus")
		}
	}
}

// leastPercentage is the least share that Envoy can count: one in a million.
const leastPercentage = 0.0001

func (c *check) fraction(at path, p *networking.Percent) {
	if v := p.GetValue(); p != nil && v > 0 && v < leastPercentage {
		c.errorf(diag.OutOfRange, at.field("percentage").field("value"), "it is %v, and the least that is counted is %v", v, leastPercentage)
	} else if p != nil {
		c.percent(at.field("percentage").field("value"), v)
	}
}

// grpcStatuses are gRPC's names.
var grpcStatuses = []string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED",
	"FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}

func (c *check) grpcStatus(at path, name string) {
	if slices.Contains(grpcStatuses, name) {
		return
	}
	told := c.errorf(diag.UnknownValue, at, "%s is no status of gRPC", quote(name))
	if near := nearest(name, grpcStatuses); near != "" {
		told.hint("did you mean %s?", near)
	} else {
		told.hint("write one such as NOT_FOUND: https://grpc.io/docs/guides/status-codes/")
	}
}
