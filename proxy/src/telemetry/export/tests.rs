#![allow(clippy::unwrap_used)]
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::dial::Dial;
use super::sink::{Sink, SinkError};
use super::{BATCH, QUEUE, otlp};
use crate::dns::Resolver;
use crate::model::ServiceName;
use crate::telemetry::{NotSampled, TracingConfig, TracingProtocol};
use crate::telemetry::{Protocol, Resource, Settings, SpanKind, SpanRecord, Telemetry};

const LIMIT: Duration = Duration::from_secs(10);

fn record() -> SpanRecord {
    SpanRecord {
        trace_id: [1; 16],
        span_id: [2; 8],
        parent: Some([3; 8]),
        kind: SpanKind::Client,
        name: "GET".into(),
        start: UNIX_EPOCH + Duration::from_secs(1),
        duration: Duration::from_millis(5),
        protocol: Protocol::Http11,
        method: http::Method::GET,
        scheme: "http",
        path: "/orders/1?token=secret".into(),
        authority: "orders.shop:8080".into(),
        status: Some(200),
        grpc_status: None,
        error: None,
        resend_count: 0,
        peer: Some("spiffe://cluster.local/ns/shop/sa/orders".into()),
        endpoint: Some(SocketAddr::from(([10, 0, 0, 7], 8080))),
        service: Some(ServiceName {
            namespace: "shop".into(),
            name: "orders".into(),
            port: 8080,
        }),
        request_id: None,
        mtls: true,
        access: None,
        limit: None,
        events: Vec::new(),
    }
}

/// A span on its way.
fn put(telemetry: &Telemetry) {
    telemetry.0.tracer.exporter.as_ref().unwrap().record(record());
}

fn settings(endpoint: &str, protocol: TracingProtocol) -> Settings {
    Settings {
        resource: Resource {
            name: "web".into(),
            namespace: "shop".into(),
            pod: "web-1".into(),
            node: "".into(),
        },
        tracing: Some(TracingConfig {
            endpoint: endpoint.parse().unwrap(),
            ca_certificates: Vec::new(),
            protocol,
            sample_ratio: 1.0,
            not_sampled: NotSampled::Omit,
        }),
        ..Settings::default()
    }
}

fn start(endpoint: &str, protocol: TracingProtocol) -> Telemetry {
    let resolver = Resolver::start(Some(&[])).unwrap();
    Telemetry::start(&settings(endpoint, protocol), &resolver).unwrap()
}

/// Hands over what it gets, and refuses first as often as it is told.
struct Collector {
    requests: mpsc::UnboundedSender<ExportTraceServiceRequest>,
    refusals: std::sync::Mutex<Vec<Status>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if let Some(refusal) = self.refusals.lock().unwrap().pop() {
            return Err(refusal);
        }
        self.requests.send(request.into_inner()).unwrap();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector(refusals: Vec<Status>) -> (String, mpsc::UnboundedReceiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (requests, received) = mpsc::unbounded_channel();
    let service = TraceServiceServer::new(Collector {
        requests,
        refusals: refusals.into(),
    });
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (endpoint, received)
}

fn spans(request: &ExportTraceServiceRequest) -> &[Span] {
    &request.resource_spans[0].scope_spans[0].spans
}

/// "key=value" in the order of the keys.
fn attributes(span: &Span) -> Vec<String> {
    let mut all: Vec<String> = span
        .attributes
        .iter()
        .map(
            |attribute| match attribute.value.as_ref().unwrap().value.as_ref().unwrap() {
                Value::StringValue(text) => format!("{}={text}", attribute.key),
                Value::IntValue(number) => format!("{}={number}", attribute.key),
                Value::BoolValue(yes) => format!("{}={yes}", attribute.key),
                other => panic!("{other:?}"),
            },
        )
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn spans_arrive_over_grpc_by_themselves() {
    let (endpoint, mut received) = collector(Vec::new()).await;
    let telemetry = start(&endpoint, TracingProtocol::Grpc);
    put(&telemetry);
    let request = tokio::time::timeout(LIMIT, received.recv()).await.unwrap().unwrap();
    assert_eq!(spans(&request).len(), 1);
    let resource = &request.resource_spans[0].resource.as_ref().unwrap().attributes;
    let resource: Vec<&str> = resource.iter().map(|attribute| attribute.key.as_str()).collect();
    assert_eq!(
        resource,
        [
            "service.name",
            "service.namespace",
            "service.instance.id",
            "k8s.namespace.name",
            "k8s.pod.name"
        ]
    );
    assert_eq!(
        request.resource_spans[0].scope_spans[0].scope.as_ref().unwrap().name,
        "outrigger"
    );
}

#[tokio::test]
async fn batches_are_bounded_and_a_flush_sends_all() {
    let (endpoint, mut received) = collector(Vec::new()).await;
    let telemetry = start(&endpoint, TracingProtocol::Grpc);
    for _ in 0..BATCH + 7 {
        put(&telemetry);
    }
    telemetry.flush(LIMIT).await;
    let sizes = [received.recv().await.unwrap(), received.recv().await.unwrap()].map(|request| spans(&request).len());
    assert_eq!(sizes, [BATCH, 7]);
    assert!(
        telemetry
            .metrics()
            .text()
            .contains("outrigger_spans_exported_total 519\n")
    );
}

#[tokio::test]
async fn a_collector_that_is_not_ready_is_asked_again_and_a_refusal_is_final() {
    let (endpoint, mut received) = collector(vec![Status::unavailable("starting")]).await;
    let telemetry = start(&endpoint, TracingProtocol::Grpc);
    put(&telemetry);
    assert_eq!(
        spans(&tokio::time::timeout(LIMIT, received.recv()).await.unwrap().unwrap()).len(),
        1
    );

    let (endpoint, _received) = collector(vec![Status::invalid_argument("no")]).await;
    let telemetry = start(&endpoint, TracingProtocol::Grpc);
    put(&telemetry);
    telemetry.flush(LIMIT).await;
    assert!(telemetry.metrics().text().contains("outrigger_spans_dropped_total 1\n"));
}

#[tokio::test]
async fn spans_arrive_over_http() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/otlp/", listener.local_addr().unwrap());
    let (requests, mut received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap(); // one connection for both
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let requests = requests.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                requests
                    .send((parts, ExportTraceServiceRequest::decode(body).unwrap()))
                    .unwrap();
                Ok::<_, Infallible>(http::Response::new(Full::<bytes::Bytes>::default()))
            }
        });
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await
    });
    let telemetry = start(&endpoint, TracingProtocol::Http);
    for _ in 0..2 {
        put(&telemetry);
        telemetry.flush(LIMIT).await;
        let (parts, request) = received.recv().await.unwrap();
        assert_eq!(
            (parts.method, parts.uri.path()),
            (http::Method::POST, "/otlp/v1/traces")
        );
        assert_eq!(parts.headers["content-type"], "application/x-protobuf");
        assert_eq!(spans(&request).len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_collector_costs_spans_and_nothing_else() {
    // Port 1 of loopback refuses at once.
    let telemetry = start("http://127.0.0.1:1", TracingProtocol::Http);
    for _ in 0..QUEUE + 100 {
        put(&telemetry);
    }
    let dropped = |count: usize| {
        telemetry
            .metrics()
            .text()
            .contains(&format!("outrigger_spans_dropped_total {count}\n"))
    };
    assert!(dropped(100));
    let began = tokio::time::Instant::now();
    telemetry.flush(Duration::from_secs(2)).await;
    assert!(began.elapsed() <= Duration::from_secs(2));
    telemetry.flush(LIMIT).await;
    assert!(dropped(QUEUE + 100));
}

#[test]
fn endpoints_that_cannot_be() {
    let start = |endpoint: &str| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _entered = runtime.enter();
        let resolver = Resolver::start(Some(&[])).unwrap();
        Telemetry::start(&settings(endpoint, TracingProtocol::Grpc), &resolver).err()
    };
    assert!(start("ftp://jaeger:4317").unwrap().contains("ftp://jaeger:4317"));
    assert!(start("https://jaeger:4317").is_none());
    assert!(start("/jaeger").is_some());
    assert!(start("http://[fd00::1]:4317").is_none());
}

#[test]
fn a_client_span_as_the_conventions_say() {
    let span = otlp::span(record());
    assert_eq!(
        (span.start_time_unix_nano, span.end_time_unix_nano),
        (1_000_000_000, 1_005_000_000)
    );
    assert_eq!((span.kind, span.flags, span.status.is_none()), (3, 0x301, true));
    assert_eq!((span.parent_span_id.clone(), span.name.as_str()), (vec![3; 8], "GET"));
    assert_eq!(
        attributes(&span),
        [
            "http.request.method=GET",
            "http.response.status_code=200",
            "network.peer.address=10.0.0.7",
            "network.peer.port=8080",
            "network.protocol.version=1.1",
            "outrigger.mtls=true",
            "outrigger.peer.identity=spiffe://cluster.local/ns/shop/sa/orders",
            "outrigger.service=shop/orders",
            "server.address=orders.shop",
            "server.port=8080",
            "url.path=/orders/1",
            "url.scheme=http",
        ]
    );
}

#[test]
fn a_grpc_span_has_its_service_method_and_status() {
    let span = otlp::span(SpanRecord {
        protocol: Protocol::Grpc,
        method: http::Method::POST,
        path: "/shop.Inventory/Reserve".into(),
        grpc_status: Some(14),
        parent: None,
        ..record()
    });
    assert!(span.parent_span_id.is_empty() && span.flags == 0x101);
    assert_eq!(span.status.as_ref().unwrap().code, 2);
    let all = attributes(&span);
    for expected in [
        "error.type=UNAVAILABLE",
        "rpc.grpc.status_code=14",
        "rpc.method=Reserve",
        "rpc.service=shop.Inventory",
        "rpc.system=grpc",
    ] {
        assert!(
            all.iter().any(|attribute| attribute == expected),
            "{expected} not in {all:?}"
        );
    }
}

/// Kind, HTTP status, gRPC status, reason; and `error.type`.
#[test]
fn what_counts_as_an_error() {
    use SpanKind::{Client, Server};
    for (kind, status, grpc_status, error, expected) in [
        (Client, Some(399), None, None, None),
        (Client, Some(404), None, None, Some("404")),
        (Server, Some(404), None, None, None),
        (Server, Some(500), None, None, Some("500")),
        (Server, None, None, None, Some("_OTHER")),
        (Client, Some(200), Some(0), None, None),
        (Client, Some(200), Some(5), None, Some("NOT_FOUND")),
        (Server, Some(200), Some(5), None, None),
        (Server, Some(200), Some(13), None, Some("INTERNAL")),
        (Client, Some(200), Some(99), None, Some("UNKNOWN")),
        (Client, Some(503), None, Some("no-endpoints"), Some("no-endpoints")),
    ] {
        let span = otlp::span(SpanRecord {
            kind,
            status,
            grpc_status,
            error,
            ..record()
        });
        let case = format!("{kind:?} {status:?} {grpc_status:?} {error:?}");
        let error_type = attributes(&span)
            .into_iter()
            .find_map(|a| a.strip_prefix("error.type=").map(str::to_owned));
        assert_eq!(error_type.as_deref(), expected, "{case}");
        assert_eq!(span.status.is_some(), expected.is_some(), "{case}");
    }
}

#[test]
fn what_a_peer_sends_does_not_make_a_span_large() {
    let span = otlp::span(SpanRecord {
        name: "é".repeat(4000),
        path: "x".repeat(100_000),
        authority: "not an authority".into(),
        method: http::Method::from_bytes(b"BREW").unwrap(),
        start: SystemTime::UNIX_EPOCH - Duration::from_secs(1),
        duration: Duration::MAX,
        ..record()
    });
    assert!(span.encoded_len() < 4096, "{}", span.encoded_len());
    let all = attributes(&span);
    assert!(
        all.contains(&"http.request.method=_OTHER".to_owned())
            && all.contains(&"http.request.method_original=BREW".to_owned())
    );
}

/// What a collector is to a sidecar that believes one authority.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shows {
    Good,
    OtherName,
    OtherAuthority,
    Expired,
    /// Not even the beginning of TLS.
    Plaintext,
    /// No protocol, or only the other one.
    NoAlpn,
}

/// What it speaks TLS with, and whom to believe.
fn certified(shows: Shows, protocol: TracingProtocol) -> (TlsAcceptor, Vec<Vec<u8>>) {
    let authority = || {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        (der, Issuer::new(params, key))
    };
    let ((root, issuer), (other, _)) = (authority(), authority());
    let name = if shows == Shows::OtherName {
        "other.example"
    } else {
        "localhost"
    };
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    if shows == Shows::Expired {
        params.not_after = time::OffsetDateTime::from_unix_timestamp(1_000_000_000).unwrap();
    }
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap().der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf], key)
        .unwrap();
    config.alpn_protocols = match (shows, protocol) {
        (Shows::NoAlpn, TracingProtocol::Grpc) => Vec::new(),
        (Shows::NoAlpn, TracingProtocol::Http) => vec![b"h2".to_vec()],
        (_, TracingProtocol::Grpc) => vec![b"h2".to_vec()],
        (_, TracingProtocol::Http) => vec![b"http/1.1".to_vec()],
    };
    let believed = if shows == Shows::OtherAuthority { other } else { root };
    (TlsAcceptor::from(Arc::new(config)), vec![believed])
}

/// Its endpoint, whom to believe, and what it has read in TLS.
async fn secured(shows: Shows, protocol: TracingProtocol) -> (String, Vec<Vec<u8>>, mpsc::UnboundedReceiver<Vec<u8>>) {
    let (acceptor, believed) = certified(shows, protocol);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let (heard, hears) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut first = vec![0; 64];
            let read = match shows {
                Shows::Plaintext => {
                    let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
                    0
                }
                _ => match acceptor.accept(tcp).await {
                    Ok(mut tls) => tls.read(&mut first).await.unwrap_or(0),
                    Err(_) => 0,
                },
            };
            first.truncate(read);
            let _ = heard.send(first);
        }
    });
    (endpoint, believed, hears)
}

/// Nothing is sent to a collector that is not shown to be the one.
#[tokio::test]
async fn spans_go_in_tls_to_whom_the_certificate_is_for() {
    for protocol in [TracingProtocol::Grpc, TracingProtocol::Http] {
        for (shows, says) in [
            (Shows::Good, ""),
            (Shows::OtherName, "certificate"),
            (Shows::OtherAuthority, "certificate"),
            (Shows::Expired, "certificate"),
            (Shows::Plaintext, "TLS with localhost failed"),
            (Shows::NoAlpn, ""),
        ] {
            let (endpoint, believed, mut hears) = secured(shows, protocol).await;
            let mut config = settings(&endpoint, protocol).tracing.unwrap();
            config.ca_certificates = believed;
            let mut sink = Sink::new(&config, Resolver::start(Some(&[])).unwrap()).unwrap();
            let batch = ExportTraceServiceRequest::default();
            // The collector breaks off in any case.
            let Err(SinkError::Unavailable(why)) = sink.send(&batch).await else {
                panic!("{protocol:?} {shows:?}: it was sent");
            };
            let heard = tokio::time::timeout(LIMIT, hears.recv()).await.unwrap().unwrap();
            let first = match protocol {
                TracingProtocol::Grpc => &b"PRI * HTTP/2.0"[..],
                TracingProtocol::Http => b"POST /v1/traces HTTP/1.1",
            };
            match shows {
                Shows::Good => assert!(heard.starts_with(first), "{protocol:?}: {heard:?} {why}"),
                _ => {
                    assert_eq!(heard, b"", "{protocol:?} {shows:?}");
                    assert!(why.contains(says), "{protocol:?} {shows:?}: {why}");
                }
            }
        }
    }
}

#[tokio::test]
async fn public_authorities_are_believed_where_no_other_is_named() {
    let (endpoint, _, mut hears) = secured(Shows::Good, TracingProtocol::Grpc).await;
    let config = settings(&endpoint, TracingProtocol::Grpc).tracing.unwrap();
    let mut sink = Sink::new(&config, Resolver::start(Some(&[])).unwrap()).unwrap();
    let Err(SinkError::Unavailable(why)) = sink.send(&ExportTraceServiceRequest::default()).await else {
        panic!("an authority of nobody's is believed");
    };
    assert!(why.contains("UnknownIssuer"), "{why}");
    let heard = tokio::time::timeout(LIMIT, hears.recv()).await.unwrap();
    assert_eq!(heard.unwrap(), b"");
}

/// A collector that takes connections and reads nothing does not collect them, with what waits in each.
#[tokio::test]
async fn who_connects_once_more_has_given_the_connection_before_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let config = settings(&endpoint, TracingProtocol::Http).tracing.unwrap();
    let dial = Dial::new(&config, Resolver::start(Some(&[])).unwrap()).unwrap();
    let mut first = dial.connect().await.unwrap();
    let waits = tokio::spawn(async move { (first.read_u8().await.is_err(), first.shutdown().await.is_err()) });
    let mut second = dial.connect().await.unwrap();
    assert_eq!(tokio::time::timeout(LIMIT, waits).await.unwrap().unwrap(), (true, true));
    second.write_all(b"spans").await.unwrap();
}

/// A real server of gRPC behind TLS has the spans.
#[tokio::test]
async fn a_collector_behind_tls_has_them() {
    let (plain, mut received) = collector(Vec::new()).await;
    let (acceptor, believed) = certified(Shows::Good, TracingProtocol::Grpc);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let relay = tokio::spawn(async move {
        let mut tls = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let mut server = tokio::net::TcpStream::connect(plain.trim_start_matches("http://"))
            .await
            .unwrap();
        let _ = tokio::io::copy_bidirectional(&mut tls, &mut server).await;
    });
    let mut settings = settings(&endpoint, TracingProtocol::Grpc);
    settings.tracing.as_mut().unwrap().ca_certificates = believed;
    let telemetry = Telemetry::start(&settings, &Resolver::start(Some(&[])).unwrap()).unwrap();
    put(&telemetry);
    telemetry.flush(LIMIT).await;
    let has = tokio::time::timeout(LIMIT, received.recv()).await.unwrap();
    assert_eq!(spans(&has.unwrap()).len(), 1);
    relay.abort();
}
