package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

const (
	certificateBlock = "CERTIFICATE"
	keyBlock         = "PRIVATE KEY"

	// maxBundle is the size of a bundle of certificates in bytes of PEM; a ConfigMap holds no more.
	maxBundle = 1 << 20
)

// ParseCertificates reads one or more PEM-encoded certificates, in their order. Comments around the blocks are passed over, as
// RFC 7468 allows, but a block that was cut is an error: it is noticed here and not in a failing handshake.
func ParseCertificates(bundlePEM []byte) ([]*x509.Certificate, error) {
	if len(bundlePEM) > maxBundle {
		return nil, fmt.Errorf("parse certificates: %d bytes, at most %d are allowed", len(bundlePEM), maxBundle)
	}
	if len(trimSpace(bundlePEM)) == 0 {
		return nil, errors.New("parse certificates: empty")
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(bundlePEM); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != certificateBlock {
			return nil, fmt.Errorf("parse certificates: PEM block %d is %q, want %q", len(certs)+1, block.Type, certificateBlock)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificates: certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	begins, ends := bytes.Count(bundlePEM, []byte("-----BEGIN ")), bytes.Count(bundlePEM, []byte("-----END "))
	switch {
	case begins == 0 && ends == 0:
		return nil, errors.New("parse certificates: not PEM")
	case begins != len(certs) || ends != len(certs):
		return nil, fmt.Errorf("parse certificates: a PEM block is cut or damaged: %d begin and %d end, %d can be read", begins, ends, len(certs))
	}
	return certs, nil
}

// Blocks gives each PEM block of a certificate that can be found in what may be damaged, encoded again.
func Blocks(data []byte) (blocks [][]byte) {
	if len(data) > maxBundle {
		return nil
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == certificateBlock {
			blocks = append(blocks, encodeCertificate(block.Bytes))
		}
	}
	return blocks
}

// EncodeCertificate gives cert in PEM, with a final newline.
func EncodeCertificate(cert *x509.Certificate) []byte { return encodeCertificate(cert.Raw) }

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: der})
}

// encodeKey gives a private key in PEM, PKCS #8.
func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), nil
}

// parseKey reads one private key in PEM: PKCS #8, PKCS #1 (RSA) or SEC 1 (EC). Parameter blocks, as `openssl ecparam` writes
// them before a key, are passed over. Errors never quote what was read.
func parseKey(keyPEM []byte) (crypto.Signer, error) {
	for rest := keyPEM; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("parse key: no private key in PEM")
		}
		var key any
		var err error
		switch block.Type {
		case "EC PARAMETERS":
			continue
		case keyBlock:
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default:
			return nil, fmt.Errorf("parse key: PEM block is %q, want a private key", block.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("parse key: %w", err)
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("parse key: a %T cannot sign", key)
		}
		return signer, nil
	}
}

func trimSpace(b []byte) []byte { return bytes.Trim(b, " \t\r\n") }
