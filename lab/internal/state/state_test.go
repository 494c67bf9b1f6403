package state

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestWhatIsWrittenIsReadBackByAnother(t *testing.T) {
	path := t.TempDir()
	err := open(t, path).Update(func(l *Lab) {
		l.Addresses["api"], l.Processes["etcd"], l.Level = "127.0.0.1:1", 7, 2
	})
	if err != nil {
		t.Fatal(err)
	}
	got := open(t, path).Lab()
	if got.Addresses["api"] != "127.0.0.1:1" || got.Processes["etcd"] != 7 || got.Level != 2 {
		t.Errorf("read back: %+v", got)
	}
}

func TestALabIsChangedByOneAtATime(t *testing.T) {
	path := t.TempDir()
	unlock, err := open(t, path).Lock()
	if err != nil {
		t.Fatal(err)
	}
	_, err = open(t, path).Lock()
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("a second lock: %v, want ErrBusy with the process", err)
	}
	unlock()
	unlock, err = open(t, path).Lock()
	if err != nil {
		t.Fatalf("the lock outlived its holder: %v", err)
	}
	unlock()
}

func TestTwoNamesOfAFolderAreOneLab(t *testing.T) {
	real := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	if a, b := open(t, real).Name(), open(t, link).Name(); a != b {
		t.Errorf("%s and %s", a, b)
	}
	notYet := filepath.Join(link, "new")
	before := open(t, notYet).Name()
	if err := os.Mkdir(notYet, 0o755); err != nil {
		t.Fatal(err)
	}
	if after := open(t, notYet).Name(); before != after {
		t.Errorf("the name changed when the folder was made: %s, then %s", before, after)
	}
	if a, b := open(t, real).Name(), open(t, notYet).Name(); a == b {
		t.Error("two labs have one name")
	}
}

func TestABrokenFileIsAnErrorThatNamesIt(t *testing.T) {
	path := t.TempDir()
	if err := os.WriteFile(filepath.Join(path, "lab.json"), []byte("{half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "lab.json") {
		t.Errorf("Open() = %v", err)
	}
}
