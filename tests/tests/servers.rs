//! Servers of protocols that a sidecar knows nothing of, some of which speak first: the real ones, with their own clients.
//!
//! Debian: `redis-server redis-tools postgresql mariadb-server mariadb-client python3-aiosmtpd curl openssl`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use outrigger_api::discovery as proto;
use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::config::Mtls;
use outrigger_tests::mesh::{Authority, Http, Sidecar, id, metric};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::backend_tls::{Calls, target};

/// Who runs the servers where the tests are run by root: PostgreSQL does not run as root.
const NOBODY: u32 = 65534;
/// A server that has to make its files first.
const START: Duration = Duration::from_secs(90);
const CLIENT: Duration = Duration::from_secs(60);

/// A server on a port of its own, with its files in a folder of its own; it ends when this is dropped.
struct Server {
    address: SocketAddr,
    folder: TempDir,
    _process: Option<Child>,
}

impl Server {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            address: free.local_addr().unwrap(),
            folder,
            _process: None,
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// A command as the server's user, in its folder.
    fn command(&self, name: &str) -> Command {
        let program = program(name);
        let mut command = if nix::unistd::geteuid().is_root() {
            let nobody = NOBODY.to_string();
            let mut command = Command::new("setpriv");
            command.args([
                "--reuid",
                &nobody,
                "--regid",
                &nobody,
                "--clear-groups",
                "--pdeathsig",
                "KILL",
            ]);
            command.arg(program);
            command
        } else {
            Command::new(program)
        };
        command
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .kill_on_drop(true);
        command
    }

    async fn prepare(&self, name: &str, arguments: &[&str]) {
        let made = self.command(name).args(arguments).output().await.unwrap();
        assert!(
            made.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&made.stderr)
        );
    }

    /// Starts it, and waits until it takes connections.
    async fn start(&mut self, name: &str, arguments: &[&str]) {
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let mut command = self.command(name);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut process = command.spawn().unwrap();
        let began = Instant::now();
        while tokio::net::TcpStream::connect(self.address).await.is_err() {
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap();
            assert!(process.try_wait().unwrap().is_none(), "{name} ended: {}", log());
            assert!(began.elapsed() < START, "{name} does not start: {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self._process = Some(process);
    }

    /// A certificate of its own, which nobody has to trust.
    fn certificate(&self) -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (self.path("tls.crt"), self.path("tls.key"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&key, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        // PostgreSQL refuses a key that others can read.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&key, private).unwrap();
        (certificate, key)
    }
}

/// A program in PATH, or where Debian keeps servers.
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/bin".into()])
        .chain(versions.map(|version| version.path().join("bin")))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "there is no {name}: apt-get install redis-server redis-tools postgresql mariadb-server mariadb-client \
             python3-aiosmtpd curl"
        )
    })
}

/// Runs a client to its end; gives what it says.
async fn client(name: &str, arguments: &[&str], input: &[u8]) -> String {
    let mut command = Command::new(program(name));
    command.args(arguments).kill_on_drop(true);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let running = async {
        let mut process = command.spawn().unwrap();
        let mut stdin = process.stdin.take().unwrap();
        let writing = async move {
            // A client that ends early says why itself.
            let _ = stdin.write_all(input).await;
        };
        tokio::join!(writing, process.wait_with_output()).1.unwrap()
    };
    let output = tokio::time::timeout(CLIENT, running).await.expect("the client hangs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

struct Mesh {
    orders: RunningProxy,
    web: RunningProxy,
    _authority: Authority,
    /// Through two sidecars and mutual TLS, by port: one that is told to be opaque, and one that is looked at.
    ports: [String; 2],
    /// From outside the mesh, to the server's sidecar.
    outside: String,
}

impl Mesh {
    async fn start(server: SocketAddr) -> Self {
        let authority = Authority::start(&["web", "orders"], Duration::from_secs(86_400)).await;
        let orders = Sidecar::new("orders")
            .protects(server)
            .with(&format!("opaquePorts: \"{}\"", server.port()))
            .start_with(&authority, |config| config.mtls = Mtls::Permissive)
            .await;
        let endpoint = [(orders.inbound[0], Some(id("orders")))];
        let web = Sidecar::new("web")
            .calls("told", "opaque", &endpoint, "{}")
            .calls("looked-at", "detect", &endpoint, "{}")
            .start(&authority)
            .await;
        Self {
            ports: [0, 1].map(|i| web.outbound[i].port().to_string()),
            outside: orders.inbound[0].port().to_string(),
            orders,
            web,
            _authority: authority,
        }
    }

    fn all_ports(&self) -> [&str; 3] {
        [&self.ports[0], &self.ports[1], &self.outside]
    }

    /// How many connections came by mutual TLS.
    fn handshakes(&self) -> u64 {
        metric(&self.orders, "outrigger_tls_handshakes_total", &["inbound", "\"ok\""])
    }

    /// How many connections had to wait for the detection's time limit.
    fn waited(&self) -> u64 {
        metric(&self.web, "outrigger_detect_timeouts_total", &[])
    }
}

#[tokio::test]
#[ignore = "needs database servers"]
async fn redis() {
    let mut server = Server::new();
    let port = server.address.port().to_string();
    server
        .start("redis-server", &["--port", &port, "--bind", "127.0.0.1", "--save", ""])
        .await;
    let mesh = Mesh::start(server.address).await;
    let large: String = (0..200_000).map(|i| i.to_string()).collect();
    for (i, port) in mesh.all_ports().into_iter().enumerate() {
        let redis = async |arguments: &[&str], input: &[u8]| {
            client(
                "redis-cli",
                &[&["-h", "127.0.0.1", "-p", port], arguments].concat(),
                input,
            )
            .await
        };
        assert_eq!(redis(&["PING"], b"").await, "PONG\n");
        assert_eq!(redis(&["-x", "SET", "large"], large.as_bytes()).await, "OK\n");
        assert_eq!(redis(&["GET", "large"], b"").await, format!("{large}\n"));
        // Commands without waiting for answers.
        let many: String = (0..10_000).map(|n| format!("INCRBY sum-{i} {n}\r\n")).collect();
        assert!(
            redis(&["--pipe"], many.as_bytes())
                .await
                .contains("errors: 0, replies: 10000")
        );
        assert_eq!(redis(&["GET", &format!("sum-{i}")], b"").await, "49995000\n");
    }
    assert_eq!(mesh.handshakes(), 10);
    assert_eq!(mesh.waited(), 0, "its clients speak first");
}

#[tokio::test]
#[ignore = "needs database servers"]
async fn postgresql() {
    let mut server = Server::new();
    let data = server.path("data");
    server
        .prepare(
            "initdb",
            &["-D", &data, "-U", "shop", "-A", "trust", "-E", "UTF8", "--no-sync"],
        )
        .await;
    let (certificate, key) = server.certificate();
    let (port, sockets) = (server.address.port().to_string(), server.path(""));
    let settings = [
        "-c",
        "fsync=off",
        "-c",
        "ssl=on",
        "-c",
        &format!("ssl_cert_file={certificate}"),
        "-c",
        &format!("ssl_key_file={key}"),
    ];
    let place = ["-D", &data, "-h", "127.0.0.1", "-p", &port, "-k", &sockets];
    server.start("postgres", &[&place[..], &settings].concat()).await;
    let ready = ["-h", "127.0.0.1", "-p", &port, "-t", "60"];
    client("pg_isready", &ready, b"").await;
    let mesh = Mesh::start(server.address).await;
    for (i, port) in mesh.all_ports().into_iter().enumerate() {
        // In its own TLS too, to which it changes after a question of its own.
        for tls in ["disable", "require"] {
            let to = format!("host=127.0.0.1 port={port} user=shop dbname=postgres sslmode={tls}");
            let psql = async |what: &str, input: &[u8]| {
                let flags = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &to, "-c", what];
                client("psql", &flags, input).await
            };
            let secured = psql("select ssl from pg_stat_ssl where pid = pg_backend_pid()", b"").await;
            assert_eq!(secured, if tls == "require" { "t\n" } else { "f\n" });
            let table = format!("orders_{i}_{tls}");
            psql(&format!("create table {table} (id int, what text)"), b"").await;
            let rows: String = (0..50_000).map(|n| format!("{n}\torder number {n}\n")).collect();
            psql(&format!("copy {table} from stdin"), rows.as_bytes()).await;
            assert!(psql(&format!("copy (select * from {table} order by id) to stdout"), b"").await == rows);
            assert_eq!(
                psql(&format!("select count(*), sum(id) from {table}"), b"").await,
                "50000|1249975000\n"
            );
        }
    }
    assert!(mesh.handshakes() >= 20);
    assert_eq!(mesh.waited(), 0, "its clients speak first");
}

#[tokio::test]
#[ignore = "needs database servers"]
async fn mariadb_speaks_first() {
    let mut server = Server::new();
    let data = format!("--datadir={}", server.path("data"));
    server
        .prepare(
            "mariadb-install-db",
            &[
                "--no-defaults",
                &data,
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
        )
        .await;
    let port = format!("--port={}", server.address.port());
    let (socket, pid) = (
        format!("--socket={}", server.path("socket")),
        format!("--pid-file={}", server.path("pid")),
    );
    server
        .start(
            "mariadbd",
            &["--no-defaults", &data, &port, "--bind-address=127.0.0.1", &socket, &pid],
        )
        .await;
    let mesh = Mesh::start(server.address).await;
    for (i, port) in mesh.all_ports().into_iter().enumerate() {
        let sql = async |what: &str| {
            let flags = ["--no-defaults", "-h", "127.0.0.1", "-P", port, "-u", "root", "-N", "-B"];
            client("mariadb", &flags, what.as_bytes()).await
        };
        let (rows, sum) = (50_000_u64, 1_250_025_000_u64);
        let made = format!(
            "create database shop_{i}; use shop_{i}; create table orders (id int, what text);\n\
             insert into orders select seq, concat('order number ', seq) from seq_1_to_{rows};\n\
             select count(*), sum(id) from orders; select what from orders order by id;\n"
        );
        let expected: String = (1..=rows).map(|n| format!("order number {n}\n")).collect();
        assert!(sql(&made).await == format!("{rows}\t{sum}\n{expected}"), "port {port}");
    }
    assert_eq!(mesh.handshakes(), 2);
    // On the port that is looked at, the client waits for the server, and the sidecar for the client.
    assert_eq!(mesh.waited(), 1);
}

#[tokio::test]
#[ignore = "needs database servers"]
async fn smtp_speaks_first() {
    let mut server = Server::new();
    let address = server.address.to_string();
    let (certificate, key) = server.certificate();
    let tls = ["--tlscert", &certificate, "--tlskey", &key];
    let mailbox = ["-n", "-l", &address, "-c", "aiosmtpd.handlers.Mailbox", "mail"];
    server.start("aiosmtpd", &[&tls[..], &mailbox].concat()).await;
    let mesh = Mesh::start(server.address).await;
    let letter: String = (0..50_000).map(|n| format!("line {n} of a long letter\r\n")).collect();
    let mails = |folder: &Path| std::fs::read_dir(folder.join("mail/new")).map_or(0, Iterator::count);
    for (i, port) in mesh.all_ports().into_iter().enumerate() {
        let to = format!("smtp://127.0.0.1:{port}/client.example");
        let letter = format!("Subject: letter {i}\r\n\r\n{letter}");
        // STARTTLS: its own TLS begins in the middle.
        let who = ["--mail-from", "a@shop.example", "--mail-rcpt", "b@shop.example"];
        let flags = [
            "--silent",
            "--show-error",
            "--insecure",
            "--ssl-reqd",
            "--upload-file",
            "-",
            &to,
        ];
        client("curl", &[&who[..], &flags].concat(), letter.as_bytes()).await;
        assert_eq!(mails(server.folder.path()), i + 1);
    }
    for mail in std::fs::read_dir(server.folder.path().join("mail/new")).unwrap() {
        let text = std::fs::read_to_string(mail.unwrap().path()).unwrap();
        assert!(text.replace("\r\n", "\n").contains(&letter.replace("\r\n", "\n")));
    }
    assert_eq!(mesh.handshakes(), 2);
    assert_eq!(mesh.waited(), 1);
}

/// OpenSSL's own server, behind a BackendTLSPolicy that trusts its certificate, and behind one that trusts another.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs database servers"]
async fn openssl() {
    let mut server = Server::new();
    let (certificate, key) = server.certificate();
    let address = server.address.to_string();
    let arguments = [
        "s_server",
        "-accept",
        &address,
        "-cert",
        &certificate,
        "-key",
        &key,
        "-www",
    ];
    server
        .start("openssl", &[&arguments[..], &["-alpn", "http/1.1"]].concat())
        .await;
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let own = std::fs::read(&certificate).unwrap();
    let own = CertificateDer::from_pem_slice(&own).unwrap();
    for (trusted, works) in [(own.to_vec(), true), (other.cert.der().to_vec(), false)] {
        let tls = proto::BackendTls {
            policy: "shop/openssl".to_owned(),
            hostname: "localhost".to_owned(),
            subject_alt_names: Vec::new(),
            trust: Some(proto::backend_tls::Trust::Ca(proto::CaCertificates {
                certificates: vec![trusted],
            })),
        };
        let calls = Calls::start(target(server.address, proto::Protocol::Unspecified, Some(tls))).await;
        let seen = Http::one().get(calls.to(), "/").await;
        let said = String::from_utf8_lossy(&seen.body);
        match works {
            true => assert!(said.contains("s_server -accept"), "{said}"),
            false => assert_eq!(seen.error(), Some("tls-failed"), "{said}"),
        }
        assert_eq!(Http::two().get(calls.to(), "/").await.error(), Some("tls-failed"));
    }
}
