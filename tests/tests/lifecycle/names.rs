//! A Service that is a DNS name, asked of a name server in this process.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outrigger_api::discovery::backend::Kind;
use outrigger_api::discovery::{DnsName, Protocol};
use outrigger_controller::discovery::FixedTargets;
use outrigger_tests::mesh::{Authority, Http, Sidecar};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::{orders_address, service, until};

pub(crate) const NAME: &str = "legacy.test";

/// A name server (RFC 1035) that knows the IPv4 addresses of names. Every TTL, and every negative one, is a second.
pub(crate) struct Names {
    pub(crate) address: SocketAddr,
    zone: Arc<Mutex<HashMap<String, Vec<Ipv4Addr>>>>,
}

impl Names {
    pub(crate) async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(HashMap::<String, Vec<Ipv4Addr>>::new()));
        let answers = Arc::clone(&zone);
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, peer)) = socket.recv_from(&mut query).await {
                let answer = answer(&query[..length], &answers.lock().unwrap());
                let _ = socket.send_to(&answer, peer).await;
            }
        });
        Self { address, zone }
    }

    pub(crate) fn set(&self, addresses: &[Ipv4Addr]) {
        self.zone.lock().unwrap().insert(NAME.to_owned(), addresses.to_vec());
    }

    fn forget(&self) {
        self.zone.lock().unwrap().clear();
    }
}

fn answer(query: &[u8], zone: &HashMap<String, Vec<Ipv4Addr>>) -> Vec<u8> {
    const HEADER: usize = 12;
    let (mut at, mut labels) = (HEADER, Vec::new());
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).to_ascii_lowercase());
        at = end;
    }
    let question = &query[HEADER..at + 5];
    let wants_ipv4 = question[question.len() - 4..question.len() - 2] == [0, 1];
    let known = zone.get(&labels.join("."));
    let addresses = known.filter(|_| wants_ipv4).cloned().unwrap_or_default();
    let no_such_name: u8 = if known.is_some() { 0 } else { 3 };
    // Nothing found: an SOA record of the root, whose TTL and last field are the negative TTL (RFC 2308).
    let authorities = u8::from(addresses.is_empty());
    let mut answer = query[..2].to_vec();
    answer.extend([
        0x81,
        0x80 | no_such_name,
        0,
        1,
        0,
        addresses.len() as u8,
        0,
        authorities,
        0,
        0,
    ]);
    answer.extend(question);
    for address in addresses {
        answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(address.octets());
    }
    if authorities > 0 {
        answer.extend([0, 0, 6, 0, 1, 0, 0, 0, 1, 0, 22, 0, 0]);
        answer.extend([0, 0, 0, 1].repeat(5));
    }
    answer
}

/// Two apps at the same port of two addresses, which say where they are.
async fn apps() -> (u16, [Ipv4Addr; 2]) {
    let addresses = [Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2)];
    loop {
        let first = TcpListener::bind((addresses[0], 0)).await.unwrap();
        let port = first.local_addr().unwrap().port();
        // The port may be taken at the other address.
        let Ok(second) = TcpListener::bind((addresses[1], port)).await else {
            continue;
        };
        tokio::spawn(say(first));
        tokio::spawn(say(second));
        return (port, addresses);
    }
}

async fn say(listener: TcpListener) {
    let ip = listener.local_addr().unwrap().ip().to_string();
    while let Ok((mut stream, _)) = listener.accept().await {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{ip}", ip.len());
        tokio::spawn(async move {
            let mut head = [0; 4096];
            // A request of these tests is one segment.
            while matches!(stream.read(&mut head).await, Ok(1..)) {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
    }
}

#[tokio::test]
async fn a_name_whose_addresses_change_disappear_and_come_back() {
    let names = Names::start().await;
    let (port, [one, two]) = apps().await;
    let dns = DnsName {
        host: NAME.to_owned(),
        port: port.into(),
    };
    let target = service(Protocol::Http1, Kind::Dns(dns));
    let targets = Arc::new(FixedTargets::new([(orders_address(), target)]));
    let authority = Authority::with_discovery(&["web"], Duration::from_secs(86_400), Some(targets)).await;
    let server = names.address;
    let web = Sidecar::new("web").calls_address(orders_address());
    let web = web
        .start_with(&authority, |config| config.dns_servers = Some(vec![server]))
        .await;
    let (http, to) = (Http::one(), web.outbound[0]);
    let answered_by = async || {
        let seen = http.get(to, "/").await;
        match seen.status {
            200 => Ok(String::from_utf8_lossy(&seen.body).parse::<IpAddr>().unwrap()),
            _ => Err(seen.error().unwrap_or_default().to_owned()),
        }
    };
    // The name does not exist yet.
    assert_eq!(answered_by().await, Err("no-endpoints".to_owned()));
    names.set(&[one]);
    until("the name is found after its negative TTL", async || {
        answered_by().await == Ok(one.into())
    })
    .await;
    names.set(&[two]);
    until("the address follows the TTL", async || {
        answered_by().await == Ok(two.into())
    })
    .await;
    assert_eq!(answered_by().await, Ok(two.into()), "the old address is used again");
    names.forget();
    until("the name is gone", async || {
        answered_by().await == Err("no-endpoints".to_owned())
    })
    .await;
    names.set(&[one, two]);
    until("the name is back", async || answered_by().await.is_ok()).await;
}
