package inject

// HasRule reports whether injection knows one thing to do with an annotation, and one only.
func HasRule(name string) bool {
	r, n := rules[name], 0
	for _, has := range []bool{r.set != nil, r.missing != "", r.ignored != ""} {
		if has {
			n++
		}
	}
	return n == 1
}

// MergeContainer is how a user's part of a container is merged.
var MergeContainer = mergeContainer

// AgentVariables are the variables that proxyMetadata may set with an effect.
var AgentVariables = agentVariables
