//! Against a name server in this process.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Resolver;

const LONG: Duration = Duration::from_secs(10);

/// Addresses and TTL by name.
type Zone = Arc<Mutex<HashMap<String, (Vec<Ipv4Addr>, u32)>>>;

struct Server {
    zone: Zone,
    asked: Arc<Mutex<Vec<String>>>,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    async fn new() -> Self {
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

    fn set(&self, name: &str, addresses: &[Ipv4Addr], ttl: u32) {
        self.zone.lock().insert(name.to_owned(), (addresses.to_vec(), ttl));
    }

    fn resolver(&self) -> Resolver {
        Resolver::start(Some(&[self.address])).unwrap()
    }

    fn asked(&self) -> usize {
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

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

fn sockets(lasts: &[u8]) -> Vec<SocketAddr> {
    lasts.iter().map(|&last| SocketAddr::from((ip(last), 80))).collect()
}

#[tokio::test]
async fn follows_a_name_by_its_ttl() {
    let server = Server::new().await;
    server.set("example.test", &[ip(2), ip(1), ip(2)], 1);
    let resolver = server.resolver();
    let mut addresses = resolver.watch("example.test", 80);
    timeout(LONG, addresses.changed()).await.unwrap().unwrap();
    assert_eq!(**addresses.borrow_and_update(), sockets(&[1, 2]));
    // A second watcher sees at once what is known, and asks nobody.
    let mut second = resolver.watch("example.test", 80);
    timeout(Duration::from_millis(100), second.changed())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(server.asked(), 1);
    server.set("example.test", &[ip(3)], 300);
    timeout(LONG, addresses.wait_for(|list| **list == sockets(&[3])))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_asked_again_after_its_negative_ttl() {
    let server = Server::new().await;
    let mut addresses = server.resolver().watch("later.test", 80);
    let resolver = server.resolver();
    let mut addresses_kept = resolver.watch("later.test", 80);
    // A resolver that is gone asks nobody any more, and its receivers see that.
    assert!(timeout(LONG, addresses.changed()).await.unwrap().is_err());
    timeout(LONG, addresses_kept.changed()).await.unwrap().unwrap();
    assert!(addresses_kept.borrow_and_update().is_empty());
    server.set("later.test", &[ip(1)], 300);
    timeout(LONG, addresses_kept.wait_for(|list| **list == sockets(&[1])))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_name_that_nobody_watches_is_not_asked_for() {
    let server = Server::new().await;
    server.set("example.test", &[ip(1)], 1);
    server.set("clock.test", &[ip(9)], 1);
    let resolver = server.resolver();
    let mut addresses = resolver.watch("example.test", 80);
    timeout(LONG, addresses.changed()).await.unwrap().unwrap();
    drop(addresses);
    // Another name with the same TTL is the clock: after four of its answers, the first one was asked at most twice.
    let clock = resolver.watch("clock.test", 80);
    let count = |name: &str| server.asked.lock().iter().filter(|asked| *asked == name).count();
    timeout(LONG, async {
        while count("clock.test") < 4 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    assert!(count("example.test") <= 2, "{}", count("example.test"));
    drop(clock);
}

#[tokio::test]
async fn resolves_once() {
    let server = Server::new().await;
    server.set("controller.test", &[ip(1), ip(2)], 30);
    let resolver = server.resolver();
    let mut found = resolver.resolve("controller.test").await.unwrap();
    found.sort();
    assert_eq!(found, [IpAddr::from(ip(1)), IpAddr::from(ip(2))]);
    assert_eq!(
        resolver.resolve("fd00::1").await.unwrap(),
        ["fd00::1".parse::<IpAddr>().unwrap()]
    );
    assert!(
        resolver
            .resolve("nowhere.test")
            .await
            .unwrap_err()
            .contains("nowhere.test has no address")
    );
}
