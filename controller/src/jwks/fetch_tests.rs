use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use super::super::get::{NOT_HTTP, connect};
use super::super::may_be_called;
use super::*;

const KEYS: &str = "{\"keys\": []}";

/// What a server says to whoever asks.
#[derive(Clone)]
enum Says {
    Bytes(String),
    /// It goes on with these.
    Endless(String),
    /// It takes the request, and that is all.
    Nothing,
}

fn ok(headers: &str, body: &str) -> Says {
    Says::Bytes(format!(
        "HTTP/1.1 200 OK\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// A provider at 127.0.0.1, with a certificate for login.example.com and that address.
struct Server {
    address: SocketAddr,
    ca: String,
    connections: Arc<AtomicUsize>,
    /// The last request.
    request: Arc<parking_lot::Mutex<String>>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(tls: bool, says: Says) -> Self {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let mut params = CertificateParams::new(["login.example.com".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let acceptor = tls.then(|| TlsAcceptor::from(Arc::new(config)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let request = Arc::new(parking_lot::Mutex::new(String::new()));
        let (count, heard) = (Arc::clone(&connections), Arc::clone(&request));
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let (acceptor, says, heard) = (acceptor.clone(), says.clone(), Arc::clone(&heard));
                tokio::spawn(async move {
                    match acceptor {
                        Some(acceptor) => {
                            if let Ok(tls) = acceptor.accept(tcp).await {
                                serve(tls, says, heard).await;
                            }
                        }
                        None => serve(tcp, says, heard).await,
                    }
                });
            }
        });
        Self {
            address,
            ca: ca.pem(),
            connections,
            request,
            task: task.abort_handle(),
        }
    }

    fn url(&self, host: &str) -> KeySource {
        let ca = Some(ConfigMapKey {
            name: "ca".into(),
            key: "ca.crt".into(),
        });
        source(KeyPlace::Url {
            host: host.into(),
            port: self.address.port(),
            path: "/keys?all".into(),
            ca,
        })
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, says: Says, heard: Arc<parking_lot::Mutex<String>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    *heard.lock() = String::from_utf8_lossy(&head).into_owned();
    match says {
        Says::Bytes(bytes) => {
            let _ = stream.write_all(bytes.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
        Says::Endless(bytes) => while stream.write_all(bytes.as_bytes()).await.is_ok() {},
        Says::Nothing => std::future::pending().await,
    }
}

fn source(place: KeyPlace) -> KeySource {
    KeySource {
        namespace: "shop".into(),
        place,
        cache: Duration::from_secs(300),
        timeout: Duration::from_secs(5),
    }
}

/// A world whose names, ConfigMaps and Services are these.
#[derive(Default)]
struct Fake {
    names: HashMap<&'static str, Vec<IpAddr>>,
    maps: HashMap<&'static str, String>,
    service: Option<SocketAddr>,
    /// Where Services lead to.
    leads: HashMap<IpAddr, IpAddr>,
    /// Tests serve on loopback.
    with_loopback: bool,
    resolved: AtomicUsize,
}

impl World for Arc<Fake> {
    type Stream = TcpStream;

    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, String>> {
        self.resolved.fetch_add(1, Ordering::Relaxed);
        let found = self.names.get(host).cloned();
        async move { found.ok_or_else(|| "no such name".to_owned()) }.boxed()
    }

    fn forbidden(&self, address: IpAddr) -> Option<IpAddr> {
        let behind = self.leads.get(&address).copied().unwrap_or(address);
        let permitted = may_be_called(behind) || (self.with_loopback && behind.is_loopback());
        (!permitted).then_some(behind)
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        TcpStream::connect(address).boxed()
    }

    fn config_map<'a>(&'a self, map: ObjectName, _: &'a str) -> BoxFuture<'a, Result<String, Failure>> {
        assert_eq!(&*map.namespace, "shop");
        let found = self.maps.get(&*map.name).cloned();
        async move { found.ok_or_else(|| Failure::gone(format!("there is no ConfigMap {}", map.name))) }.boxed()
    }

    fn service(&self, service: ObjectName, _: u16) -> Result<SocketAddr, String> {
        self.service.ok_or_else(|| format!("there is no Service {service}"))
    }
}

/// A world in which a server is login.example.com, and its CA the one of the ConfigMap.
fn around(server: &Server) -> Fake {
    Fake {
        names: [("login.example.com", vec![server.address.ip()])].into(),
        maps: [("ca", server.ca.clone())].into(),
        service: Some(server.address),
        leads: HashMap::new(),
        with_loopback: true,
        resolved: AtomicUsize::new(0),
    }
}

async fn fetch(world: Fake, source: &KeySource) -> Result<String, String> {
    let fetcher = Fetcher::new(Arc::new(world), RootCertStore::empty()).unwrap();
    let fetched = fetcher.fetch(source).await;
    let fetched = fetched.map_err(|failure| failure.why)?;
    Ok(String::from_utf8(fetched.bytes).unwrap())
}

#[tokio::test]
async fn keys_are_had_over_https_from_a_service_and_from_a_config_map() {
    let server = Server::start(true, ok("", KEYS)).await;
    for host in ["login.example.com", "127.0.0.1"] {
        assert_eq!(fetch(around(&server), &server.url(host)).await.as_deref(), Ok(KEYS));
        let request = server.request.lock().clone();
        let lines: Vec<&str> = request.lines().collect();
        assert_eq!(lines[0], "GET /keys?all HTTP/1.1");
        assert!(
            lines.contains(&&*format!("host: {host}:{}", server.address.port())),
            "{request}"
        );
    }
    let server = Server::start(false, ok("", KEYS)).await;
    let service = source(KeyPlace::Service {
        name: "keycloak".into(),
        port: 80,
        path: "/keys".into(),
    });
    assert_eq!(fetch(around(&server), &service).await.as_deref(), Ok(KEYS));
    assert!(server.request.lock().contains("host: keycloak.shop:80\r\n"));
    let mut world = around(&server);
    world.maps.insert("keys", KEYS.to_owned());
    let map = |name: &str| {
        source(KeyPlace::ConfigMap(ConfigMapKey {
            name: name.into(),
            key: "jwks.json".into(),
        }))
    };
    assert_eq!(fetch(world, &map("keys")).await.as_deref(), Ok(KEYS));
    let missing = fetch(around(&server), &map("keys")).await;
    assert_eq!(missing, Err("there is no ConfigMap keys".to_owned()));
}

#[tokio::test]
async fn a_set_may_have_any_size_up_to_the_bound() {
    for size in [SMALL - 1, SMALL, SMALL + 1, 3 * SMALL, MAX_JWKS] {
        let body = format!("{KEYS}{}", " ".repeat(size - KEYS.len()));
        for says in [ok("", &body), Says::Bytes(format!("HTTP/1.1 200 OK\r\n\r\n{body}"))] {
            let server = Server::start(true, says).await;
            let fetched = fetch(around(&server), &server.url("login.example.com")).await;
            assert!(fetched == Ok(body.clone()), "{size}");
        }
    }
}

/// What a server says, and what it must not be able to make of it.
#[tokio::test]
async fn a_server_that_lies_is_not_believed() {
    let large = "x".repeat(MAX_JWKS + 1);
    for (says, why) in [
        (
            Says::Bytes(
                "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n".to_owned(),
            ),
            "the answer has the status 302, and redirects are not followed",
        ),
        (
            Says::Bytes("HTTP/1.1 404 Not Found\r\ncontent-length: 6\r\n\r\nsecret".to_owned()),
            "the answer has the status 404",
        ),
        (
            Says::Bytes("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 6\r\n\r\nsecret".to_owned()),
            "the answer has the status 500",
        ),
        (
            Says::Bytes("HTTP/1.1 204 No Content\r\n\r\n".to_owned()),
            "the answer has the status 204",
        ),
        (ok("content-encoding: gzip\r\n", KEYS), "the answer is compressed"),
        (ok("", &large), "the answer is larger than 1048576 bytes"),
        (
            Says::Bytes(format!("HTTP/1.1 200 OK\r\n\r\n{large}")),
            "the answer is larger than 1048576 bytes",
        ),
        (
            Says::Bytes("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_owned()),
            "the answer breaks off",
        ),
        (Says::Bytes("SSH-2.0-secret\r\n".to_owned()), NOT_HTTP),
        (Says::Bytes(String::new()), NOT_HTTP),
        (Says::Endless("HTTP/1.1 200 OK\r\nx: y\r\n".repeat(100)), NOT_HTTP),
        (Says::Nothing, "no whole answer within 300ms"),
    ] {
        let server = Server::start(true, says).await;
        let mut source = server.url("login.example.com");
        if why.contains("300ms") {
            source.timeout = Duration::from_millis(300);
        }
        let error = fetch(around(&server), &source).await.unwrap_err();
        assert_eq!(error, why);
        assert_eq!(server.connections.load(Ordering::Relaxed), 1, "{why}");
    }
}

#[tokio::test]
async fn a_certificate_must_be_of_the_policys_ca_and_for_the_host() {
    let server = Server::start(true, ok("", KEYS)).await;
    let other = Server::start(true, ok("", KEYS)).await;
    let with = |ca: Option<&str>| {
        let mut world = around(&server);
        world.names.insert("evil.example.com", vec![server.address.ip()]);
        match ca {
            Some(ca) => drop(world.maps.insert("ca", ca.to_owned())),
            None => drop(world.maps.remove("ca")),
        }
        world
    };
    let mut public = server.url("login.example.com");
    if let KeyPlace::Url { ca, .. } = &mut public.place {
        *ca = None;
    }
    for (world, source, why) in [
        (
            with(Some(&other.ca)),
            server.url("login.example.com"),
            "its certificate is not valid",
        ),
        (
            with(Some(&server.ca)),
            server.url("evil.example.com"),
            "its certificate is for another name",
        ),
        (with(Some(&server.ca)), public, "not of an authority that is trusted"),
        (with(Some("")), server.url("login.example.com"), "has no certificate"),
        (
            with(Some(&server.ca.repeat(MAX_CA / server.ca.len() + 1))),
            server.url("login.example.com"),
            "is larger than 262144 bytes",
        ),
        (
            with(Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")),
            server.url("login.example.com"),
            "is no PEM of certificates",
        ),
        (with(None), server.url("login.example.com"), "there is no ConfigMap ca"),
    ] {
        let error = fetch(world, &source).await.unwrap_err();
        assert!(error.contains(why), "{error}");
        assert_eq!(
            *server.request.lock(),
            "",
            "nothing is asked of who has not proven who it is"
        );
    }
}

#[tokio::test]
async fn what_policies_must_not_reach_is_not_connected_to() {
    let server = Server::start(true, ok("", KEYS)).await;
    let plain = Server::start(false, ok("", KEYS)).await;
    let outside: IpAddr = [203, 0, 113, 1].into();
    let own = server.address.ip();
    let mapped: IpAddr = "::ffff:127.0.0.1".parse().unwrap();
    let strict = |addresses: Vec<IpAddr>| Fake {
        names: [("login.example.com", addresses)].into(),
        with_loopback: false,
        service: Some(plain.address),
        ..around(&server)
    };
    for (host, addresses) in [
        ("login.example.com", vec![own]),
        ("login.example.com", vec![mapped]),
        ("login.example.com", vec![outside, own]),
        ("login.example.com", vec!["169.254.169.254".parse().unwrap()]),
        ("127.0.0.1", vec![]),
        ("[::1]", vec![]),
        ("[::ffff:127.0.0.1]", vec![]),
        ("169.254.169.254", vec![]),
    ] {
        let error = fetch(strict(addresses), &server.url(host)).await.unwrap_err();
        assert!(error.contains("is not called"), "{host}: {error}");
    }
    let service = source(KeyPlace::Service {
        name: "a".into(),
        port: 80,
        path: "/".into(),
    });
    let error = fetch(strict(vec![]), &service).await.unwrap_err();
    assert!(error.contains("127.0.0.1 is not called"), "{error}");
    // What kube-proxy makes of a Service's address is what is called.
    let metadata: IpAddr = [100, 100, 100, 200].into();
    let mut world = around(&plain);
    world.leads.insert(own, metadata);
    let error = fetch(world, &service).await.unwrap_err();
    assert!(
        error.starts_with("100.100.100.200 is not called (127.0.0.1 leads there)"),
        "{error}"
    );
    for server in [&server, &plain] {
        assert_eq!(server.connections.load(Ordering::Relaxed), 0);
    }
}

/// What is looked at is what is connected to: a name is asked for once.
#[tokio::test]
async fn a_name_that_is_another_the_next_moment_changes_nothing() {
    let server = Server::start(true, ok("", KEYS)).await;
    let world = Arc::new(around(&server));
    let fetcher = Fetcher::new(Arc::clone(&world), RootCertStore::empty()).unwrap();
    fetcher.fetch(&server.url("login.example.com")).await.unwrap();
    assert_eq!(world.resolved.load(Ordering::Relaxed), 1);
}

/// A firewall that drops what it gets, before a server that answers.
#[tokio::test]
async fn an_address_that_never_answers_leaves_time_for_the_next() {
    let silent = tokio::net::TcpSocket::new_v4().unwrap();
    silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let silent = silent.listen(1).unwrap();
    let address = silent.local_addr().unwrap();
    // Of a listener that accepts nobody, the kernel lets a few wait and hears no others.
    let mut waiting = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        waiting.push(stream.unwrap());
    }
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let good = server.local_addr().unwrap();
    let until = Instant::now() + Duration::from_secs(2);
    let world = Arc::new(around(&Server::start(false, Says::Nothing).await));
    let within = timeout_at(until, connect(&world, &[address, address, good], until)).await;
    assert_eq!(within.unwrap().unwrap().peer_addr().unwrap(), good);
    let until = Instant::now() + Duration::from_millis(100);
    let error = connect(&world, &[address], until).await.unwrap_err();
    assert!(error.contains("no answer within"), "{error}");
}
