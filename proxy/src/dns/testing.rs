//! A name server in this process.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Known, MAX_NAMES, Resolver, servers_config};

/// Names that begin like this get no answer.
pub(crate) const SILENT: &str = "silent";

/// Addresses and TTL by name.
type Zone = Arc<Mutex<HashMap<String, (Vec<Ipv4Addr>, u32)>>>;

/// It answers as long as it lives.
pub(crate) struct Server {
    zone: Zone,
    /// The names that addresses were asked for.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (zone, asked) = (Zone::default(), Arc::<Mutex<Vec<String>>>::default());
        let task = tokio::spawn(serve(socket, zone.clone(), asked.clone()));
        Self {
            zone,
            asked,
            address,
            task,
        }
    }

    /// Without addresses: the name exists, and has none.
    pub(crate) fn set(&self, name: &str, addresses: &[Ipv4Addr], ttl: u32) {
        self.zone.lock().insert(name.to_owned(), (addresses.to_vec(), ttl));
    }

    pub(crate) fn resolver(&self) -> Resolver {
        Resolver::start(Some(&[self.address])).unwrap()
    }

    /// As in a pod with these search domains.
    pub(crate) fn resolver_of_pod(&self, search: &[&str]) -> Resolver {
        let servers = servers_config(&[self.address]).name_servers().to_vec();
        let search = search.iter().map(|domain| Name::from_ascii(domain).unwrap()).collect();
        let mut options = ResolverOpts::default();
        // As kubelet writes it.
        options.ndots = 5;
        Resolver::new(ResolverConfig::from_parts(None, search, servers), options).unwrap()
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.lock().len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: UdpSocket, zone: Zone, asked: Arc<Mutex<Vec<String>>>) {
    let mut buffer = [0; 1500];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
        let request = Message::from_vec(&buffer[..length]).unwrap();
        let query = request.queries[0].clone();
        let name = query.name().to_ascii().trim_end_matches('.').to_owned();
        if name.starts_with(SILENT) {
            continue;
        }
        let mut response = Message::response(request.metadata.id, OpCode::Query);
        response.add_query(query.clone());
        let found = zone.lock().get(&name).cloned();
        match found {
            Some((addresses, ttl)) if query.query_type() == RecordType::A => {
                asked.lock().push(name);
                for ip in addresses {
                    response.add_answer(Record::from_rdata(query.name().clone(), ttl, RData::A(A(ip))));
                }
            }
            Some(_) => {}
            None => {
                if query.query_type() == RecordType::A {
                    asked.lock().push(name);
                }
                response.metadata.response_code = ResponseCode::NXDomain;
                let soa = SOA::new(Name::root(), Name::root(), 1, 60, 60, 60, 1);
                response.add_authority(Record::from_rdata(Name::root(), 1, RData::SOA(soa)));
            }
        }
        socket.send_to(&response.to_vec().unwrap(), peer).await.unwrap();
    }
}

/// As many names as there may be, none of which gets an answer.
pub(crate) async fn fill(resolver: &Resolver) -> Vec<watch::Receiver<Known>> {
    let mut watched = Vec::new();
    for n in 0..MAX_NAMES {
        watched.push(resolver.watch(&format!("{SILENT}-{n}.test"), 80).unwrap());
        if n % 32 == 0 {
            // A socket holds only so many queries that are not read yet.
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
    watched
}
