package translate_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/selvage-mesh/selvage/internal/translate"
)

// TestGolden translates the objects of each testdata/*.txtar: prose, then objects.yaml, then the model that is wanted. Files
// called then-*.yaml are applied afterwards, one by one, each followed by the model of that moment, so that an archive can
// tell a story. UPDATE_GOLDEN=1 writes what is as what is wanted.
func TestGolden(t *testing.T) {
	update := os.Getenv("UPDATE_GOLDEN") == "1"
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(strings.TrimSpace(string(archive.Comment))) == 0 {
				t.Error("the archive does not say in prose what it shows")
			}
			golden(t, archive, update)
			if update {
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func golden(t *testing.T, archive *txtar.Archive, update bool) {
	b := newBuilder(t)
	var files []txtar.File
	for i := 0; i < len(archive.Files); i++ {
		input := archive.Files[i]
		set(t, b, parse(t, string(input.Data))...)
		got := dump(translate.Model(nil, b.Snapshot()))
		wanted := txtar.File{Name: strings.TrimSuffix(input.Name, ".yaml") + ".model"}
		if i+1 < len(archive.Files) && archive.Files[i+1].Name == wanted.Name {
			i++
			wanted = archive.Files[i]
		}
		if diff := cmp.Diff(string(wanted.Data), got); diff != "" && !update {
			t.Errorf("the model after %s (- wanted, + is):\n%s", input.Name, diff)
		}
		files = append(files, input, txtar.File{Name: wanted.Name, Data: []byte(got)})
	}
	archive.Files = files
}
