package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/selvage-mesh/selvage/lab/internal/testneed"
)

func spec(t *testing.T, content string) Spec {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return Spec{
		Name: Repository + "thing:1", Entrypoint: []string{"/usr/local/bin/thing"}, User: "1337",
		Layers: [][]File{accounts, {{Path: "/usr/local/bin/thing", Source: program, Mode: 0o755}}},
	}
}

func TestTheSameInputGivesTheSameBytes(t *testing.T) {
	for _, compress := range []bool{false, true} {
		var archives [][]byte
		for range 2 {
			file := filepath.Join(t.TempDir(), "a.tar")
			if err := spec(t, "content").Write(file, compress); err != nil { // a new file with a new time, at another path
				t.Fatal(err)
			}
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			archives = append(archives, b)
		}
		if !bytes.Equal(archives[0], archives[1]) {
			t.Errorf("compress %v: the archives differ", compress)
		}
	}
}

func TestAnArchiveIsWhatItsSpecSays(t *testing.T) {
	s := spec(t, "content")
	file, _, err := s.Archive(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(s.Name)
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(file, &tag) // found by its full name
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(config.Config.Entrypoint, s.Entrypoint) || config.Config.User != "1337" || config.OS != "linux" {
		t.Errorf("config: %+v", config.Config)
	}
	root := t.TempDir()
	unpack(t, s, root)
	got, err := os.ReadFile(filepath.Join(root, "usr/local/bin/thing"))
	if err != nil || string(got) != "content" {
		t.Errorf("the program in the image: %q, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(root, "tmp")); err != nil || info.Mode()&os.ModeSticky == 0 {
		t.Errorf("/tmp: %v, %v", info, err)
	}
}

func TestAnArchiveIsMadeOnceAndReplacedByItsSuccessor(t *testing.T) {
	dir := t.TempDir()
	first, key, err := spec(t, "one").Archive(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(first, []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	again, sameKey, err := spec(t, "one").Archive(dir)
	if err != nil || again != first || sameKey != key {
		t.Fatalf("the same input has another archive: %s, %v", again, err)
	}
	if b, _ := os.ReadFile(first); string(b) != "kept" {
		t.Error("the archive was made a second time")
	}
	second, _, err := spec(t, "two").Archive(dir)
	if err != nil || second == first {
		t.Fatalf("a new program has the old archive: %s, %v", second, err)
	}
	if _, err := os.Stat(first); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old archive stays: %v", err)
	}
}

// The proof that nothing is missing: the programs run with the image as their whole world.
func TestTheProxysProgramsRunInTheirImage(t *testing.T) {
	testneed.Root(t)
	bin := t.TempDir()
	if err := os.Symlink(filepath.Join(testneed.Bin(t, "envoy"), "envoy"), filepath.Join(bin, "envoy")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "selvage-agent"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Catalogue{Bin: bin, Tag: "test"}.Proxy()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	unpack(t, s, root)
	for command, want := range map[string]string{
		"/usr/local/bin/envoy --version":                 "version",
		"/usr/sbin/iptables --version":                   "iptables v",
		"/usr/sbin/iptables-restore --version":           "iptables-restore v",
		"/usr/sbin/ip6tables --version":                  "ip6tables v",
		"/usr/sbin/iptables -m owner -j REDIRECT --help": "--to-ports", // both are plug-ins, loaded by name
		"/usr/sbin/nft --version":                        "nftables v",
	} {
		args := strings.Fields(command)
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Cloneflags: syscall.CLONE_NEWNET}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v: %s", command, err, out)
		}
	}
}

// unpack writes the layers over each other, as a container runtime does.
func unpack(t *testing.T, s Spec, root string) {
	t.Helper()
	for _, files := range s.Layers {
		content, err := layer(files)
		if err != nil {
			t.Fatal(err)
		}
		for r := tar.NewReader(bytes.NewReader(content)); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			to := filepath.Join(root, h.Name)
			switch h.Typeflag {
			case tar.TypeDir:
				err = os.MkdirAll(to, 0o755)
				err = errors.Join(err, os.Chmod(to, h.FileInfo().Mode()))
			case tar.TypeSymlink:
				err = os.Symlink(h.Linkname, to)
			default:
				var b []byte
				if b, err = io.ReadAll(r); err == nil {
					err = os.WriteFile(to, b, h.FileInfo().Mode())
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}
