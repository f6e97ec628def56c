//! Handshakes between sidecars, in memory.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use outrigger_api::spiffe::SpiffeId;
use outrigger_proxy_transport::error::{ProxyError, Reason};
use outrigger_proxy_transport::net::ReadAhead;
use rustls::HandshakeKind;
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::testing::TestCa;
use super::tls::{client_config, provider, server_config};
use super::verify::Verifier;
use super::{Clock, Credentials, MeshProtocol, Trust, TrustBundle};
use crate::telemetry::metrics::Handshake;

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";
const INVENTORY: &str = "spiffe://cluster.local/ns/shop/sa/inventory";
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 7));
const DAY: Duration = Duration::from_secs(86_400);

type Connected = Result<tokio_rustls::client::TlsStream<DuplexStream>, ProxyError>;
type Accepted = Result<
    (
        tokio_rustls::server::TlsStream<ReadAhead<DuplexStream>>,
        SpiffeId,
        MeshProtocol,
    ),
    ProxyError,
>;

async fn handshake(client: &Credentials, server: &Credentials, expected: &str) -> (Connected, Accepted) {
    let (near, far) = duplex(64 * 1024);
    let expected = expected.parse().unwrap();
    let (connected, accepted) = tokio::join!(
        client.connect(near, PEER, &expected, MeshProtocol::Http1),
        server.accept(far)
    );
    (connected.map_err(Into::into), accepted.map_err(Into::into))
}

/// A handshake, and one byte to the client, with which the ticket comes.
async fn exchange(client: &Credentials, server: &Credentials) -> (HandshakeKind, SpiffeId) {
    let (connected, accepted) = handshake(client, server, INVENTORY).await;
    let (mut near, (mut far, peer, _)) = (connected.unwrap(), accepted.unwrap());
    far.write_all(b"x").await.unwrap();
    near.read_exact(&mut [0]).await.unwrap();
    let kind = near.get_ref().1.handshake_kind().unwrap();
    assert_eq!(far.get_ref().1.handshake_kind(), Some(kind));
    (kind, peer)
}

/// What a server says to a client that would trust it, with this key and ALPN.
async fn accept_from(ca: &TestCa, key: Option<&Arc<CertifiedKey>>, alpn: &[u8]) -> ProxyError {
    let verifier = Arc::new(Verifier::new(provider(), &ca.bundle(), "cluster.local").unwrap());
    let config = client_config(&verifier, key, alpn, &Clock::system()).unwrap();
    let client = TlsConnector::from(Arc::new(config));
    let server = ca.credentials(INVENTORY);
    let (near, far) = duplex(64 * 1024);
    let (_, accepted) = tokio::join!(client.connect("x.peer".try_into().unwrap(), near), server.accept(far));
    accepted.unwrap_err().into()
}

/// A clock that is this many seconds ahead.
fn shifted() -> (Arc<AtomicU64>, Clock) {
    let ahead = Arc::new(AtomicU64::new(0));
    let seconds = ahead.clone();
    let clock = Clock::new(move || SystemTime::now() + Duration::from_secs(seconds.load(Ordering::Relaxed)));
    (ahead, clock)
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let ca = TestCa::new("root");
    let (orders, inventory) = (ca.credentials(ORDERS), ca.credentials(INVENTORY));
    for protocol in MeshProtocol::ALL {
        let (near, far) = duplex(64 * 1024);
        let expected = INVENTORY.parse().unwrap();
        let (connected, accepted) =
            tokio::join!(orders.connect(near, PEER, &expected, protocol), inventory.accept(far));
        let (_, peer, agreed) = accepted.unwrap();
        assert_eq!((peer.as_str(), agreed), (ORDERS, protocol));
        let connected = connected.unwrap();
        let tls = connected.get_ref().1;
        assert_eq!(tls.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let group = tls.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    }
}

#[tokio::test]
async fn somebody_else_is_refused_by_name() {
    let ca = TestCa::new("root");
    let (connected, _) = handshake(&ca.credentials(ORDERS), &ca.credentials(ORDERS), INVENTORY).await;
    let error = connected.unwrap_err();
    assert_eq!(error.reason, Reason::IdentityMismatch);
    assert!(
        error
            .detail
            .contains(&format!("expected {INVENTORY} at {PEER}, found {ORDERS}")),
        "{error}"
    );
}

#[tokio::test]
async fn another_trust_domain_is_refused() {
    let ca = TestCa::new("root");
    let foreign = ca.credentials("spiffe://other.example/ns/shop/sa/inventory");
    let (connected, _) = handshake(&ca.credentials(ORDERS), &foreign, INVENTORY).await;
    let error = connected.unwrap_err();
    assert_eq!(error.reason, Reason::IdentityMismatch);
    assert!(error.detail.contains("other.example"), "{error}");
    // The other way round: a client that would talk to us.
    let now = SystemTime::now();
    let (chain, key) = ca.leaf_and_key(&["spiffe://other.example/ns/shop/sa/orders"], now - DAY, now + DAY);
    let key = Arc::new(CertifiedKey::from_der(chain, key, provider()).unwrap());
    let error = accept_from(&ca, Some(&key), MeshProtocol::Http1.alpn()).await;
    assert_eq!(error.reason, Reason::IdentityMismatch);
    assert!(error.detail.contains("other.example"), "{error}");
}

#[tokio::test]
async fn an_unknown_root_is_named() {
    let (ours, theirs) = (TestCa::new("Our Root"), TestCa::new("Their Root"));
    let (connected, accepted) = handshake(&ours.credentials(ORDERS), &theirs.credentials(INVENTORY), INVENTORY).await;
    let error = connected.unwrap_err();
    assert_eq!(error.reason, Reason::TlsFailed);
    assert!(
        error.detail.contains("Their Root") && error.detail.contains("Our Root"),
        "{error}"
    );
    // The peer is told with an alert.
    let error = accepted.unwrap_err();
    assert_eq!(error.reason, Reason::TlsFailed);
    assert!(error.detail.contains("does not accept our SVID"), "{error}");
    // Two roots of the same name and different keys are different roots.
    let same_name = TestCa::new("Our Root");
    let (connected, _) = handshake(&ours.credentials(ORDERS), &same_name.credentials(INVENTORY), INVENTORY).await;
    assert!(connected.unwrap_err().detail.contains("trust bundles"));
}

fn trust(bundle: &TrustBundle) -> Arc<Trust> {
    Arc::new(Trust::new(bundle, "cluster.local", 1).unwrap())
}

#[tokio::test]
async fn two_roots_are_trusted_while_one_replaces_the_other() {
    let (old, new) = (TestCa::new("old"), TestCa::new("new"));
    let both = TrustBundle::from_pem(format!("{}\n{}", old.pem, new.pem).as_bytes()).unwrap();
    let clock = Clock::system();
    let before = Credentials::new(&old.svid(ORDERS), &trust(&both), 1, &clock).unwrap();
    let after = Credentials::new(&new.svid(INVENTORY), &trust(&both), 1, &clock).unwrap();
    assert_eq!(before.trust.not_after.len(), 2);
    let (connected, accepted) = handshake(&before, &after, INVENTORY).await;
    assert!(connected.is_ok() && accepted.is_ok());
    let (connected, accepted) = handshake(&after, &before, ORDERS).await;
    assert!(connected.is_ok() && accepted.is_ok());
}

#[tokio::test]
async fn an_expired_svid_shows_both_clocks() {
    let ca = TestCa::new("root");
    let now = SystemTime::now();
    let expired = ca.svid_with(&[INVENTORY], now - 2 * DAY, now - DAY).unwrap();
    let (connected, _) = handshake(&ca.credentials(ORDERS), &ca.credentials_of(&expired, 1), INVENTORY).await;
    let error = connected.unwrap_err();
    assert_eq!(error.reason, Reason::TlsFailed);
    assert!(
        error.detail.contains("ended at") && error.detail.contains("the clock here says"),
        "{error}"
    );
    let future = ca.svid_with(&[ORDERS], now + DAY, now + 2 * DAY).unwrap();
    let (_, accepted) = handshake(&ca.credentials_of(&future, 1), &ca.credentials(INVENTORY), INVENTORY).await;
    let error = accepted.unwrap_err();
    assert!(
        error.detail.contains("begins at") && error.detail.contains("the clock here says"),
        "{error}"
    );
}

#[tokio::test]
async fn a_certificate_has_exactly_one_spiffe_id() {
    let ca = TestCa::new("root");
    let now = SystemTime::now();
    for (uris, words) in [
        (&[ORDERS, INVENTORY][..], "2 URI names"),
        (&[], "0 URI names"),
        (
            &["https://cluster.local/ns/shop/sa/inventory"],
            "spiffe://<trust-domain>",
        ),
        (
            &["spiffe://cluster.local/ns/shop/sa/inventory/x"],
            "spiffe://<trust-domain>",
        ),
    ] {
        let (chain, key) = ca.leaf_and_key(uris, now - DAY, now + DAY);
        let key = Arc::new(CertifiedKey::from_der(chain, key, provider()).unwrap());
        let clock = Clock::system();
        let verifier = Arc::new(Verifier::new(provider(), &ca.bundle(), "cluster.local").unwrap());
        // As a server …
        let server = TlsAcceptor::from(Arc::new(server_config(&verifier, &key, &clock).unwrap()));
        let (near, far) = duplex(64 * 1024);
        let expected = INVENTORY.parse().unwrap();
        let client = ca.credentials(ORDERS);
        let (connected, _) = tokio::join!(
            client.connect(near, PEER, &expected, MeshProtocol::Http2),
            server.accept(far)
        );
        let failed = connected.unwrap_err();
        assert_eq!(failed.cause, Handshake::MalformedIdentity);
        let error = failed.error;
        assert_eq!(error.reason, Reason::TlsFailed);
        assert!(error.detail.contains(words), "{error}");
        // … and as a client.
        let error = accept_from(&ca, Some(&key), MeshProtocol::Http2.alpn()).await;
        assert!(error.detail.contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_client_without_an_svid_or_a_mesh_protocol_is_refused() {
    let ca = TestCa::new("root");
    for (alpn, words) in [
        (&b"outrigger/h1"[..], "shows no SVID"),
        (b"h2", "does not speak the mesh's protocols"),
    ] {
        let error = accept_from(&ca, None, alpn).await;
        assert_eq!(error.reason, Reason::TlsFailed);
        assert!(error.detail.contains(words), "{error}");
    }
    let server = ca.credentials(INVENTORY);
    let (near, mut far) = duplex(64 * 1024);
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let expected = INVENTORY.parse().unwrap();
    let error = server
        .connect(near, PEER, &expected, MeshProtocol::Http1)
        .await
        .unwrap_err()
        .error;
    assert!(error.detail.contains("does not speak TLS"), "{error}");
}

#[tokio::test]
async fn a_resumed_session_has_the_same_identities() {
    let ca = TestCa::new("root");
    let (orders, inventory) = (ca.credentials(ORDERS), ca.credentials(INVENTORY));
    assert_eq!(exchange(&orders, &inventory).await.0, HandshakeKind::Full);
    for _ in 0..3 {
        let (kind, peer) = exchange(&orders, &inventory).await;
        assert_eq!((kind, peer.as_str()), (HandshakeKind::Resumed, ORDERS));
    }
    // A ticket is for one peer: who expects another finds out that it is not.
    let (connected, _) = handshake(&orders, &inventory, ORDERS).await;
    assert_eq!(connected.unwrap_err().reason, Reason::IdentityMismatch);
}

#[tokio::test]
async fn tickets_die_with_their_generation() {
    let ca = TestCa::new("root");
    let svid = ca.svid(INVENTORY);
    let orders = ca.credentials(ORDERS);
    let inventory = ca.credentials_of(&svid, 1);
    exchange(&orders, &inventory).await;
    // The server has a new generation: it cannot read the ticket. So has the client: it has no ticket.
    assert_eq!(
        exchange(&orders, &ca.credentials_of(&svid, 2)).await.0,
        HandshakeKind::Full
    );
    assert_eq!(
        exchange(&ca.credentials(ORDERS), &inventory).await.0,
        HandshakeKind::Full
    );
}

#[tokio::test]
async fn a_ticket_does_not_outlive_the_svid() {
    let ca = TestCa::new("root");
    let (ahead, clock) = shifted();
    let now = SystemTime::now();
    let short = ca
        .svid_with(&[ORDERS], now - DAY, now + Duration::from_secs(60))
        .unwrap();
    let orders = Credentials::new(&short, &trust(&ca.bundle()), 1, &clock).unwrap();
    let inventory = Credentials::new(&ca.svid(INVENTORY), &trust(&ca.bundle()), 1, &clock).unwrap();
    exchange(&orders, &inventory).await;
    assert_eq!(exchange(&orders, &inventory).await.0, HandshakeKind::Resumed);
    ahead.store(120, Ordering::Relaxed);
    let (_, accepted) = handshake(&orders, &inventory, INVENTORY).await;
    let error = accepted.unwrap_err();
    assert!(error.detail.contains("ended at"), "{error}");
}

#[test]
fn a_bundle_needs_one_root_that_can_be_read() {
    let ca = TestCa::new("root");
    assert!(TrustBundle::from_pem(b"").unwrap_err().contains("no usable root"));
    assert!(TrustBundle::from_pem(b"-----BEGIN CERTIFICATE-----\nAA").is_err());
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let bundle = TrustBundle::from_pem(format!("{broken}{}{}", ca.pem, ca.pem).as_bytes()).unwrap();
    assert_eq!(bundle.certificates().count(), 1);
    assert!(bundle.same_as(&ca.bundle()));
}
