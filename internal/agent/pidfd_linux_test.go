package agent

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// pidfdOpen gives a function that waits until the process, which need not be a child, has ended.
func pidfdOpen(pid int) (wait func() error, err error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	return func() error {
		defer unix.Close(fd)
		for deadline := time.Now().Add(10 * time.Second); ; {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds()))
			switch {
			case errors.Is(err, unix.EINTR):
			case err != nil:
				return err
			case n == 0:
				return errors.New("not within 10 s")
			default:
				return nil
			}
		}
	}, nil
}
