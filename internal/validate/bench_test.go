package validate_test

import (
	"testing"

	"github.com/selvage-mesh/selvage/internal/validate"
)

// BenchmarkObject judges the objects of one kind's table, one after the other, right ones and wrong ones: the time is that of one.
func BenchmarkObject(b *testing.B) {
	for _, table := range tables(b) {
		var objects [][]byte
		for _, r := range table.rows() {
			raw, err := table.object(r)
			if err != nil {
				b.Fatal(err)
			}
			objects = append(objects, raw)
		}
		b.Run(table.kind, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := validate.Object(objects[i%len(objects)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
