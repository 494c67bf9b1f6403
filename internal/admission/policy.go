package admission

import "time"

// Policy is a webhook's failurePolicy.
type Policy string

// The two policies.
const (
	Fail   Policy = "Fail"
	Ignore Policy = "Ignore"
)

// brokenFor is how long validation may not work before what it would check is let through unchecked. A restart of the control
// plane and a missed probe are shorter.
const brokenFor = 30 * time.Second

// Validation is what is known about validation through the API server.
type Validation struct {
	Working bool
	Since   time.Time // of the answer; zero while it was never tried
}

// Policy gives the failure policy that validators are to have: Fail while validation is proven to work, Ignore once it has not
// worked for a while, "" in between, which leaves it as it is. again is when the answer changes by itself, 0 for never.
func (v Validation) Policy(now time.Time) (p Policy, again time.Duration) {
	switch {
	case v.Since.IsZero():
		return "", 0
	case v.Working:
		return Fail, 0
	}
	if left := brokenFor - now.Sub(v.Since); left > 0 {
		return "", left
	}
	return Ignore, 0
}
