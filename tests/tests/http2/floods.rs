//! Clients that mean harm: they are told so or made to wait, in bounded memory, and nobody else notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::io::AsyncWriteExt;

use super::raw::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM, Raw, SETTINGS,
    WINDOW_UPDATE, frame,
};
use super::{Between, H2App, all, client, mesh, send, soon};

// RFC 9113 section 7.
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
pub(super) const ENHANCE_YOUR_CALM: u32 = 11;

/// A long response, of which each stream has a part in its hands and no copy.
static LONG: [u8; 1 << 20] = [0; 1 << 20];

pub(super) async fn app() -> H2App {
    H2App::start(|request, mut respond| async move {
        match request.uri().path() {
            // The attackers' requests have this path.
            "/" => {
                let response = http::Response::new(());
                let Ok(mut stream) = respond.send_response(response, false) else {
                    return;
                };
                let _ = send(&mut stream, Bytes::from_static(&LONG), true).await;
            }
            _ => {
                let _ = respond.send_response(http::Response::new(()), true);
            }
        }
    })
    .await
}

/// Others on the same listeners: they are served all the time.
pub(super) struct Others {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Others {
    pub(super) fn start([outbound, inbound]: [SocketAddr; 2]) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let task = tokio::spawn({
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            async move {
                let mut kept = client(outbound).await;
                while !stop.load(SeqCst) {
                    // A connection that lasts, and new ones.
                    for sender in [&mut kept, &mut client(outbound).await, &mut client(inbound).await] {
                        // It is not sent again when it is lost.
                        let request = Request::post("http://orders/others").body(()).unwrap();
                        let (response, _) = sender.send_request(request, true).unwrap();
                        let response = soon(response).await.unwrap();
                        let status = response.status();
                        let text = response.into_body().data().await;
                        assert_eq!(status, 200, "{text:?}");
                    }
                    served.fetch_add(1, SeqCst);
                }
            }
        });
        Self { stop, served, task }
    }

    /// They were served, and are.
    pub(super) async fn are_well(self) {
        let before = self.served.load(SeqCst);
        soon(async {
            while self.served.load(SeqCst) < before + 2 && !self.task.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        self.stop.store(true, SeqCst);
        self.task.await.unwrap();
    }
}

/// Runs an attack on the outbound and on the inbound listener of two sidecars, with others around.
async fn attack<R: Future<Output = ()>>(run: impl Fn(SocketAddr) -> R) {
    let app = app().await;
    let mesh = mesh(Between::Both, app.address, "{}").await;
    let listeners = [
        mesh.web.as_ref().unwrap().outbound[0],
        mesh.orders.as_ref().unwrap().inbound[0],
    ];
    for to in listeners {
        let others = Others::start(listeners);
        run(to).await;
        others.are_well().await;
    }
}

/// Sends again and again, until it is sent off: gives the code, or `None` when it was all taken.
async fn until_sent_off(raw: Raw, bytes: &[u8], times: usize) -> Option<u32> {
    let Raw { mut read, mut write } = raw;
    let reading = tokio::spawn(async move {
        // The write half stays with the writer.
        let mut raw = RawRead(&mut read);
        raw.goaway().await
    });
    for _ in 0..times {
        if reading.is_finished() || soon(write.write_all(bytes)).await.is_err() {
            break;
        }
    }
    let _ = write.shutdown().await;
    soon(reading).await.unwrap()
}

struct RawRead<'a>(&'a mut tokio::io::ReadHalf<tokio::net::TcpStream>);

impl RawRead<'_> {
    /// The code of a GOAWAY that is no farewell.
    async fn goaway(&mut self) -> Option<u32> {
        use tokio::io::AsyncReadExt;
        let mut code = None;
        loop {
            let mut head = [0; 9];
            if self.0.read_exact(&mut head).await.is_err() {
                return code;
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if self.0.read_exact(&mut payload).await.is_err() {
                return code;
            }
            if head[3] == GOAWAY {
                let told = u32::from_be_bytes(payload[4..8].try_into().unwrap());
                code = Some(told).filter(|told| *told != 0).or(code);
            }
        }
    }
}

pub(super) fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &raw::request(false))
}

#[tokio::test]
async fn rapid_reset() {
    attack(|to| async move {
        let raw = Raw::connect(to, &[]).await;
        let flood: Vec<u8> = (0..20_000)
            .map(|n| 2 * n + 1)
            .flat_map(|stream| [get(stream), frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat())
            .collect();
        assert_eq!(until_sent_off(raw, &flood, 1).await, Some(ENHANCE_YOUR_CALM));
    })
    .await;
}

#[tokio::test]
async fn rapid_reset_of_what_was_begun() {
    // Slow enough that many are looked at and passed on, so that the next hop gets them, on a connection that others share.
    attack(|to| async move {
        let mut raw = Raw::connect(to, &[]).await;
        for n in 0..2_000 {
            let stream = 2 * n + 1;
            let reset = frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
            if raw.write.write_all(&get(stream)).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
            // Who is too fast is sent off.
            if raw.write.write_all(&reset).await.is_err() {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn endless_heads() {
    attack(|to| async move {
        for size in [0, 1, 100, 16_384] {
            let mut raw = Raw::connect(to, &[]).await;
            raw.send(&frame(HEADERS, END_STREAM, 1, &raw::request(false))).await;
            // A literal without a name in the index, whose value of 16 MB never ends.
            raw.send(&frame(CONTINUATION, 0, 1, &[0, 1, b'a', 0x7f, 0x81, 0xff, 0xff, 0x07]))
                .await;
            let code = until_sent_off(raw, &frame(CONTINUATION, 0, 1, &vec![b'v'; size]), 100_000).await;
            assert!(
                matches!(code, Some(ENHANCE_YOUR_CALM | 9 | PROTOCOL_ERROR)),
                "{size}: {code:?}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn frames_that_are_too_large() {
    attack(|to| async move {
        for (kind, stream) in [(DATA, 1), (HEADERS, 1), (SETTINGS, 0), (PING, 0), (0xee, 0)] {
            let mut raw = Raw::connect(to, &[]).await;
            // 16,777,215 bytes are announced; the limit is 16,384.
            let mut head = frame(kind, 0, stream, &[]);
            head[..3].copy_from_slice(&[0xff; 3]);
            raw.send(&head).await;
            let goaway = raw.until(GOAWAY).await.unwrap();
            assert_eq!(goaway.number(4), FRAME_SIZE_ERROR, "{kind}");
            while raw.next().await.is_some() {}
        }
    })
    .await;
}

#[tokio::test]
async fn windows_that_overflow() {
    attack(|to| async move {
        let most = 0x7fff_ffff_u32.to_be_bytes();
        let mut raw = Raw::connect(to, &[]).await;
        raw.send(&frame(WINDOW_UPDATE, 0, 0, &most)).await;
        assert_eq!(raw.until(GOAWAY).await.unwrap().number(4), FLOW_CONTROL_ERROR);

        let mut raw = Raw::connect(to, &[]).await;
        // At once: what the response has used of the window by then could be given back.
        let request = frame(HEADERS, END_HEADERS, 1, &raw::request(true));
        raw.send(&[request, frame(WINDOW_UPDATE, 0, 1, &most)].concat()).await;
        let reset = raw.until(RST_STREAM).await.unwrap();
        assert_eq!((reset.stream, reset.number(0)), (1, FLOW_CONTROL_ERROR));
    })
    .await;
}

#[tokio::test]
async fn empty_pieces() {
    attack(|to| async move {
        let mut raw = Raw::connect(to, &[]).await;
        raw.send(&frame(HEADERS, END_HEADERS, 1, &raw::request(true))).await;
        let flood = frame(DATA, 0, 1, &[]).repeat(1_000);
        assert_eq!(until_sent_off(raw, &flood, 1_000).await, Some(ENHANCE_YOUR_CALM));
    })
    .await;
}

#[tokio::test]
async fn more_streams_than_are_taken() {
    attack(|to| async move {
        let mut raw = Raw::connect(to, &[0, 4, 0, 0, 0, 0]).await;
        let most = loop {
            let settings = raw.until(SETTINGS).await.unwrap();
            let most = settings.payload.chunks(6).find(|setting| setting[..2] == [0, 3]);
            if let Some(most) = most {
                break u32::from_be_bytes(most[2..6].try_into().unwrap());
            }
        };
        raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
        for n in 0..most + 100 {
            raw.send(&get(2 * n + 1)).await;
        }
        let reset = raw.until(RST_STREAM).await.unwrap();
        assert!(reset.stream > 2 * (most - 1), "{reset:?}");
        assert_eq!(reset.number(0), REFUSED_STREAM);
        // Who goes on is sent off.
        let (mut n, mut sent_off) = (most + 100, None);
        while sent_off.is_none() && n < most + 4_000 {
            let batch: Vec<u8> = (n..n + 100).flat_map(|n| get(2 * n + 1)).collect();
            if raw.write.write_all(&batch).await.is_err() {
                break;
            }
            n += 100;
            sent_off = None;
        }
        while let Some(frame) = raw.next().await {
            if frame.kind == GOAWAY {
                sent_off = Some(frame.number(4));
                break;
            }
        }
        assert_eq!(sent_off, Some(ENHANCE_YOUR_CALM));
    })
    .await;
}

#[tokio::test]
async fn priorities_are_ignored() {
    let app = app().await;
    let mesh = mesh(Between::Both, app.address, "{}").await;
    let mut raw = Raw::connect(mesh.to, &[]).await;
    // On a stream that is not there yet, depending on one that never will be; weight 255.
    let priority = |on: u32| [&on.to_be_bytes()[..], &[0xff]].concat();
    for n in 0..1_000 {
        raw.send(&frame(PRIORITY, 0, 2 * n + 1, &priority(2 * n + 3))).await;
    }
    // HEADERS with a priority (flag 0x20), exclusive.
    let head = [priority(0x8000_0000 | 1), raw::request(false)].concat();
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM | 0x20, 2001, &head))
        .await;
    assert_eq!(raw.until(HEADERS).await.unwrap().payload[0], raw::STATUS_200[0]);
}

#[tokio::test]
async fn an_opening_that_does_not_end() {
    let app = app().await;
    let mesh = mesh(Between::Both, app.address, "{}").await;
    let waits = [
        mesh.web.as_ref().unwrap().outbound[0],
        mesh.orders.as_ref().unwrap().inbound[0],
    ]
    .map(|to| async move {
        let mut tcp = tokio::net::TcpStream::connect(to).await.unwrap();
        tcp.write_all(raw::PREFACE).await.unwrap();
        tcp.write_all(&frame(SETTINGS, 0, 0, &[0; 6])[..12]).await.unwrap();
        let mut all = Vec::new();
        let closed = tokio::io::AsyncReadExt::read_to_end(&mut tcp, &mut all);
        tokio::time::timeout(Duration::from_secs(30), closed)
            .await
            .expect("it is waited for for ever")
    });
    for closed in futures_util::future::join_all(waits).await {
        let _ = closed;
    }
    let mut sender = client(mesh.to).await;
    let request = Request::get("http://orders/others").body(()).unwrap();
    let (response, _) = sender.send_request(request, true).unwrap();
    let (bytes, _) = all(soon(response).await.unwrap().into_body()).await.unwrap();
    assert!(bytes.is_empty());
}
