//! Mirrored requests: copies, best effort, whose answers nobody waits for.
//!
//! A copy goes out as its request comes, trailers included, once, whatever retries do. The request never waits for it: what
//! a mirror does not take as it comes waits in bounded memory ([`CopyRoom`]), and where that is not enough, the copy ends, as one
//! that is broken. So does the copy of a body that breaks, or that nobody reads to its end. What is not mirrored, or not whole, is
//! counted.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http::header::EXPECT;
use http::request::Parts;
use http_body_util::BodyExt;
use outrigger_proxy_transport::body::{ClientBody, CopyRoom, Copying, NotCopied, RequestBody};
use outrigger_proxy_transport::client::Failure;
use outrigger_proxy_transport::error::ProxyError;
use outrigger_proxy_transport::headers::wants_upgrade;
use outrigger_proxy_transport::server::HttpVersion;
use rand::Rng;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::State;
use super::beside::{SentBeside, send_beside};
use super::target::{Snapshot, WorkerBackend};
use crate::model::{Filters, Mirror};
use crate::telemetry::metrics::NotMirrored;

/// On one worker.
const MAX_MIRRORS: usize = 64;
/// Bytes of the bodies of all mirrored requests of one worker.
const ROOM: usize = 4 * 1024 * 1024;
/// What a mirrored request has for the rest when all of its body is here.
const LIMIT: Duration = Duration::from_secs(10);

/// The mirrored requests of one worker that are under way.
pub struct Mirrors {
    places_taken: Cell<usize>,
    room: CopyRoom,
}

/// One of [`MAX_MIRRORS`] until it is dropped, however its task ends.
struct Place(Rc<Mirrors>);

impl Mirrors {
    /// Nothing is under way.
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            places_taken: Cell::new(0),
            room: CopyRoom::new(ROOM),
        })
    }

    /// `None`: all are taken.
    fn place(self: &Rc<Self>) -> Option<Place> {
        let taken = self.places_taken.get();
        (taken < MAX_MIRRORS).then(|| {
            self.places_taken.set(taken + 1);
            Place(Rc::clone(self))
        })
    }
}

impl Place {
    fn spawn(self, mirrored: impl Future<Output = ()> + 'static) -> JoinHandle<()> {
        tokio::task::spawn_local(async move {
            let _place = self;
            mirrored.await;
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places_taken.set(self.0.places_taken.get() - 1);
    }
}

impl From<NotCopied> for NotMirrored {
    fn from(why: NotCopied) -> Self {
        match why {
            NotCopied::TooSlow => Self::TooSlow,
            NotCopied::Incomplete => Self::Incomplete,
        }
    }
}

/// Begins copies of a request to the mirrors that the filters name, before any of its body is read.
pub fn mirror(
    state: &Rc<State>,
    snapshot: &Snapshot,
    filters: [&Filters; 2],
    version: HttpVersion,
    head: &Parts,
    body: &ClientBody,
) {
    for Mirror {
        backend,
        parts_per_million,
    } in filters.into_iter().flat_map(|filters| &filters.mirrors)
    {
        let drawn = state.context.rng.borrow_mut().random_range(0..1_000_000) < *parts_per_million;
        let Some(backend) = snapshot.backend(*backend).filter(|_| drawn) else {
            continue;
        };
        if wants_upgrade(&head.method, &head.headers) {
            snapshot.metrics.not_mirrored(NotMirrored::Upgrade);
            continue;
        }
        let Some(place) = state.mirrors.place() else {
            snapshot.metrics.not_mirrored(NotMirrored::TooMany);
            continue;
        };
        let (body, copying) = match body.copy(&state.mirrors.room) {
            Some((copied, copying)) => (RequestBody::Copied(copied), Some(copying)),
            None => (RequestBody::Empty, None),
        };
        let mut request = Request::from_parts(head.clone(), body);
        // Nobody waits for the mirror to want the body.
        request.headers_mut().remove(EXPECT);
        let (state, backend, metrics) = (Rc::clone(state), backend.clone(), Arc::clone(&snapshot.metrics));
        place.spawn(async move {
            let late = late(copying.as_ref());
            let answered = answered(&state, &backend, version, request, copying.as_ref());
            // What has become of the body is why the mirror has broken off, and not the other way round.
            let done = tokio::select! {
                biased;
                why = late => Err(why),
                done = answered => done.map_err(|error| {
                    tracing::debug!(%error, backend = %backend.name(), "a mirrored request failed");
                    NotMirrored::Failed
                }),
            };
            if let Err(why) = done {
                metrics.not_mirrored(why);
            }
        });
    }
}

/// Returns when a mirrored request is to end that has not ended by itself.
async fn late(copying: Option<&Copying>) -> NotMirrored {
    if let Some(copying) = copying
        && let Err(why) = copying.whole().await
    {
        return why.into();
    }
    sleep(LIMIT).await;
    NotMirrored::Failed
}

/// Sends a copy, and reads all of what the mirror answers. It may answer before it has read the body.
///
/// # Errors
/// Why there is no answer.
async fn answered(
    state: &Rc<State>,
    backend: &WorkerBackend,
    version: HttpVersion,
    request: Request<RequestBody>,
    copying: Option<&Copying>,
) -> Result<(), ProxyError> {
    let SentBeside { in_hand, result, .. } = send_beside(state, backend, &[], version, request).await?;
    let (response, lease) = result.map_err(|Failure { error, .. }| error)?;
    let mut rest = response.into_body();
    while let Some(Ok(_)) = rest.frame().await {}
    if let Some(copying) = copying {
        copying.sent().await;
    }
    lease.release();
    drop(in_hand);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::convert::Infallible;
    use std::future::{pending, ready};
    use std::rc::Rc;
    use std::time::Duration;

    use http::{Request, Response};
    use http_body_util::BodyExt;
    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use outrigger_proxy_transport::body::{ClientBody, CopyRoom};
    use tokio::io::{AsyncWriteExt, DuplexStream};
    use tokio::sync::mpsc;
    use tokio::task::{spawn_local, yield_now};
    use tokio::time::{Instant, timeout};

    use super::{LIMIT, MAX_MIRRORS, Mirrors, NotMirrored, Place, ROOM, late};

    fn all(mirrors: &Rc<Mirrors>) -> Vec<Place> {
        std::iter::from_fn(|| mirrors.place()).collect()
    }

    #[tokio::test(flavor = "local")]
    async fn a_place_is_given_back_however_its_task_ends() {
        let mirrors = Mirrors::new();
        assert_eq!(all(&mirrors).len(), MAX_MIRRORS);
        // One that hangs has its place until it is cancelled, before it has begun or later.
        for begins in [false, true] {
            let hangs = mirrors.place().unwrap().spawn(pending());
            if begins {
                yield_now().await;
            }
            assert_eq!(all(&mirrors).len(), MAX_MIRRORS - 1);
            hangs.abort();
            assert!(hangs.await.unwrap_err().is_cancelled());
            assert_eq!(all(&mirrors).len(), MAX_MIRRORS);
        }
        let panics = mirrors.place().unwrap().spawn(async { panic!("as a test wants it") });
        assert!(panics.await.unwrap_err().is_panic());
        mirrors.place().unwrap().spawn(ready(())).await.unwrap();
        assert_eq!(all(&mirrors).len(), MAX_MIRRORS);
    }
    /// The body of a request, as it comes from a client.
    async fn body() -> (DuplexStream, ClientBody) {
        let (mut client, server) = tokio::io::duplex(1024);
        let (bodies, mut comes) = mpsc::unbounded_channel();
        let service = service_fn(move |request: Request<Incoming>| {
            let _ = bodies.send(ClientBody::new(request.into_body(), None));
            pending::<Result<Response<String>, Infallible>>()
        });
        spawn_local(http1::Builder::new().serve_connection(TokioIo::new(server), service));
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        client.write_all(head).await.unwrap();
        (client, comes.recv().await.unwrap())
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_mirror_has_time_from_when_all_of_the_body_is_here() {
        let (mut client, mut body) = body().await;
        let (_copied, copying) = body.copy(&CopyRoom::new(ROOM)).unwrap();
        let day = Duration::from_secs(86_400);
        assert!(timeout(day, late(Some(&copying))).await.is_err(), "a stream may last");
        client.write_all(b"1\r\nx\r\n0\r\n\r\n").await.unwrap();
        while body.frame().await.is_some() {}
        for copying in [Some(&copying), None] {
            let began = Instant::now();
            assert_eq!(late(copying).await, NotMirrored::Failed);
            assert_eq!(began.elapsed(), LIMIT);
        }
    }

    #[tokio::test(flavor = "local")]
    async fn a_mirror_has_no_time_when_the_body_breaks() {
        let (client, mut body) = body().await;
        let (_copied, copying) = body.copy(&CopyRoom::new(ROOM)).unwrap();
        drop(client);
        assert!(body.frame().await.unwrap().is_err());
        assert_eq!(late(Some(&copying)).await, NotMirrored::Incomplete);
    }
}
