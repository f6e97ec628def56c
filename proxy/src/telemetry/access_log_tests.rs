#![allow(clippy::unwrap_used)]
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;
use outrigger_proxy_transport::error::Reason;

use super::{AccessLog, QUEUE};
use crate::model::ServiceName;
use crate::telemetry::tunnel::TunnelEnd;
use crate::telemetry::{
    AccessDecision, AccessNote, Direction, Metrics, Peer, RequestEnd, RequestInfo, Status, TraceContext, TunnelEnds,
    request_id,
};

/// A request that ended, in the log.
fn write(log: &AccessLog, service: Option<&ServiceName>, uri: &str) {
    let request = Request::builder()
        .uri(uri)
        .header("host", "orders.shop:8080")
        .header("x-request-id", "r\"1")
        .header("traceparent", "00-00000000000000000000000000000abc-0000000000000001-01");
    let mut head = request.body(()).unwrap().into_parts().0;
    let context = TraceContext::extract(&head.headers).unwrap();
    let id = request_id(&mut head);
    let request = RequestInfo::new(Direction::Outbound, service.cloned(), 8080, id, context, &head);
    log.request_ended(&RequestEnd {
        request: &request,
        metrics: &log.metrics.service(service),
        peer: Peer {
            identity: Some(&"spiffe://cluster.local/ns/shop/sa/orders".parse().unwrap()),
            address: Some(SocketAddr::from(([10, 0, 0, 1], 8080))),
        },
        status: Status {
            http: Some(503),
            grpc: None,
            reason: Some(Reason::NoEndpoints),
        },
        duration: Duration::from_micros(12_345),
        retries: 2,
        request_bytes: 3,
        response_bytes: 4,
    });
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_connection_has_a_line_too() {
    let output = Buffer::default();
    let log = AccessLog::writing_to(output.clone(), Arc::new(Metrics::new()));
    let ends = |direction, service: Option<ServiceName>, peer: Option<&str>| TunnelEnds {
        direction,
        service,
        port: 5432,
        peer: peer.map(|peer| peer.parse().unwrap()),
        endpoint: Some(SocketAddr::from(([10, 0, 0, 1], 5432))),
    };
    let database = ServiceName {
        namespace: "shop".into(),
        name: "db".into(),
        port: 5432,
    };
    for ends in [
        ends(
            Direction::Outbound,
            Some(database),
            Some("spiffe://cluster.local/ns/shop/sa/db"),
        ),
        ends(Direction::Inbound, None, None),
    ] {
        log.tunnel_ended(&TunnelEnd {
            ends: &ends,
            duration: Duration::from_micros(12_345),
            sent: 3,
            received: 4,
            reason: None,
            access: None,
            limit: None,
        });
    }
    log.tunnel_ended(&TunnelEnd {
        ends: &ends(Direction::Inbound, None, None),
        duration: Duration::ZERO,
        sent: 0,
        received: 0,
        reason: Some(Reason::AccessDenied),
        access: Some(&AccessNote {
            decision: AccessDecision::Denied,
            policy: "shop/nobody".to_owned(),
            rule: String::new(),
            reason: "",
        }),
        limit: None,
    });
    log.flush();
    let text = String::from_utf8(output.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = text.lines().map(|line| line.split_once(r#"Z","#).unwrap().1).collect();
    assert_eq!(
        lines,
        [
            r#""direction":"outbound","protocol":"TCP","port":5432,"duration_ms":12.345,"sent_bytes":3,"received_bytes":4,"service":"shop/db","peer":"spiffe://cluster.local/ns/shop/sa/db","endpoint":"10.0.0.1:5432","mtls":true}"#,
            r#""direction":"inbound","protocol":"TCP","port":5432,"duration_ms":12.345,"sent_bytes":3,"received_bytes":4,"endpoint":"10.0.0.1:5432","mtls":false}"#,
            r#""direction":"inbound","protocol":"TCP","port":5432,"error":"access-denied","duration_ms":0.0,"sent_bytes":0,"received_bytes":0,"endpoint":"10.0.0.1:5432","mtls":false,"access_decision":"denied","access_policy":"shop/nobody"}"#,
        ]
    );
}

#[test]
fn a_line_is_json_escaped_and_bounded() {
    let output = Buffer::default();
    let log = AccessLog::writing_to(output.clone(), Arc::new(Metrics::new()));
    let service = ServiceName {
        namespace: "shop".into(),
        name: "orders".into(),
        port: 8080,
    };
    let odd = format!("/a\"b\"{}é?token=secret", "x".repeat(1018));
    write(&log, Some(&service), &odd);
    write(&log, None, "/short?q");
    log.flush();
    let text = String::from_utf8(output.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert!(!text.contains("secret"));
    let path = lines[0]["path"].as_str().unwrap();
    assert!(path.starts_with("/a\"b\"xxx") && path.len() == 1023);
    let line = &lines[1];
    assert_eq!(line["direction"], "outbound");
    assert_eq!(line["path"], "/short");
    assert_eq!(line["status"], 503);
    assert_eq!(line["error"], "no-endpoints");
    assert_eq!(line["duration_ms"], 12.345);
    assert_eq!(line["retries"], 2);
    assert_eq!(line["endpoint"], "10.0.0.1:8080");
    assert_eq!(line["trace_id"], "00000000000000000000000000000abc");
    assert_eq!(line["request_id"], "r\"1");
    assert_eq!(line["mtls"], true);
    assert!(line.get("service").is_none() && lines[0]["service"] == "shop/orders");
    let time = line["time"].as_str().unwrap();
    assert!(time.ends_with('Z') && time::OffsetDateTime::parse(time, &super::Rfc3339).is_ok());
}

/// Writes only when it is allowed to, as a terminal that was stopped.
struct Stopped {
    entered: Sender<()>,
    go_on: Receiver<()>,
}

impl Write for Stopped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        _ = self.entered.send(());
        _ = self.go_on.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_does_not_read_costs_lines_only() {
    let (entered, was_entered) = channel();
    let (allow, go_on) = channel();
    let metrics = Arc::new(Metrics::new());
    let log = AccessLog::writing_to(Stopped { entered, go_on }, Arc::clone(&metrics));
    write(&log, None, "/");
    was_entered.recv().unwrap(); // the thread is stuck in the first line now
    for _ in 0..QUEUE + 7 {
        write(&log, None, "/");
    }
    assert!(metrics.text().contains("outrigger_access_log_dropped_total 7\n"));
    drop(allow);
    log.flush();
}
