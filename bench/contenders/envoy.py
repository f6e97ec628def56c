"""Envoy with a static bootstrap in the shape of an Istio sidecar: an outbound and an inbound listener with the original_dst
filter, filter chains by the original port. TLS 1.3 both ways, a client certificate is required, ECDSA P-256, sessions are
resumed. Retries and the time limit are as Istio sets them; so is the check of who calls."""
import json
import lab, policies

CASES = {"envoy-h1": "HTTP/1 carried as HTTP/1 between the sidecars (Istio's default)",
         "envoy-h2": "HTTP/1 carried over HTTP/2 between the sidecars (Istio's h2UpgradePolicy: UPGRADE)",
         "envoy-h1" + policies.ACCESS: "as envoy-h1, with two filters of RBAC and jwt_authn (--policies)",
         "envoy-h1" + policies.TRAFFIC: "as envoy-h1, with local_ratelimit, outlier detection, a breaker and ten routes (--policies)"}
UID, OUTBOUND, INBOUND, ADMIN, SPANS = 2102, 15001, 15006, 15000, 4317
TYPE = "type.googleapis.com/"
FILTERS = "envoy.extensions.filters."
TLS = TYPE + "envoy.extensions.transport_sockets.tls.v3."
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
JWT = "envoy.filters.http.jwt_authn"
HTTP2_OPTIONS = {"max_concurrent_streams": 1000}


def program():
    return lab.program("envoy")


def ready(case):
    return ADMIN, "/ready"


def redirect(pod):
    lab.redirect(pod, OUTBOUND, INBOUND, [ADMIN], UID)


def identity(pod):
    return f"spiffe://cluster.local/ns/bench/sa/{pod}"


def tls(pod, protocols, peer):
    certs = f"{lab.WORK}/certs"
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": protocols,
        "tls_certificates": [{"certificate_chain": {"filename": f"{certs}/{pod}.pem"},
                              "private_key": {"filename": f"{certs}/{pod}.key"}}],
        "validation_context": {
            "trusted_ca": {"filename": f"{certs}/ca.pem"},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": identity(peer)}}]},
    }


def cluster(name, address, port, protocol, transport=None):
    made = {"name": name, "type": "STATIC", "connect_timeout": "5s",
            "circuit_breakers": {"thresholds": [{"max_connections": policies.MOST, "max_pending_requests": policies.MOST,
                                                 "max_requests": policies.MOST, "max_retries": 1000}]},
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}}]}]}}
    if protocol:
        options = {"http2_protocol_options": HTTP2_OPTIONS} if protocol == "h2" else {"http_protocol_options": {}}
        made["typed_extension_protocol_options"] = {
            HTTP_OPTIONS: {"@type": TYPE + HTTP_OPTIONS, "explicit_http_config": options}}
    if transport:
        made["transport_socket"] = {"name": "tls", "typed_config": transport}
    return made


def rbac(action, rules):
    return {"name": f"rbac-{action}", "typed_config": {
        "@type": TYPE + FILTERS + "http.rbac.v3.RBAC", "rules": {"action": action, "policies": rules}}}


def any_of(kind, some):
    """`kind`: permissions ("rules") or principals ("ids")."""
    return some[0] if len(some) == 1 else {f"or_{kind}": {kind: some}}


def policy(rule):
    """A rule in the words of Envoy's RBAC, as istiod writes those of an AuthorizationPolicy."""
    permissions, principals = [], []
    if rule["methods"]:
        permissions.append(any_of("rules", [
            {"header": {"name": ":method", "string_match": {"exact": method}}} for method in rule["methods"]]))
    if rule["path"]:
        kind, value = rule["path"]
        # By whole segments, as ours: "/a" and what is below "/a/".
        matches = [{"exact": value}] + ([{"prefix": value + "/"}] if kind == "prefix" else [])
        permissions.append(any_of("rules", [{"url_path": {"path": match}} for match in matches]))
    if rule["accounts"]:
        principals.append(any_of("ids", [
            {"authenticated": {"principal_name": {"exact": identity(account)}}} for account in rule["accounts"]]))
    if "groups" in rule:
        principals.append(any_of("ids", [{"sourced_metadata": {"metadata_matcher": {
            "filter": JWT, "path": [{"key": "token"}, {"key": "groups"}],
            "value": {"list_match": {"one_of": {"string_match": {"exact": group}}}}}}} for group in rule["groups"]]))
    return {"permissions": [{"and_rules": {"rules": permissions}} if permissions else {"any": True}],
            "principals": [{"and_ids": {"ids": principals}} if principals else {"any": True}]}


def access():
    """Of policies.py: the token is verified where there is one, and kept as verified."""
    provider = {"issuer": policies.ISSUER, "audiences": [policies.AUDIENCE], "forward": True, "payload_in_metadata": "token",
                "local_jwks": {"inline_string": policies.jwks()}, "jwt_cache_config": {"jwt_cache_size": 100}}
    either = {"requires_any": {"requirements": [{"provider_name": "login"}, {"allow_missing": {}}]}}
    tokens = {"name": JWT, "typed_config": {
        "@type": TYPE + FILTERS + "http.jwt_authn.v3.JwtAuthentication", "providers": {"login": provider},
        "rules": [{"match": {"prefix": "/"}, "requires": either}]}}
    # Envoy goes through the policies in the order of their names.
    denied, allowed = ({f"{n:02}-{rule['name']}": policy(rule) for n, rule in enumerate(rules)}
                       for rules in (policies.DENY, policies.ALLOW))
    return [tokens, rbac("DENY", denied), rbac("ALLOW", allowed)]


def limit():
    """A bucket for each identity, which the connection manager has written into a header of its own."""
    bucket = {"max_tokens": policies.PER_SECOND, "tokens_per_fill": policies.PER_SECOND, "fill_interval": "1s"}
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return {"name": "limit", "typed_config": {
        "@type": TYPE + FILTERS + "http.local_ratelimit.v3.LocalRateLimit", "stat_prefix": "limit", "token_bucket": bucket,
        "filter_enabled": always, "filter_enforced": always, "always_consume_default_token_bucket": False,
        "rate_limits": [{"actions": [{"request_headers": {
            "header_name": "x-forwarded-client-cert", "descriptor_key": "identity"}}]}],
        # Without a value: one for each.
        "descriptors": [{"entries": [{"key": "identity"}], "token_bucket": bucket}]}}


def http_manager(name, case, pod, tracing):
    route = {"cluster": name, "timeout": "15s"}
    prefixes = policies.ROUTES if case.endswith(policies.TRAFFIC) and pod == "client" else ["/"]
    filters = [{"name": "router", "typed_config": {"@type": TYPE + FILTERS + "http.router.v3.Router"}}]
    manager = {"@type": TYPE + FILTERS + "network.http_connection_manager.v3.HttpConnectionManager",
               "stat_prefix": name, "codec_type": "AUTO", "http2_protocol_options": HTTP2_OPTIONS,
               "stream_idle_timeout": "300s", "http_filters": filters,
               "route_config": {"name": name, "virtual_hosts": [
                   {"name": "all", "domains": ["*"], "routes": [
                       {"match": {"prefix": prefix}, "route": route} for prefix in prefixes]}]}}
    if pod == "client":
        route["retry_policy"] = {
            "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
            "retriable_status_codes": [503], "num_retries": 2,
            "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"}}
    else:
        manager["forward_client_cert_details"] = "APPEND_FORWARD"
        manager["set_current_client_cert_details"] = {"subject": True, "uri": True}
        allow = {"permissions": [{"any": True}],
                 "principals": [{"authenticated": {"principal_name": {"exact": identity("client")}}}]}
        filters[:0] = access() if case.endswith(policies.ACCESS) else [rbac("ALLOW", {"client": allow})]
        if case.endswith(policies.TRAFFIC):
            filters.insert(1, limit())
    if tracing:
        manager["tracing"] = {"random_sampling": {"value": 1.0}, "provider": {"name": "otel", "typed_config": {
            "@type": TYPE + "envoy.config.trace.v3.OpenTelemetryConfig", "service_name": pod,
            "grpc_service": {"envoy_grpc": {"cluster_name": "spans"}, "timeout": "1s"}}}}
    return manager


def tcp_proxy(name):
    return {"name": "tcp", "typed_config": {
        "@type": TYPE + FILTERS + "network.tcp_proxy.v3.TcpProxy", "stat_prefix": name, "cluster": name}}


def config(case, pod, tracing):
    chains = []
    clusters = [{"name": "passthrough", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "5s"}]
    for port in lab.HTTP_PORTS + lab.TCP_PORTS:
        app = {lab.HTTP1: "h1", lab.HTTP2: "h2"}.get(port)
        between = "h2" if app and case == "envoy-h2" else app
        protocols = [{"h2": "h2", "h1": "http/1.1", None: "istio"}[between]]
        name = f"{'outbound' if pod == 'client' else 'inbound'}_{port}"
        if pod == "client":
            transport = {"@type": TLS + "UpstreamTlsContext", "common_tls_context": tls(pod, protocols, "server"),
                         "sni": lab.HOST}
            made = cluster(name, lab.IP["server"], port, between, transport)
            if case.endswith(policies.TRAFFIC):
                made["outlier_detection"] = {"consecutive_5xx": policies.FAILURES, "base_ejection_time": f"{policies.LEFT_OUT}s"}
            clusters.append(made)
        else:
            clusters.append(cluster(name, "127.0.0.1", port, app))
        network = {"name": "http", "typed_config": http_manager(name, case, pod, tracing)} if app else tcp_proxy(name)
        chain = {"filter_chain_match": {"destination_port": port}, "filters": [network]}
        if pod == "server":
            chain["transport_socket"] = {"name": "tls", "typed_config": {
                "@type": TLS + "DownstreamTlsContext", "require_client_certificate": True,
                "common_tls_context": tls(pod, protocols, "client")}}
        chains.append(chain)
    if tracing:
        clusters.append(cluster("spans", lab.IP["control"], SPANS, "h2"))
    listener = {
        "name": "all", "address": {"socket_address": {"address": "0.0.0.0", "port_value": OUTBOUND if pod == "client" else INBOUND}},
        "listener_filters": [{"name": "original", "typed_config": {
            "@type": TYPE + FILTERS + "listener.original_dst.v3.OriginalDst"}}],
        "tcp_backlog_size": 4096, "filter_chains": chains}
    if pod == "client":
        listener["default_filter_chain"] = {"filters": [tcp_proxy("passthrough")]}
    return {"node": {"id": pod, "cluster": "bench"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN}}},
            "static_resources": {"listeners": [listener], "clusters": clusters}}


def start(processes, case, pod, tracing):
    file = f"{lab.WORK}/{case}-{pod}.json"
    with open(file, "w") as f:
        json.dump(config(case, pod, tracing), f, indent=1)
    return processes.start(f"{case}-{pod}", [program(), "-c", file, "--concurrency", "1", "--log-level", "warning",
                                             "--disable-hot-restart"], pod=pod, uid=UID)
