// Package fault is the lab's error for its user: what could not be done, and what to do next.
package fault

import (
	"errors"
	"fmt"
)

// Fault is an error whose cure is known. It is shown as two short lines: Problem, then Next.
type Fault struct {
	Problem string // one sentence without its full stop: what is wrong and with which object
	Next    string // what the user does about it, a command where there is one
	Cause   error  // may be nil
}

func (f *Fault) Error() string {
	if f.Cause != nil {
		return f.Problem + ": " + f.Cause.Error()
	}
	return f.Problem
}

func (f *Fault) Unwrap() error { return f.Cause }

// New gives a fault without a deeper cause; args format the problem.
func New(next, problem string, args ...any) *Fault {
	return &Fault{Problem: fmt.Sprintf(problem, args...), Next: next}
}

// Next returns what to do about err, "" when nobody knows.
func Next(err error) string {
	var f *Fault
	if errors.As(err, &f) {
		return f.Next
	}
	return ""
}
