// Package image builds the container images of a lab without a registry and without a container runtime: from programs on
// this machine into archives that `ctr images import`, `docker load` and `kind load image-archive` take.
//
// The same input gives the same bytes: no times, no owners of this machine, entries sorted.
package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// format is part of every cache key: change it when the way archives are made changes.
const format = "1"

// File is one entry of an image.
type File struct {
	Path    string // absolute, in the image
	Source  string // a file on this machine; or
	Content []byte // the content itself; or
	Link    string // what a symbolic link points to; or
	Dir     bool   // a folder
	Mode    fs.FileMode
}

// Spec is an image to build. Layers that change less come first.
type Spec struct {
	Name       string // with tag, such as docker.io/selvage/proxy:dev
	Layers     [][]File
	Entrypoint []string
	User       string
}

// Key is the hash of everything that goes into the archive.
func (s Spec) Key() (string, error) {
	h := sha256.New()
	meta, err := json.Marshal(struct {
		Format string
		Spec   Spec
	}{format, s.withoutSources()})
	if err != nil {
		return "", fmt.Errorf("hash image %s: %w", s.Name, err)
	}
	h.Write(meta)
	for _, layer := range s.Layers {
		for _, f := range layer {
			if f.Source == "" {
				continue
			}
			if err := copyFile(h, f.Source); err != nil {
				return "", fmt.Errorf("hash image %s: %w", s.Name, err)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// withoutSources leaves out where files are on this machine: it does not change the image.
func (s Spec) withoutSources() Spec {
	layers := make([][]File, len(s.Layers))
	for i, layer := range s.Layers {
		layers[i] = slices.Clone(layer)
		for j := range layers[i] {
			layers[i][j].Source = ""
		}
	}
	s.Layers = layers
	return s
}

// Archive writes the image to a file in dir, named by its key, unless it is there; archives of the same image with other keys
// are removed. Layers are not compressed: a lab reads them once, from a local disk.
func (s Spec) Archive(dir string) (file, key string, err error) {
	if key, err = s.Key(); err != nil {
		return "", "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", fmt.Errorf("write image %s: %w", s.Name, err)
	}
	base := s.base()
	file = filepath.Join(dir, base+"-"+key+".tar")
	if _, err := os.Stat(file); err == nil {
		return file, key, nil
	}
	if err := s.Write(file, false); err != nil {
		return "", "", err
	}
	old, _ := filepath.Glob(filepath.Join(dir, base+"-????????????????.tar"))
	for _, o := range old {
		if o != file {
			_ = os.Remove(o)
		}
	}
	return file, key, nil
}

// base is the last part of the image's name.
func (s Spec) base() string {
	b, _, _ := strings.Cut(path.Base(s.Name), ":")
	return b
}

// Write writes the archive to a file, whole or not at all.
func (s Spec) Write(file string, compress bool) error {
	img, err := s.build(compress)
	if err != nil {
		return fmt.Errorf("build image %s: %w", s.Name, err)
	}
	tag, err := name.NewTag(s.Name)
	if err != nil {
		return fmt.Errorf("build image: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return fmt.Errorf("write image %s: %w", s.Name, err)
	}
	err = errors.Join(tarball.Write(tag, img, tmp), tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return fmt.Errorf("write image %s: %w", s.Name, err)
	}
	return nil
}

func (s Spec) build(compress bool) (v1.Image, error) {
	img := empty.Image
	for _, files := range s.Layers {
		content, err := layer(files)
		if err != nil {
			return nil, err
		}
		l := static.NewLayer(content, types.DockerUncompressedLayer)
		if compress {
			opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
			if l, err = tarball.LayerFromOpener(opener); err != nil {
				return nil, err
			}
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			return nil, err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{
		Entrypoint: s.Entrypoint, User: s.User, WorkingDir: "/",
		Env: []string{"PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	config.History = nil
	return mutate.ConfigFile(img, config)
}

// layer makes the tar of one layer, with the folders above its files.
func layer(files []File) ([]byte, error) {
	all := withParents(files)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range all {
		if err := write(w, f); err != nil {
			return nil, fmt.Errorf("add %s: %w", f.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func withParents(files []File) []File {
	byPath := map[string]File{}
	for _, f := range files {
		byPath[f.Path] = f
		for d := path.Dir(f.Path); d != "/"; d = path.Dir(d) {
			if _, ok := byPath[d]; !ok {
				byPath[d] = File{Path: d, Dir: true, Mode: 0o755}
			}
		}
	}
	for _, f := range files { // a folder that was named keeps its mode
		byPath[f.Path] = f
	}
	all := make([]File, 0, len(byPath))
	for _, f := range byPath {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return all
}

func write(w *tar.Writer, f File) error {
	h := &tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Mode: int64(f.Mode.Perm()), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	if f.Mode&fs.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	switch {
	case f.Dir:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		return w.WriteHeader(h)
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
		return w.WriteHeader(h)
	case f.Source == "":
		h.Typeflag, h.Size = tar.TypeReg, int64(len(f.Content))
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := w.Write(f.Content)
		return err
	}
	info, err := os.Stat(f.Source)
	if err != nil {
		return err
	}
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	return copyFile(w, f.Source)
}

func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
