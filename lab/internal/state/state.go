// Package state is what a lab remembers in its folder: lab.json, which scripts read, and the lock that lets one command at a
// time change the lab.
package state

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/selvage-mesh/selvage/lab/internal/proc"
)

// Lab is the content of lab.json. Addresses and Processes are an interface that scripts rely on.
type Lab struct {
	// Addresses are HOST:PORT on this machine: api, xds, webhook, http, console, sample, as far as the lab has them.
	Addresses map[string]string `json:"addresses"`
	// Processes are the process ids by program.
	Processes map[string]int `json:"processes"`

	Level      int    `json:"level"`
	Kubernetes string `json:"kubernetes"` // its version
	Revision   string `json:"revision"`   // the mesh's revision, "" for the default one or none
	Mesh       bool   `json:"mesh"`
	Sample     bool   `json:"sample"`
	Ready      bool   `json:"ready"`            // false while up is at work, and after it was killed
	Failed     bool   `json:"failed,omitempty"` // up failed and ended what it had begun; only the logs are left

	// Namespace is the lab's network namespace, "" on the machine's own network. Host is the lab's address in there.
	Namespace string `json:"networkNamespace,omitempty"`
	Host      string `json:"host"`
	// Cgroup is the parent of the pods' cgroups, Run the folder of the container runtime's sockets; "" at level 1.
	Cgroup string `json:"cgroup,omitempty"`
	Run    string `json:"run,omitempty"`
	// Made are folders of the machine that had to be made; Images the keys of the images that the node has, by name.
	Made   []string          `json:"made,omitempty"`
	Images map[string]string `json:"images,omitempty"`
	// Ports are those in use by port name, so that a repaired lab keeps them.
	Ports map[string]int `json:"ports"`

	Identities map[string]proc.ID `json:"identities"`
}

// Dir is a lab's folder.
type Dir struct {
	path string
	mu   sync.Mutex
	lab  Lab
}

// ErrBroken says that lab.json cannot be understood.
var ErrBroken = errors.New("cannot read")

// Open gives the folder, which need not exist, and reads lab.json where there is one. With ErrBroken the folder is returned
// too, as one that remembers nothing.
func Open(path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open lab %s: %w", path, err)
	}
	// Two names of one folder are one lab.
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	} else if parent, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(parent, filepath.Base(abs))
	}
	d := &Dir{path: abs}
	err = d.load()
	return d, err
}

// Path is the folder, absolute; File a path inside.
func (d *Dir) Path() string { return d.path }

// File joins elements to the folder's path.
func (d *Dir) File(elem ...string) string {
	return filepath.Join(append([]string{d.path}, elem...)...)
}

// Name is what the things of this lab that live outside its folder are called.
func (d *Dir) Name() string {
	sum := sha256.Sum256([]byte(d.path))
	return "selvage-" + hex.EncodeToString(sum[:4])
}

// Exists says whether there is a lab in the folder, running or left over.
func (d *Dir) Exists() bool {
	_, err := os.Stat(d.File("lab.json"))
	return err == nil
}

// Lab returns a copy of what is remembered.
func (d *Dir) Lab() Lab {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, _ := json.Marshal(d.lab)
	var l Lab
	_ = json.Unmarshal(b, &l)
	return l
}

// Update changes what is remembered and writes it, whole or not at all.
func (d *Dir) Update(change func(*Lab)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range []*map[string]int{&d.lab.Processes, &d.lab.Ports} {
		if *m == nil {
			*m = map[string]int{}
		}
	}
	if d.lab.Addresses == nil {
		d.lab.Addresses = map[string]string{}
	}
	if d.lab.Images == nil {
		d.lab.Images = map[string]string{}
	}
	if d.lab.Identities == nil {
		d.lab.Identities = map[string]proc.ID{}
	}
	change(&d.lab)
	b, err := json.MarshalIndent(d.lab, "", "  ")
	if err != nil {
		return fmt.Errorf("write lab.json: %w", err)
	}
	if err := d.Write("lab.json", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return nil
}

// Write stores a file of the folder, whole or not at all. It belongs to the user who called sudo, where there is one, so that
// kubectl and selvage work without sudo afterwards.
func (d *Dir) Write(name string, content []byte, mode os.FileMode) error {
	tmp := d.File(name + ".tmp")
	if err := os.WriteFile(tmp, content, mode); err != nil {
		return fmt.Errorf("write %s: %w", d.File(name), err)
	}
	if uid, gid, ok := caller(); ok {
		if err := os.Chown(tmp, uid, gid); err != nil {
			return fmt.Errorf("write %s: %w", d.File(name), err)
		}
	}
	if err := os.Rename(tmp, d.File(name)); err != nil {
		return fmt.Errorf("write %s: %w", d.File(name), err)
	}
	return nil
}

// ErrBusy says that another command is changing the lab; its text names the process.
var ErrBusy = errors.New("another command is at work on this lab")

// Lock makes the calling process the only one to change the lab, until unlock is called or the process ends, however it ends.
// The folder must exist.
func (d *Dir) Lock() (unlock func(), err error) {
	path := d.File("lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock lab %s: %w", d.path, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: process %s", ErrBusy, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("lock lab %s: %w", d.path, err)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteString(strconv.Itoa(os.Getpid()) + "\n")
	}
	if err := d.load(); err != nil { // another may have changed it since Open
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func (d *Dir) load() error {
	b, err := os.ReadFile(d.File("lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read lab.json: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lab = Lab{}
	if err := json.Unmarshal(b, &d.lab); err != nil {
		return fmt.Errorf("%w %s: %w", ErrBroken, d.File("lab.json"), err)
	}
	return nil
}

// caller returns the user who called sudo.
func caller() (uid, gid int, ok bool) {
	if os.Geteuid() != 0 {
		return 0, 0, false
	}
	uid, err1 := strconv.Atoi(os.Getenv("SUDO_UID"))
	gid, err2 := strconv.Atoi(os.Getenv("SUDO_GID"))
	return uid, gid, err1 == nil && err2 == nil
}
