#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use outrigger_api::access::Policy;

use super::{Config, Destination, ForwardedFor, InboundDestination, LetIn, Mtls, Plaintext};
use crate::discovery::DiscoveryConfig;
use crate::identity::FirstRoots;
use crate::model::{Endpoints, Protocol, Target};
use crate::telemetry::{NotSampled, TracingProtocol};

const ENV: [(&str, &str); 8] = [
    ("OUTRIGGER_NAMESPACE", "shop"),
    ("OUTRIGGER_POD", "orders-1"),
    ("OUTRIGGER_SERVICE_ACCOUNT", "orders"),
    ("OUTRIGGER_POD_IPS", "10.244.0.7,fd00::7"),
    ("OUTRIGGER_CONTROLLER", "outrigger-controller.outrigger.svc:14150"),
    (
        "OUTRIGGER_CONTROLLER_ID",
        "spiffe://cluster.local/ns/outrigger/sa/outrigger-controller",
    ),
    ("OUTRIGGER_TOKEN_FILE", "/var/run/secrets/outrigger/token"),
    ("OUTRIGGER_TRUST_BUNDLE_FILE", "/var/run/secrets/outrigger-trust/ca.crt"),
];

fn env(more: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let variables: HashMap<_, _> = ENV.iter().chain(more).copied().collect();
    Config::from_env(|name| variables.get(name).map(|value| (*value).to_owned()))
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn environment_with_defaults() {
    let config = env(&[]).unwrap();
    assert_eq!(config.identity.id.as_str(), "spiffe://cluster.local/ns/shop/sa/orders");
    assert_eq!(&*config.workload.name, "orders-1");
    assert_eq!(config.mtls, Mtls::Permissive);
    assert_eq!(config.forwarded_for, ForwardedFor::Leave);
    assert_eq!(config.tracing, None);
    assert_eq!(
        (config.workers, config.access_log, config.log.as_str()),
        (1, false, "info")
    );
    assert_eq!(config.drain_timeout, Duration::from_secs(30));
    assert_eq!(config.detect_timeout, Duration::from_secs(1));
    assert!(!config.close_expired && !config.native);
    let outbound: Vec<_> = config.outbound.iter().map(|listener| listener.listen).collect();
    assert_eq!(outbound, [address("127.0.0.1:14140"), address("[::1]:14140")]);
    let inbound: Vec<_> = config.inbound.iter().map(|listener| listener.listen).collect();
    assert_eq!(inbound, [address("0.0.0.0:14143"), address("[::]:14143")]);
    assert!(
        config
            .outbound
            .iter()
            .all(|listener| listener.to == Destination::Original)
    );
    assert!(
        config
            .inbound
            .iter()
            .all(|listener| listener.to == InboundDestination::Original)
    );
    assert_eq!(config.admin, address("0.0.0.0:14190"));
    let DiscoveryConfig::Controller { address, id } = config.discovery else {
        panic!("not the controller");
    };
    assert_eq!(address.to_string(), "outrigger-controller.outrigger.svc:14150");
    assert_eq!(id, config.identity.issuer_id);
}

#[test]
fn environment_with_everything() {
    let config = env(&[
        ("OUTRIGGER_POD_IPS", "fd00::7"),
        ("OUTRIGGER_WORKLOAD", "orders"),
        ("OUTRIGGER_TRUST_DOMAIN", "example.org"),
        ("OUTRIGGER_TRACING_ENDPOINT", "http://jaeger:4318"),
        ("OUTRIGGER_TRACING_PROTOCOL", "http"),
        ("OUTRIGGER_TRACING_SAMPLE_RATIO", "0.25"),
        ("OUTRIGGER_TRACING_NOT_SAMPLED", "Pass"),
        ("OUTRIGGER_LOG", "outrigger_proxy=debug,info"),
        ("OUTRIGGER_ACCESS_LOG", "true"),
        ("OUTRIGGER_MTLS", "strict"),
        ("OUTRIGGER_FORWARDED_FOR", "Append"),
        (
            "OUTRIGGER_PROBES",
            r#"[{"port":8080,"path":"/ready"},{"port":8080,"target":"/ready?full=1"},{"port":8081},
                {"port":9000,"path":"/grpc.health.v1.Health/Check"}]"#,
        ),
        (
            "OUTRIGGER_APP_PROBES",
            r#"[{"container":"app","kind":"liveness","port":8080,"timeout":1,"ask":"tcp"}]"#,
        ),
        ("OUTRIGGER_OPAQUE_PORTS", "3306,9000-9010"),
        ("OUTRIGGER_DRAIN_TIMEOUT", "5s"),
        ("OUTRIGGER_DETECT_TIMEOUT", "250ms"),
        ("OUTRIGGER_CLOSE_EXPIRED", "true"),
        ("OUTRIGGER_NATIVE_SIDECAR", "true"),
        ("OUTRIGGER_WORKERS", "2"),
    ])
    .unwrap();
    assert_eq!(config.identity.id.as_str(), "spiffe://example.org/ns/shop/sa/orders");
    assert_eq!(config.admin, address("[::]:14190"));
    assert_eq!((config.outbound.len(), config.inbound.len()), (1, 1));
    let tracing = config.tracing.unwrap();
    assert_eq!((tracing.protocol, tracing.sample_ratio), (TracingProtocol::Http, 0.25));
    assert_eq!(tracing.not_sampled, NotSampled::Pass);
    // An injector of the version before knows no more.
    let before = env(&[("OUTRIGGER_TRACING_ENDPOINT", "http://jaeger:4318")]).unwrap();
    assert_eq!(before.tracing.unwrap().not_sampled, NotSampled::Omit);
    assert_eq!(config.mtls, Mtls::Strict);
    assert_eq!(config.forwarded_for, ForwardedFor::Append);
    let entry = |port, what| LetIn { port, what };
    assert_eq!(
        config.let_in,
        [
            entry(8080, Plaintext::GetPath("/ready".to_owned())),
            entry(8080, Plaintext::Get("/ready?full=1".to_owned())),
            entry(8081, Plaintext::Connection),
            entry(9000, Plaintext::GrpcHealth),
        ]
    );
    assert_eq!(config.app_probes.len(), 1);
    assert_eq!(config.opaque_ports, [3306..=3306, 9000..=9010]);
    assert_eq!(
        (config.workers, config.access_log, config.close_expired, config.native),
        (2, true, true, true)
    );
    assert_eq!(config.detect_timeout, Duration::from_millis(250));
}

/// Where the injector gives roots, the file in the namespace's ConfigMap is not looked at.
#[test]
fn roots_of_the_environment_win_over_a_file() {
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let given = |roots: &str, kept: &str| {
        let more = [("OUTRIGGER_TRUST_BUNDLE", roots), ("OUTRIGGER_TRUST_BUNDLE_KEPT", kept)];
        env(&more).map(|config| config.identity.roots)
    };
    let file = FirstRoots::File("/var/run/secrets/outrigger-trust/ca.crt".into());
    assert_eq!(env(&[]).unwrap().identity.roots, file);
    assert_eq!(given("", "").unwrap(), file);
    let both = given(&pem.repeat(2), "/roots.der").unwrap();
    let roots = vec![vec![0, 0, 0].into(); 2];
    let kept = "/roots.der".into();
    assert_eq!(both, FirstRoots::Given { roots, kept });
    for (wrong, why) in [
        ("AAAA", "has no certificate"),
        (&pem.replace("END", "XXX"), "is not PEM"),
    ] {
        let errors = given(wrong, "/roots.der").unwrap_err();
        assert!(errors.len() == 1 && errors[0].contains(why), "{errors:?}");
    }
    assert_eq!(given(pem, "").unwrap_err(), ["OUTRIGGER_TRUST_BUNDLE_KEPT: is not set"]);
}

/// Whom a collector in TLS is believed by.
#[test]
fn authorities_of_a_collector() {
    let root = include_str!("../../../injector/testdata/roots.pem");
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let (https, many) = ("https://otel.example:4317", root.repeat(100));
    for (endpoint, certificates, wrong) in [
        (https, "", None),
        (https, root, None),
        ("http://otel.example:4317", "", None),
        (
            "http://otel.example:4317",
            root,
            Some("OUTRIGGER_TRACING_CA_CERTIFICATES: is for endpoints of https"),
        ),
        ("https://10.0.0.1:4317", "", Some("OUTRIGGER_TRACING_ENDPOINT: ")),
        ("https://[fd00::1]:4317", "", Some("OUTRIGGER_TRACING_ENDPOINT: ")),
        (https, "AAAA", Some("has no certificate")),
        (https, &root.replace("-----END", "-----XXX"), Some("is not PEM")),
        (
            https,
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            Some("cannot be read"),
        ),
        (https, &format!("{root}{key}"), Some("something beside certificates")),
        (https, &many, Some("are more than")),
    ] {
        let more = [
            ("OUTRIGGER_TRACING_ENDPOINT", endpoint),
            ("OUTRIGGER_TRACING_CA_CERTIFICATES", certificates),
        ];
        let read = env(&more).map(|config| config.tracing.unwrap().ca_certificates.len());
        match wrong {
            None => assert_eq!(read, Ok(certificates.matches("BEGIN").count()), "{endpoint}"),
            Some(why) => {
                let errors = read.unwrap_err();
                assert!(errors.len() == 1 && errors[0].contains(why), "{why}: {errors:?}");
            }
        }
    }
}

#[test]
fn all_mistakes_of_the_environment_together() {
    let mistakes = [
        ("OUTRIGGER_POD_IPS", "10.244.0"),
        ("OUTRIGGER_CONTROLLER", "controller"),
        ("OUTRIGGER_CONTROLLER_ID", "controller"),
        ("OUTRIGGER_TRACING_ENDPOINT", "jaeger:4317"),
        ("OUTRIGGER_TRACING_PROTOCOL", "udp"),
        ("OUTRIGGER_TRACING_SAMPLE_RATIO", "2"),
        ("OUTRIGGER_TRACING_NOT_SAMPLED", "omit"),
        ("OUTRIGGER_LOG", "a=b=c"),
        ("OUTRIGGER_ACCESS_LOG", "yes"),
        ("OUTRIGGER_MTLS", "on"),
        ("OUTRIGGER_FORWARDED_FOR", "append"),
        ("OUTRIGGER_PROBES", "[{\"port\":80,\"scheme\":\"x\"}]"),
        ("OUTRIGGER_APP_PROBES", "[{\"container\":\"app\"}]"),
        ("OUTRIGGER_OPAQUE_PORTS", "mysql"),
        ("OUTRIGGER_DRAIN_TIMEOUT", "30"),
        ("OUTRIGGER_DETECT_TIMEOUT", "10ms"),
        ("OUTRIGGER_CLOSE_EXPIRED", "yes"),
        ("OUTRIGGER_NATIVE_SIDECAR", "1"),
        ("OUTRIGGER_WORKERS", "0"),
        ("OUTRIGGER_NAMESPACE", "Shop"),
    ];
    let errors = env(&mistakes).unwrap_err();
    for (name, _) in mistakes {
        assert!(
            errors.iter().any(|error| error.contains(name)),
            "{name} not in {errors:?}"
        );
    }
    assert_eq!(errors.len(), mistakes.len());
    let errors = Config::from_env(|_| None).unwrap_err();
    for (name, _) in ENV {
        assert!(
            errors.contains(&format!("{name}: is not set")),
            "{name} not in {errors:?}"
        );
    }
    assert_eq!(errors.len(), ENV.len());
}

const YAML: &str = r#"
workload: {name: orders, namespace: shop}
admin: 127.0.0.1:9901
identity:
  issuer: "127.0.0.1:14150"
  issuerId: "spiffe://cluster.local/ns/outrigger/sa/outrigger-controller"
  tokenFile: ./token
  trustBundleFile: /etc/ca.pem
outbound:
- {listen: "127.0.0.1:7001", service: inventory}
- {listen: "127.0.0.1:7002", service: example}
inbound:
- {listen: "127.0.0.1:8101", app: "127.0.0.1:8001"}
services:
- name: inventory
  protocol: http1
  endpoints:
  - {address: "127.0.0.1:8201", identity: "spiffe://cluster.local/ns/shop/sa/inventory"}
  - {address: "127.0.0.1:8202"}
  policy: {retry: {attempts: 3}, timeouts: {request: 2s}}
- name: example
  dns: {host: example.com, port: 80}
accessPolicies:
- name: callers
  spec:
    rules:
    - sources: [{type: ServiceAccount, serviceAccount: {name: web}}]
      networkAttributes: {ports: [8001]}
- {name: tomorrow, spec: {mode: Audit}}
tracing: {endpoint: "http://127.0.0.1:4317", protocol: grpc, sampleRatio: 1}
accessLog: true
log: debug
mtls: strict
forwardedFor: Append
workers: 2
drainTimeout: 5s
detectTimeout: 500ms
"#;

#[test]
fn file() {
    let config = Config::from_yaml("conf/orders.yaml", YAML).unwrap();
    assert_eq!(config.identity.id.as_str(), "spiffe://cluster.local/ns/shop/sa/orders");
    assert_eq!(config.identity.token_file, Path::new("conf/./token"));
    assert_eq!(config.identity.roots, FirstRoots::File("/etc/ca.pem".into()));
    assert_eq!(config.admin, address("127.0.0.1:9901"));
    assert_eq!(config.outbound[0].to, Destination::Named("inventory".into()));
    assert_eq!(
        config.inbound[0].to,
        InboundDestination::Fixed(address("127.0.0.1:8001"))
    );
    assert_eq!(
        (config.workers, config.access_log, config.mtls),
        (2, true, Mtls::Strict)
    );
    assert_eq!(config.tracing.as_ref().unwrap().not_sampled, NotSampled::Omit);
    let passes = YAML.replace("sampleRatio: 1", "sampleRatio: 1, notSampled: Pass");
    let passes = Config::from_yaml("orders.yaml", &passes).unwrap();
    assert_eq!(passes.tracing.unwrap().not_sampled, NotSampled::Pass);
    assert_eq!(config.forwarded_for, ForwardedFor::Append);
    let left = Config::from_yaml("orders.yaml", &YAML.replace("forwardedFor: Append\n", "")).unwrap();
    assert_eq!(left.forwarded_for, ForwardedFor::Leave);
    assert!(!config.close_expired);
    let closes = YAML.replace("/etc/ca.pem", "/etc/ca.pem\n  closeExpired: true");
    assert!(Config::from_yaml("orders.yaml", &closes).unwrap().close_expired);
    let DiscoveryConfig::Standalone(targets) = &config.discovery else {
        panic!("not standalone");
    };
    let Target::Service(inventory) = &**targets.services.get("inventory").unwrap() else {
        panic!("not a service");
    };
    assert_eq!((&*inventory.name.namespace, inventory.name.port), ("shop", 8201));
    assert_eq!(inventory.protocol, Protocol::Http1);
    assert_eq!(inventory.rules.attempt.retry.attempts, 3);
    assert_eq!(inventory.rules.request.timeout, Some(Duration::from_secs(2)));
    let Endpoints::Known(endpoints) = &inventory.backends[0].endpoints else {
        panic!("no endpoints");
    };
    assert_eq!(endpoints[0].identity.as_ref().unwrap().service_account(), "inventory");
    assert_eq!(endpoints[1].identity, None);
    let Target::Service(example) = &**targets.services.get("example").unwrap() else {
        panic!("not a service");
    };
    assert!(matches!(&example.backends[0].endpoints, Endpoints::Dns { host, port: 80 } if &**host == "example.com"));
    let access = &targets.access;
    let names = |policies: &[Policy]| policies.iter().map(|policy| policy.name.clone()).collect::<Vec<_>>();
    assert_eq!(
        (names(&access.enforced), names(&access.audited)),
        (vec!["shop/callers".to_owned()], vec!["shop/tomorrow".to_owned()])
    );
    let callers = format!("{:?}", access.enforced[0]);
    assert!(
        callers.contains("\"spiffe://cluster.local/ns/shop/sa/web\"") && callers.contains("[8001]"),
        "{callers}"
    );
}

/// Nobody fetches keys for a sidecar without a controller.
#[test]
fn keys_of_a_policy_stand_in_the_file() {
    let read = |jwks: &str| {
        let provider = format!("{{name: login, issuer: me, audiences: [orders], jwks: {jwks}}}");
        let source = "{type: JWT, jwt: {provider: login}}";
        let spec = format!("{{jwt: {{providers: [{provider}]}}, rules: [{{sources: [{source}]}}]}}");
        Config::from_yaml("orders.yaml", &YAML.replace("{mode: Audit}", &spec))
    };
    let key = r#"{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    assert!(read(&format!("{{inline: '{{\"keys\": [{key}]}}'}}")).is_ok());
    for (jwks, says) in [
        (
            "{remote: {url: \"https://login.example.com/keys\"}}",
            "jwks.remote: no controller fetches keys for a standalone sidecar; write the keys into the file, as jwks.inline",
        ),
        (
            "{configMapRef: {name: keys}}",
            "jwks.configMapRef: there is no cluster that has one; write the keys into the file, as jwks.inline",
        ),
        ("{inline: '{}'}", "jwks.inline: it is no JSON Web Key Set"),
        (
            "{inline: '{\"keys\": [{}]}'}",
            "jwks.inline: none of its keys can be used: key 0: its kty is",
        ),
    ] {
        let errors = read(jwks).unwrap_err();
        let expected = format!("orders.yaml:29: accessPolicies[1].spec.jwt.providers[0].{says}");
        let said = errors.iter().filter(|error| error.contains(".jwks.")).count();
        assert!(errors[0].starts_with(&expected) && said == 1, "{expected}: {errors:?}");
    }
}

/// What only a cluster could say, a file has to say itself; what is faulty starts no sidecar.
#[test]
fn a_policy_of_a_file_says_all_of_it() {
    let wrong = |spec: &str| {
        let text = YAML.replace("{mode: Audit}", spec);
        Config::from_yaml("orders.yaml", &text).unwrap_err()
    };
    let selects = "{type: Namespace, namespace: {selector: {matchLabels: {team: shop}}}}";
    for (spec, says) in [
        (
            format!("{{rules: [{{sources: [{selects}]}}]}}"),
            "accessPolicies[1].spec.rules: namespaces have to be named",
        ),
        (
            "{rules: [{sources: [{type: Address, address: {cidrs: [10.0.0.0/33]}}]}]}".to_owned(),
            "accessPolicies[1].spec.rules[0].sources[0].address.cidrs[0]: ",
        ),
        (
            "{rules: [{name: all}]}".to_owned(),
            "accessPolicies[1].spec.rules[0].sources: ",
        ),
        ("{action: Deny}".to_owned(), "accessPolicies[1].spec.rules: "),
        (
            "{rules: [{sources: [{type: Any}], httpAttributes: [{paths: [{type: Exact, value: /a//b}]}]}]}".to_owned(),
            "accessPolicies[1].spec.rules[0].httpAttributes[0].paths[0].value: no request meets",
        ),
    ] {
        let errors = wrong(&spec);
        let expected = format!("orders.yaml:29: {says}");
        assert!(
            errors.len() == 1 && errors[0].starts_with(&expected),
            "{expected}: {errors:?}"
        );
    }
}

/// The same of limits.
#[test]
fn a_limit_of_a_file_says_all_of_it() {
    let read = |spec: &str| {
        let limits = format!("rateLimitPolicies:\n- {{name: p, spec: {spec}}}\naccessLog: true");
        Config::from_yaml("orders.yaml", &YAML.replace("accessLog: true", &limits))
    };
    let limit = |more: &str| format!("{{limits: [{{rate: {{requests: 5, interval: 1s}}, {more}}}]}}");
    let config = read(&limit("scope: Pod")).unwrap();
    let DiscoveryConfig::Standalone(targets) = config.discovery else {
        panic!("a file is standalone");
    };
    assert_eq!(targets.limits.policies[0].name, "shop/p");
    let selects = "scope: Pod, matches: [{sources: [{type: Namespace, namespace: {selector: {}}}]}]";
    for (spec, says) in [
        (limit("scope: Service"), "spec.limits: the scope has to be Pod"),
        (limit(selects), "spec.limits: namespaces have to be named"),
        (
            limit("scope: Global"),
            "spec.global: limits of the scope Global need it",
        ),
        ("{}".to_owned(), "spec.limits: name at least one"),
    ] {
        let errors = read(&spec).unwrap_err();
        let says = format!("rateLimitPolicies[0].{says}");
        assert!(errors.len() == 1 && errors[0].contains(&says), "{says}: {errors:?}");
    }
}

#[test]
fn all_mistakes_of_a_file_together_with_their_lines() {
    let text = YAML
        .replace("127.0.0.1:9901", "localhost")
        .replace("issuer: \"127.0.0.1:14150\"", "issuer: nowhere")
        .replace("service: inventory}", "service: stock}")
        .replace("sa/inventory\"", "inventory\"")
        .replace("attempts: 3", "attempts: 99")
        .replace("request: 2s", "request: soon")
        .replace("http1", "http3")
        .replace("mtls: strict", "mtls: maybe")
        .replace("forwardedFor: Append", "forwardedFor: Replace")
        .replace("workers: 2", "workers: 1000")
        .replace("sampleRatio: 1", "sampleRatio: 7, notSampled: Never")
        .replace("- name: example", "- name: inventory")
        .replace("{name: web}", "{name: Web}")
        .replace("ports: [8001]", "ports: [http]")
        .replace(
            "name: tomorrow, spec: {",
            "name: callers, spec: {targetRefs: [{kind: Namespace, name: shop}], ",
        );
    let errors = Config::from_yaml("conf/orders.yaml", &text).unwrap_err();
    for start in [
        "conf/orders.yaml:3: admin: ",
        "conf/orders.yaml:5: identity.issuer: ",
        "conf/orders.yaml:10: outbound[0].service: \"stock\"",
        "conf/orders.yaml:11: outbound[1].service: \"example\"",
        "conf/orders.yaml:16: services[0].protocol: ",
        "conf/orders.yaml:18: services[0].endpoints[0].identity: ",
        "conf/orders.yaml:20: services[0].policy.timeouts.request: ",
        "conf/orders.yaml:20: services[0].policy.retry.attempts: ",
        "conf/orders.yaml:21: services[1].name: ",
        "conf/orders.yaml:26: accessPolicies[0].spec.rules[0].sources[0].serviceAccount",
        "conf/orders.yaml:26: accessPolicies[0].spec.rules: the port \"http\" has to be a number",
        "conf/orders.yaml:29: accessPolicies[1].name: \"callers\" is there twice",
        "conf/orders.yaml:29: accessPolicies[1].spec.targetRefs: ",
        "conf/orders.yaml:30: tracing.sampleRatio: ",
        "conf/orders.yaml:30: tracing.notSampled: ",
        "conf/orders.yaml:33: mtls: ",
        "conf/orders.yaml:34: forwardedFor: ",
        "conf/orders.yaml:35: workers: ",
    ] {
        assert!(
            errors.iter().any(|error| error.starts_with(start)),
            "{start} not in {errors:#?}"
        );
    }
    assert_eq!(errors.len(), 18, "{errors:#?}");
}

#[test]
fn mistakes_in_the_structure_name_line_and_field() {
    let wrong = |from: &str, to: &str| {
        let errors = Config::from_yaml("orders.yaml", &YAML.replace(from, to)).unwrap_err();
        assert_eq!(errors.len(), 1);
        assert!(!errors[0].contains('\n'), "{}", errors[0]);
        errors.into_iter().next().unwrap()
    };
    for (error, parts) in [
        (
            wrong("accessLog: true", "accesLog: true"),
            ["orders.yaml:31:", "accesLog"],
        ),
        (
            wrong("workers: 2", "workers: many"),
            ["orders.yaml:35:", "workers: many"],
        ),
        (wrong("attempts: 3", "tries: 3"), ["orders.yaml:20:", "tries"]),
        (wrong("sources: [", "source: ["), ["orders.yaml:27:", "source"]),
        (wrong("mode: Audit", "mood: Audit"), ["orders.yaml:29:", "mood"]),
        (wrong("  tokenFile: ./token\n", ""), ["orders.yaml:", "tokenFile"]),
        (wrong("workload: {", "workload: [{"), ["orders.yaml:", ""]),
    ] {
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}
