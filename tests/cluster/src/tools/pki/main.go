// pki makes the keys of the test cluster: certificate authorities, and what they sign.
//
//	pki ca   -out dir/ca -cn name
//	pki leaf -ca dir/ca -out dir/name -cn name [-org group] [-san name-or-ip,...]
//	pki key  -out dir/sa            (an RSA key pair for service account tokens)
//
// It writes <out>.crt and <out>.key (PEM), and leaves what already exists and is
// still good for 30 days.
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"log"
	"math/big"
	"net"
	"os"
	"strings"
	"time"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("pki: ca, leaf or key")
	}
	fl := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	ca := fl.String("ca", "", "CA path without suffix")
	out := fl.String("out", "", "output path without suffix")
	cn := fl.String("cn", "", "common name")
	org := fl.String("org", "", "organisation (group)")
	san := fl.String("san", "", "comma-separated names and addresses")
	must(fl.Parse(os.Args[2:]))

	if os.Args[1] == "key" {
		if _, err := os.Stat(*out + ".key"); err == nil {
			return
		}
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		must(err)
		pub, err := x509.MarshalPKIXPublicKey(k.Public())
		must(err)
		write(*out+".pub", "PUBLIC KEY", pub, 0o644)
		write(*out+".key", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k), 0o600)
		return
	}

	if pair, err := tls.LoadX509KeyPair(*out+".crt", *out+".key"); err == nil {
		if time.Until(pair.Leaf.NotAfter) > 30*24*time.Hour {
			return
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	must(err)
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: *cn},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	if *org != "" {
		t.Subject.Organization = strings.Split(*org, ",")
	}
	parent, signer := t, crypto.Signer(key)
	if os.Args[1] == "ca" {
		t.IsCA, t.BasicConstraintsValid = true, true
		t.NotAfter = time.Now().AddDate(10, 0, 0)
		t.KeyUsage |= x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	} else {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		for _, s := range strings.Split(*san, ",") {
			if ip := net.ParseIP(s); ip != nil {
				t.IPAddresses = append(t.IPAddresses, ip)
			} else if s != "" {
				t.DNSNames = append(t.DNSNames, s)
			}
		}
		pair, err := tls.LoadX509KeyPair(*ca+".crt", *ca+".key")
		must(err)
		parent, signer = pair.Leaf, pair.PrivateKey.(crypto.Signer)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer)
	must(err)
	kd, err := x509.MarshalECPrivateKey(key)
	must(err)
	write(*out+".key", "EC PRIVATE KEY", kd, 0o600)
	write(*out+".crt", "CERTIFICATE", der, 0o644)
}

func write(name, kind string, der []byte, mode os.FileMode) {
	must(os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode))
}

func must(err error) {
	if err != nil {
		log.Fatal("pki: ", err)
	}
}
