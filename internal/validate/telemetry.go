package validate

import (
	"github.com/google/cel-go/common"
	"github.com/google/cel-go/parser"
	telemetry "istio.io/api/telemetry/v1alpha1"

	"github.com/selvage-mesh/selvage/internal/diag"
)

func telemetryOf(c *check, t *telemetry.Telemetry) {
	c.targets(t.GetSelector(), t.GetTargetRef(), t.GetTargetRefs())
	for i, m := range t.GetMetrics() {
		at := spec.field("metrics").index(i)
		c.providers(at.field("providers"), m.GetProviders())
		for j, o := range m.GetOverrides() {
			c.override(at.field("overrides").index(j), o)
		}
	}
	if len(t.GetTracing()) > 1 {
		c.warnf(diag.NoEffect, spec.field("tracing"), "only the first of its %d entries is used", len(t.GetTracing())).hint("make one of them")
	}
	for i, tracing := range t.GetTracing() {
		c.tracing(spec.field("tracing").index(i), tracing)
	}
	for i, l := range t.GetAccessLogging() {
		at := spec.field("accessLogging").index(i)
		c.providers(at.field("providers"), l.GetProviders())
		if l.GetFilter() != nil {
			c.expression(at.field("filter").field("expression"), l.GetFilter().GetExpression())
		}
	}
}

func (c *check) providers(at path, providers []*telemetry.ProviderRef) {
	for i, p := range providers {
		c.required(at.index(i).field("name"), p.GetName())
	}
}

func (c *check) override(at path, o *telemetry.MetricsOverrides) {
	if m, ok := o.GetMatch().GetMetricMatch().(*telemetry.MetricSelector_CustomMetric); ok {
		c.required(at.field("match").field("customMetric"), m.CustomMetric)
	}
	for name, tag := range sorted(o.GetTagOverrides()) {
		where := at.field("tagOverrides").key(name)
		if name == "" {
			c.warnf(diag.NoEffect, where, "a tag has no name")
		}
		switch {
		case tag.GetOperation() == telemetry.MetricsOverrides_TagOverride_UPSERT && tag.GetValue() == "":
			c.errorf(diag.MissingValue, where.field("value"), "it is missing: operation UPSERT sets it").hint("add it, or write operation: REMOVE")
		case tag.GetOperation() == telemetry.MetricsOverrides_TagOverride_REMOVE && tag.GetValue() != "":
			c.errorf(diag.Contradiction, where.field("value"), "operation REMOVE sets no value")
		}
	}
}

func (c *check) tracing(at path, t *telemetry.Tracing) {
	if len(t.GetProviders()) > 1 {
		c.warnf(diag.NoEffect, at.field("providers"), "only the first of its %d providers is used", len(t.GetProviders()))
	}
	c.providers(at.field("providers"), t.GetProviders())
	if t.GetRandomSamplingPercentage() != nil {
		c.percent(at.field("randomSamplingPercentage"), t.GetRandomSamplingPercentage().GetValue())
	}
	for name, tag := range sorted(t.GetCustomTags()) {
		where := at.field("customTags").key(name)
		if name == "" {
			c.errorf(diag.MissingValue, where, "a tag has no name")
		}
		switch v := tag.GetType().(type) {
		case *telemetry.Tracing_CustomTag_Literal:
			c.required(where.field("literal").field("value"), v.Literal.GetValue())
		case *telemetry.Tracing_CustomTag_Header:
			c.required(where.field("header").field("name"), v.Header.GetName())
		case *telemetry.Tracing_CustomTag_Environment:
			c.required(where.field("environment").field("name"), v.Environment.GetName())
		}
	}
}

// Bounds of an expression: text, in characters, and how deep it nests. Envoy's own are far beyond what people write.
const (
	longestExpression = 10_000
	deepestExpression = 100
)

// expression checks that an expression of CEL can be parsed. Which attributes a proxy knows is its own.
func (c *check) expression(at path, text string) {
	if len(text) > longestExpression {
		c.errorf(diag.TooLarge, at, "the expression has %d characters, and may have %d", len(text), longestExpression)
		return
	}
	p, err := parser.NewParser(parser.Macros(parser.AllMacros...), parser.MaxRecursionDepth(deepestExpression))
	if err != nil {
		c.warnf(diag.CheckFailed, at, "it could not be checked: %v", err)
		return
	}
	if _, errs := p.Parse(common.NewTextSource(text)); len(errs.GetErrors()) > 0 {
		first := errs.GetErrors()[0]
		c.errorf(diag.InvalidExpression, at, "%s is no expression of CEL: column %d: %s", quote(text), first.Location.Column()+1, short(first.Message))
	}
}
