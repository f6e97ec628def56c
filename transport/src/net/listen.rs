//! Listeners, and what a captured connection wanted to reach.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// Connections that wait to be accepted, for each worker.
const BACKLOG: i32 = 1024;
/// A peer that vanished is noticed after about `KEEPALIVE_TIME` + 3 × `KEEPALIVE_INTERVAL`.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// What was sent and is not acknowledged for so long ends a connection that asked for it.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long accepting waits when the process has no file descriptor left: others close meanwhile.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);
/// How often the log says that it waits.
const EXHAUSTED_LOG: Duration = Duration::from_secs(10);

/// Binds one socket for each of `workers`; the kernel spreads connections over them. Port 0: the first learns a port,
/// and the others take the same.
///
/// # Errors
/// When the address cannot be bound; the text names it.
pub fn bind(address: SocketAddr, workers: usize) -> io::Result<(SocketAddr, Vec<std::net::TcpListener>)> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}"));
    let first = bind_one(address).map_err(named)?;
    let bound = first.local_addr().map_err(named)?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(bind_one(bound).map_err(named)?);
    }
    Ok((bound, sockets))
}

/// A bound socket that gives connections.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    /// When the log last told that there are none to be had.
    told: Cell<Option<Instant>>,
}

impl Listener {
    /// Takes a socket of [`bind`].
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn new(socket: std::net::TcpListener) -> io::Result<Self> {
        Ok(Self {
            socket: TcpListener::from_std(socket)?,
            told: Cell::default(),
        })
    }

    /// Gives the next connection. An error of the system never ends a listener: it waits, and goes on.
    pub async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) => {
                    prepare(&stream);
                    return (stream, peer);
                }
                // The client gave up in the queue: nothing is wrong here.
                Err(e) if is_of_connection(&e) => {}
                Err(e) => {
                    self.tell(&e);
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }

    fn tell(&self, error: &io::Error) {
        let now = Instant::now();
        if self.told.get().is_none_or(|told| now - told >= EXHAUSTED_LOG) {
            self.told.set(Some(now));
            tracing::warn!(%error, "cannot accept connections; check the limit of open files (ulimit -n)");
        }
    }
}

/// Raises the soft limit of open files to the hard one: connections are what a sidecar has most of.
pub fn raise_file_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Connects to an address; the caller limits the time.
///
/// # Errors
/// Those of `connect(2)`.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    prepare(&stream);
    Ok(stream)
}

/// Ends the connection when its peer acknowledges nothing for 30 s, so that a vanished peer is noticed while data is on its
/// way to it. A peer that lives and does not read looks the same (tcp(7), `TCP_USER_TIMEOUT`), so this is not for
/// connections whose reader may pause as long as it likes.
pub fn give_up_unacknowledged(stream: &TcpStream) {
    // Best effort: the connection may be gone.
    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(USER_TIMEOUT));
}

/// Where a captured connection wanted to go (`SO_ORIGINAL_DST`). `None`: it was made to this listener itself, so that to
/// follow it would be a loop.
pub fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    let socket = SockRef::from(stream);
    let original = match local.ip() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    }
    .ok()?
    .as_socket()?;
    (original != local).then_some(original)
}

/// Whether the address is one of a pod's, whichever way it is written: "::ffff:10.0.0.1" is 10.0.0.1.
pub fn is_one_of(pod_ips: &[IpAddr], address: IpAddr) -> bool {
    let address = address.to_canonical();
    pod_ips.iter().any(|ip| ip.to_canonical() == address)
}

fn bind_one(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Small writes leave at once, and an idle connection's peer that vanished is noticed. All best effort: the connection may
/// be gone.
fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(3);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// Errors that `accept(2)` passes on from the connection that it would have given.
fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Listener, bind, connect, is_one_of, original_destination};
    use socket2::SockRef;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn workers_share_a_learnt_port() {
        let (address, sockets) = bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        assert_eq!(sockets.len(), 3);
        assert!(sockets.iter().all(|s| s.local_addr().unwrap() == address));
        let wrong = bind("192.0.2.1:1".parse().unwrap(), 1).unwrap_err();
        assert!(wrong.to_string().contains("192.0.2.1:1"));
    }

    #[test]
    fn only_the_pods_own_addresses_are_its_own() {
        let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
        let pod = [ip("10.0.0.7"), ip("fd00::7")];
        for own in ["10.0.0.7", "::ffff:10.0.0.7", "fd00::7"] {
            assert!(is_one_of(&pod, ip(own)), "{own}");
        }
        for other in [
            "10.0.0.8",
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "::",
            "169.254.169.254",
            "fd00::8",
        ] {
            assert!(!is_one_of(&pod, ip(other)), "{other}");
        }
    }

    #[tokio::test]
    async fn a_direct_connection_has_no_original_destination() {
        let (address, sockets) = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let listener = Listener::new(sockets.into_iter().next().unwrap()).unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let (server, _) = listener.accept().await;
        assert_eq!(original_destination(&server), None);
    }

    #[tokio::test]
    async fn silence_is_probed_and_a_reader_may_pause() {
        let (address, sockets) = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let listener = Listener::new(sockets.into_iter().next().unwrap()).unwrap();
        let client = connect(address).await.unwrap();
        let (server, _) = listener.accept().await;
        for stream in [&client, &server] {
            let socket = SockRef::from(stream);
            assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
            assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        }
    }
}
