//! Metrics as OpenMetrics text.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use outrigger_proxy_transport::error::Reason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, LabelSetEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::super::request::Direction;
use super::policies::PolicyCounters;
use super::{
    Asked, AtLimit, AuthDecision, Ejected, Ended, FaultKind, Handshake, LimitDecision, Metrics, NotMirrored, Refused,
    ServiceMetrics, process,
};

const DIRECTIONS: [Direction; 2] = [Direction::Outbound, Direction::Inbound];
const OUTCOMES: [&str; 2] = ["success", "failure"];
const BOOLS: [&str; 2] = ["false", "true"];

pub(super) fn text(metrics: &Arc<Metrics>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(Arc::clone(metrics))));
    let mut text = String::with_capacity(16 * 1024);
    if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
        // Writing to a String cannot fail, so an encoder refused a value.
        tracing::warn!("the metrics could not be encoded");
    }
    text
}

struct Scrape(Arc<Metrics>);

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = &*self.0;
        let mut services = metrics.services.snapshot();
        if metrics.external.activity() > 0 {
            services.push(Arc::clone(&metrics.external));
        }
        let ports = metrics.ports.snapshot();
        let mut to = Families(encoder);
        to.durations(&services, &ports)?;
        to.requests(&services, &ports)?;
        to.tunnels(&services, &ports)?;
        to.attempts(&services)?;
        to.mirrors(&services)?;
        to.ejections(&services)?;
        to.faults(&services)?;
        to.external_auth(&services)?;
        to.call_limits(&services)?;
        to.connections(metrics)?;
        to.own(metrics)?;
        to.process()
    }
}

/// The labels of one series. Those that are `None` are left out: Prometheus takes an empty label for an absent one.
struct Labels<const N: usize>([(&'static str, Option<String>); N]);

impl<const N: usize> EncodeLabelSet for Labels<N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let present = self
            .0
            .iter()
            .filter_map(|(name, value)| Some((*name, value.as_deref()?)));
        for label in present {
            prometheus_client::encoding::EncodeLabel::encode(&label, encoder.encode_label())?;
        }
        Ok(())
    }
}

struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn durations(&mut self, services: &[Arc<ServiceMetrics>], ports: &[Arc<ServiceMetrics>]) -> fmt::Result {
        let client = (
            "http_client_request_duration_seconds",
            "Requests of this pod's app, all attempts together, by the Service called.",
            "service",
        );
        let server = (
            "http_server_request_duration_seconds",
            "Requests to this pod's app, by its port.",
            "server_port",
        );
        for ((name, help, label), all) in [(client, services), (server, ports)] {
            let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for of in all {
                for (key, histogram) in of.durations.snapshot() {
                    let labels = Labels([
                        (label, Some(of.label.clone())),
                        ("http_request_method", Some(key.method().to_owned())),
                        ("http_response_status_code", key.status.map(|status| status.to_string())),
                        ("rpc_grpc_status_code", key.grpc_status.map(|status| status.to_string())),
                        ("error_type", key.error_type().map(str::to_owned)),
                    ]);
                    let (sum, count, buckets) = histogram.snapshot();
                    family
                        .encode_family(&labels)?
                        .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
                }
            }
        }
        Ok(())
    }

    fn requests(&mut self, services: &[Arc<ServiceMetrics>], ports: &[Arc<ServiceMetrics>]) -> fmt::Result {
        let mut series = Vec::new();
        for (direction, all) in DIRECTIONS.into_iter().zip([services, ports]) {
            for of in all {
                for (outcome, counts) in OUTCOMES.iter().zip(&of.requests) {
                    for (tls, count) in BOOLS.iter().zip(counts) {
                        let outbound = direction == Direction::Outbound;
                        let labels = Labels([
                            ("direction", Some(direction.as_str().to_owned())),
                            ("service", outbound.then(|| of.label.clone())),
                            ("server_port", (!outbound).then(|| of.label.clone())),
                            ("outcome", Some((*outcome).to_owned())),
                            ("tls", Some((*tls).to_owned())),
                        ]);
                        series.push((labels, count.load(Relaxed)));
                    }
                }
            }
        }
        let help = "Requests that ended, all attempts together; tls: mutual TLS between sidecars.";
        self.counters("outrigger_requests", help, series)
    }

    fn tunnels(&mut self, services: &[Arc<ServiceMetrics>], ports: &[Arc<ServiceMetrics>]) -> fmt::Result {
        let count = |select: fn(&ServiceMetrics) -> &AtomicU64| {
            let mut series = Vec::new();
            for (direction, all) in DIRECTIONS.into_iter().zip([services, ports]) {
                for of in all.iter().filter(|of| of.tunnels.load(Relaxed) > 0) {
                    let outbound = direction == Direction::Outbound;
                    let labels = Labels([
                        ("direction", Some(direction.as_str().to_owned())),
                        ("service", outbound.then(|| of.label.clone())),
                        ("server_port", (!outbound).then(|| of.label.clone())),
                    ]);
                    series.push((labels, select(of).load(Relaxed)));
                }
            }
            series
        };
        let (tunnels, sent, received) = (
            count(|of| &of.tunnels),
            count(|of| &of.tunnel_bytes[0]),
            count(|of| &of.tunnel_bytes[1]),
        );
        self.counters(
            "outrigger_tcp_connections",
            "Connections that were carried as bytes.",
            tunnels,
        )?;
        self.counters(
            "outrigger_tcp_sent_bytes",
            "Bytes of connections that are carried as bytes, from who connected to who was connected to.",
            sent,
        )?;
        self.counters("outrigger_tcp_received_bytes", "The same, the other way.", received)
    }

    fn attempts(&mut self, services: &[Arc<ServiceMetrics>]) -> fmt::Result {
        let by = |label: &'static str, select: fn(&ServiceMetrics) -> [u64; 2]| {
            services
                .iter()
                .flat_map(|of| {
                    let counts = OUTCOMES.into_iter().zip(select(of));
                    counts.map(|(outcome, count)| {
                        let service = ("service", Some(of.label.clone()));
                        (Labels([service, (label, Some(outcome.to_owned()))]), count)
                    })
                })
                .collect()
        };
        self.counters(
            "outrigger_upstream_attempts",
            "Attempts to call an endpoint: what a client would have seen without retries.",
            by("outcome", |of| of.attempts.each_ref().map(|count| count.load(Relaxed))),
        )?;
        self.counters(
            "outrigger_retries",
            "Attempts that were retries, by how they ended.",
            by("result", |of| of.retries.each_ref().map(|count| count.load(Relaxed))),
        )?;
        let of_each = |count: fn(&ServiceMetrics) -> &AtomicU64| {
            let labels = |of: &ServiceMetrics| Labels([("service", Some(of.label.clone()))]);
            services
                .iter()
                .map(|of| (labels(of), count(of).load(Relaxed)))
                .collect()
        };
        self.counters(
            "outrigger_retry_budget_exhausted",
            "Retries that were wanted and that the budget did not allow.",
            of_each(|of| &of.budget_exhausted),
        )?;
        self.counters(
            "outrigger_request_bodies_not_kept",
            "Requests whose body was too large to be kept, so that they could not be retried.",
            of_each(|of| &of.bodies_not_kept),
        )
    }

    fn mirrors(&mut self, services: &[Arc<ServiceMetrics>]) -> fmt::Result {
        self.counters(
            "outrigger_requests_not_mirrored",
            "Requests that were to be mirrored and were not, or not whole, for each mirror.",
            by("reason", services, NotMirrored::NAMES, |of| &of.not_mirrored),
        )
    }

    fn ejections(&mut self, services: &[Arc<ServiceMetrics>]) -> fmt::Result {
        self.counters(
            "outrigger_endpoint_ejections",
            "How often an endpoint was left out; too-many: more failed than may be left out, and all were used from then on.",
            by("reason", services, Ejected::NAMES, |of| &of.ejected),
        )
    }

    fn faults(&mut self, services: &[Arc<ServiceMetrics>]) -> fmt::Result {
        self.counters(
            "outrigger_faults",
            "Requests that were delayed or answered with an error on purpose; they stand in no other metric of the Service.",
            by("kind", services, FaultKind::NAMES, |of| &of.faults),
        )?;
        let fallbacks = services.iter().map(|of| {
            (
                Labels([("service", Some(of.label.clone()))]),
                of.fallbacks.load(Relaxed),
            )
        });
        self.counters(
            "outrigger_fallbacks",
            "Requests that were answered in place of a failure; they are counted as what the client saw.",
            fallbacks.filter(|(_, count)| *count > 0).collect(),
        )
    }

    fn external_auth(&mut self, services: &[Arc<ServiceMetrics>]) -> fmt::Result {
        self.counters(
            "outrigger_external_auth",
            "Requests to the Service about which another one was asked, by an ExternalAuth filter of a route; failed: it did not say.",
            by("decision", services, AuthDecision::NAMES, |of| &of.external_auth),
        )
    }

    fn call_limits(&mut self, services: &[Arc<ServiceMetrics>]) -> fmt::Result {
        self.counters(
            "outrigger_call_limit_refusals",
            "Requests and connections of this pod that were refused because of a limit of a TrafficPolicy.",
            by("limit", services, AtLimit::NAMES, |of| &of.at_limit),
        )
    }

    fn connections(&mut self, metrics: &Metrics) -> fmt::Result {
        let mut handshakes = Vec::new();
        let mut open = Vec::new();
        let mut ended = Vec::new();
        let mut expired = Vec::new();
        for direction in DIRECTIONS {
            let label = || ("direction", Some(direction.as_str().to_owned()));
            for (result, count) in Handshake::NAMES.iter().zip(&metrics.handshakes[direction as usize]) {
                let result = ("result", Some((*result).to_owned()));
                handshakes.push((Labels([label(), result]), count.load(Relaxed)));
            }
            for (tls, count) in BOOLS.iter().zip(&metrics.connections[direction as usize]) {
                let tls = ("tls", Some((*tls).to_owned()));
                open.push((Labels([label(), tls]), count.load(Relaxed)));
            }
            for (reason, count) in Ended::NAMES.iter().zip(&metrics.connections_ended[direction as usize]) {
                let reason = ("reason", Some((*reason).to_owned()));
                ended.push((Labels([label(), reason]), count.load(Relaxed)));
            }
            let outlived = &metrics.connections_expired[direction as usize];
            expired.push((Labels([label()]), outlived.load(Relaxed)));
        }
        self.counters(
            "outrigger_tls_handshakes",
            "TLS handshakes between sidecars, and with servers outside of the mesh by a BackendTLSPolicy.",
            handshakes,
        )?;
        self.gauges(
            "outrigger_connections_open",
            "Open connections; tls: mutual TLS between sidecars.",
            open,
        )?;
        self.gauges(
            "outrigger_connections_expired",
            "Open connections between sidecars that have outlived the certificate of their peer.",
            expired,
        )?;
        self.counters(
            "outrigger_connections_ended",
            "Connections between sidecars that were told to end: the peer's certificate had ended, or its root is not trusted any \
             more.",
            ended,
        )?;
        self.gauges(
            "outrigger_connections_limit",
            "Connections that may be open at the same time, from the limit of the container's memory.",
            vec![(Labels([]), metrics.connections_limit.load(Relaxed) as i64)],
        )?;
        self.counters(
            "outrigger_connections_shed",
            "Idle connections that were closed to make room for others.",
            vec![(Labels([]), metrics.connections_shed.load(Relaxed))],
        )?;
        let refused = Refused::NAMES.iter().zip(&metrics.connections_refused);
        let refused = refused.map(|(why, count)| (Labels([("reason", Some((*why).to_owned()))]), count.load(Relaxed)));
        self.counters(
            "outrigger_connections_refused",
            "Connections that were closed before anything of them was read.",
            refused.collect(),
        )
    }

    fn own(&mut self, metrics: &Metrics) -> fmt::Result {
        let errors = Reason::ALL.iter().zip(&metrics.errors);
        let errors = errors
            .filter(|(_, count)| count.load(Relaxed) > 0)
            .map(|(reason, count)| {
                let labels = Labels([("reason", Some(reason.code().to_owned()))]);
                (labels, count.load(Relaxed))
            });
        let help = "Requests and connections that failed in this sidecar, by the code of outrigger-error.";
        self.counters("outrigger_errors", help, errors.collect())?;
        self.access(metrics)?;
        self.limits(metrics)?;
        let plain = |count: u64| vec![(Labels([]), count)];
        self.counters(
            "outrigger_detect_timeouts",
            "Connections that went on as opaque because their first bytes did not come in time.",
            plain(metrics.detect_timeouts.load(Relaxed)),
        )?;
        self.servers_first(metrics)?;
        self.counters(
            "outrigger_spans_exported",
            "Spans that the collector took.",
            plain(metrics.spans_exported.load(Relaxed)),
        )?;
        self.counters(
            "outrigger_spans_dropped",
            "Spans dropped: the queue was full, or the collector did not take them.",
            plain(metrics.spans_dropped.load(Relaxed)),
        )?;
        self.counters(
            "outrigger_access_log_dropped",
            "Lines of the access log dropped because the log is not read fast enough.",
            plain(metrics.access_log_dropped.load(Relaxed)),
        )?;
        let expiries = metrics.expiries.lock();
        let expiries = expiries.iter().filter_map(|expiry| {
            let labels = Labels([("kind", Some(expiry.kind.to_owned()))]);
            Some((labels, (expiry.seconds)()?))
        });
        self.gauges(
            "outrigger_cert_expiry_seconds",
            "Seconds until this sidecar's certificate, and the first of its roots, expires.",
            expiries.collect(),
        )?;
        let runtimes = metrics.runtimes.lock();
        let tasks = runtimes.iter().map(|of| of.metrics().num_alive_tasks() as u64).sum();
        self.gauges(
            "outrigger_tasks_alive",
            "Tasks that have not ended, of all threads; each open connection has some.",
            plain(tasks),
        )?;
        let version = Labels([("version", Some(env!("CARGO_PKG_VERSION").to_owned()))]);
        self.gauges("outrigger_build_info", "1, with the version.", vec![(version, 1_u64)])
    }

    fn access(&mut self, metrics: &Metrics) -> fmt::Result {
        let all = metrics.access.snapshot();
        let named = |name: &str| Some(name.to_owned()).filter(|name| !name.is_empty());
        let series = all.iter().map(|of| {
            let labels = Labels([
                ("decision", Some(of.decision.as_str().to_owned())),
                ("policy", named(&of.policy)),
                ("rule", named(&of.rule)),
                ("reason", named(of.reason)),
            ]);
            (labels, of.total())
        });
        let help = "Requests to this pod's app, and connections of bytes, at ports that AccessPolicies select; audited: a policy in \
                    Audit mode would have refused it.";
        self.counters("outrigger_access", help, series.collect())
    }

    fn limits(&mut self, metrics: &Metrics) -> fmt::Result {
        let series = |all: &PolicyCounters<LimitDecision>| {
            let all = all.snapshot();
            let series = all.iter().map(|of| {
                let labels = Labels([
                    ("decision", Some(of.decision.as_str().to_owned())),
                    ("policy", Some(of.policy.to_string())),
                    ("limit", Some(of.rule.to_string()).filter(|limit| !limit.is_empty())),
                ]);
                (labels, of.total())
            });
            series.collect()
        };
        let help =
            "Requests to this pod's app that a limit is about; shadow: a policy in Shadow mode would have refused it.";
        self.counters("outrigger_limited_requests", help, series(&metrics.limits))?;
        let help =
            "Connections of bytes to this pod's app that a policy limits; limit: the number of it that refuses them.";
        self.counters(
            "outrigger_limited_connections",
            help,
            series(&metrics.connection_limits),
        )?;
        let asked = Asked::NAMES.iter().zip(&metrics.stores.asked);
        let asked = asked.filter(|(_, count)| count.load(Relaxed) > 0);
        let asked =
            asked.map(|(result, count)| (Labels([("result", Some((*result).to_owned()))]), count.load(Relaxed)));
        let help = "Requests about which a store of rate limits was asked, or should have been.";
        self.counters("outrigger_limit_store_asked", help, asked.collect())?;
        let links = ["answers", "away"].iter().zip(&metrics.stores.links);
        let links = links.map(|(state, count)| (Labels([("state", Some((*state).to_owned()))]), count.load(Relaxed)));
        let help = "Connections of this sidecar's workers to stores of rate limits; away: nothing answers there.";
        self.gauges("outrigger_limit_store_connections", help, links.collect())
    }

    fn servers_first(&mut self, metrics: &Metrics) -> fmt::Result {
        let ports = metrics.servers_first.get().map(|ports| ports());
        let (services, app) = ports.unwrap_or_default();
        let of = |direction: Direction, service: Option<String>, port: u16| {
            let labels = Labels([
                ("direction", Some(direction.as_str().to_owned())),
                ("service", service),
                ("server_port", Some(port.to_string())),
            ]);
            (labels, 1_u64)
        };
        let services = services.into_iter().map(|name| {
            let service = name.label();
            of(Direction::Outbound, Some(service), name.port)
        });
        let app = app.into_iter().map(|port| of(Direction::Inbound, None, port));
        self.gauges(
            "outrigger_server_first_ports",
            "1 for a port whose server speaks first although nobody declared it.",
            services.chain(app).collect(),
        )
    }

    fn process(&mut self) -> fmt::Result {
        let process = process::read();
        let plain = |value: u64| vec![(Labels([]), value)];
        if let Some(bytes) = process.resident_bytes {
            self.gauges("process_resident_memory_bytes", "Resident memory.", plain(bytes))?;
        }
        if let Some(fds) = process.open_fds {
            self.gauges("process_open_fds", "Open file descriptors.", plain(fds))?;
        }
        if let Some(seconds) = process.cpu_seconds {
            let help = "CPU time, user and system.";
            let mut family = self
                .0
                .encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            family.encode_counter::<NoLabelSet, f64, u64>(&seconds, None)?;
        }
        Ok(())
    }

    /// `name` without "_total", which the format adds.
    fn counters<const N: usize>(&mut self, name: &str, help: &str, series: Vec<(Labels<N>, u64)>) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, count) in series {
            if N == 0 {
                family.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
            } else {
                let mut metric = family.encode_family(&labels)?;
                metric.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
            }
        }
        Ok(())
    }

    fn gauges<const N: usize, V>(&mut self, name: &str, help: &str, series: Vec<(Labels<N>, V)>) -> fmt::Result
    where
        V: EncodeGaugeValue,
    {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            if N == 0 {
                family.encode_gauge(&value)?;
            } else {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}

/// Of those Services alone where something was counted: few have any.
fn by<const N: usize>(
    label: &'static str,
    services: &[Arc<ServiceMetrics>],
    names: [&'static str; N],
    of: fn(&ServiceMetrics) -> &[AtomicU64; N],
) -> Vec<(Labels<2>, u64)> {
    let mut series = Vec::new();
    for service in services {
        let counts = of(service).each_ref().map(|count| count.load(Relaxed));
        if counts.iter().any(|count| *count > 0) {
            for (name, count) in names.into_iter().zip(counts) {
                let service = ("service", Some(service.label.clone()));
                series.push((Labels([service, (label, Some(name.to_owned()))]), count));
            }
        }
    }
    series
}
