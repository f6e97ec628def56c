//! Session persistence: which policy says it, the key that goes with it, and backends without a weight.

use outrigger_api::discovery as proto;
use outrigger_api::discovery::SessionType;
use outrigger_issuer::ca::Ca;

use crate::discovery::Discover;
use crate::session_keys::SessionSecret;
use crate::testing::Cluster;

fn cluster() -> Cluster {
    let cluster = Cluster::new();
    for (service, n) in [("web", 1), ("v1", 2), ("v2", 3)] {
        cluster.add_service(service, n);
    }
    cluster
}

fn secret() -> SessionSecret {
    SessionSecret::of_ca(&Ca::generate("cluster.local").unwrap().pem().key).unwrap()
}

fn policy(target: &str, sessions: &str) -> String {
    format!(
        "
kind: TrafficPolicy
metadata: {{namespace: shop, name: sessions}}
spec: {{targetRefs: [{target}], sessionPersistence: {sessions}}}
"
    )
}

fn route(kind: &str, rules: &str) -> String {
    format!(
        "
kind: {kind}
metadata: {{namespace: shop, name: r}}
spec: {{parentRefs: [{{group: '', kind: Service, name: web}}], rules: {rules}}}
"
    )
}

const SERVICE: &str = "{kind: Service, name: web}";
const ROUTE: &str = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}";

fn of(policy: Option<&proto::Policy>) -> Option<&proto::SessionPersistence> {
    policy?.session_persistence.as_ref()
}

#[test]
fn callers_of_a_service_are_told_its_key_where_sessions_are_kept() {
    let cluster = cluster();
    // Without a secret nothing is sealed.
    cluster.apply(&policy(SERVICE, "{}"));
    let before = cluster.service("10.96.0.1:80").policy;
    assert!(of(before.as_ref()).unwrap().key.is_empty());
    let first = secret();
    cluster.index.set_session_secret(first.clone());
    cluster.index.flush();
    let service = cluster.service("10.96.0.1:80");
    let key = of(service.policy.as_ref()).unwrap().key.clone();
    assert_eq!(key, first.key_of("shop", "web").unwrap());
    // The same for callers of another namespace, and none for those of another Service.
    let theirs = cluster.service_for("10.96.0.1:80", "buyer").policy;
    assert_eq!(of(theirs.as_ref()).unwrap().key, key);
    assert_eq!(of(cluster.service("10.96.0.2:80").policy.as_ref()), None);
    assert_eq!(of(service.backends[0].policy.as_ref()).unwrap().key, [0; 0]);

    // Another CA issues.
    let mut watched = cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "shop");
    watched.mark_unchanged();
    cluster.index.set_session_secret(first);
    cluster.index.flush();
    assert!(!watched.has_changed().unwrap());
    cluster.index.set_session_secret(secret());
    cluster.index.flush();
    assert!(watched.has_changed().unwrap());
    assert_ne!(of(cluster.service("10.96.0.1:80").policy.as_ref()).unwrap().key, key);
}

#[test]
fn sessions_of_a_rule_go_before_those_of_policies_and_have_the_same_key() {
    for kind in ["HTTPRoute", "GRPCRoute"] {
        let cluster = cluster();
        cluster.index.set_session_secret(secret());
        cluster.apply(&policy(
            &ROUTE.replace("HTTPRoute", kind),
            "{type: Header, sessionName: x-of-policy}",
        ));
        let own =
            "sessionPersistence: {sessionName: own, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}";
        cluster.apply(&route(
            kind,
            &format!("[{{backendRefs: [{{name: v1, port: 80}}], {own}}}, {{backendRefs: [{{name: v2, port: 80}}]}}]"),
        ));
        let service = cluster.service("10.96.0.1:80");
        let [first, second] = [0, 1].map(|n| {
            let route = service.routes.iter().find(|route| route.name == format!("shop/r/{n}"));
            of(route.unwrap().policy.as_ref()).unwrap().clone()
        });
        let said = |sessions: &proto::SessionPersistence| {
            let sessions = sessions.clone();
            (
                sessions.r#type(),
                sessions.name,
                sessions.absolute_timeout_ms,
                sessions.permanent,
            )
        };
        assert_eq!(said(&first), (SessionType::Cookie, "own".to_owned(), 3_600_000, true));
        assert_eq!(said(&second), (SessionType::Header, "x-of-policy".to_owned(), 0, false));
        assert!(first.key.len() == 32 && first.key == second.key);
        assert_eq!(of(service.policy.as_ref()), None);
    }
}

#[test]
fn a_backend_without_a_weight_is_told_where_sessions_may_be_at_it() {
    let backends = "backendRefs: [{name: v1, port: 80, weight: 0}, {name: v2, port: 80}]";
    let weights = |cluster: &Cluster| -> Vec<u32> {
        let service = cluster.service("10.96.0.1:80");
        service.routes[0]
            .backends
            .iter()
            .map(|backend| backend.weight)
            .collect()
    };
    let plain = cluster();
    plain.apply(&route("HTTPRoute", &format!("[{{{backends}}}]")));
    assert_eq!(weights(&plain), [1]);
    for target in [SERVICE, ROUTE] {
        plain.apply(&policy(target, "{}"));
        assert_eq!(weights(&plain), [0, 1], "{target}");
    }
    let own = cluster();
    own.apply(&route(
        "HTTPRoute",
        &format!("[{{{backends}, sessionPersistence: {{}}}}]"),
    ));
    assert_eq!(weights(&own), [0, 1]);
}

#[test]
fn what_cannot_be_carried_out_is_said_and_breaks_no_rule() {
    for (sessions, kept, words) in [
        (
            "{type: Cookie, absoluteTimeout: 1h, idleTimeout: 5m}",
            true,
            "idleTimeout: a session ends by absoluteTimeout",
        ),
        ("{type: Query}", false, "type: \"Query\" is not known"),
        (
            "{sessionName: 'a b'}",
            false,
            "sessionName: \"a b\" is no cookie's name",
        ),
        (
            "{type: Header, sessionName: Host}",
            false,
            "sessionName: the header \"Host\" has another meaning",
        ),
        (
            "{cookieConfig: {lifetimeType: Permanent}}",
            false,
            "absoluteTimeout: a cookie",
        ),
        (
            "{cookieConfig: {lifetimeType: Ever}}",
            false,
            "lifetimeType: \"Ever\" is not known",
        ),
        ("{absoluteTimeout: 0s}", false, "absoluteTimeout: "),
    ] {
        let cluster = cluster();
        cluster.index.set_session_secret(secret());
        cluster.apply(&route(
            "HTTPRoute",
            &format!("[{{backendRefs: [{{name: v1, port: 80}}], sessionPersistence: {sessions}}}]"),
        ));
        let service = cluster.service("10.96.0.1:80");
        assert_eq!(of(service.routes[0].policy.as_ref()).is_some(), kept, "{sessions}");
        assert_eq!(service.routes[0].backends.len(), 1, "{sessions}");
        cluster.index.read(|store| {
            let problems: Vec<_> = store.routes.iter().flat_map(|(_, route)| &route.unsupported).collect();
            assert_eq!(problems.len(), 1, "{sessions}: {problems:?}");
            let path = "rules[0].sessionPersistence.";
            assert!(
                problems[0].starts_with(path) && problems[0].contains(words),
                "{sessions}: {problems:?}"
            );
        });
    }
}
