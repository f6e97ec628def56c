//! The gRPC server: TLS 1.3 with an SVID of our own CA, HTTP/2, and who the peer is beside every request.
//!
//! Somebody without an SVID may ask for one ([`Identity`]), and for nothing else.

use std::convert::Infallible;
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
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::ca::{self, Ca};
use crate::discovery::{Discover, DiscoveryService};
use crate::metrics::{CertificateKind, Metrics};

/// For a whole TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at one time; further connections wait in the listener's backlog.
const HANDSHAKES: usize = 256;
/// A peer that is gone without a word is noticed after interval + timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A sidecar holds one stream for each target in use; a scraper of metrics uses every pod of the cluster.
const MAX_STREAMS: u32 = 16_384;
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Requests hold a CSR and a token, or an address.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
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

/// Who sent a request. In the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The connection's other end.
    pub address: SocketAddr,
    /// The peer's verified SPIFFE ID, if it presented an SVID.
    pub identity: Option<SpiffeId>,
}

/// Serves until `shutdown` is cancelled, and a few seconds more for what is in flight. Discovery is served if there is
/// one.
///
/// # Errors
/// When the CA cannot issue the server's own SVID at the start, or HTTP/2 serving fails as a whole.
pub async fn serve(
    listener: TcpListener,
    tls: ServerTls,
    identity: impl Identity,
    discovery: Option<Arc<dyn Discover>>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let metrics = tls.metrics.clone();
    let (config, not_after) = server_config(&tls)?;
    let config = Arc::new(ArcSwap::from_pointee(config));
    // Everything that runs for this server ends with it, whichever way it ends.
    let stop = shutdown.child_token();
    let _stop_all = stop.clone().drop_guard();
    let (connections, incoming) = mpsc::channel(64);
    tokio::spawn(
        stop.clone()
            .run_until_cancelled_owned(keep_fresh(tls, config.clone(), not_after)),
    );
    tokio::spawn(accept(listener, config, connections, metrics.clone(), stop.clone()));

    let discovery = discovery.map(|index| DiscoveryService::new(index, metrics, stop.clone(), MAX_REQUEST_BYTES));
    let serving = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(64))
        .add_service(IdentityServer::new(identity).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_optional_service(discovery)
        .serve_with_incoming_shutdown(
            tokio_stream::StreamExt::map(ReceiverStream::new(incoming), Ok::<_, Infallible>),
            stop.clone().cancelled_owned(),
        );
    tokio::select! {
        served = serving => served.context("serving gRPC"),
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN).await } => {
            tracing::warn!("connections were still open {} s after the shutdown began", DRAIN.as_secs());
            Ok(())
        }
    }
}

/// Accepts connections and does their handshakes, a bounded number at a time.
async fn accept(
    listener: TcpListener,
    config: Arc<ArcSwap<ServerConfig>>,
    connections: mpsc::Sender<Connection>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = async {
                let permit = permits.clone().acquire_owned().await;
                listener.accept().await.map(|(stream, address)| (stream, address, permit))
            } => accepted,
        };
        let (stream, address, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept a connection: if it is EMFILE, raise the limit of open files");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let acceptor = TlsAcceptor::from(config.load_full());
        let (connections, metrics) = (connections.clone(), metrics.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            let _permit = permit;
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(acceptor, stream, address)).await {
                // Nobody receives only when the server has ended.
                Ok(Ok(connection)) => drop(connections.send(connection).await),
                Ok(Err(e)) => {
                    metrics.handshake_failed();
                    tracing::debug!(peer = %address, error = %e, "a TLS handshake failed");
                }
                Err(_) => {
                    metrics.handshake_failed();
                    tracing::debug!(peer = %address, "a TLS handshake took too long");
                }
            }
        }));
    }
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream, address: SocketAddr) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let identity = match certificate {
        None => None,
        Some(certificate) => Some(ca::spiffe_id(certificate).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the peer's certificate has no SPIFFE ID of a workload",
            )
        })?),
    };
    Ok(Connection {
        peer: Peer { address, identity },
        stream,
    })
}

/// Renews the server's own SVID at two thirds of its life, and whenever the CA changed.
async fn keep_fresh(mut tls: ServerTls, config: Arc<ArcSwap<ServerConfig>>, mut not_after: SystemTime) {
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
            match server_config(&tls) {
                Ok((new, end)) => {
                    config.store(Arc::new(new));
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
    not_after.duration_since(SystemTime::now()).unwrap_or_default() * 2 / 3
}

/// TLS 1.3 only; a client certificate is asked for, and verified if there is one. Also when the server's own expires.
fn server_config(tls: &ServerTls) -> anyhow::Result<(ServerConfig, SystemTime)> {
    let ca = tls.ca.borrow().clone();
    let svid = ca.issue(&tls.id, tls.ttl).context("issuing the server's own SVID")?;
    let not_after = ca::not_after(&svid.chain[0])?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(ca.roots()?), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(svid.chain, svid.key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Connections live long. A resumed session would take over who the peer was, and its SVID may have expired since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((config, not_after))
}

/// A connection after its handshake.
struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
