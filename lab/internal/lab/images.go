package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/selvage-mesh/selvage/lab/internal/fault"
	"github.com/selvage-mesh/selvage/lab/internal/image"
)

// Images writes the product's images to archives in a folder, for clusters that are not labs, and returns their paths.
func Images(cfg Config, out string) (files []string, err error) {
	l := &Lab{Config: cfg}
	if err := l.programs("selvage-agent", "selvaged", "sample", "envoy"); err != nil {
		return nil, err
	}
	c := l.catalogue()
	proxy, err := c.Proxy()
	if err != nil {
		return nil, &fault.Fault{Problem: "cannot make the sidecar's image", Cause: err, Next: "apt-get install iptables nftables"}
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, &fault.Fault{Problem: "cannot make folder " + out, Cause: err, Next: "choose another with --out"}
	}
	specs := []image.Spec{proxy, c.Selvaged(), c.Sample()}
	files = make([]string, len(specs))
	group, _ := errgroup.WithContext(context.Background())
	for i, spec := range specs {
		base, _, _ := strings.Cut(filepath.Base(spec.Name), ":")
		files[i] = filepath.Join(out, "selvage-"+base+".tar")
		group.Go(func() error {
			step := cfg.Progress.Step("building " + spec.Name)
			if err := spec.Write(files[i], true); err != nil {
				step.Fail()
				return err
			}
			info, err := os.Stat(files[i])
			if err != nil {
				step.Fail()
				return fmt.Errorf("look at archive: %w", err)
			}
			step.Done(fmt.Sprintf("%s, %d MiB", spec.Name, info.Size()>>20))
			return nil
		})
	}
	return files, group.Wait()
}
