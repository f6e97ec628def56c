//! The mesh in network namespaces: real capture, real sidecars of their own user, and no cluster.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use outrigger_proxy::capture::CaptureConfig;
use outrigger_tests::netns::mesh::{Mesh, get, http_server, identity, pod, service, speaks_first};
use outrigger_tests::netns::{Lab, Namespace, Pod, Running, program};

const ORDERS_V4: &str = "10.96.0.10:8080";
const ORDERS_V6: &str = "[fd96::10]:8080";
const WEB: &str = "10.96.0.20:8080";
const MYSQL: &str = "10.96.0.30:3306";
const LEGACY: &str = "10.96.0.40:8080";

fn to(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// Two pods of the mesh that are not started yet, and one that is not in it.
struct Shop {
    lab: Lab,
    web: Pod,
    orders: Pod,
    legacy: Pod,
    mesh: Mesh,
}

impl Shop {
    fn new() -> Self {
        Self::with_networks(&[])
    }

    /// Sidecars are told these networks of the cluster.
    fn with_networks(networks: &[&str]) -> Self {
        let lab = Lab::new();
        let (web, orders, legacy) = (lab.pod("web"), lab.pod("orders"), lab.pod("legacy"));
        let at = |pod: &Pod, port| SocketAddr::new(pod.v4, port);
        let targets = vec![
            (
                to(ORDERS_V4),
                service("orders", 8080, at(&orders, 8080), Some("orders")),
            ),
            (
                to(ORDERS_V6),
                service("orders", 8080, SocketAddr::new(orders.v6, 8080), Some("orders")),
            ),
            (to(WEB), service("web", 8080, at(&web, 8080), Some("web"))),
            (to(MYSQL), service("mysql", 3306, at(&orders, 3306), Some("orders"))),
            (to(LEGACY), service("legacy", 8080, at(&legacy, 8080), None)),
            (at(&orders, 8081), pod("orders", at(&orders, 8081), "orders")),
        ];
        let mesh = Mesh::with_networks(&lab, &["web", "orders"], targets, networks);
        for (namespace, name) in [(&web, "web"), (&orders, "orders"), (&legacy, "legacy")] {
            for port in [8080, 8081] {
                for address in namespace.addresses(port) {
                    http_server(namespace, address, name);
                }
            }
        }
        Self {
            lab,
            web,
            orders,
            legacy,
            mesh,
        }
    }
}

fn ask(from: &Namespace, address: SocketAddr) -> String {
    from.enter(|| get(address, "/hello", "somewhere.shop")).unwrap()
}

const OUT: &str = r#"outrigger_requests_total{direction="outbound",service="shop/"#;
const IN: &str = r#"outrigger_requests_total{direction="inbound",server_port=""#;
const OK: &str = r#"outcome="success",tls="#;

#[test]
#[ignore = "needs root"]
fn requests_go_by_mutual_tls_in_both_families() {
    let shop = Shop::new();
    let none = CaptureConfig::default();
    let web = shop.mesh.join(&shop.lab, &shop.web, "web", &none, &[]);
    let orders = shop.mesh.join(
        &shop.lab,
        &shop.orders,
        "orders",
        &none,
        &[("OUTRIGGER_MTLS", "strict")],
    );
    for (i, address) in [ORDERS_V4, ORDERS_V6].into_iter().enumerate() {
        let answer = ask(web.pod, to(address));
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("orders\nGET /hello"),
            "{answer}"
        );
        assert!(answer.contains("x-request-id: "), "{answer}");
        let expected = (i + 1) as f64;
        assert_eq!(web.metric(&format!("{OUT}orders\",{OK}\"true\"}}")), expected);
        assert_eq!(orders.metric(&format!("{IN}8080\",{OK}\"true\"}}")), expected);
        assert_eq!(orders.metric(&format!("{IN}8080\",{OK}\"false\"}}")), 0.0);
    }
    // A pod's own address, of a headless Service.
    let answer = ask(web.pod, SocketAddr::new(shop.orders.v4, 8081));
    assert!(answer.contains("orders\nGET /hello"), "{answer}");
    assert_eq!(orders.metric(&format!("{IN}8081\",{OK}\"true\"}}")), 1.0);
    assert!(web.metric(r#"outrigger_tls_handshakes_total{direction="outbound",result="ok"}"#) >= 1.0);
}

#[test]
#[ignore = "needs root"]
fn a_pod_calls_itself_through_its_own_service() {
    let shop = Shop::new();
    let none = CaptureConfig::default();
    for mtls in ["permissive", "strict"] {
        let web = shop
            .mesh
            .join(&shop.lab, &shop.web, "web", &none, &[("OUTRIGGER_MTLS", mtls)]);
        let answer = ask(web.pod, to(WEB));
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("web\nGET /hello"),
            "{mtls}: {answer}"
        );
        let answer = ask(web.pod, SocketAddr::new(shop.web.v4, 8080));
        assert!(answer.contains("web\nGET /hello"), "{mtls}: {answer}");
        let answer = ask(web.pod, SocketAddr::new(shop.web.v6, 8080));
        assert!(answer.contains("web\nGET /hello"), "{mtls}: {answer}");
    }
}

#[test]
#[ignore = "needs root"]
fn what_is_outside_the_mesh_is_reached_in_plaintext() {
    let shop = Shop::new();
    let none = CaptureConfig::default();
    let web = shop.mesh.join(&shop.lab, &shop.web, "web", &none, &[]);
    let answer = ask(web.pod, to(LEGACY));
    assert!(answer.contains("legacy\nGET /hello"), "{answer}");
    assert_eq!(web.metric(&format!("{OUT}legacy\",{OK}\"false\"}}")), 1.0);
    // Not in the cluster: passed to where it wanted to go.
    for address in shop.legacy.addresses(8081) {
        let answer = ask(web.pod, address);
        assert!(answer.contains("legacy\nGET /hello"), "{answer}");
    }
}

#[test]
#[ignore = "needs root"]
fn what_is_outside_of_the_clusters_networks_is_reached_without_a_controller() {
    let mut shop = Shop::with_networks(&["10.96.0.0/12", "fd96::/16"]);
    let none = CaptureConfig::default();
    let web = shop.mesh.join(&shop.lab, &shop.web, "web", &none, &[]);
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, outrigger_api::ports::ADMIN));
    let began = Instant::now();
    while !web
        .pod
        .enter(|| get(admin, "/config", "admin"))
        .unwrap()
        .contains("10.96.0.0/12")
    {
        assert!(began.elapsed() < Duration::from_secs(30), "it hears of no networks");
        std::thread::sleep(Duration::from_millis(20));
    }
    shop.mesh.controller_goes_away();
    // As a dual-stack socket of the app says it.
    let IpAddr::V4(v4) = shop.legacy.v4 else {
        panic!("the lab's pods have IPv4 addresses");
    };
    let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), 8081);
    for address in shop.legacy.addresses(8081).into_iter().chain([mapped]) {
        let answer = ask(web.pod, address);
        assert!(answer.contains("legacy\nGET /hello"), "{address}: {answer}");
    }
    // What is inside must not be guessed at.
    let answer = ask(web.pod, to(ORDERS_V4));
    assert!(answer.contains("outrigger-error: discovery-unavailable"), "{answer}");
}

#[test]
#[ignore = "needs root"]
fn plaintext_from_outside_the_mesh() {
    let shop = Shop::new();
    let none = CaptureConfig::default();
    let orders = shop.mesh.join(&shop.lab, &shop.orders, "orders", &none, &[]);
    for address in shop.orders.addresses(8080) {
        let answer = ask(&shop.legacy, address);
        assert!(answer.contains("orders\nGET /hello"), "{answer}");
    }
    assert_eq!(orders.metric(&format!("{IN}8080\",{OK}\"false\"}}")), 2.0);
    drop(orders);

    let strict = [
        ("OUTRIGGER_MTLS", "strict"),
        ("OUTRIGGER_PROBES", r#"[{"port":8080,"target":"/ready"}]"#),
    ];
    let orders = shop.mesh.join(&shop.lab, &shop.orders, "orders", &none, &strict);
    for address in shop.orders.addresses(8080) {
        let answer = ask(&shop.legacy, address);
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(answer.contains("outrigger-error: plaintext-refused"), "{answer}");
        let answer = shop.legacy.enter(|| get(address, "/ready", "kubelet")).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "the pod's own probe: {answer}");
    }
    assert_eq!(
        orders.metric(r#"outrigger_errors_total{reason="plaintext-refused"}"#),
        2.0
    );
}

/// A pod that has a route to another sends it what is for somebody else: for a third pod, and for what listens on loopback only.
/// Neither the rules nor, without them, the sidecar follows it.
#[test]
#[ignore = "needs root"]
fn a_sidecar_is_no_way_to_other_hosts_nor_to_its_pods_loopback() {
    let shop = Shop::new();
    let none = CaptureConfig::default();
    let debugger = SocketAddr::from((Ipv4Addr::LOCALHOST, 9229));
    http_server(&shop.orders, debugger, "debugger");
    let attacker = shop.lab.pod("attacker");
    let (victim, third) = (&shop.orders, &shop.legacy);
    attacker.ip(&format!("route add {} via {}", third.v4, victim.v4));
    attacker.ip(&format!("-6 route add {} via {}", third.v6, victim.v6));
    // What is for 127.0.0.1 comes from a pod that writes its packets itself (NET_RAW). Here it dials another address, which is
    // exchanged where packets leave and answers come, since a kernel neither sends to 127.0.0.1 nor takes answers from it.
    let debugger_from_afar = SocketAddr::from(([192, 0, 2, 1], debugger.port()));
    attacker.ip(&format!("route add {} via {}", debugger_from_afar.ip(), victim.v4));
    for rule in [
        "add table ip raw",
        "add chain ip raw leaving { type filter hook postrouting priority 300 ; }",
        "add rule ip raw leaving ip daddr 192.0.2.1 ip daddr set 127.0.0.1",
        "add chain ip raw coming { type filter hook prerouting priority -300 ; }",
        "add rule ip raw coming ip saddr 127.0.0.1 ip saddr set 192.0.2.1",
    ] {
        let done = attacker.run("nft", &rule.split(' ').collect::<Vec<_>>());
        assert!(
            done.status.success(),
            "{rule}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
    let destinations = [
        SocketAddr::new(third.v4, 8080),
        SocketAddr::new(third.v6, 8080),
        debugger_from_afar,
    ];
    let refused = |address: SocketAddr, why: &str| {
        let answer = attacker.enter(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        });
        assert!(answer.is_err(), "{why}: {address}: {answer:?}");
    };
    for mtls in ["permissive", "strict"] {
        let orders = shop
            .mesh
            .join(&shop.lab, victim, "orders", &none, &[("OUTRIGGER_MTLS", mtls)]);
        destinations.iter().for_each(|address| refused(*address, mtls));
        // The pod itself is there as ever.
        let answer = ask(&attacker, SocketAddr::new(victim.v4, 8080));
        assert!(
            answer.starts_with(if mtls == "strict" {
                "HTTP/1.1 403"
            } else {
                "HTTP/1.1 200"
            }),
            "{answer}"
        );
        // As on a kernel that has no fib: all of it comes to the sidecar.
        let flush = victim.run("nft", &["flush", "chain", "inet", "outrigger", "inbound"]);
        assert!(flush.status.success());
        let all = ["add", "rule", "inet", "outrigger", "inbound", "iifname", "!=", "lo"];
        let redirect = [
            "meta", "l4proto", "tcp", "tcp", "dport", "!=", "14190", "redirect", "to", ":14143",
        ];
        let rule = victim.run("nft", &[&all[..], &redirect[..]].concat());
        assert!(rule.status.success(), "{}", String::from_utf8_lossy(&rule.stderr));
        let counted = || orders.metric(r#"outrigger_connections_refused_total{reason="not-this-pod"}"#);
        let before = counted();
        destinations.iter().for_each(|address| refused(*address, mtls));
        let came = counted() - before;
        assert!(
            came >= destinations.len() as f64,
            "{mtls}: only {came} came to the sidecar"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn what_is_excluded_passes_the_sidecars_by() {
    let shop = Shop::new();
    let out = CaptureConfig {
        skip_outbound_ports: vec![8081..=8081],
        ..CaptureConfig::default()
    };
    let into = CaptureConfig {
        skip_inbound_ports: vec![8081..=8081],
        ..CaptureConfig::default()
    };
    let web = shop.mesh.join(&shop.lab, &shop.web, "web", &out, &[]);
    let strict = [("OUTRIGGER_MTLS", "strict")];
    let orders = shop.mesh.join(&shop.lab, &shop.orders, "orders", &into, &strict);
    for address in shop.orders.addresses(8081) {
        let answer = ask(web.pod, address);
        assert!(
            answer.contains("orders\nGET /hello") && !answer.contains("x-request-id"),
            "{answer}"
        );
    }
    for metered in [&web, &orders] {
        for tls in ["true", "false"] {
            assert_eq!(metered.metric(&format!("{OUT}orders\",{OK}\"{tls}\"}}")), 0.0);
            assert_eq!(metered.metric(&format!("{IN}8081\",{OK}\"{tls}\"}}")), 0.0);
        }
    }
}

/// Connects, waits for the greeting, and says something. Returns how long the greeting took.
fn greeted(from: &Namespace, address: SocketAddr, greeting: &str) -> Duration {
    from.enter(|| {
        let began = Instant::now();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut heard = vec![0; greeting.len()];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(String::from_utf8(heard).unwrap(), greeting);
        let took = began.elapsed();
        stream.write_all(b"QUIT").unwrap();
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"QUIT");
        took
    })
}

#[test]
#[ignore = "needs root"]
fn a_server_that_speaks_first() {
    let shop = Shop::new();
    let none = CaptureConfig::default();
    speaks_first(&shop.orders, SocketAddr::new(shop.orders.v4, 3306), "5.7.0-mysql");
    speaks_first(&shop.legacy, SocketAddr::new(shop.legacy.v4, 25), "220 smtp");
    let web = shop.mesh.join(&shop.lab, &shop.web, "web", &none, &[]);
    let strict = [("OUTRIGGER_MTLS", "strict")];
    let orders = shop.mesh.join(&shop.lab, &shop.orders, "orders", &none, &strict);
    // In the mesh, by mutual TLS: a strict pod takes nothing else. Detection would have waited for 30 s.
    let took = greeted(web.pod, to(MYSQL), "5.7.0-mysql");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(
        orders.metric(r#"outrigger_tls_handshakes_total{direction="inbound",result="ok"}"#),
        1.0
    );
    // Outside the mesh.
    let took = greeted(web.pod, SocketAddr::new(shop.legacy.v4, 25), "220 smtp");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(web.metric("outrigger_detect_timeouts_total"), 0.0);
    drop(orders);
    // From outside the mesh: the sidecar cannot know that the silent client is not another sidecar, and waits as long as
    // detection may.
    let quick = [("OUTRIGGER_DETECT_TIMEOUT", "200ms")];
    let orders = shop.mesh.join(&shop.lab, &shop.orders, "orders", &none, &quick);
    let took = greeted(&shop.legacy, SocketAddr::new(shop.orders.v4, 3306), "5.7.0-mysql");
    assert!(took < Duration::from_secs(10), "{took:?}");
    drop(orders);
}

#[test]
#[ignore = "needs root"]
fn the_wrong_identity_is_refused() {
    let shop = Shop::new();
    let none = CaptureConfig::default();
    let web = shop.mesh.join(&shop.lab, &shop.web, "web", &none, &[]);
    // The pod behind `orders` is somebody else.
    let imposter = shop.mesh.join(&shop.lab, &shop.orders, "web", &none, &[]);
    let answer = ask(web.pod, to(ORDERS_V4));
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("outrigger-error: identity-mismatch"),
        "{answer}"
    );
    assert!(answer.contains(&identity("orders")), "{answer}");
    assert_eq!(imposter.metric(&format!("{IN}8080\",{OK}\"true\"}}")), 0.0);
}

/// What a root app may become, and an ephemeral container may be. Here all see one another's processes, as with
/// `shareProcessNamespace`.
#[test]
#[ignore = "needs root"]
fn its_own_user_and_root_read_nothing_of_a_sidecar() {
    let shop = Shop::new();
    let none = CaptureConfig::default();
    let web = shop.mesh.join(&shop.lab, &shop.web, "web", &none, &[]);
    let words = |text: &'static str| text.split(' ').collect::<Vec<_>>();
    let own = words("--reuid 2140 --regid 2140 --clear-groups --bounding-set -all --inh-caps -all");
    // What containerd and CRI-O give by default; SYS_PTRACE is not among it.
    let root = words(
        "--inh-caps -all --bounding-set -all,+chown,+dac_override,+fsetid,+fowner,+mknod,+net_raw,+setgid,+setuid,+setfcap,+setpcap,\
         +net_bind_service,+sys_chroot,+kill,+audit_write",
    );
    let reads = |who: &[&str], process: &Running, what: &str| {
        let what = what.replace("PROC", &format!("/proc/{}", process.id())) + " >/dev/null 2>&1";
        let arguments = [who, &["sh", "-c", &what]].concat();
        web.pod.run("setpriv", &arguments).status.success()
    };
    let start = |program: &str, arguments: &[&str]| {
        let mut command = web.pod.command("setpriv");
        // setpriv itself has capabilities until a program begins; a container's runtime has none then.
        command
            .args(&own)
            .args(["sh", "-c", "exec \"$0\" \"$@\"", program])
            .args(arguments);
        let process = web.pod.start(&mut command);
        let name = format!("grep -q {} PROC/comm", &program[program.len().saturating_sub(15)..]);
        let began = Instant::now();
        while !reads(&root, &process, &name) {
            assert!(began.elapsed() < Duration::from_secs(20), "{program} does not start");
        }
        process
    };
    let other = start("sleep", &["1d"]);
    // One that only begins, and has hidden nothing itself: the program is as in the images.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("outrigger-proxy");
    std::fs::copy(program("outrigger-proxy"), &copy).unwrap();
    std::fs::set_permissions(&copy, Permissions::from_mode(0o711)).unwrap();
    let begins = start(
        copy.to_str().unwrap(),
        &["wait", "--timeout", "1h", "--admin", "192.0.2.1:1"],
    );
    for what in [
        "cat PROC/environ",
        "ls PROC/root/",
        "readlink PROC/fd/0",
        "ls PROC/cwd/",
        "cat PROC/maps",
        ": < PROC/mem",
    ] {
        for (who, user) in [("its own user", &own), ("root", &root)] {
            assert!(!reads(user, &web.sidecar, what), "{who}: {what}");
            assert!(!reads(user, &begins, what), "{who}, of one that begins: {what}");
        }
        // So it is not for another reason. (Yama may forbid to open memory.)
        assert!(
            what.contains("mem") || reads(&own, &other, what),
            "another process: {what}"
        );
    }
    // And it reads what it needs of itself.
    for series in ["process_open_fds", "process_resident_memory_bytes"] {
        assert!(web.metric(series) > 0.0, "{series}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_sidecar_drains_while_its_app_has_a_socket() {
    let lab = Lab::new();
    let (with, without) = (lab.pod("web"), lab.pod("orders"));
    let mesh = Mesh::new(&lab, &["web", "orders"], Vec::new());
    let patient = [("OUTRIGGER_DRAIN_TIMEOUT", "1h")];
    let none = CaptureConfig::default();
    let app = with.enter(|| std::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let mut waits = mesh.join(&lab, &with, "web", &none, &patient);
    waits.sidecar.signal(Signal::SIGTERM);
    // One that waits for nobody has begun and ended meanwhile.
    let mut ends = mesh.join(&lab, &without, "orders", &none, &patient);
    assert!(ends.sidecar.terminate().success());
    assert!(waits.sidecar.runs());
    drop(app);
    assert!(waits.sidecar.wait(Duration::from_secs(60)).success());
}

#[test]
#[ignore = "needs root"]
fn a_sidecar_ends_in_peace() {
    let shop = Shop::new();
    let none = CaptureConfig::default();
    let mut web = shop
        .mesh
        .join(&shop.lab, &shop.web, "web", &none, &[("OUTRIGGER_DRAIN_TIMEOUT", "5s")]);
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, outrigger_api::ports::ADMIN));
    let from_outside = SocketAddr::new(shop.web.v4, outrigger_api::ports::ADMIN);
    let post = |from: &Namespace, address: SocketAddr| {
        from.enter(|| {
            let mut stream = TcpStream::connect(address).unwrap();
            let head = "POST /shutdown HTTP/1.1\r\nHost: x\r\noutrigger-admin: 1\r\nContent-Length: 0\r\n";
            write!(stream, "{head}Connection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        })
    };
    assert!(post(&shop.legacy, from_outside).starts_with("HTTP/1.1 403"));
    assert!(ask(web.pod, to(LEGACY)).starts_with("HTTP/1.1 200"));
    assert!(web.sidecar.terminate().success());

    // The pod's app lives on, so its sidecar takes the time that it has.
    let limit = [("OUTRIGGER_DRAIN_TIMEOUT", "5s")];
    let mut web = shop.mesh.join(&shop.lab, &shop.web, "web", &none, &limit);
    assert!(post(web.pod, loopback).starts_with("HTTP/1.1 200"));
    assert!(web.sidecar.wait(Duration::from_secs(20)).success());
}
