package intercept

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Backend is one way to program the kernel's packet filter.
type Backend string

// The backends. The two of iptables are programs with one syntax and different kernel interfaces: rules of one are not seen by
// the other, so a pod must not get both.
const (
	IPTablesNFT    Backend = "iptables-nft"
	IPTablesLegacy Backend = "iptables-legacy"
	NFT            Backend = "nft"
)

// commandTimeout is how long one command may take; they take milliseconds.
const commandTimeout = 30 * time.Second

// ParseBackend reads a backend's name; "auto" and "" give "", which lets Apply choose.
func ParseBackend(s string) (Backend, error) {
	switch b := Backend(s); b {
	case "auto", "":
		return "", nil
	case IPTablesNFT, IPTablesLegacy, NFT:
		return b, nil
	}
	return "", fmt.Errorf("parse backend %q: want auto, %s, %s or %s", s, IPTablesNFT, IPTablesLegacy, NFT)
}

// command runs a program with its input on stdin and returns its stdout. The error has the first line that the program wrote to
// stderr and is an exec.ErrNotFound when there is no such program.
func command(ctx context.Context, input, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	path, err := program(name)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(input)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = environment()
	if err = cmd.Run(); err == nil {
		return out.String(), nil
	}
	if said := saidOn(errs.String()); said != "" {
		return "", fmt.Errorf("run %s: %s (%w)", name, said, err)
	}
	return "", fmt.Errorf("run %s: %w", name, err)
}

// program finds a command in PATH or where the system's own are.
func program(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, dirErr := exec.LookPath(filepath.Join(dir, name)); dirErr == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s: %w", name, err)
}

// environment gives iptables-legacy a lock file that can be written where the image's /run cannot.
func environment() []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	if lock, err := os.OpenFile("/run/xtables.lock", os.O_CREATE|os.O_RDONLY, 0o600); err == nil {
		lock.Close()
	} else {
		env = append(env, "XTABLES_LOCKFILE=/dev/shm/xtables.lock")
	}
	return env
}

// saidOn picks the line that tells from what a program wrote to stderr.
func saidOn(stderr string) string {
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "# Warning:") {
			continue
		}
		return line
	}
	return ""
}

// iptablesNames gives the programs of one family and backend: save and restore. The plain names (iptables-save) are links to
// either backend, so they are not used.
func (b Backend) iptablesNames(f family) (save, restore string) {
	prefix := "iptables"
	if f.v6 {
		prefix = "ip6tables"
	}
	variant := strings.TrimPrefix(string(b), "iptables-")
	return prefix + "-" + variant + "-save", prefix + "-" + variant + "-restore"
}

// installed says whether the backend's programs are there.
func (b Backend) installed() bool {
	name := "nft"
	if b != NFT {
		_, name = b.iptablesNames(ipv4)
	}
	_, err := program(name)
	return err == nil
}

// legacyInUse says whether iptables-legacy has tables in this network namespace. Asking iptables-legacy-save would load the
// module and make the table, so the kernel is asked instead.
func legacyInUse(f family) bool {
	path := "/proc/thread-self/net/ip_tables_names"
	if f.v6 {
		path = "/proc/thread-self/net/ip6_tables_names"
	}
	names, err := os.ReadFile(path)
	return err == nil && strings.Contains("\n"+string(names), "\nnat\n")
}

// read gives the state of one family under b, which is not NFT. A table that does not exist is an empty state.
func (b Backend) read(ctx context.Context, f family, want []chain) (natTable, error) {
	if b == IPTablesLegacy && !legacyInUse(f) {
		return parseSave("", want), nil
	}
	save, _ := b.iptablesNames(f)
	out, err := command(ctx, "", save, "-t", "nat")
	if err != nil {
		return natTable{}, err
	}
	return parseSave(out, want), nil
}

func (b Backend) restore(ctx context.Context, f family, input string) error {
	_, restore := b.iptablesNames(f)
	args := []string{"--noflush"}
	if b == IPTablesLegacy {
		args = append(args, "-w", "10")
	}
	_, err := command(ctx, input, restore, args...)
	return err
}

// present says whether anything of ours is installed under b. What cannot be read counts as absent: installing will say why.
func (b Backend) present(ctx context.Context, o Options) bool {
	if !b.installed() {
		return false
	}
	if b == NFT {
		_, err := command(ctx, "", "nft", "list", "table", "inet", nftTable)
		return err == nil
	}
	for _, f := range []family{ipv4, ipv6} {
		if table, err := b.read(ctx, f, chains(o, f)); err == nil && table.present() {
			return true
		}
	}
	return false
}

// install makes the rules of the families be what o wants, in one transaction for each family (nft: one in all), and reads them
// back. changed is false when everything was right before.
func (b Backend) install(ctx context.Context, o Options, families []family) (changed bool, err error) {
	if b == NFT {
		return installNFT(ctx, o)
	}
	for _, f := range families {
		did, err := b.installFamily(ctx, f, chains(o, f))
		if err != nil {
			return changed, err
		}
		changed = changed || did
	}
	return changed, nil
}

func (b Backend) installFamily(ctx context.Context, f family, want []chain) (changed bool, err error) {
	before, err := b.read(ctx, f, want)
	if err != nil {
		return false, err
	}
	if before.equal(want) {
		return false, nil
	}
	if err := b.restore(ctx, f, restoreInput(before, want)); err != nil {
		return false, err
	}
	after, err := b.read(ctx, f, want)
	if err != nil {
		return true, err
	}
	if !after.equal(want) {
		return true, errors.New("the rules that were installed are not those that the kernel has now: another program changes them")
	}
	return true, nil
}

func installNFT(ctx context.Context, o Options) (changed bool, err error) {
	if now, err := listNFT(ctx); err == nil && sameRuleset(now, nftRuleset(o)) {
		return false, nil
	}
	if _, err := command(ctx, nftInput(o), "nft", "-f", "-"); err != nil {
		return false, err
	}
	_, err = listNFT(ctx)
	return true, err
}

func listNFT(ctx context.Context) (string, error) {
	return command(ctx, "", "nft", "-nn", "-y", "-s", "list", "table", "inet", nftTable)
}

// sameRuleset compares without white space.
func sameRuleset(a, b string) bool {
	return strings.Join(strings.Fields(a), " ") == strings.Join(strings.Fields(b), " ")
}

// remove takes away everything of ours under b.
func (b Backend) remove(ctx context.Context, o Options) error {
	if !b.present(ctx, o) {
		return nil
	}
	if b == NFT {
		_, err := command(ctx, nftRemove(), "nft", "-f", "-")
		return err
	}
	for _, f := range []family{ipv4, ipv6} {
		table, err := b.read(ctx, f, chains(o, f))
		if err != nil {
			continue // present found nothing readable in this family
		}
		if input := removeInput(table, chains(o, f)); input != "" {
			if err := b.restore(ctx, f, input); err != nil {
				return err
			}
		}
	}
	return nil
}
