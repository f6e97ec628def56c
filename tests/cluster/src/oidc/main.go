// oidc-provider is the example server of github.com/zitadel/oidc over TLS, made so that a test can do to it what happens to
// providers:
//
//	oidc-provider -listen 10.0.0.1:0 -cert cert.pem -key key.pem
//
// It prints its issuer, and ends with its standard input. Its client "sid1" has the secret "verysecret"; the access token that
// POST /oauth/token gives it (grant_type=client_credentials, scope=...) is a JWT for the audience "orders" with the claim "scope".
// Beside what a provider has:
//
//	POST /test/rotate        it signs with a new key from now on, and publishes that alone; ?keep=1: and those before
//	POST /test/keys?as=MODE  what is at /keys: good, slow, gone, error, html, huge, endless, empty, private (keys), secret (a
//	                         shared one), redirect (?to=URL)
//	GET  /test/asked         how often /keys was asked for
package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/uuid"
	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// A key that signs, or its public half.
type key struct {
	id  string
	key any
}

func (k key) ID() string                                  { return k.id }
func (k key) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (k key) Algorithm() jose.SignatureAlgorithm          { return jose.RS256 }
func (k key) Use() string                                 { return "sig" }
func (k key) Key() any                                    { return k.key }

// The example's storage, with keys that can be changed.
type store struct {
	*storage.Storage
	mu   sync.Mutex
	keys []*rsa.PrivateKey
	ids  []string
}

func (s *store) rotate(keep bool) {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		log.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !keep {
		s.keys, s.ids = nil, nil
	}
	s.keys, s.ids = append(s.keys, private), append(s.ids, uuid.NewString())
}

func (s *store) SigningKey(context.Context) (op.SigningKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.keys) - 1
	return key{s.ids[last], s.keys[last]}, nil
}

func (s *store) KeySet(context.Context) ([]op.Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var set []op.Key
	for i, private := range s.keys {
		set = append(set, key{s.ids[i], &private.PublicKey})
	}
	return set, nil
}

// Clients whose access tokens are JWTs.
type client struct{ op.Client }

func (client) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }

func (s *store) ClientCredentials(ctx context.Context, id, secret string) (op.Client, error) {
	known, err := s.Storage.ClientCredentials(ctx, id, secret)
	if err != nil {
		return nil, err
	}
	return client{known}, nil
}

func (s *store) ClientCredentialsTokenRequest(_ context.Context, id string, scopes []string) (op.TokenRequest, error) {
	return &oidc.JWTTokenRequest{Subject: id, Audience: []string{"orders"}, Scopes: scopes}, nil
}

func (s *store) GetPrivateClaimsFromScopes(_ context.Context, _, _ string, scopes []string) (map[string]any, error) {
	return map[string]any{"scope": strings.Join(scopes, " ")}, nil
}

// The keys that sign, as nobody should publish them.
func (s *store) private() jose.JSONWebKeySet {
	s.mu.Lock()
	defer s.mu.Unlock()
	var set jose.JSONWebKeySet
	for i, private := range s.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: private, KeyID: s.ids[i], Algorithm: string(jose.RS256), Use: "sig"})
	}
	return set
}

// What is at /keys.
type behaviour struct {
	mu    sync.Mutex
	mode  string
	to    string
	asked int
}

func (b *behaviour) serve(next http.Handler, s *store, w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	b.asked++
	mode, to := b.mode, b.to
	b.mu.Unlock()
	switch mode {
	case "good":
		next.ServeHTTP(w, r)
	case "slow":
		<-r.Context().Done()
	case "gone":
		http.NotFound(w, r)
	case "error":
		http.Error(w, "out of order", http.StatusInternalServerError)
	case "private":
		json.NewEncoder(w).Encode(s.private())
	case "secret":
		key := jose.JSONWebKey{Key: []byte("a secret that everybody can read"), KeyID: "shared", Algorithm: string(jose.HS256), Use: "sig"}
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key}})
	case "html":
		io.WriteString(w, "<html>sign in</html>")
	case "huge":
		io.WriteString(w, `{"keys": [], "more": "`+strings.Repeat("x", 2<<20)+`"}`)
	case "endless":
		for io.WriteString(w, `{"keys": [`); r.Context().Err() == nil; {
			if _, err := io.WriteString(w, strings.Repeat(" ", 1<<16)); err != nil {
				return
			}
		}
	case "empty":
		io.WriteString(w, `{"keys": []}`)
	case "redirect":
		http.Redirect(w, r, to, http.StatusFound)
	}
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address and port")
	cert := flag.String("cert", "", "PEM of the certificate; without one it speaks plain HTTP")
	keyFile := flag.String("key", "", "PEM of its key")
	flag.Parse()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	scheme := "https"
	if *cert == "" {
		scheme = "http"
	}
	issuer := fmt.Sprintf("%s://%s/", scheme, listener.Addr())
	s := &store{Storage: storage.NewStorage(storage.NewUserStore(issuer))}
	s.rotate(false)
	provider := exampleop.SetupServer(issuer, s, nil, false)
	b := &behaviour{mode: "good"}

	mux := http.NewServeMux()
	mux.HandleFunc("/keys", func(w http.ResponseWriter, r *http.Request) { b.serve(provider, s, w, r) })
	mux.HandleFunc("POST /test/rotate", func(_ http.ResponseWriter, r *http.Request) { s.rotate(r.FormValue("keep") != "") })
	mux.HandleFunc("POST /test/keys", func(_ http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.mode, b.to = r.FormValue("as"), r.FormValue("to")
	})
	mux.HandleFunc("GET /test/asked", func(w http.ResponseWriter, _ *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		fmt.Fprint(w, b.asked)
	})
	mux.Handle("/", provider)
	fmt.Println(issuer)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if *cert == "" {
		log.Fatal(http.Serve(listener, mux))
	}
	log.Fatal(http.ServeTLS(listener, mux, *cert, *keyFile))
}
