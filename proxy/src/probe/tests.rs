#![allow(clippy::unwrap_used)]
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::http::{HeaderMap, HeaderValue, StatusCode};
use outrigger_api::probes::{AppProbe, Ask, HttpGet, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::{Answer, AppProbes};

const POD: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An app that answers each connection with the next of `answers`, over and over, byte for byte.
struct App {
    port: u16,
    heads: mpsc::UnboundedReceiver<String>,
}

impl App {
    async fn start(answers: &[&str]) -> Self {
        let listener = TcpListener::bind((POD, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers: Vec<String> = answers.iter().map(|a| a.replace("PORT", &port.to_string())).collect();
        let (seen, heads) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for answer in answers.iter().cycle() {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = seen.send(head(&mut stream).await);
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { port, heads }
    }

    /// What was asked.
    async fn head(&mut self) -> String {
        self.heads.recv().await.unwrap()
    }
}

/// The lines in an order: that of different headers means nothing.
fn sorted(head: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = head.trim_end().split("\r\n").collect();
    lines[1..].sort_unstable();
    lines
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

const WELL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell";

fn http(port: u16, target: &str, headers: &[(&str, &str)]) -> AppProbe {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
    AppProbe {
        container: "app".to_owned(),
        kind: Kind::Liveness,
        port,
        timeout: Some(60),
        key: None,
        ask: Ask::Http(HttpGet {
            target: target.to_owned(),
            tls: false,
            headers: headers.collect(),
        }),
    }
}

fn handler(probe: AppProbe) -> AppProbe {
    AppProbe {
        kind: Kind::PreStop,
        timeout: None,
        ..probe
    }
}

async fn ask(probe: AppProbe) -> Answer {
    let at = outrigger_api::probes::path(&probe.container, probe.kind);
    let mut headers = HeaderMap::new();
    headers.insert("user-agent", HeaderValue::from_static("kube-probe/1.34"));
    AppProbes::new(POD, vec![probe]).ask(&at, POD, &headers).await
}

async fn status(probe: AppProbe) -> u16 {
    match ask(probe).await {
        Answer::Status(status, _) => status.as_u16(),
        Answer::Broken(why) => panic!("{why}"),
    }
}

#[tokio::test]
async fn the_request_is_kubelets() {
    let mut app = App::start(&[WELL]).await;
    let port = app.port;
    assert_eq!(status(http(port, "/ready?full=1", &[])).await, 200);
    let host = format!("Host: 127.0.0.1:{port}");
    assert_eq!(
        sorted(&app.head().await),
        [
            "GET /ready?full=1 HTTP/1.1",
            "Accept: */*",
            "Connection: close",
            &host,
            "User-Agent: kube-probe/1.34"
        ]
    );
    let declared = [
        ("host", "shop.example"),
        ("x-two", "1"),
        ("X-Two", " 2 "),
        ("User-Agent", "mine"),
        ("Accept", ""),
        ("Content-Length", "7"),
        ("Transfer-Encoding", "chunked"),
    ];
    assert_eq!(status(http(port, "/", &declared)).await, 200);
    assert_eq!(
        sorted(&app.head().await),
        [
            "GET / HTTP/1.1",
            "Connection: close",
            "Host: shop.example",
            "User-Agent: mine",
            "X-Two: 1",
            "X-Two: 2"
        ]
    );
    // What Go's client does not send either.
    assert_eq!(status(http(port, "/", &[("X", "a\nb")])).await, 502);
    assert_eq!(status(http(port, "/a b", &[])).await, 502);
}

#[tokio::test]
async fn the_answer_is_the_apps() {
    for (line, expected) in [
        ("200 OK", 200),
        ("204 No Content", 204),
        ("304 Not Modified", 304),
        ("399 Something", 399),
        ("400 Bad Request", 400),
        ("503 Service Unavailable", 503),
        ("599 Something", 599),
        // To kubelet both are failures.
        ("600 Something", 502),
        ("999 Something", 502),
    ] {
        let app = App::start(&[&format!("HTTP/1.1 {line}\r\nConnection: close\r\n\r\n")]).await;
        assert_eq!(status(http(app.port, "/", &[])).await, expected, "{line}");
    }
}

#[tokio::test]
async fn what_is_no_answer_is_a_failure() {
    for answer in [
        "",
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "SSH-2.0-OpenSSH_9.9\r\n",
    ] {
        let app = App::start(&[answer]).await;
        assert_eq!(status(http(app.port, "/", &[])).await, 502, "{answer:?}");
    }
    // As much as kubelet reads: what comes then is not its business.
    let long = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}",
        "x".repeat(20_000)
    );
    let app = App::start(&[&long]).await;
    assert_eq!(status(http(app.port, "/", &[])).await, 200);
}

#[tokio::test]
async fn redirects_within_the_pod_are_followed() {
    let redirect = |to: &str| format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
    let mut app = App::start(&[&redirect("../other"), &redirect("http://127.0.0.1:PORT/well"), WELL]).await;
    assert_eq!(status(http(app.port, "/a/b", &[("Host", "shop.example")])).await, 200);
    let host = |head: &str, expected: &str| assert!(head.contains(&format!("\r\nHost: {expected}\r\n")), "{head}");
    let first = app.head().await;
    host(&first, "shop.example");
    let second = app.head().await;
    assert!(second.starts_with("GET /other HTTP/1.1\r\n"), "{second}");
    host(&second, "shop.example");
    let third = app.head().await;
    assert!(third.starts_with("GET /well HTTP/1.1\r\n"), "{third}");
    host(&third, &format!("127.0.0.1:{}", app.port));
    assert!(
        third.contains(&format!("\r\nReferer: http://127.0.0.1:{}/other\r\n", app.port)),
        "{third}"
    );

    // Out of the pod: a success with a warning to kubelet, which must not go there either.
    let app = App::start(&[&redirect("https://login.example/")]).await;
    assert_eq!(status(http(app.port, "/", &[])).await, 302);
    let mut app = App::start(&[&redirect("/again")]).await;
    assert_eq!(status(http(app.port, "/", &[])).await, 502);
    for _ in 0..10 {
        app.head().await;
    }
    assert!(app.heads.try_recv().is_err(), "kubelet gives up after ten");
}

#[tokio::test]
async fn an_app_that_is_not_there() {
    let listener = TcpListener::bind((POD, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    for ask in [Ask::Tcp, Ask::Grpc(String::new())] {
        let probe = AppProbe {
            ask,
            ..http(port, "/", &[])
        };
        assert_eq!(status(probe).await, 503);
    }
    assert_eq!(status(http(port, "/", &[])).await, 503);
    // kubelet looks only whether there is an answer.
    assert!(matches!(ask(handler(http(port, "/", &[]))).await, Answer::Broken(_)));
    let app = App::start(&["HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\n"]).await;
    assert_eq!(status(handler(http(app.port, "/", &[]))).await, 500);
}

#[tokio::test(start_paused = true)]
async fn it_waits_as_long_as_kubelet_does() {
    let listener = TcpListener::bind((POD, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hung = |ask| AppProbe {
        timeout: Some(7),
        ask,
        ..http(port, "/", &[])
    };
    let get = http(port, "/", &[]).ask;
    for ask in [get, Ask::Grpc(String::new())] {
        let began = tokio::time::Instant::now();
        assert_eq!(status(hung(ask)).await, 504);
        assert_eq!(began.elapsed().as_secs(), 7);
    }
    drop(listener);
}

/// Every pod can ask: the app gets one request at a time for it, and kubelet the answer of that one.
#[tokio::test]
async fn many_who_ask_are_one_request_to_the_app() {
    let listener = TcpListener::bind((POD, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, (answer, mut wait)) = (Arc::clone(&asked), tokio::sync::watch::channel(false));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            head(&mut stream).await;
            count.fetch_add(1, Ordering::SeqCst);
            wait.wait_for(|now| *now).await.unwrap();
            stream.write_all(WELL.as_bytes()).await.unwrap();
        }
    });
    let probes = Arc::new(AppProbes::new(POD, vec![http(port, "/", &[])]));
    let (begun, mut began) = mpsc::unbounded_channel();
    let asking: Vec<_> = (0..100)
        .map(|number: u8| {
            let (probes, begun) = (Arc::clone(&probes), begun.clone());
            tokio::spawn(async move {
                begun.send(()).unwrap();
                let from = IpAddr::from([10, 0, 0, number / 4]);
                probes.ask("/probe/app/liveness", from, &HeaderMap::new()).await
            })
        })
        .collect();
    for _ in 0..100 {
        began.recv().await.unwrap();
    }
    // Of one address a few are enough.
    let first = IpAddr::from([10, 0, 0, 0]);
    let fifth = probes.ask("/probe/app/liveness", first, &HeaderMap::new()).await;
    assert!(matches!(fifth, Answer::Status(StatusCode::TOO_MANY_REQUESTS, _)));
    answer.send(true).unwrap();
    for asked in asking {
        assert!(matches!(asked.await.unwrap(), Answer::Status(StatusCode::OK, _)));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    // A new question is a new request.
    probes.ask("/probe/app/liveness", POD, &HeaderMap::new()).await;
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn only_what_is_declared_is_asked_and_handlers_by_kubelet_only() {
    let mut app = App::start(&[WELL]).await;
    let keyed = AppProbe {
        key: Some("the-key".to_owned()),
        ..handler(http(app.port, "/", &[]))
    };
    let probes = AppProbes::new(POD, vec![keyed]);
    let shown = |key: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(outrigger_api::probes::KEY_HEADER, HeaderValue::from_static(key));
        headers
    };
    let said = async |at: &str, headers: &HeaderMap| match probes.ask(at, POD, headers).await {
        Answer::Status(status, _) => status.as_u16(),
        Answer::Broken(why) => panic!("{why}"),
    };
    assert_eq!(said("/probe/app/liveness", &shown("the-key")).await, 404);
    assert_eq!(said("/probe/other/preStop", &shown("the-key")).await, 404);
    assert_eq!(said("/probe/app/preStop", &HeaderMap::new()).await, 403);
    assert_eq!(said("/probe/app/preStop", &shown("a-key")).await, 403);
    assert!(app.heads.try_recv().is_err());
    assert_eq!(said("/probe/app/preStop", &shown("the-key")).await, 200);
    app.head().await;
}
