package intercept

import (
	"fmt"
	"strings"
)

// nftTable is the table that holds everything of ours when nft is used itself. Its name is the one of Istio's native mode.
const nftTable = "istio-proxy-nat"

// nftRuleset renders the table as `nft -nn -y -s list table` prints it: comparing the two says whether there is anything to do.
// Both families are in one inet table; rules of one family say so by their addresses.
func nftRuleset(o Options) string {
	v4, v6 := chains(o, ipv4), chains(o, ipv6)
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", nftTable)
	for i := range v4 {
		fmt.Fprintf(&b, "\tchain %s {\n", nftChain(v4[i].name))
		for _, line := range mergeFamilies(v4[i].rules, v6[i].rules) {
			fmt.Fprintf(&b, "\t\t%s\n", line)
		}
		b.WriteString("\t}\n\n")
	}
	for i, h := range hooks {
		fmt.Fprintf(&b, "\tchain %s {\n\t\ttype nat hook %s priority -100; policy accept;\n\t\tmeta l4proto 6 jump %s\n\t}\n",
			strings.ToLower(h.from), strings.ToLower(h.from), nftChain(h.to))
		if i < len(hooks)-1 {
			b.WriteString("\n")
		}
	}
	b.WriteString("}\n")
	return b.String()
}

// nftInput replaces the table in one transaction: `table` alone makes sure that there is one to delete.
func nftInput(o Options) string {
	return fmt.Sprintf("table inet %s\ndelete table inet %s\n", nftTable, nftTable) + nftRuleset(o)
}

func nftRemove() string {
	return fmt.Sprintf("table inet %s\ndelete table inet %s\n", nftTable, nftTable)
}

func nftChain(name string) string { return strings.ReplaceAll(strings.ToLower(name), "_", "-") }

// nft renders a rule. ip is "ip" or "ip6".
func (r rule) nft(ip string) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if r.in != "" {
		add(`iifname "%s"`, r.in)
	}
	if r.onLoopback {
		add(`oifname "lo"`)
	} else if r.out != "" {
		add(`oifname "%s"`, r.out)
	}
	if r.src.IsValid() {
		add("%s saddr %s", ip, nftPrefix(r.src.String()))
	}
	switch {
	case !r.dst.IsValid():
	case r.dst.Bits() == 0: // every address of the family; nft prints numbers with -nn
		add("meta nfproto %s", map[string]string{"ip": "2", "ip6": "10"}[ip])
	case r.notDst:
		add("%s daddr != %s", ip, nftPrefix(r.dst.String()))
	default:
		add("%s daddr %s", ip, nftPrefix(r.dst.String()))
	}
	if r.dport != 0 {
		add("tcp dport %d", r.dport)
	}
	if r.uid != 0 {
		add("meta skuid %d", r.uid)
	}
	if r.gid != 0 {
		add("meta skgid %d", r.gid)
	}
	switch r.target {
	case verdictReturn:
		add("return")
	case verdictRedirect:
		add("meta l4proto 6 redirect to :%d", r.toPort)
	default:
		add("jump %s", nftChain(r.target))
	}
	return strings.Join(parts, " ")
}

// nftPrefix writes a single address without its length, as nft prints it.
func nftPrefix(s string) string {
	return strings.TrimSuffix(strings.TrimSuffix(s, "/32"), "/128")
}

// mergeFamilies interleaves the rules of one chain: those that both families have come once, the others where they stand.
func mergeFamilies(v4, v6 []rule) (lines []string) {
	for len(v4) > 0 || len(v6) > 0 {
		switch {
		case len(v4) > 0 && len(v6) > 0 && v4[0] == v6[0]:
			lines, v4, v6 = append(lines, v4[0].nft("ip")), v4[1:], v6[1:]
		case len(v4) > 0 && (v4[0].ofFamily() || len(v6) == 0):
			lines, v4 = append(lines, v4[0].nft("ip")), v4[1:]
		default:
			lines, v6 = append(lines, v6[0].nft("ip6")), v6[1:]
		}
	}
	return lines
}

// ofFamily says that the rule matches an address, so it is of one family.
func (r rule) ofFamily() bool { return r.src.IsValid() || r.dst.IsValid() }
