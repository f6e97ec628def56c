// mkimage writes a docker-archive tar of a one-layer image FROM scratch, with no
// daemon, no root and no network:
//
//	mkimage -t name:tag -o out.tar [-entrypoint /app] [-cmd a,b] [-user 1000] [-env K=V]... src:/dest[:mode]...
//
// A src that is a directory is copied whole. The output depends only on the input.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

var epoch = time.Unix(0, 0).UTC()

func main() {
	log.SetFlags(0)
	tag := flag.String("t", "", "image name:tag")
	out := flag.String("o", "", "output file")
	entry := flag.String("entrypoint", "", "comma-separated entrypoint")
	cmd := flag.String("cmd", "", "comma-separated default arguments")
	user := flag.String("user", "", "uid[:gid]")
	var env, dirs list
	flag.Var(&env, "env", "K=V (repeatable)")
	flag.Var(&dirs, "dir", "path[:mode] of an empty directory (repeatable)")
	flag.Parse()
	if *tag == "" || *out == "" {
		log.Fatal("mkimage: -t and -o are needed")
	}

	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	seen := map[string]bool{}
	var mkdir func(p string, mode int64)
	mkdir = func(p string, mode int64) {
		p = strings.Trim(path.Clean("/"+p), "/")
		if p == "" || seen[p] {
			return
		}
		mkdir(path.Dir("/"+p), 0o755)
		seen[p] = true
		must(tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: p + "/", Mode: mode, ModTime: epoch}))
	}
	addFile := func(src, dst string, mode int64) {
		b, err := os.ReadFile(src)
		must(err)
		dst = strings.Trim(path.Clean("/"+dst), "/")
		mkdir(path.Dir("/"+dst), 0o755)
		must(tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: dst, Mode: mode, Size: int64(len(b)), ModTime: epoch}))
		_, err = tw.Write(b)
		must(err)
	}
	mkdir("tmp", 0o1777)
	mkdir("etc", 0o755)
	for _, d := range dirs {
		p, m, _ := strings.Cut(d, ":")
		mode := int64(0o755)
		if m != "" {
			n, err := strconv.ParseInt(m, 8, 64)
			must(err)
			mode = n
		}
		mkdir(p, mode)
	}
	for _, a := range flag.Args() {
		f := strings.Split(a, ":")
		if len(f) < 2 {
			log.Fatalf("mkimage: %q is not src:/dest[:mode]", a)
		}
		st, err := os.Stat(f[0])
		must(err)
		if !st.IsDir() {
			mode := int64(st.Mode().Perm())
			if len(f) > 2 {
				mode, err = strconv.ParseInt(f[2], 8, 64)
				must(err)
			}
			addFile(f[0], f[1], mode)
			continue
		}
		must(filepath.WalkDir(f[0], func(p string, d fs.DirEntry, err error) error {
			must(err)
			rel, _ := filepath.Rel(f[0], p)
			dst := path.Join(f[1], filepath.ToSlash(rel))
			switch {
			case d.IsDir():
				mkdir(dst, 0o755)
			case d.Type()&fs.ModeSymlink != 0:
				to, err := os.Readlink(p)
				must(err)
				mkdir(path.Dir(dst), 0o755)
				must(tw.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: strings.TrimPrefix(dst, "/"), Linkname: to, Mode: 0o777, ModTime: epoch}))
			default:
				i, err := d.Info()
				must(err)
				addFile(p, dst, int64(i.Mode().Perm()))
			}
			return nil
		}))
	}
	must(tw.Close())

	diff := sha(layer.Bytes())
	conf := map[string]any{}
	if *entry != "" {
		conf["Entrypoint"] = strings.Split(*entry, ",")
	}
	if *cmd != "" {
		conf["Cmd"] = strings.Split(*cmd, ",")
	}
	if *user != "" {
		conf["User"] = *user
	}
	if len(env) > 0 {
		conf["Env"] = []string(env)
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": epoch.Format(time.RFC3339),
		"config": conf,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + diff}},
	})
	must(err)
	manifest, err := json.Marshal([]map[string]any{{
		"Config": sha(config) + ".json", "RepoTags": []string{*tag}, "Layers": []string{diff + ".tar"},
	}})
	must(err)

	f, err := os.Create(*out + ".part")
	must(err)
	ow := tar.NewWriter(f)
	for _, e := range []struct {
		name string
		b    []byte
	}{{sha(config) + ".json", config}, {diff + ".tar", layer.Bytes()}, {"manifest.json", manifest}} {
		must(ow.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: 0o644, Size: int64(len(e.b)), ModTime: epoch}))
		_, err = ow.Write(e.b)
		must(err)
	}
	must(ow.Close())
	must(f.Close())
	must(os.Rename(*out+".part", *out))
	fmt.Printf("%s -> %s (%d bytes)\n", *tag, *out, layer.Len())
}

func sha(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }

func must(err error) {
	if err != nil {
		log.Fatal("mkimage: ", err)
	}
}
