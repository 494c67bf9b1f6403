package intercept

import (
	"fmt"
	"slices"
	"strings"
)

// spec renders a rule as iptables-save prints it, so that what is wanted can be compared with what is there.
func (r rule) spec(in string) string {
	var b strings.Builder
	b.WriteString("-A " + in)
	if r.src.IsValid() {
		b.WriteString(" -s " + r.src.String())
	}
	// iptables-save leaves out a match of every address.
	if r.dst.IsValid() && r.dst.Bits() > 0 {
		if r.notDst {
			b.WriteString(" !")
		}
		b.WriteString(" -d " + r.dst.String())
	}
	if r.in != "" {
		b.WriteString(" -i " + r.in)
	}
	if r.onLoopback {
		b.WriteString(" -o lo")
	} else if r.out != "" {
		b.WriteString(" -o " + r.out)
	}
	b.WriteString(" -p tcp")
	if r.dport != 0 {
		fmt.Fprintf(&b, " -m tcp --dport %d", r.dport)
	}
	if r.uid != 0 {
		fmt.Fprintf(&b, " -m owner --uid-owner %d", r.uid)
	}
	if r.gid != 0 {
		fmt.Fprintf(&b, " -m owner --gid-owner %d", r.gid)
	}
	b.WriteString(" -j " + r.target)
	if r.toPort != 0 {
		fmt.Fprintf(&b, " --to-ports %d", r.toPort)
	}
	return b.String()
}

func (h hook) spec() string { return "-A " + h.from + " -p tcp -j " + h.to }

// natTable is what iptables-save says about the nat table, as far as it is ours.
type natTable struct {
	rules map[string][]string // chain of ours → its rules, in order; an entry without rules is an empty chain
	jumps []string            // rules of built-in or others' chains that lead to ours, in order
}

// parseSave reads the output of iptables-save -t nat. Lines that are not about our chains are passed over.
func parseSave(save string, want []chain) natTable {
	ours := map[string]bool{}
	for _, c := range want {
		ours[c.name] = true
	}
	table := natTable{rules: map[string][]string{}}
	for line := range strings.Lines(save) {
		line = strings.TrimRight(line, "\r\n ")
		if declared, ok := strings.CutPrefix(line, ":"); ok {
			if name, _, _ := strings.Cut(declared, " "); ours[name] {
				table.rules[name] = nil // declarations come before rules
			}
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "-A" {
			continue
		}
		if ours[fields[1]] {
			table.rules[fields[1]] = append(table.rules[fields[1]], line)
		} else if i := slices.Index(fields, "-j"); i >= 0 && i+1 < len(fields) && ours[fields[i+1]] {
			table.jumps = append(table.jumps, line)
		}
	}
	return table
}

// present reports whether anything of ours is there, also what an interrupted or older run left.
func (t natTable) present() bool { return len(t.rules) > 0 || len(t.jumps) > 0 }

// equal reports whether the table holds exactly what is wanted.
func (t natTable) equal(want []chain) bool {
	jumps := make([]string, 0, len(hooks))
	for _, h := range hooks {
		jumps = append(jumps, h.spec())
	}
	got := slices.Clone(t.jumps)
	slices.Sort(jumps)
	slices.Sort(got)
	if !slices.Equal(got, jumps) || len(t.rules) != len(want) {
		return false
	}
	for _, c := range want {
		rules, declared := t.rules[c.name]
		if !declared || !slices.Equal(rules, specs(c)) {
			return false
		}
	}
	return true
}

func specs(c chain) (lines []string) {
	for _, r := range c.rules {
		lines = append(lines, r.spec(c.name))
	}
	return lines
}

// restoreInput is one transaction for iptables-restore --noflush that turns the table into what is wanted and touches nothing else:
// declaring a chain of ours empties it, jumps to ours that are wrong or doubled go, missing ones come.
func restoreInput(t natTable, want []chain) string {
	var b strings.Builder
	b.WriteString("*nat\n")
	for _, c := range want {
		fmt.Fprintf(&b, ":%s - [0:0]\n", c.name)
	}
	right := map[string]bool{}
	for _, h := range hooks {
		right[h.spec()] = true
	}
	kept := map[string]bool{}
	for _, jump := range t.jumps {
		if right[jump] && !kept[jump] && count(t.jumps, jump) == 1 {
			kept[jump] = true
			continue
		}
		b.WriteString("-D" + strings.TrimPrefix(jump, "-A") + "\n")
	}
	for _, c := range want {
		for _, line := range specs(c) {
			b.WriteString(line + "\n")
		}
	}
	for _, h := range hooks {
		if !kept[h.spec()] {
			b.WriteString(h.spec() + "\n")
		}
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// removeInput takes everything of ours away in one transaction; "" when there is nothing.
func removeInput(t natTable, want []chain) string {
	if !t.present() {
		return ""
	}
	var b strings.Builder
	b.WriteString("*nat\n")
	var names []string
	for _, c := range want {
		if _, declared := t.rules[c.name]; declared {
			names = append(names, c.name)
			fmt.Fprintf(&b, ":%s - [0:0]\n", c.name) // empties it
		}
	}
	for _, jump := range t.jumps {
		b.WriteString("-D" + strings.TrimPrefix(jump, "-A") + "\n")
	}
	for _, name := range names {
		b.WriteString("-X " + name + "\n")
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

func count(list []string, s string) (n int) {
	for _, item := range list {
		if item == s {
			n++
		}
	}
	return n
}
