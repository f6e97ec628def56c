//! Traffic capture in real network namespaces: what the kernel does with connections once `outrigger-proxy init` ran.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use outrigger_api::ports::{ADMIN, INBOUND, OUTBOUND, PROXY_UID};
use outrigger_proxy::capture::{CaptureConfig, apply};
use outrigger_tests::netns::{Lab, Namespace, Pod, program};

/// A ClusterIP: nothing answers there but a sidecar.
const SERVICE_V4: &str = "10.96.3.4:8080";
const SERVICE_V6: &str = "[fd96::34]:8080";
const TIMEOUT: Duration = Duration::from_secs(5);

/// Says a word to whoever connects, and where the connection wanted to go if it was redirected.
fn say(namespace: &Namespace, listen: &str, word: &'static str) {
    let listen: SocketAddr = listen.parse().unwrap();
    let listener = namespace.enter(|| TcpListener::bind(listen).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let text = match original_destination(&stream) {
                Some(wanted) if wanted != stream.local_addr().unwrap() => format!("{word} {wanted}"),
                _ => word.to_owned(),
            };
            // The other side may be gone: a test that fails says why by itself.
            _ = stream.write_all(text.as_bytes());
        }
    });
}

fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    if stream.local_addr().unwrap().is_ipv4() {
        let address = getsockopt(stream, sockopt::OriginalDst).ok()?;
        let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
        Some(SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into())
    } else {
        let address = getsockopt(stream, sockopt::Ip6tOriginalDst).ok()?;
        let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
        Some(SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, 0).into())
    }
}

/// What whoever answers there says.
fn hear(namespace: &Namespace, address: &str) -> String {
    let address: SocketAddr = address.parse().unwrap();
    namespace.enter(|| {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    })
}

/// As [`hear`], as another user.
fn hear_as(namespace: &Namespace, uid: u32, address: &str) -> String {
    let address: SocketAddr = address.parse().unwrap();
    let read = format!("exec 3<>/dev/tcp/{}/{}; cat <&3", address.ip(), address.port());
    let uid = uid.to_string();
    let output = namespace.run(
        "setpriv",
        &["--reuid", &uid, "--clear-groups", "timeout", "5", "bash", "-c", &read],
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn capture(pod: &Pod, config: &CaptureConfig) {
    pod.enter(|| apply(config)).unwrap();
}

/// A pod with capture, and both listeners of a sidecar.
fn captured(lab: &Lab, config: &CaptureConfig) -> Pod {
    let pod = lab.pod("app");
    capture(&pod, config);
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        say(&pod, &SocketAddr::new(ip, OUTBOUND).to_string(), "outbound");
    }
    say(&pod, &format!("0.0.0.0:{INBOUND}"), "inbound");
    say(&pod, &format!("[{}]:{INBOUND}", pod.v6), "inbound");
    pod
}

fn everything() -> CaptureConfig {
    CaptureConfig {
        skip_inbound_ports: vec![22..=22],
        skip_outbound_ports: vec![25..=25, 9000..=9010],
        skip_outbound_cidrs: ["10.8.0.0/13", "192.0.2.7/32", "fd00:8::/33"]
            .map(|net| net.parse().unwrap())
            .to_vec(),
        skip_uids: vec![1337],
    }
}

fn listed(pod: &Pod) -> String {
    let output = pod.run("nft", &["list", "table", "inet", "outrigger"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs root"]
fn the_table_as_nft_reads_it() {
    let lab = Lab::new();
    let pod = lab.pod("app");
    capture(&pod, &everything());
    let expected = r#"table inet outrigger {
	chain outbound {
		type nat hook output priority dstnat; policy accept;
		meta skuid 2140 return comment "the sidecar itself"
		meta skuid 1337 return comment "excluded user"
		oifname "lo" return comment "the pod to itself"
		tcp dport 25 return comment "excluded port"
		tcp dport 9000-9010 return comment "excluded port"
		ip daddr 10.8.0.0/13 return comment "excluded address"
		ip daddr 192.0.2.7 return comment "excluded address"
		ip6 daddr fd00:8::/33 return comment "excluded address"
		meta l4proto tcp redirect to :14140 comment "captured"
	}

	chain inbound {
		type nat hook prerouting priority dstnat; policy accept;
		iifname "lo" return comment "the pod to itself"
		tcp dport 14190 return comment "probes and metrics"
		tcp dport 14143 drop comment "not reachable from outside"
		tcp dport 14140 drop comment "not reachable from outside"
		tcp dport 22 return comment "excluded port"
		fib daddr type local meta l4proto tcp redirect to :14143 comment "captured"
		meta l4proto tcp drop comment "for another host"
	}
}
"#;
    // Some versions of nft write the priority of an output chain as a number.
    assert_eq!(listed(&pod).replace("priority -100", "priority dstnat"), expected);
}

#[test]
#[ignore = "needs root"]
fn a_second_run_replaces_the_first() {
    let lab = Lab::new();
    let pod = lab.pod("app");
    capture(&pod, &everything());
    capture(&pod, &CaptureConfig::default());
    let once = listed(&pod);
    assert!(!once.contains("1337"));
    capture(&pod, &CaptureConfig::default());
    assert_eq!(listed(&pod), once);
}

#[test]
#[ignore = "needs root"]
fn the_longest_lists_fit() {
    let lab = Lab::new();
    let pod = lab.pod("app");
    let range = |i: u16| i..=i + 1;
    let config = CaptureConfig {
        skip_inbound_ports: (0..100).map(|i| range(1000 + 3 * i)).collect(),
        skip_outbound_ports: (0..100).map(|i| range(2000 + 3 * i)).collect(),
        skip_outbound_cidrs: (0..100).map(|i| format!("fd00:{i:x}::/32").parse().unwrap()).collect(),
        skip_uids: (1..=100).collect(),
    };
    capture(&pod, &config);
    assert_eq!(listed(&pod).matches("comment").count(), 400 + 9);
}

#[test]
#[ignore = "needs root"]
fn outgoing_connections_are_captured_in_both_families() {
    let lab = Lab::new();
    let other = lab.pod("other");
    let pod = captured(&lab, &CaptureConfig::default());
    for wanted in [SERVICE_V4, SERVICE_V6] {
        assert_eq!(hear(&pod, wanted), format!("outbound {wanted}"));
    }
    for wanted in other.addresses(80) {
        assert_eq!(hear(&pod, &wanted.to_string()), format!("outbound {wanted}"));
    }
}

#[test]
#[ignore = "needs root"]
fn the_sidecar_and_excluded_users_are_not_captured() {
    let lab = Lab::new();
    let other = lab.pod("other");
    let config = CaptureConfig {
        skip_uids: vec![1337],
        ..CaptureConfig::default()
    };
    let pod = captured(&lab, &config);
    for address in other.addresses(80) {
        let address = address.to_string();
        say(&other, &address, "direct");
        assert_eq!(hear_as(&pod, PROXY_UID, &address), "direct");
        assert_eq!(hear_as(&pod, 1337, &address), "direct");
        assert_eq!(hear_as(&pod, 1338, &address), format!("outbound {address}"));
    }
}

#[test]
#[ignore = "needs root"]
fn excluded_ports_and_addresses_are_not_captured() {
    let lab = Lab::new();
    let (other, excluded) = (lab.pod("other"), lab.pod("excluded"));
    let config = CaptureConfig {
        skip_outbound_ports: vec![25..=25, 9000..=9010],
        skip_outbound_cidrs: vec![excluded.v4.into(), excluded.v6.into()],
        ..CaptureConfig::default()
    };
    let pod = captured(&lab, &config);
    for port in [25, 9000, 9010] {
        for address in other.addresses(port) {
            say(&other, &address.to_string(), "direct");
            assert_eq!(hear(&pod, &address.to_string()), "direct");
        }
    }
    for port in [24, 26, 8999, 9011] {
        for address in other.addresses(port) {
            assert_eq!(hear(&pod, &address.to_string()), format!("outbound {address}"));
        }
    }
    for address in excluded.addresses(80) {
        say(&excluded, &address.to_string(), "direct");
        assert_eq!(hear(&pod, &address.to_string()), "direct");
    }
}

#[test]
#[ignore = "needs root"]
fn incoming_connections_are_captured_in_both_families() {
    let lab = Lab::new();
    let other = lab.pod("other");
    let config = CaptureConfig {
        skip_inbound_ports: vec![22..=22],
        ..CaptureConfig::default()
    };
    let pod = captured(&lab, &config);
    for client in [&other as &Namespace, lab.outside()] {
        for address in pod.addresses(8080) {
            assert_eq!(hear(client, &address.to_string()), format!("inbound {address}"));
        }
    }
    for port in [22, ADMIN] {
        for address in pod.addresses(port) {
            say(&pod, &address.to_string(), "direct");
            assert_eq!(hear(&other, &address.to_string()), "direct");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn nobody_reaches_the_listeners_past_the_rules() {
    let lab = Lab::new();
    let other = lab.pod("other");
    // Not even where somebody excludes the very port.
    let config = CaptureConfig {
        skip_inbound_ports: vec![INBOUND..=INBOUND],
        ..CaptureConfig::default()
    };
    let pod = captured(&lab, &config);
    for port in [INBOUND, OUTBOUND] {
        for address in pod.addresses(port) {
            let refused = other.enter(|| TcpStream::connect_timeout(&address, Duration::from_millis(500)));
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::TimedOut, "{address}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_pod_reaches_itself() {
    let lab = Lab::new();
    let pod = captured(&lab, &CaptureConfig::default());
    let loopback = [
        SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, 8080)),
    ];
    for address in pod.addresses(8080).into_iter().chain(loopback) {
        let address = address.to_string();
        say(&pod, &address, "direct");
        assert_eq!(hear(&pod, &address), "direct");
        assert_eq!(hear_as(&pod, PROXY_UID, &address), "direct", "the sidecar to its app");
    }
}

#[test]
#[ignore = "needs root"]
fn init_needs_one_capability_and_fails_closed_without_it() {
    let lab = Lab::new();
    let pod = lab.pod("app");
    let init = program("outrigger-proxy");
    let init = init.to_str().unwrap();
    let with = |capabilities: &str| {
        let bounding = ["--bounding-set", capabilities, "--inh-caps", capabilities];
        pod.run("setpriv", &[&bounding[..], &["--no-new-privs", init, "init"]].concat())
    };
    let output = with("-all");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && errors.contains("NET_ADMIN"), "{errors}");
    assert!(!pod.run("nft", &["list", "table", "inet", "outrigger"]).status.success());
    let output = with("-all,+net_admin");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(listed(&pod).contains("redirect to :14140"));
    let mut wrong = pod.command(init);
    let output = wrong.arg("init").env("OUTRIGGER_SKIP_UIDS", "root").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && errors.contains("OUTRIGGER_SKIP_UIDS"),
        "{errors}"
    );
}
