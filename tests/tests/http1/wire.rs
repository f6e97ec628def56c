//! A client and an app that see bytes, and the sidecars between them.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_proxy::app::RunningProxy;
use outrigger_tests::mesh::{Authority, SOON, Sidecar, id};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Which sidecars a request passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The client's and the app's, with mutual TLS.
    Both,
    Outbound,
    Inbound,
}

pub(crate) const WAYS: [Way; 3] = [Way::Both, Way::Outbound, Way::Inbound];

/// An app, and sidecars before it.
pub(crate) struct Scene {
    pub(crate) way: Way,
    app: TcpListener,
    /// Where the client connects.
    pub(crate) address: SocketAddr,
    /// The one that the client talks to is the last.
    pub(crate) sidecars: Vec<RunningProxy>,
    _authority: Authority,
}

impl Scene {
    pub(crate) async fn new(way: Way) -> Self {
        Self::with(way, "http1", "{retry: {attempts: 0}}").await
    }

    /// `policy` in YAML; it is of the outbound sidecar.
    pub(crate) async fn with(way: Way, protocol: &str, policy: &str) -> Self {
        let authority = Authority::start(&["web", "orders"], Duration::from_secs(3600)).await;
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut address = app.local_addr().unwrap();
        let mut identity = None;
        let mut sidecars = Vec::new();
        if way != Way::Outbound {
            let orders = Sidecar::new("orders").protects(address).start(&authority).await;
            (address, identity) = (orders.inbound[0], Some(id("orders")));
            sidecars.push(orders);
        }
        if way != Way::Inbound {
            let web = Sidecar::new("web").calls("orders", protocol, &[(address, identity)], policy);
            let web = web.start(&authority).await;
            address = web.outbound[0];
            sidecars.push(web);
        }
        Self {
            way,
            app,
            address,
            sidecars,
            _authority: authority,
        }
    }

    pub(crate) async fn client(&self) -> Wire {
        Wire::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// The next connection that the app gets.
    pub(crate) async fn app(&self) -> Wire {
        let accepted = tokio::time::timeout(SOON, self.app.accept()).await;
        Wire::new(accepted.expect("the app gets no connection").unwrap().0)
    }

    /// Whether the app has a connection that it has not taken.
    pub(crate) async fn is_called(&self) -> bool {
        tokio::time::timeout(Duration::from_millis(1), self.app.accept())
            .await
            .is_ok()
    }

    /// One request and its response on new connections; gives what the app and the client got.
    pub(crate) async fn exchange(&self, request: &[u8], response: &[u8]) -> (String, String) {
        let mut client = self.client().await;
        client.send(request).await;
        let mut app = self.app().await;
        let mut seen = app.head().await;
        seen.push_str(&app.body(&seen).await);
        app.send(response).await;
        let mut answer = client.head().await;
        answer.push_str(&client.body(&answer).await);
        (without_ours(&seen), answer)
    }
}

/// A connection, byte by byte.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    /// What was read and not looked at.
    ahead: Vec<u8>,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            ahead: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Up to the end of a head, with each byte as a character.
    pub(crate) async fn head(&mut self) -> String {
        self.until(b"\r\n\r\n").await
    }

    /// Up to and with `end`.
    pub(crate) async fn until(&mut self, end: &[u8]) -> String {
        loop {
            if let Some(at) = self.ahead.windows(end.len()).position(|w| w == end) {
                return self.take(at + end.len());
            }
            let so_far = text(&self.ahead);
            assert!(self.more().await, "the connection ended after {so_far:?}");
        }
    }

    pub(crate) async fn exactly(&mut self, n: usize) -> String {
        while self.ahead.len() < n {
            let so_far = text(&self.ahead);
            assert!(self.more().await, "the connection ended after {so_far:?}");
        }
        self.take(n)
    }

    /// Everything up to the end of the connection. A reset counts as one.
    pub(crate) async fn end(&mut self) -> String {
        while self.more().await {}
        self.take(self.ahead.len())
    }

    /// The body that a head announces, framing included. Of a body that lasts until the end, nothing.
    pub(crate) async fn body(&mut self, head: &str) -> String {
        let head = head.to_ascii_lowercase();
        let of = |name: &str| {
            head.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let bodyless = ["http/1.1 204", "http/1.1 304"]
            .iter()
            .any(|status| head.starts_with(status));
        if bodyless {
            return String::new();
        }
        if let Some(length) = of("content-length") {
            return self.exactly(length.parse().unwrap()).await;
        }
        if of("transfer-encoding").is_some() {
            let mut body = self.until(b"0\r\n").await;
            loop {
                let line = self.until(b"\r\n").await;
                body.push_str(&line);
                if line == "\r\n" {
                    return body;
                }
            }
        }
        String::new()
    }

    /// Whether nothing comes for a moment.
    pub(crate) async fn is_silent(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.ahead);
        let came = tokio::time::timeout(Duration::from_millis(200), read).await.is_ok();
        !came && self.ahead.is_empty()
    }

    async fn more(&mut self) -> bool {
        let read = tokio::time::timeout(SOON * 2, self.stream.read_buf(&mut self.ahead)).await;
        matches!(
            read.unwrap_or_else(|_| panic!("nothing comes after {:?}", text(&self.ahead))),
            Ok(1..)
        )
    }

    fn take(&mut self, n: usize) -> String {
        let taken: Vec<u8> = self.ahead.drain(..n).collect();
        text(&taken)
    }
}

/// Latin-1: each byte is a character.
pub(crate) fn text(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// A head without what sidecars add to it: whose client is known to be "web" by mutual TLS, one line says so.
pub(crate) fn without_ours(head: &str) -> String {
    let proven = format!("outrigger-client-id: {}\r\n", id("web"));
    let added = |line: &str| line.starts_with("x-request-id: ") || line.starts_with("traceparent: ") || line == proven;
    head.split_inclusive("\r\n").filter(|line| !added(line)).collect()
}
