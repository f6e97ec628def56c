#![allow(clippy::unwrap_used)]

use outrigger_access::Access;
use outrigger_api::access as proto;
use outrigger_api::policy::access::{AccessPolicySpec, Cluster, JwksSpec};
use outrigger_api::policy::selector::LabelSelector;
use serde_json::json;

use super::Told;

struct Shop;

impl Cluster for Shop {
    fn trust_domain(&self) -> &str {
        "cluster.local"
    }

    fn namespaces(&self, _: &LabelSelector) -> Vec<String> {
        vec!["shop".to_owned(), "shop-eu".to_owned()]
    }

    fn port(&self, name: &str) -> Option<u16> {
        (name == "metrics").then_some(9090)
    }

    fn jwks(&self, _: &JwksSpec) -> String {
        String::new()
    }
}

/// What `/config` of a sidecar with these policies says: their names, the ports that they select, their specs.
fn config(policies: &[(&str, Option<u32>, &str)]) -> Vec<u8> {
    let mut access = proto::Access::default();
    for (name, port, spec) in policies {
        let spec: AccessPolicySpec = serde_saphyr::from_str(spec).unwrap();
        let (policy, mistakes) = spec.to_wire(name, "shop");
        assert_eq!(mistakes, [""; 0], "{name}");
        let ports = port.map(|port| proto::Ports { numbers: vec![port] });
        let list = if policy.audit {
            &mut access.audited
        } else {
            &mut access.enforced
        };
        list.push(policy.resolve(ports, &Shop));
    }
    let view = Access::new(&access).view();
    let config = json!({
        "mtls": "permissive",
        "identity": {"id": "spiffe://cluster.local/ns/shop/sa/orders", "generation": 1},
        "targets": {"source": "file", "access": view},
    });
    config.to_string().into_bytes()
}

fn text(config: &[u8]) -> String {
    Told::read("shop/orders-1".to_owned(), config).unwrap().text()
}

#[test]
fn each_port_with_its_rules_in_the_order_of_the_decision() {
    let told = text(&config(&[
        (
            "shop/callers",
            Some(8080),
            "rules: [{name: web, sources: [{type: ServiceAccount, serviceAccount: {name: web}}, {type: Namespace, namespace: {selector: \
             {}}}], httpAttributes: [{methods: [GET, POST], paths: [{type: PathPrefix, value: /orders}]}, {paths: [{type: Exact, value: \
             /ping}]}]}, {sources: [{type: Address, address: {cidrs: [10.0.0.0/8], except: [10.1.0.0/16]}}], networkAttributes: {ports: \
             [8081]}}]",
        ),
        (
            "shop/metrics",
            None,
            "{exclusive: false, rules: [{sources: [{type: SPIFFE, spiffe: \"spiffe://cluster.local/ns/monitoring/*\"}], \
             networkAttributes: {ports: [metrics]}}]}",
        ),
        (
            "shop/no-strangers",
            None,
            "{action: Deny, rules: [{name: plaintext, sources: [{type: Unauthenticated}]}]}",
        ),
        (
            "shop/tomorrow",
            Some(8080),
            "{mode: Audit, rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: \"*\"}}], httpAttributes: [{headers: [{name: \
             x-team, value: \"a|b\", type: RegularExpression}], hosts: [\"*.example.com\"], grpc: {service: shop.v1.Orders}}]}]}",
        ),
    ]));
    let expected = "\
shop/orders-1 (spiffe://cluster.local/ns/shop/sa/orders), mutual TLS: permissive

Port 8080
  ✗ refused: whoever has no identity    (shop/no-strangers rule plaintext)
  ✓ allowed: spiffe://cluster.local/ns/shop-eu/* or spiffe://cluster.local/ns/shop/* or spiffe://cluster.local/ns/shop/sa/web; GET or POST, \
path /orders/*; or path /ping    (shop/callers rule web)
  ✗ refused: all else    (shop/callers)
  · Audit only, would allow: spiffe://cluster.local/ns/shop/*; header x-team like a|b, host *.example.com, gRPC shop.v1.Orders/*    \
(shop/tomorrow rule 0)
  · Audit only, would refuse: all else    (shop/tomorrow)

Port 8081
  ✗ refused: whoever has no identity    (shop/no-strangers rule plaintext)
  ✓ allowed: all else

Port 9090
  ✗ refused: whoever has no identity    (shop/no-strangers rule plaintext)
  ✓ allowed: spiffe://cluster.local/ns/monitoring/*    (shop/metrics rule 0)
  ✓ allowed: all else

All other ports
  ✗ refused: whoever has no identity    (shop/no-strangers rule plaintext)
  ✓ allowed: all else
";
    assert_eq!(told, expected);
}

#[test]
fn a_default_deny_and_a_sidecar_that_knows_nothing_yet() {
    let told = text(&config(&[("shop/default-deny", None, "{}")]));
    assert!(
        told.ends_with("\nAll other ports\n  ✗ refused: all else    (shop/default-deny)\n"),
        "{told}"
    );
    let told = text(&config(&[]));
    assert!(told.ends_with("\nAll other ports\n  ✓ allowed: all else\n"), "{told}");
    let nothing = json!({"mtls": "strict", "identity": null, "targets": {"access": null}}).to_string();
    let told = text(nothing.as_bytes());
    assert_eq!(
        told,
        "shop/orders-1 (no identity yet), mutual TLS: strict\n\nNobody: the controller has not said yet who may call it.\n"
    );
}

/// Who may write policies does not write to the terminal of who looks at them.
#[test]
fn what_a_policy_says_stays_in_its_line() {
    let value = "action: Deny, rules: [{name: r, sources: [{type: Any}], httpAttributes: [{headers: [{name: x, value: HERE}]}]}]";
    let config = String::from_utf8(config(&[("shop/p", Some(8080), &format!("{{{value}}}"))])).unwrap();
    // No reader of policies takes that; who answers in the sidecar's place may say anything.
    let told = text(config.replace("HERE", "a\\n  ✓ \\u001b[2K").as_bytes());
    assert!(told.contains("a\\n  ✓ \\u{1b}[2K"), "{told}");
    assert_eq!(told.lines().filter(|line| line.contains('✓')).count(), 3, "{told}");
}

/// A sidecar of a version that says it otherwise.
#[test]
fn what_is_not_understood_is_not_guessed_at() {
    let old =
        json!({"mtls": "strict", "identity": null, "targets": {"access": [{"name": "shop/callers"}]}}).to_string();
    let error = Told::read("shop/orders-1".to_owned(), old.as_bytes())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the sidecar of shop/orders-1") && error.contains("version"),
        "{error}"
    );
}

#[test]
fn json_has_all_of_it() {
    let told = Told::read(
        "shop/orders-1".to_owned(),
        &config(&[("shop/default-deny", Some(80), "{}")]),
    )
    .unwrap();
    let json = serde_json::to_value(&told).unwrap();
    assert_eq!(json["pod"], "shop/orders-1");
    assert_eq!(json["access"]["ports"][0]["port"], 80);
    assert_eq!(json["access"]["ports"][0]["enforced"][0]["exclusive"], true);
    assert_eq!(json["access"]["others"], json!({"enforced": [], "audited": []}));
}
