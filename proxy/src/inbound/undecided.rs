//! Connections of which nobody knows yet whether they carry HTTP, at ports of which nothing is declared and that a limit of requests
//! selects.
//!
//! Elsewhere such a connection goes on as bytes: because its client has said nothing in the time that detection has, or half a word, or
//! because a peer's sidecar says that these are bytes. Here that would be a way round the limits. So both ends are listened to, for as long
//! as it takes, and the first of these decides:
//!
//! - The app speaks, before there is a whole first line of its client: then it serves no HTTP, and these are bytes.
//! - The client's first line is there: it is a request's ([`wary`](outrigger_proxy_transport::net::wary)), or these are bytes.
//!
//! A client that has begun a line, and does not end it in the time that detection has, may be one that waits for an answer. So the app gets
//! what there is. If it comes to be a request all the same, the connection is reset.
//!
//! It does not protect an app that speaks HTTP inside of TLS of its own, or behind another protocol's words.

use std::rc::Rc;

use bytes::BytesMut;
use outrigger_proxy_transport::drain::OpenConnection;
use outrigger_proxy_transport::net::detect::{Detected, Verdict};
use outrigger_proxy_transport::net::wary::{wary_protocol, wary_resolve};
use outrigger_proxy_transport::net::{Io, Prefixed, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use super::access::Subject;
use super::admit::{Carries, Refusal};
use super::{Caller, State, opaque};

/// What was found out.
#[derive(Debug)]
enum Heard {
    /// A request.
    Http(Detected),
    Bytes,
    /// A request of which the app has seen the beginning.
    TooLate,
    /// Nothing more is to be heard.
    Gone,
}

/// Both ends of a connection, and what its client has said.
struct Ends<'a> {
    client: &'a mut Stream,
    server: &'a mut Io,
    said: BytesMut,
    /// So much of it the app has got.
    passed: usize,
}

/// Finds out what a client says whose bytes are let in. `None`: it was no HTTP, and has been carried.
pub(super) async fn decide(
    state: &Rc<State>,
    mut client: Stream,
    caller: &Caller,
    open: &OpenConnection,
) -> Option<(Stream, Carries)> {
    let _busy = open.seat().busy();
    // Of what it is until it is known better.
    let _place = opaque::place(state, &client, caller)?;
    let mut server = opaque::connect(state, &client, caller.app).await?;
    let in_flight = state.context.activity.begin();
    let mut ends = Ends {
        client: &mut client,
        server: &mut server,
        said: BytesMut::new(),
        passed: 0,
    };
    let heard = tokio::select! {
        biased;
        _ = state.rules.access.until_denied(caller, Subject::Bytes) => None,
        heard = ends.listen(state, caller.app.port()) => Some(heard.unwrap_or(Heard::Gone)),
    };
    let Ends { mut said, passed, .. } = ends;
    match heard {
        Some(Heard::Http(detected)) => {
            let stream = Stream::Peeked(Box::new(Prefixed::new(said.freeze(), client)));
            return Some((stream, detected.into()));
        }
        Some(Heard::Bytes) => {
            let unseen = said.split_off(passed).freeze();
            let mut client = Stream::Peeked(Box::new(Prefixed::new(unseen, client)));
            // From here on the tunnel counts it.
            drop(in_flight);
            opaque::carry_bytes(state, caller, &mut client, &mut server.into()).await;
        }
        Some(Heard::TooLate) => state.refuse(&client, caller, &Refusal::LateRequest),
        // Refused, which was told.
        None => client.reset_on_close(),
        Some(Heard::Gone) => {}
    }
    None
}

impl Ends<'_> {
    async fn listen(&mut self, state: &State, port: u16) -> std::io::Result<Heard> {
        let connected = Instant::now();
        let limit = state.context.config().detect_timeout;
        let mut patience = None;
        let mut greeting = [0; 8];
        loop {
            // What is said is passed on once it was waited for in vain, and at once from then on.
            let waits = self.passed == 0 && !self.said.is_empty();
            let until = patience.filter(|_| waits).unwrap_or(connected);
            tokio::select! {
                biased;
                read = self.client.read_buf(&mut self.said) => {
                    let has_ended = read? == 0;
                    if let Some(heard) = self.judge(has_ended) {
                        return Ok(heard);
                    }
                    if self.passed > 0 {
                        self.pass().await?;
                    }
                    patience.get_or_insert_with(|| Instant::now() + limit);
                }
                length = self.server.first_word(&mut greeting) => {
                    let greeting = &greeting[..length];
                    if self.said.is_empty() {
                        let now = Instant::now();
                        let after = now.saturating_duration_since(connected);
                        state.context.process.app_first.observe(&port, greeting, after, now);
                    }
                    // A server of HTTP that has waited for long enough says so, and closes.
                    return Ok(if greeting.starts_with(b"HTTP/") { Heard::Gone } else { Heard::Bytes });
                }
                () = sleep_until(until), if waits => {
                    if let known @ (Detected::Http1 | Detected::Http2) = wary_resolve(None, &self.said) {
                        return Ok(Heard::Http(known));
                    }
                    self.pass().await?;
                }
            }
        }
    }

    /// `None`: more is to come.
    fn judge(&self, has_ended: bool) -> Option<Heard> {
        let detected = match wary_protocol(&self.said) {
            Verdict::Is(detected) => detected,
            Verdict::NeedMore if has_ended => wary_resolve(None, &self.said),
            Verdict::NeedMore => return None,
        };
        Some(match detected {
            Detected::Tls | Detected::Opaque => Heard::Bytes,
            Detected::Http1 | Detected::Http2 if self.passed > 0 => Heard::TooLate,
            detected => Heard::Http(detected),
        })
    }

    async fn pass(&mut self) -> std::io::Result<()> {
        self.server.write_all(&self.said[self.passed..]).await?;
        self.passed = self.said.len();
        Ok(())
    }
}
