//! Fetches of JWK Sets. Who wrote the policy may be any tenant, so what is called, how long and how much is the controller's to say: the
//! address is looked at after the name was resolved, and that very address is connected to; nothing is followed; and of what came back,
//! an error quotes nothing.
//!
//! A server that is silent costs a connection and some time, and there is room for many; what costs memory has turns of its own, and none
//! is taken before there is something to read. Whoever has a turn that others wait for keeps it for [`SHARE`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use outrigger_access::jwt::MAX_JWKS;
use outrigger_gate::{Crowded, Room, Turn, Turns};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::get::{Target, get, too_large};
use crate::objects::ObjectName;
use crate::objects::keys::{API_SERVER, ConfigMapKey, KeyPlace, KeySource};

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;
/// Of a body that needs no turn of its own, in bytes: all sets but extraordinary ones.
const SMALL: usize = 64 * 1024;
/// Of certificates to trust, in bytes of PEM: they are held as long as the connection.
const MAX_CA: usize = 256 * 1024;
/// Connections at one time, each with a head and a small body. Those that wait are bounded by the sources.
const CONNECTIONS: Room = Room {
    working: 128,
    waiting: 65_536,
};
/// Bodies that are not small, at one time: each has up to a megabyte.
const LARGE: Room = Room {
    working: 8,
    waiting: 65_536,
};
/// ConfigMaps at one time: each may have a megabyte, and the API server answers soon.
const MAPS: Room = Room {
    working: 4,
    waiting: 65_536,
};
/// Sets and certificates that are read at one time: that is work for a processor.
const READS: Room = Room {
    working: 1,
    waiting: 65_536,
};
/// How long a turn is kept in any case. It is the time that an answer has where its policy says nothing.
const SHARE: Duration = Duration::from_secs(2);

/// What the fetcher has to ask others for.
pub trait World: Send + Sync + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The addresses of a full name: no search domain may make another one of it.
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, String>>;

    /// What a policy must not reach, and would by this address: itself, or where it leads to.
    fn forbidden(&self, address: IpAddr) -> Option<IpAddr>;

    /// A new connection.
    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Self::Stream>>;

    /// The value of a ConfigMap's key.
    fn config_map<'a>(&'a self, map: ObjectName, key: &'a str) -> BoxFuture<'a, Result<String, Failure>>;

    /// Where a Service has the port.
    fn service(&self, service: ObjectName, port: u16) -> Result<SocketAddr, String>;
}

/// Why nothing comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// In words for a status.
    pub why: String,
    /// It is not that nobody answers: there is nothing.
    pub gone: bool,
}

impl Failure {
    pub(crate) fn gone(why: String) -> Self {
        Self { why, gone: true }
    }
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self { why, gone: false }
    }
}

/// See the module.
pub struct Fetcher<W> {
    world: W,
    /// With the public roots.
    tls: Arc<ClientConfig>,
    connections: ByNamespace,
    large: ByNamespace,
    maps: ByNamespace,
    pub(super) reads: ByNamespace,
}

pub(super) struct ByNamespace(pub(super) Turns<Arc<str>>);

/// What is at a place, and the turns that it takes until it has been read.
pub struct Fetched {
    bytes: Vec<u8>,
    _turns: Vec<Turn<Arc<str>>>,
}

impl<W: World> Fetcher<W> {
    /// A URL's certificate must be of one of the roots, where its policy names no others.
    ///
    /// # Errors
    /// When rustls has no protocol version.
    pub fn new(world: W, roots: RootCertStore) -> Result<Self, rustls::Error> {
        Ok(Self {
            world,
            tls: Arc::new(config(roots)?),
            connections: ByNamespace::new(CONNECTIONS),
            large: ByNamespace::new(LARGE),
            maps: ByNamespace::new(MAPS),
            reads: ByNamespace::new(READS),
        })
    }

    /// The bytes that are there now.
    ///
    /// # Errors
    /// Why there are none, in words for a status.
    pub async fn fetch(&self, source: &KeySource) -> Result<Fetched, Failure> {
        match &source.place {
            KeyPlace::ConfigMap(map) => Ok(self.config_map(source, map).await.map_err(|failure| failure.why)?),
            KeyPlace::Certificates(map) => self.config_map(source, map).await,
            KeyPlace::Url { host, port, path, ca } => {
                let turn = self.connections.turn(source).await?;
                let tls = match ca {
                    None => Arc::clone(&self.tls),
                    Some(ca) => self.tls_with(source, ca).await?,
                };
                let target = async {
                    let addresses = self.addresses(host).await?;
                    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
                    let name = name.map_err(|_| format!("{host} is no name that a certificate can have"))?;
                    Ok(Target {
                        addresses: addresses.into_iter().map(|ip| SocketAddr::new(ip, *port)).collect(),
                        tls: Some((tls, name)),
                        authority: if *port == 443 {
                            host.to_string()
                        } else {
                            format!("{host}:{port}")
                        },
                        path,
                    })
                };
                Ok(self.over_the_network(source, turn, target).await?)
            }
            KeyPlace::Service { name, port, path } => {
                let turn = self.connections.turn(source).await?;
                let target = async {
                    let address = self.world.service(source.object(name), *port)?;
                    self.permitted(&[address.ip()])?;
                    Ok(Target {
                        addresses: vec![address],
                        tls: None,
                        authority: format!("{name}.{}:{port}", source.namespace),
                        path,
                    })
                };
                Ok(self.over_the_network(source, turn, target).await?)
            }
        }
    }

    /// Reads what was fetched, in turn, and beside the threads that serve sidecars. It is done in any case, also where nobody waits for
    /// it any more: so the turns are held there.
    ///
    /// # Errors
    /// When it is not what it should be, in words for a status.
    pub(super) async fn read<T: Send + 'static, E: From<String> + Send + 'static>(
        &self,
        source: &KeySource,
        fetched: Fetched,
        read: impl FnOnce(&[u8]) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let turn = self.reads.turn(source).await?;
        let reading = spawn_blocking(move || {
            // All of it is held until it is read: a closure takes the fields that it names alone.
            let (_turn, fetched) = (turn, fetched);
            read(&fetched.bytes)
        });
        reading
            .await
            .unwrap_or_else(|_| Err("it cannot be read".to_owned().into()))
    }

    async fn over_the_network<'a>(
        &self,
        source: &KeySource,
        mut turn: Turn<Arc<str>>,
        target: impl Future<Output = Result<Target<'a>, String>>,
    ) -> Result<Fetched, String> {
        let (bytes, large) = tokio::select! {
            body = self.body(source, target) => body?,
            () = gives_way(&mut turn) => return Err(GAVE_WAY.to_owned()),
        };
        Ok(Fetched {
            bytes,
            _turns: large.into_iter().chain([turn]).collect(),
        })
    }

    /// What a server answers, and the turn for it where it is large.
    async fn body<'a>(
        &self,
        source: &KeySource,
        target: impl Future<Output = Result<Target<'a>, String>>,
    ) -> Result<(Vec<u8>, Option<Turn<Arc<str>>>), String> {
        let until = Instant::now() + source.timeout;
        let too_late = |_| format!("no whole answer within {:?}", source.timeout);
        let begun = async {
            let mut body = get(&self.world, target.await?, until).await?;
            let has_ended = body.read(SMALL).await?;
            Ok::<_, String>((body, has_ended))
        };
        let (mut body, has_ended) = timeout_at(until, begun).await.map_err(too_late)??;
        if has_ended {
            return Ok((body.bytes, None));
        }
        let mut turn = self.large.turn(source).await?;
        // Whoever has waited has as much time as who has not.
        let rest = timeout(source.timeout, body.read(MAX_JWKS));
        let has_ended = tokio::select! {
            has_ended = rest => has_ended.map_err(too_late)??,
            () = gives_way(&mut turn) => return Err(GAVE_WAY.to_owned()),
        };
        match has_ended {
            true => Ok((body.bytes, Some(turn))),
            false => Err(too_large()),
        }
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        let literal = host.trim_matches(['[', ']']).parse();
        let mut addresses = match literal {
            Ok(address) => vec![address],
            Err(_) => self.world.resolve(host).await?,
        };
        addresses.truncate(MAX_ADDRESSES);
        self.permitted(&addresses)?;
        Ok(addresses)
    }

    /// All of them: a name that has one of these among its addresses is not made for us.
    fn permitted(&self, addresses: &[IpAddr]) -> Result<(), String> {
        for address in addresses {
            let Some(forbidden) = self.world.forbidden(*address) else {
                continue;
            };
            let leads = if forbidden == *address {
                String::new()
            } else {
                format!(" ({address} leads there)")
            };
            return Err(format!(
                "{forbidden} is not called{leads}: loopback, link-local, unspecified and multicast addresses, and those of cloud \
                 metadata, are refused"
            ));
        }
        Ok(())
    }

    async fn config_map(&self, source: &KeySource, map: &ConfigMapKey) -> Result<Fetched, Failure> {
        let turn = self.maps.turn(source).await?;
        let value = self.world.config_map(source.object(&map.name), &map.key);
        let value = timeout(API_SERVER, value).await;
        let value = value.map_err(|_| format!("the API server has not answered within {API_SERVER:?}"))??;
        Ok(Fetched {
            bytes: value.into_bytes(),
            _turns: vec![turn],
        })
    }

    async fn tls_with(&self, source: &KeySource, ca: &ConfigMapKey) -> Result<Arc<ClientConfig>, String> {
        let pem = self.config_map(source, ca).await.map_err(|failure| failure.why)?;
        let place = format!("{} of the ConfigMap {}", ca.key, ca.name);
        if pem.bytes.len() > MAX_CA {
            return Err(format!("{place} is larger than {MAX_CA} bytes"));
        }
        let read = move |pem: &[u8]| {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let added = certificate.ok().and_then(|certificate| roots.add(certificate).ok());
                added.ok_or_else(|| format!("{place} is no PEM of certificates"))?;
            }
            match roots.is_empty() {
                true => Err(format!("{place} has no certificate")),
                false => config(roots).map(Arc::new).map_err(|e| e.to_string()),
            }
        };
        self.read(source, pem, read).await
    }
}

impl ByNamespace {
    fn new(room: Room) -> Self {
        Self(Turns::new(room))
    }

    async fn turn(&self, source: &KeySource) -> Result<Turn<Arc<str>>, String> {
        let turn = self.0.turn(Arc::clone(&source.namespace)).await;
        turn.map_err(|Crowded| "too much waits to be fetched".to_owned())
    }
}

/// Is done when the turn has had its share, and somebody waits for it.
async fn gives_way(turn: &mut Turn<Arc<str>>) {
    sleep(SHARE).await;
    turn.wanted().await;
}

const GAVE_WAY: &str =
    "its server was so slow that it gave way to others: the controller has to fetch keys at very many places";

fn config(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "fetch_tests.rs"]
mod tests;
