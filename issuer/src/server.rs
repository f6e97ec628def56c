//! The gRPC server: TLS 1.3 with an SVID of our own CA, HTTP/2, and who the peer is beside every request.
//!
//! Somebody without an SVID may ask for one ([`Identity`]); what is served beside that must refuse it (see [`Peer`]). Such a peer may be anybody, so its connection
//! is small and short, and at a bound that who has most of them loses the oldest (see [`outrigger_gate`]). A peer with an SVID
//! may stay for as long as that SVID is good ([`crate::proof`]), and what it holds is charged to it ([`crate::share`]). So there are
//! two servers behind one port.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use outrigger_api::identity::identity_server::{Identity, IdentityServer};
use outrigger_api::spiffe::SpiffeId;
use outrigger_gate::{Budget, Gate, Guarded, Limits, Pace, Paced, Paces, Rate, Times, Work};
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use crate::ca::{self, Ca};
use crate::clock;
use crate::metrics::{CertificateKind, Metrics};
use crate::peer::{Bound, Peer};
use crate::proof::{self, Trusted};
use crate::refusals::Refusals;
use crate::share::{self, Held, Share, Tenant};

/// Connections of peers that have shown no SVID, handshakes among them.
const STRANGERS: Limits = Limits {
    incomplete: 512,
    total: 1024,
    grace: Duration::from_secs(1),
};
/// A stranger's handshake and request have one time together. The work is a TokenReview.
const STRANGERS_TIMES: Times = Times {
    input: Duration::from_secs(3),
    work: Duration::from_secs(12),
    idle: Duration::from_secs(3),
};
/// A sidecar asks for one SVID on a connection.
const STRANGERS_STREAMS: u32 = 2;
/// What a stranger may send before somebody reads it.
const STRANGERS_WINDOW: u32 = 32 * 1024;
/// Two heads and two requests. What is beyond is not read before the connection's time is over.
const STRANGERS_PACE: Rate = Rate {
    burst: 96 * 1024,
    per_second: 1024,
};
/// What the connections of a pod may say together. A sidecar says 200 bytes when it begins, and 40 for each address: 160 KiB where
/// it has 4,096 of them, 500 KiB in the version before. To hear it costs much more than to say it: 512 KiB of attempts to open
/// streams are half a second of a processor.
const MEMBERS_PACE: Rate = Rate {
    burst: 512 * 1024,
    per_second: 32 * 1024,
};
/// What a member may send before somebody reads it; it is part of what its connection is said to cost. In a session nobody
/// reads while the sidecar does not.
const MEMBERS_WINDOW: u32 = 16 * 1024;
/// A sidecar of the version before the session has at most 4,096 targets, each with a stream, and one stream for itself; some
/// that have ended may be left.
const MAX_STREAMS: u32 = 4096 + 256;
/// A peer that is gone without a word is noticed after interval + timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Of HTTP/2 streams that the peer reset before they were looked at.
const MAX_PENDING_RESETS: usize = 64;
/// A CSR and a token.
const MAX_ISSUE_BYTES: usize = 24 * 1024;
/// How long connections may take to end after the shutdown began.
const DRAIN: Duration = Duration::from_secs(5);
/// After a renewal that failed, and at least between two.
const RENEW_RETRY: Duration = Duration::from_secs(10);
/// The certificate metrics count down by themselves.
const METRICS_INTERVAL: Duration = Duration::from_secs(15);

/// What the server's TLS is made from.
pub struct ServerTls {
    /// Issues the server's own SVID, and says whom to trust; a new value is in force at once.
    pub ca: watch::Receiver<Arc<Ca>>,
    /// Who the server is.
    pub id: SpiffeId,
    /// How long its own SVIDs live; they are renewed after two thirds of that.
    pub ttl: Duration,
    /// Where expiry and failures are counted.
    pub metrics: Arc<Metrics>,
}

/// Serves `identity`, and `beside` it what is for peers that have an SVID, until `shutdown` is cancelled, and a few seconds
/// more for what is in flight.
///
/// # Errors
/// When the CA cannot issue the server's own SVID at the start, or HTTP/2 serving fails as a whole.
pub async fn serve(
    listener: TcpListener,
    tls: ServerTls,
    identity: impl Identity,
    beside: Routes,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    // Boxed: it holds two servers, 24 KiB, which those that start it as a task need not.
    Box::pin(serve_within(share::budget(), listener, tls, identity, beside, shutdown)).await
}

/// The same with `budget` bytes for all peers that have an SVID.
///
/// # Errors
/// As of [`serve`].
pub async fn serve_within(
    budget: u64,
    listener: TcpListener,
    tls: ServerTls,
    identity: impl Identity,
    beside: Routes,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let metrics = tls.metrics.clone();
    let trusted = Trusted::new(&tls.ca.borrow())?;
    let (config, not_after) = server_config(&tls, &trusted)?;
    let config = Arc::new(ArcSwap::from_pointee(config));
    let trusted = watch::Sender::new(trusted);
    let trust_domain = tls.id.trust_domain().to_owned();
    // Everything that runs for this server ends with it, whichever way it ends.
    let stop = shutdown.child_token();
    let _stop_all = stop.clone().drop_guard();
    tokio::spawn(
        stop.clone()
            .run_until_cancelled_owned(keep_fresh(tls, config.clone(), trusted.clone(), not_after)),
    );
    let ((strangers, of_strangers), (members, of_members)) = (mpsc::channel(64), mpsc::channel(64));
    let entrance = Arc::new(Entrance {
        config,
        trusted,
        trust_domain,
        budget: Budget::new(budget),
        paces: Arc::new(Paces::new(MEMBERS_PACE)),
        metrics,
        refusals: Refusals::default(),
        strangers,
        members,
    });
    entrance.metrics.watch_budget(&entrance.budget);
    entrance.metrics.watch_paces(&entrance.paces);
    tokio::spawn(entrance.accept(listener, stop.clone()));

    let identity = IdentityServer::new(identity).max_decoding_message_size(MAX_ISSUE_BYTES);
    let routes = beside.add_service(InterceptedService::new(identity, charge_issue));
    let for_strangers = builder()
        .max_concurrent_streams(STRANGERS_STREAMS)
        .initial_stream_window_size(STRANGERS_WINDOW)
        .initial_connection_window_size(STRANGERS_WINDOW)
        .add_routes(routes.clone())
        .serve_with_incoming_shutdown(incoming(of_strangers), stop.clone().cancelled_owned());
    let for_members = builder()
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(MEMBERS_WINDOW)
        .initial_connection_window_size(2 * MEMBERS_WINDOW)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming(of_members), stop.clone().cancelled_owned());
    tokio::select! {
        served = async { tokio::try_join!(for_strangers, for_members) } => served.map(drop).context("serving gRPC"),
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN).await } => {
            tracing::warn!("connections were still open {} s after the shutdown began", DRAIN.as_secs());
            Ok(())
        }
    }
}

fn builder() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
}

fn incoming<S>(connections: mpsc::Receiver<Connection<S>>) -> impl Stream<Item = Result<Connection<S>, Infallible>> {
    tokio_stream::StreamExt::map(ReceiverStream::new(connections), Ok)
}

/// A request for an SVID by a peer that has one is charged to it before its body is read.
#[allow(clippy::result_large_err)] // as tonic wants it
fn charge_issue(mut request: Request<()>) -> Result<Request<()>, Status> {
    if let Some(Peer {
        bound: Bound::Share(share),
        ..
    }) = request.extensions().get()
    {
        let charge = Arc::new(share.charge(share::ISSUE)?);
        request.extensions_mut().insert(charge);
    }
    Ok(request)
}

/// Where connections come in.
struct Entrance {
    config: Arc<ArcSwap<ServerConfig>>,
    trusted: watch::Sender<Trusted>,
    trust_domain: String,
    budget: Arc<Budget<Tenant>>,
    paces: Arc<Paces<Tenant>>,
    metrics: Arc<Metrics>,
    refusals: Refusals,
    strangers: mpsc::Sender<Connection<Guarded<TlsStream<TcpStream>>>>,
    members: mpsc::Sender<Connection<TlsStream<TcpStream>>>,
}

impl Entrance {
    async fn accept(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let gate = Gate::new(STRANGERS);
        self.metrics.watch_gate(&gate);
        let begin = |stream, address: SocketAddr, work: Work| {
            let entrance = Arc::clone(&self);
            tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
                let entered = tokio::select! {
                    () = work.over() => Err(io::Error::from(io::ErrorKind::TimedOut)),
                    entered = entrance.enter(stream, address, &work) => entered,
                };
                if let Err(e) = entered {
                    entrance.metrics.handshake_failed();
                    tracing::debug!(peer = %address, error = %e, "a TLS handshake failed");
                }
            }));
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = outrigger_gate::accept(&listener, &gate, STRANGERS_TIMES, begin) => {}
        }
    }

    /// Does the handshake, and gives the connection to the server that it belongs to. A peer with an SVID has no place among
    /// the strangers any more: `work` ends with this, and its place with it.
    async fn enter(&self, stream: TcpStream, address: SocketAddr, work: &Work) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let trusted = self.trusted.subscribe();
        let stream = TlsAcceptor::from(self.config.load_full()).accept(stream).await?;
        // Nobody receives only when the server has ended.
        match identity(&stream, &self.trust_domain)? {
            None => {
                let peer = Peer {
                    address,
                    identity: None,
                    bound: Bound::Times(work.clone()),
                };
                let pace = Arc::new(Pace::new(STRANGERS_PACE, Instant::now()));
                let stream = pace.apply(work.guard(stream));
                let _ = self
                    .strangers
                    .send(Connection {
                        stream,
                        peer,
                        held: None,
                        over: None,
                    })
                    .await;
            }
            Some(id) => {
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
                let over = proof::over(chain, trusted).map_err(io::Error::other)?;
                let (who, from) = (id.clone(), address.ip().to_canonical());
                let over = async move {
                    let why = over.await;
                    tracing::info!(peer = %from, identity = %who, "a connection ends: {why}");
                    why
                };
                let share = Share::new(&self.budget, &id, address.ip());
                let pace = self.paces.of(Tenant::pod(&id, address.ip()), Instant::now());
                let stream = pace.apply(stream);
                let held = share.charge(share::CONNECTION).map_err(|status| {
                    // The peer itself learns no more than that the connection ends.
                    self.refusals
                        .note("refused a connection", &status, address.ip().to_canonical());
                    io::Error::other(status)
                })?;
                let peer = Peer {
                    address,
                    identity: Some(id),
                    bound: Bound::Share(share),
                };
                let _ = self
                    .members
                    .send(Connection {
                        stream,
                        peer,
                        held: Some(held),
                        over: Some(Box::pin(over)),
                    })
                    .await;
            }
        }
        Ok(())
    }
}

/// Who the peer is, which must be of our trust domain; none if it presented no certificate.
fn identity(stream: &TlsStream<TcpStream>, trust_domain: &str) -> io::Result<Option<SpiffeId>> {
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let Some(certificate) = certificate else {
        return Ok(None);
    };
    let id = ca::spiffe_id(certificate).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "the peer's certificate has no SPIFFE ID of a workload",
        )
    })?;
    if !id.is_of(trust_domain) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the peer is {id}, of another trust domain than ours, {trust_domain}"),
        ));
    }
    Ok(Some(id))
}

/// Renews the server's own SVID at two thirds of its life, and whenever the CA changed.
async fn keep_fresh(
    mut tls: ServerTls,
    config: Arc<ArcSwap<ServerConfig>>,
    trusted: watch::Sender<Trusted>,
    mut not_after: SystemTime,
) {
    let mut renew_at = Instant::now() + two_thirds_until(not_after);
    loop {
        let changed = tokio::select! {
            changed = tls.ca.changed() => {
                if changed.is_err() {
                    // Nobody can change the CA any more; the one there is goes on issuing.
                    tokio::time::sleep_until(renew_at).await;
                }
                true
            }
            () = tokio::time::sleep_until(renew_at) => true,
            () = tokio::time::sleep(METRICS_INTERVAL) => false,
        };
        if changed {
            let roots = Trusted::new(&tls.ca.borrow());
            match roots.and_then(|roots| Ok((server_config(&tls, &roots)?, roots))) {
                Ok(((new, end), roots)) => {
                    config.store(Arc::new(new));
                    // After that: who has entered by the roots before looks again.
                    roots.publish(&trusted);
                    not_after = end;
                    renew_at = Instant::now() + two_thirds_until(not_after).max(RENEW_RETRY);
                    tracing::info!(identity = %tls.id, "renewed the server's own SVID");
                }
                Err(e) => {
                    renew_at = Instant::now() + RENEW_RETRY;
                    tracing::error!(error = %e, "cannot renew the server's own SVID; the old one stays in use");
                }
            }
        }
        let ca = tls.ca.borrow().clone();
        tls.metrics.expires(CertificateKind::Issuer, ca.issuer_not_after());
        tls.metrics.expires(CertificateKind::Root, ca.root_not_after());
        tls.metrics.expires(CertificateKind::Leaf, not_after);
    }
}

fn two_thirds_until(not_after: SystemTime) -> Duration {
    not_after.duration_since(clock::now()).unwrap_or_default() * 2 / 3
}

/// TLS 1.3 only; a client certificate is asked for, and verified if there is one. Also when the server's own expires.
fn server_config(tls: &ServerTls, trusted: &Trusted) -> anyhow::Result<(ServerConfig, SystemTime)> {
    let ca = tls.ca.borrow().clone();
    let svid = ca.issue(&tls.id, tls.ttl).context("issuing the server's own SVID")?;
    let not_after = ca::not_after(&svid.chain[0])?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(trusted.verifier())
        .with_single_cert(svid.chain, svid.key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Connections live long. A resumed session would take over who the peer was, and its SVID may have expired since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((config, not_after))
}

/// A connection after its handshake.
struct Connection<S> {
    stream: Paced<S>,
    peer: Peer,
    /// What it costs while it is open.
    #[allow(dead_code)] // only its drop matters
    held: Option<Held>,
    /// Ends, with a reason, when it must not go on.
    over: Option<Pin<Box<dyn Future<Output = &'static str> + Send>>>,
}

impl<S> Connection<S> {
    /// Asked at every turn of the connection, whether it reads or writes.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(Poll::Ready(why)) = self.over.as_mut().map(|over| over.as_mut().poll(cx)) else {
            return Ok(());
        };
        // For who asks again.
        self.over = Some(Box::pin(poll_fn(move |_| Poll::Ready(why))));
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, why))
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
