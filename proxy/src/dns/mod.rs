//! Names that the sidecar resolves itself: only those that are used, for as long as their records say. libc's resolver is
//! not used, because a static binary cannot load its parts, and because it does not tell TTLs.

mod host_port;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::Name;
use hickory_resolver::system_conf::read_system_conf;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::backoff::Backoff;
use crate::shared::{Full, Shared};

pub use host_port::HostPort;

/// Names that are watched at the same time.
pub(crate) const MAX_NAMES: usize = 1024;
/// What a record's TTL may be: a zero would mean a query for each request, a year that nothing ever changes.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// The same for "there is no such name" (RFC 2308).
const NEGATIVE_TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Where a server says that a name does not exist, and not for how long.
const NEGATIVE_DEFAULT: Duration = Duration::from_secs(5);
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

type Names = Shared<(Arc<str>, u16), Known>;

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// There is no answer yet.
    NotYet,
    /// At least one. They stay while nobody can be asked.
    Addresses(Arc<[SocketAddr]>),
    /// The name does not exist, or has no address.
    Nothing,
    /// Nobody could be asked, for this reason, and no address is known from before.
    Failed(Arc<str>),
}

/// Handle to the resolver; cheap to clone, and used from every thread.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    servers: Servers,
    names: Arc<Names>,
    /// For the log: whether the last name that was asked for had no room.
    full: AtomicBool,
    runtime: Handle,
}

/// Who is asked.
#[derive(Clone)]
struct Servers {
    hickory: TokioResolver,
    /// With a dot at its end.
    cluster_domain: String,
}

/// What was found out about a name.
enum Answer {
    Addresses(Vec<IpAddr>, Duration),
    /// The name does not exist, or has no address.
    Nothing(Duration),
    /// Nobody could be asked.
    Failed(String),
}

impl Resolver {
    /// Starts the resolver on the runtime that calls this. `servers` are asked instead of the system's.
    ///
    /// # Errors
    /// When the resolver cannot be made.
    pub fn start(servers: Option<&[SocketAddr]>) -> Result<Self, String> {
        let (config, options) = match servers {
            Some(servers) => (servers_config(servers), ResolverOpts::default()),
            None => read_system_conf().unwrap_or_else(|error| {
                tracing::warn!("the system's name servers cannot be read, asking 127.0.0.1: {error}");
                let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 53));
                (servers_config(&[local]), ResolverOpts::default())
            }),
        };
        Self::new(config, options)
    }

    fn new(config: ResolverConfig, mut options: ResolverOpts) -> Result<Self, String> {
        // What is watched is kept here, by its TTL.
        options.cache_size = 0;
        options.ip_strategy = strategy();
        let cluster_domain = cluster_domain(config.search());
        let hickory = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .map_err(|error| format!("the resolver cannot be made: {error}"))?;
        Ok(Self(Arc::new(Inner {
            servers: Servers {
                hickory,
                cluster_domain,
            },
            names: Arc::new(Shared::new(MAX_NAMES)),
            full: AtomicBool::new(false),
            runtime: Handle::current(),
        })))
    }

    /// What is known of a name, kept up to date while a receiver lives. `changed()` of a new receiver returns as soon as
    /// there is an answer, also where it is known already.
    ///
    /// # Errors
    /// When as many names are watched as there may be. Later there may be room again: names that nobody watches make it.
    pub fn watch(&self, host: &str, port: u16) -> Result<watch::Receiver<Known>, String> {
        let key = (Arc::<str>::from(host), port);
        let start = |_| {
            let watcher = follow(self.0.servers.clone(), Arc::downgrade(&self.0.names), key.clone());
            self.0.runtime.spawn(watcher).abort_handle()
        };
        let watched = self.0.names.subscribe(&key, Known::NotYet, start);
        if watched.is_err() != self.0.full.swap(watched.is_err(), Ordering::Relaxed) {
            match watched.is_err() {
                true => tracing::warn!(host, "{MAX_NAMES} names are in use; a further one cannot be resolved"),
                false => tracing::info!("there is room for a further name"),
            }
        }
        watched.map_err(|Full| format!("{MAX_NAMES} names are in use, and {host} would be one more"))
    }

    /// The addresses of a name, asked once.
    ///
    /// # Errors
    /// When there is none, and why.
    pub(crate) async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        if let Ok(ip) = host.parse() {
            return Ok(vec![ip]);
        }
        match self.0.servers.ask(host).await {
            Answer::Addresses(addresses, _) => Ok(addresses),
            Answer::Nothing(_) => Err(format!("the name {host} has no address in DNS")),
            Answer::Failed(error) => Err(format!("the name {host} cannot be resolved: {error}")),
        }
    }
}

/// Keeps one name up to date, until a TTL ends and nobody watches it.
async fn follow(servers: Servers, names: Weak<Names>, key: (Arc<str>, u16)) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1, SmallRng::from_os_rng());
    let mut has_addresses = false;
    loop {
        let asked = Instant::now();
        let answer = servers.ask(&key.0).await;
        let Some(table) = names.upgrade() else {
            return;
        };
        let wait = match answer {
            Answer::Addresses(mut addresses, ttl) => {
                backoff.succeeded();
                // Sorted, so that a server that rotates its answers changes nothing.
                addresses.sort();
                addresses.dedup();
                let sockets = addresses.into_iter().map(|ip| SocketAddr::new(ip, key.1));
                table.publish(&key, Known::Addresses(sockets.collect()));
                has_addresses = true;
                ttl.clamp(TTL.0, TTL.1)
            }
            Answer::Nothing(ttl) => {
                backoff.succeeded();
                table.publish(&key, Known::Nothing);
                has_addresses = false;
                ttl.clamp(NEGATIVE_TTL.0, NEGATIVE_TTL.1)
            }
            Answer::Failed(error) => {
                tracing::warn!(host = &*key.0, "a name cannot be resolved: {error}");
                // The last addresses are more likely right than none.
                if !has_addresses {
                    table.publish(&key, Known::Failed(error.into()));
                }
                backoff.failed()
            }
        };
        drop(table);
        sleep(wait).await;
        if names.upgrade().is_none_or(|table| table.remove_if_unused(&key, asked)) {
            return;
        }
    }
}

impl Servers {
    async fn ask(&self, host: &str) -> Answer {
        match self.hickory.lookup_ip(&*self.name(host)).await {
            Ok(found) => {
                let records = found.as_lookup().answers();
                let ttl = records.iter().map(|record| record.ttl).min().unwrap_or(0);
                let addresses: Vec<_> = found.iter().collect();
                let ttl = Duration::from_secs(ttl.into());
                match addresses.is_empty() {
                    true => Answer::Nothing(ttl),
                    false => Answer::Addresses(addresses, ttl),
                }
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                let ttl = none.negative_ttl.map(|seconds| Duration::from_secs(seconds.into()));
                Answer::Nothing(ttl.unwrap_or(NEGATIVE_DEFAULT))
            }
            Err(error) => Answer::Failed(error.to_string()),
        }
    }

    /// `<service>.<namespace>.svc` is a Service of the cluster, and is asked for in the cluster's own domain only. The search
    /// domains of a pod go on with those of its node, where the name might be a stranger's.
    fn name<'a>(&self, host: &'a str) -> Cow<'a, str> {
        match host.to_ascii_lowercase().ends_with(".svc") {
            true => format!("{host}.{}", self.cluster_domain).into(),
            false => host.into(),
        }
    }
}

/// kubelet gives a pod `<namespace>.svc.<domain>`, `svc.<domain>` and `<domain>` to search, before the domains of its node. A pod that
/// does not use the cluster's name servers (`dnsPolicy`) may have none of them: then it is the usual domain.
fn cluster_domain(search: &[Name]) -> String {
    // By both neighbours: a namespace may be named `svc`, and a node's domain may begin so.
    let known = search.windows(2).find_map(|pair| {
        let [of_namespace, of_services] = [&pair[0], &pair[1]].map(|domain| domain.to_ascii());
        let domain = of_services.strip_prefix("svc.")?.trim_end_matches('.');
        let is_neighbour = of_namespace.trim_end_matches('.').ends_with(&format!(".svc.{domain}"));
        (!domain.is_empty() && is_neighbour).then(|| format!("{domain}."))
    });
    known.unwrap_or_else(|| "cluster.local.".to_owned())
}

fn servers_config(servers: &[SocketAddr]) -> ResolverConfig {
    let servers = servers.iter().map(|server| {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = server.port();
            connection
        });
        NameServerConfig::new(server.ip(), true, connections.into())
    });
    ResolverConfig::from_parts(None, Vec::new(), servers.collect())
}

/// IPv4 first, except where there is only IPv6. No packet is sent: connecting a UDP socket asks the routing table.
fn strategy() -> LookupIpStrategy {
    let route = |from: &str, to: &str| UdpSocket::bind(from).and_then(|socket| socket.connect(to)).is_ok();
    match !route("0.0.0.0:0", "192.0.2.1:9") && route("[::]:0", "[2001:db8::1]:9") {
        true => LookupIpStrategy::Ipv6thenIpv4,
        false => LookupIpStrategy::Ipv4thenIpv6,
    }
}
