//! Targets as `/config` shows them.

use outrigger_access::Access;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::model::{
    Abort, Backend, ByteRoute, CallLimits, Carrier, Endpoints, Fallback, FallbackAnswer, Fault, Instead, Protocol,
    Route, RouteRules, Service, ServiceName, Sessions, Target, WeightedBackend, WorkloadInfo,
};

pub(super) fn target(target: &Target) -> Value {
    match target {
        Target::External => json!("external"),
        Target::Service(service) => self::service(service),
    }
}

pub(super) fn workload(info: &WorkloadInfo) -> Value {
    let protocols = info.protocols.iter();
    let protocols = protocols.map(|(port, kind)| (port.to_string(), json!(protocol(*kind))));
    json!({
        "protocols": protocols.collect::<serde_json::Map<_, _>>(),
        "opaquePorts": info.opaque_ports,
        "clusterNetworks": info.cluster_networks,
    })
}

/// Who may call, port by port.
pub(super) fn access(access: &Access) -> Value {
    json!(access.view())
}

fn service(service: &Service) -> Value {
    let routes = service.routes.iter().map(|route| self::route(route, service));
    let byte_routes = service.byte_routes.iter().map(|route| byte_route(route, service));
    json!({
        "service": name(&service.name),
        "protocol": protocol(service.protocol),
        "routes": routes.chain(byte_routes).collect::<Vec<_>>(),
        "backends": service.backends.iter().map(|b| backend(b)).collect::<Vec<_>>(),
        "policy": policy(&service.rules),
    })
}

fn name(name: &ServiceName) -> String {
    format!("{}/{}:{}", name.namespace, name.name, name.port)
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Detect => "detect",
        Protocol::Http1 => "http1",
        Protocol::Http2 => "http2",
        Protocol::Tls => "tls",
        Protocol::Opaque => "opaque",
    }
}

fn byte_route(route: &ByteRoute, service: &Service) -> Value {
    json!({
        "name": &*route.name,
        "serverNames": route.server_names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>(),
        "backends": weighted(&route.backends, service),
    })
}

fn weighted(backends: &[WeightedBackend], service: &Service) -> Vec<Value> {
    let backends = backends.iter().map(|weighted| {
        json!({
            "service": weighted.backend.and_then(|index| service.backends.get(index)).map(|backend| name(&backend.name)),
            "weight": weighted.weight,
        })
    });
    backends.collect()
}

fn route(route: &Route, service: &Service) -> Value {
    json!({
        "name": &*route.name,
        "hostnames": route.hostnames.iter().map(|h| format!("{h:?}")).collect::<Vec<_>>(),
        "matches": route.matches.iter().map(|m| format!("{m:?}")).collect::<Vec<_>>(),
        "filters": route.rules.request.filters.count(),
        "backends": weighted(&route.backends, service),
        "policy": policy(&route.rules),
    })
}

fn backend(backend: &Backend) -> Value {
    let mut shown = endpoints(backend);
    if let Some(tls) = &backend.tls {
        let (names, roots) = tls.counts();
        shown["tls"] = json!({
            "policy": &*tls.policy,
            "hostname": &*tls.hostname,
            "names": names,
            "roots": roots,
            "problem": tls.problem(),
        });
    }
    shown
}

fn endpoints(backend: &Backend) -> Value {
    match &backend.endpoints {
        Endpoints::Known(endpoints) => {
            let endpoints = endpoints.iter().map(|endpoint| {
                json!({
                    "address": endpoint.address.to_string(),
                    "identity": endpoint.identity.as_ref().map(ToString::to_string),
                    "zone": endpoint.zone.as_deref(),
                    "pod": endpoint.pod.as_deref(),
                })
            });
            json!({
                "service": name(&backend.name),
                "endpoints": endpoints.collect::<Vec<_>>(),
                "clientAffinity": backend.client_affinity,
            })
        }
        Endpoints::NoSuchPort(ports) => json!({ "service": name(&backend.name), "noSuchPort": true, "ports": ports }),
        Endpoints::Dns { host, port } => json!({ "service": name(&backend.name), "dns": format!("{host}:{port}") }),
    }
}

/// Never the key.
fn sessions(sessions: &Sessions) -> Value {
    let (kind, name) = match &sessions.carrier {
        Carrier::Cookie(name) => ("Cookie", &**name),
        Carrier::Header(name) => ("Header", name.as_str()),
    };
    json!({
        "type": kind,
        "sessionName": name,
        "absoluteTimeoutMs": sessions.timeout.map(|timeout| timeout.as_millis()),
        "lifetimeType": if sessions.permanent { "Permanent" } else { "Session" },
    })
}

fn policy(rules: &RouteRules) -> Value {
    let RouteRules { request, attempt } = rules;
    let retry = &attempt.retry;
    let millis = |limit: Option<std::time::Duration>| limit.map(|limit| limit.as_millis());
    json!({
        "requestTimeoutMs": millis(request.timeout),
        "backendRequestTimeoutMs": millis(attempt.timeout),
        "idleTimeoutMs": millis(request.idle),
        "responseHeadersTimeoutMs": millis(attempt.response_headers),
        "sessionPersistence": request.sessions.as_deref().map(sessions),
        "connectTimeoutMs": attempt.connect_timeout.as_millis(),
        "retry": {
            "attempts": retry.attempts,
            "statuses": retry.statuses.iter().map(|status| status.as_u16()).collect::<Vec<_>>(),
            "grpcStatuses": retry.grpc_statuses,
            "backoffBaseMs": retry.backoff_base.as_millis(),
            "backoffMaxMs": retry.backoff_max.as_millis(),
            "budget": {
                "ratio": retry.budget.ratio,
                "intervalMs": retry.budget.interval.as_millis(),
                "minCount": retry.budget.min_count,
                "minIntervalMs": retry.budget.min_interval.as_millis(),
            },
            "nonIdempotent": retry.non_idempotent,
            "maxBodyBytes": retry.max_body_bytes,
        },
        "limits": attempt.limits.as_deref().map(limits),
        "faults": request.faults.iter().map(fault).collect::<Vec<_>>(),
        "fallback": request.fallback.as_deref().map(fallback),
    })
}

fn limits(limits: &CallLimits) -> Value {
    let CallLimits {
        counters,
        connections,
        pending,
        requests,
        endpoint_connections,
        endpoint_requests,
    } = limits;
    json!({
        "countedApart": counters.is_some(),
        "maxConnections": connections,
        "maxPendingRequests": pending,
        "maxRequests": requests,
        "perEndpoint": { "maxConnections": endpoint_connections, "maxRequests": endpoint_requests },
    })
}

fn fallback(fallback: &Fallback) -> Value {
    let Fallback { when, instead } = fallback;
    let (response, backends) = match instead {
        Instead::Answer(response) => (Some(fallback_answer(response)), &[][..]),
        Instead::Ask(backends) => (None, &**backends),
    };
    let backends = backends
        .iter()
        .map(|one| json!({ "backend": one.backend, "weight": one.weight }));
    json!({
        "when": {
            "noEndpoints": when.no_endpoints,
            "overloaded": when.overloaded,
            "timeout": when.timeout,
            "statuses": when.statuses.iter().map(|status| status.as_u16()).collect::<Vec<_>>(),
            "grpcStatuses": when.grpc_statuses,
        },
        "response": response,
        "backends": backends.collect::<Vec<_>>(),
    })
}

fn fallback_answer(response: &FallbackAnswer) -> Value {
    let FallbackAnswer {
        status,
        grpc_status,
        headers,
        body,
    } = response;
    json!({
        "status": status.map(|status| status.as_u16()),
        "grpcStatus": grpc_status,
        "headers": headers.keys().map(|name| name.as_str()).collect::<Vec<_>>(),
        "bodyBytes": body.len(),
    })
}

fn fault(fault: &Fault) -> Value {
    let Fault {
        matches,
        share,
        only_when,
        until,
        delay,
        abort,
    } = fault;
    let header = only_when.as_ref().map(|(name, value)| {
        json!({ "name": name.as_str(), "value": value.as_ref().map(|value| String::from_utf8_lossy(value.as_bytes())) })
    });
    let until = until
        .map(OffsetDateTime::from)
        .and_then(|until| until.format(&Rfc3339).ok());
    json!({
        "matches": matches.iter().map(|m| format!("{m:?}")).collect::<Vec<_>>(),
        "partsPerMillion": share,
        "onlyWhenHeader": header,
        "until": until,
        "delayMs": delay.as_ref().map(|delay| [delay.start().as_millis(), delay.end().as_millis()]),
        "status": abort.and_then(|abort| match abort {
            Abort::Http(status) => Some(status.as_u16()),
            Abort::Grpc(_) => None,
        }),
        "grpcStatus": abort.and_then(|abort| match abort {
            Abort::Http(_) => None,
            Abort::Grpc(status) => Some(status),
        }),
    })
}
