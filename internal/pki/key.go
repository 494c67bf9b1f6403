package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"strconv"
)

// KeyKind is a kind of key that is made here. The zero value is ECDSA.
type KeyKind int

// ECDSA is P-256. An RSA key is written as its size in bits: RSA2048, or any KeyKind from 2048 to 4096.
const (
	ECDSA   KeyKind = 0
	RSA2048 KeyKind = 2048
)

// ParseKeyKind reads ecdsa, rsa (2048 bits), or a number of bits of RSA.
func ParseKeyKind(s string) (KeyKind, error) {
	switch s {
	case "", "ecdsa":
		return ECDSA, nil
	case "rsa":
		return RSA2048, nil
	}
	bits, err := strconv.Atoi(s)
	if err != nil || bits < minRSABits || bits > maxRSABits {
		return ECDSA, fmt.Errorf("parse kind of key %q: want ecdsa, rsa, or bits of RSA from %d to %d", s, minRSABits, maxRSABits)
	}
	return KeyKind(bits), nil
}

func (k KeyKind) generate() (crypto.Signer, error) {
	if k == ECDSA {
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return rsa.GenerateKey(rand.Reader, int(k))
}
