//! The table of the decision itself, asked of a real sidecar: by peers of real mutual TLS with the identities that it names, and by nobody
//! in plaintext, in HTTP/1, in HTTP/2, and as bytes. What becomes of each is what the table says, and so is what is counted.
//!
//! What a test on one host cannot be is left out: a peer of another address or trust domain, a target that no client of HTTP can write.

#[path = "../../../access/tests/table/format.rs"]
mod format;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Request};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_api::access::{Access, Ports, condition, source};
use outrigger_proxy::app::RunningProxy;
use outrigger_proxy::config::{InboundDestination, InboundListener};
use outrigger_tests::mesh::{TRUST_DOMAIN, text};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use self::format::{Case, Section};
use super::scene::{Scene, Witness, by_hand};
use super::script::Script;
use super::{SOON, until};
use crate::tcp::certificates::of;
use crate::tcp::hostile::client;

/// What a case is sent as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Http1,
    Http2,
    Bytes,
}

/// The ports of the table, each an app, and where the sidecar listens for it.
struct Pod {
    scene: Scene,
    apps: HashMap<u16, (u16, SocketAddr)>,
    _witnesses: Vec<Witness>,
    identities: HashMap<(String, &'static str), Arc<ClientConfig>>,
}

impl Pod {
    async fn new(ports: &[u16]) -> Self {
        let script = Script::default();
        script.says(Access::default());
        let first = Witness::start().await;
        let mut witnesses = Vec::new();
        for _ in ports {
            witnesses.push(first.another().await);
        }
        let listen = witnesses.iter().map(|app| InboundListener {
            listen: "127.0.0.1:0".parse().unwrap(),
            to: InboundDestination::Fixed(app.address),
        });
        let listen: Vec<_> = listen.collect();
        let scene = Scene::by(script, |config| config.inbound.extend(listen)).await;
        let at = &scene.orders.inbound[1..];
        let apps = ports.iter().zip(witnesses.iter().zip(at));
        let apps = apps
            .map(|(port, (app, at))| (*port, (app.address.port(), *at)))
            .collect();
        witnesses.push(first);
        Self {
            scene,
            apps,
            _witnesses: witnesses,
            identities: HashMap::new(),
        }
    }

    /// The policies, for the ports that the apps have here.
    fn policies(&self, section: &Section) -> Access {
        let mut access = section.access(TRUST_DOMAIN);
        let here = |ports: &mut Ports| {
            for number in &mut ports.numbers {
                let port = u16::try_from(*number).ok().and_then(|number| self.apps.get(&number));
                // Of a port that no case is about, one that nobody has.
                *number = port.map_or(1, |(port, _)| u32::from(*port));
            }
        };
        for policy in access.enforced.iter_mut().chain(&mut access.audited) {
            policy.ports.iter_mut().for_each(here);
            let conditions = policy.rules.iter_mut().flat_map(|rule| &mut rule.conditions);
            for kind in conditions.filter_map(|condition| condition.kind.as_mut()) {
                if let condition::Kind::Ports(ports) = kind {
                    here(ports);
                }
            }
        }
        access
    }

    /// `None`: nobody.
    fn identity(&mut self, case: &Case, alpn: &'static str) -> Option<Arc<ClientConfig>> {
        let id = match case.from.as_str() {
            "nobody" => return None,
            id if id.starts_with("spiffe://") => id.to_owned(),
            account => {
                let (namespace, account) = account.split_once('/').unwrap();
                format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}")
            }
        };
        let authority = &self.scene.authority;
        let made = self.identities.entry((id, alpn));
        Some(Arc::clone(made.or_insert_with_key(|(id, alpn)| {
            client(Some(of(authority, id)), &[alpn])
        })))
    }

    /// Whether it comes to the app. `None`: no client can send it so.
    async fn sends(&mut self, case: &Case, way: Way) -> Option<bool> {
        let (_, at) = self.apps[&case.port];
        let alpn = match way {
            Way::Http1 => "outrigger/h1",
            Way::Http2 => "outrigger/h2",
            Way::Bytes => "outrigger/tcp",
        };
        let identity = self.identity(case, alpn);
        let send = async {
            match identity {
                Some(identity) => ask(by_hand(identity, at).await.unwrap(), case, way).await,
                None => ask(TcpStream::connect(at).await.unwrap(), case, way).await,
            }
        };
        tokio::time::timeout(SOON, send).await.expect("it takes too long")
    }
}

async fn ask(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, case: &Case, way: Way) -> Option<bool> {
    match way {
        Way::Http1 => http1(stream, case).await,
        Way::Http2 => http2(stream, case).await,
        Way::Bytes => Some(bytes(stream).await),
    }
}

async fn bytes(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> bool {
    let echo = async {
        stream.write_all(b"\0word").await?;
        stream.flush().await?;
        stream.read_exact(&mut [0; 5]).await
    };
    echo.await.is_ok()
}

async fn http1(mut stream: impl AsyncRead + AsyncWrite + Unpin, case: &Case) -> Option<bool> {
    let mut head = format!("{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", case.send, case.host);
    for (name, lines) in &case.headers {
        lines
            .all()
            .iter()
            .for_each(|line| head += &format!("{name}: {line}\r\n"));
    }
    head += "\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    // A tunnel that was begun ends with the client.
    while !answer.ends_with(b"\r\n\r\n") && stream.read_buf(&mut answer).await.is_ok_and(|read| read > 0) {}
    let answer = String::from_utf8_lossy(&answer).into_owned();
    judge(
        answer.get(9..12)?.parse().unwrap(),
        answer.contains("outrigger-error: access-denied"),
    )
}

async fn http2(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, case: &Case) -> Option<bool> {
    let (method, target) = case.send.split_once(' ').unwrap();
    let uri = match target.starts_with('/') {
        true if case.host.is_empty() => return None,
        true => format!("http://{}{target}", case.host),
        false => target.to_owned(),
    };
    let mut request = Request::builder().method(method).uri(uri).body(text("")).ok()?;
    request.uri().authority()?;
    for (name, lines) in &case.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        for line in lines.all() {
            request
                .headers_mut()
                .append(&name, HeaderValue::from_str(line).unwrap());
        }
    }
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.ok()?;
    connection.abort();
    let denied = response
        .headers()
        .get("outrigger-error")
        .is_some_and(|code| code == "access-denied");
    judge(response.status().as_u16(), denied)
}

/// Whether the app has answered. `None`: it is no request for a sidecar.
fn judge(status: u16, denied: bool) -> Option<bool> {
    match status {
        200 | 101 if !denied => Some(true),
        403 | 200 if denied => Some(false),
        400 => None,
        other => panic!("{other}, denied: {denied}"),
    }
}

/// What the table says, as it is counted.
fn expected(case: &Case) -> Vec<String> {
    let reason = if case.ambiguous {
        ",reason=\"ambiguous-path\""
    } else {
        ""
    };
    let series = |decision: &str, by: &str| match by.split_once(' ') {
        Some((policy, rule)) => format!("{{decision=\"{decision}\",policy=\"{policy}\",rule=\"{rule}\"{reason}}}"),
        None if by.is_empty() => format!("{{decision=\"{decision}\"}}"),
        None => format!("{{decision=\"{decision}\",policy=\"{by}\"{reason}}}"),
    };
    let (decision, by) = case.then.split_once(' ').unwrap_or((&case.then, ""));
    let decision = match decision {
        "refused" => "denied",
        other => other,
    };
    let mut all = vec![series(decision, by.trim_start_matches("by "))];
    all.extend(case.audit.iter().map(|audited| series("audited", audited)));
    all.sort();
    all
}

fn counted(proxy: &RunningProxy) -> HashMap<String, u64> {
    let text = proxy.telemetry().metrics().text();
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("outrigger_access_total")?.rsplit_once(' '));
    lines
        .map(|(series, count)| (series.to_owned(), count.parse().unwrap()))
        .collect()
}

/// What one host cannot be.
fn is_elsewhere(case: &Case) -> bool {
    let stranger = case.from.starts_with("spiffe://") && !case.from.starts_with(&format!("spiffe://{TRUST_DOMAIN}/"));
    stranger || case.at != "10.244.1.7"
}

/// Whether the peer's address has a say.
fn is_about_addresses(access: &Access) -> bool {
    let policies = access.enforced.iter().chain(&access.audited);
    let mut conditions = policies
        .flat_map(|policy| &policy.rules)
        .flat_map(|rule| &rule.conditions);
    conditions.any(|condition| match &condition.kind {
        Some(condition::Kind::Sources(sources)) => sources
            .any
            .iter()
            .any(|source| matches!(source.kind, Some(source::Kind::Networks(_)))),
        _ => false,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_decision_is_what_a_sidecar_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../access/tests/table");
    let sections = format::sections(&folder, |text| text.replace("cluster.local", TRUST_DOMAIN));
    let mut ports: Vec<u16> = sections
        .iter()
        .flat_map(|(_, section)| &section.cases)
        .map(|case| case.port)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    let mut pod = Pod::new(&ports).await;
    let (mut asked, mut ambiguous, mut wrong) = ([0; 3], 0, Vec::new());
    for (file, section) in &sections {
        let access = pod.policies(section);
        if is_about_addresses(&access) {
            continue;
        }
        let selects = |port| {
            let of = |policy: &outrigger_api::access::Policy| {
                policy.ports.as_ref().is_none_or(|ports| ports.numbers.contains(&port))
            };
            access.enforced.iter().chain(&access.audited).any(of)
        };
        let selected: Vec<u16> = pod
            .apps
            .iter()
            .filter(|(_, (port, _))| selects(u32::from(*port)))
            .map(|(port, _)| *port)
            .collect();
        pod.scene.is_told(access).await;
        for case in section.cases.iter().filter(|case| !is_elsewhere(case)) {
            let ways = match case.send.as_str() {
                "bytes" => &[Way::Bytes][..],
                _ => &[Way::Http1, Way::Http2],
            };
            for &way in ways {
                let name = format!("{file}: {}: {}, as {way:?}", section.about, case.case);
                let expected = if selected.contains(&case.port) {
                    expected(case)
                } else {
                    Vec::new()
                };
                // What was asked before may be counted meanwhile, by a connection that has broken: so what is not expected is asked again.
                for again in [true, false] {
                    let before = counted(&pod.scene.orders);
                    let Some(comes) = pod.sends(case, way).await else {
                        break;
                    };
                    if comes != case.then.starts_with("allowed") {
                        wrong.push(format!("{name}: comes to the app: {comes}, and not: {}", case.then));
                        break;
                    }
                    let mut told = Vec::new();
                    until(&format!("{name} is counted"), async || {
                        let after = counted(&pod.scene.orders);
                        told = after
                            .into_iter()
                            .filter(|(series, count)| before.get(series) != Some(count))
                            .map(|(series, _)| series)
                            .collect();
                        told.sort();
                        told.len() >= expected.len()
                    })
                    .await;
                    if told != expected && again {
                        continue;
                    }
                    asked[way as usize] += 1;
                    ambiguous += usize::from(case.ambiguous);
                    if told != expected {
                        wrong.push(format!("{name}: {told:?}, and not {expected:?}"));
                    }
                    break;
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {asked:?}:\n{}", wrong.len(), wrong.join("\n"));
    println!("{asked:?} as HTTP/1, HTTP/2 and bytes, {ambiguous} of them with an ambiguous path");
    assert!(
        asked.iter().zip([250, 250, 20]).all(|(asked, least)| *asked >= least),
        "{asked:?}"
    );
    assert!(ambiguous >= 50, "{ambiguous}");
}
