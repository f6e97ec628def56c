//! What is said of AccessPolicies.

use std::sync::Arc;

use outrigger_api::discovery::Feature;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Write;
use super::tests::{NOW, writes};
use crate::access::Access;
use crate::discovery::{Discover, Known};
use crate::objects::policy::PolicyKind;
use crate::testing::{Cluster, pod_key};
use crate::topic::{Followed, Inbox, Reader};

pub(super) fn policy(name: &str, target: Value, more: Value) -> Value {
    let mut spec = json!({"targetRefs": [target], "rules": [{"sources": [{"type": "Any"}]}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({
        "kind": "AccessPolicy", "apiVersion": "outrigger.dev/v1alpha1",
        "metadata": {"namespace": "shop", "name": name, "generation": 2, "resourceVersion": "1"},
        "spec": spec,
    })
}

fn pod(name: &str, app: &str, sidecar: bool) -> Value {
    let containers = if sidecar {
        json!([{"name": "outrigger-proxy"}])
    } else {
        json!([{"name": "app"}])
    };
    json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": {"namespace": "shop", "name": name, "labels": {"app": app}},
        "spec": {"serviceAccountName": app, "containers": containers},
    })
}

pub(super) fn shop() -> Value {
    json!({"kind": "Namespace", "name": "shop"})
}

pub(super) fn cluster() -> Cluster {
    let cluster = Cluster::new();
    cluster.index.set_own("outrigger", "controller-a");
    cluster.add_service("web", 1);
    cluster
}

/// What is written of the policy: (reason, message) of the conditions at its first target.
pub(super) fn said(cluster: &Cluster, name: &str) -> Vec<(String, String)> {
    let writes = writes(cluster, NOW);
    let write = writes.iter().find(|write| &*write.name.name == name).unwrap();
    let conditions = write.status["ancestors"][0]["conditions"].as_array().unwrap().iter();
    let text = |condition: &Value, field: &str| condition[field].as_str().unwrap().to_owned();
    conditions.map(|c| (text(c, "reason"), text(c, "message"))).collect()
}

#[test]
fn reasons() {
    let service = |name: &str| json!({"kind": "Service", "name": name});
    let pods = |selector: Value| json!({"kind": "Pod", "selector": selector});
    let section = |name: &str| json!({"kind": "Service", "name": "web", "sectionName": name});
    for (target, more, reason, words) in [
        (shop(), json!({}), "Accepted", "In force"),
        (service("web"), json!({}), "Accepted", "In force"),
        (section("http"), json!({}), "Accepted", "In force"),
        (
            pods(json!({"matchLabels": {"app": "web"}})),
            json!({}),
            "Accepted",
            "In force",
        ),
        (pods(json!({})), json!({}), "Accepted", "In force"),
        // Nothing is wrong with these, and they may not be what was meant.
        (
            pods(json!({"matchLabels": {"app": "gone"}})),
            json!({}),
            "Accepted",
            "In force. The selector takes no pod",
        ),
        (
            service("idle"),
            json!({}),
            "Accepted",
            "In force. The selector of the Service takes no pod",
        ),
        (
            service("by-hand"),
            json!({}),
            "Accepted",
            "In force. The Service has no selector, so that no pod is known to be behind it",
        ),
        (
            service("astray"),
            json!({}),
            "Accepted",
            "In force. The targetPort of the Service's port 80 is a name that none of its pods has",
        ),
        (
            shop(),
            json!({"rules": [{"sources": [{"type": "Any"}], "networkAttributes": {"ports": ["www", 80]}}]}),
            "Accepted",
            "In force. None of its pods has a port of the name www",
        ),
        (
            service("gone"),
            json!({}),
            "TargetNotFound",
            "Service gone: it is not there",
        ),
        (
            section("https"),
            json!({}),
            "TargetNotFound",
            "no TCP port of the name \"https\"",
        ),
        (
            json!({"kind": "Namespace", "name": "other"}),
            json!({}),
            "TargetNotFound",
            "only be the policy's own",
        ),
        (
            json!({"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "r"}),
            json!({}),
            "TargetNotFound",
            "cannot be attached to the kind HTTPRoute",
        ),
        (json!({"kind": "Pod"}), json!({}), "Invalid", "targetRefs[0].selector"),
        (
            shop(),
            json!({"rules": [{"sources": []}, {"sources": [{"type": "SPIFFE", "spiffe": "web"}]}]}),
            "Invalid",
            "In force as far as it opens nothing: what is faulty lets nobody in where it allows, and is left out where it denies. \
             rules[0].sources: ",
        ),
        (
            shop(),
            json!({"rules": [{"sources": [{"type": "Any"}], "httpAttributes": [{"paths": [
                {"type": "Exact", "value": "/"}, {"type": "PathPrefix", "value": "/a%2Fb"}]}]}]}),
            "Invalid",
            "rules[0].httpAttributes[0].paths[1].value: no request meets \"/a%2Fb\"",
        ),
        (
            shop(),
            json!({"rules": [{"sources": [{"type": "Any"}], "httpAttributes": [{"ambiguousPaths": "Match", "paths": [
                {"type": "PathPrefix", "value": "/a%2Fb"}]}]}]}),
            "Accepted",
            "In force",
        ),
        (
            shop(),
            json!({"action": "Deny", "rules": [{"sources": [{"type": "Any"}], "httpAttributes": [{"paths": [
                {"type": "PathPrefix", "value": "/a%2Fb"}]}]}]}),
            "Accepted",
            "In force",
        ),
        (
            shop(),
            json!({"rules": [{"sources": [{"type": "Any"}], "httpAttributes": [{"headers": [
                {"name": "outrigger-client-id", "value": "a"}]}]}]}),
            "Invalid",
            "rules[0].httpAttributes[0].headers[0].name: ",
        ),
        (shop(), json!({"rules": [{"sources": "Any"}]}), "Invalid", ". spec: "),
    ] {
        let cluster = cluster();
        cluster.apply(
            "kind: Service\nmetadata: {namespace: shop, name: idle}\nspec: {selector: {app: idle}, ports: [{port: 80}]}\n---\nkind: \
             Service\nmetadata: {namespace: shop, name: by-hand}\nspec: {ports: [{port: 80}]}\n---\nkind: Service\nmetadata: {namespace: \
             shop, name: astray}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: nowhere}, {port: 81, targetPort: 81}]}\n",
        );
        cluster.apply_value(policy("p", target.clone(), more.clone()));
        let writes = writes(&cluster, NOW);
        let [Write { status, .. }] = &writes[..] else {
            panic!("{writes:?}")
        };
        let summary = &status["conditions"][0];
        let at_target = &status["ancestors"][0]["conditions"][0];
        for condition in [summary, at_target] {
            assert_eq!(condition["reason"], reason, "{target} {more}: {condition}");
            assert_eq!(condition["status"], if reason == "Accepted" { "True" } else { "False" });
            let message = condition["message"].as_str().unwrap();
            let exactly = reason != "Accepted" || message == words;
            assert!(
                message.contains(words) && exactly,
                "{target} {more}: {message:?} is not {words:?}"
            );
        }
        // Where it is not accepted, nobody carries it out.
        let conditions = status["ancestors"][0]["conditions"].as_array().unwrap().len();
        assert_eq!(conditions, if reason == "Accepted" { 2 } else { 1 });
    }
}

/// A status names each of its targets, and pods have no name here.
#[test]
fn pods_are_named_by_their_selector() {
    let cluster = cluster();
    let target = json!({"kind": "Pod", "selector": {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]}});
    cluster.apply_value(policy("p", target, json!({})));
    let status = writes(&cluster, NOW).remove(0).status;
    let reference = json!({"group": "", "kind": "Pod", "name": "app=web,x", "namespace": "shop"});
    assert_eq!(status["ancestors"][0]["ancestorRef"], reference);
}

#[test]
fn they_are_joined_and_in_no_conflict() {
    let cluster = cluster();
    for name in ["a", "b", "c"] {
        cluster.apply_value(policy(name, shop(), json!({})));
    }
    for name in ["a", "b", "c"] {
        assert_eq!(said(&cluster, name)[0].0, "Accepted", "{name}");
    }
    let traffic = json!({
        "kind": "TrafficPolicy", "metadata": {"namespace": "shop", "name": "t"}, "spec": {"targetRefs": [shop()]},
    });
    cluster.apply_value(traffic);
    assert_eq!(said(&cluster, "t")[0].0, "Accepted");
}

#[test]
fn fields_that_nobody_knows_are_named() {
    let cluster = cluster();
    cluster.apply_value(policy(
        "p",
        shop(),
        json!({"rules": [{"sources": [{"type": "Any"}], "when": {}}]}),
    ));
    let (reason, message) = said(&cluster, "p").remove(1);
    assert_eq!(reason, "PartiallyProgrammed");
    assert!(
        message.contains(": spec.rules[0].when. A rule that allows, and has one of them, lets nobody in"),
        "{message}"
    );
    cluster
        .index
        .set_old_crd(PolicyKind::Access, vec!["spec.rules[].requires".to_owned()]);
    cluster.apply_value(policy("p", shop(), json!({})));
    assert_eq!(said(&cluster, "p")[1].0, "OldCRD");
}

/// A session of the pod's sidecar.
pub(super) struct Sidecar {
    inbox: Arc<Inbox>,
    _access: Followed<Access>,
    _workload: watch::Receiver<Arc<Known>>,
}

pub(super) fn session(cluster: &Cluster, pod: &str, account: &str, features: &[Feature]) -> Sidecar {
    let inbox = Arc::new(Inbox::new(features.iter().copied()));
    let reader = Reader {
        inbox: Arc::clone(&inbox),
        number: 0,
    };
    Sidecar {
        inbox,
        _access: cluster.index.follow_access(&pod_key("shop", pod, account), reader),
        _workload: cluster.index.watch_workload(&pod_key("shop", pod, account)),
    }
}

#[test]
fn pods_that_let_everybody_in_are_counted() {
    let cluster = cluster();
    for (name, app, sidecar) in [
        ("a", "api", true),
        ("b", "api", true),
        ("c", "api", false),
        ("d", "db", false),
    ] {
        cluster.apply_value(pod(name, app, sidecar));
    }
    let mut ended = pod("e", "api", false);
    ended["status"] = json!({"phase": "Succeeded"});
    cluster.apply_value(ended);
    let target = |app: &str| json!({"kind": "Pod", "selector": {"matchLabels": {"app": app}}});
    let programmed = |target: Value| {
        cluster.apply_value(policy("p", target, json!({})));
        said(&cluster, "p").remove(1)
    };
    let bare = "1 of 3 pods have no sidecar, and let everybody in: shop/c";
    assert_eq!(
        programmed(target("api")),
        ("PartiallyProgrammed".to_owned(), bare.to_owned())
    );
    assert_eq!(programmed(target("web")).0, "Programmed");
    let (_, message) = programmed(shop());
    assert_eq!(
        message,
        "2 of 5 pods have no sidecar, and let everybody in: shop/c, shop/d"
    );

    // Its sidecars, of which this controller tells three.
    let today = [Feature::EndpointChanges, Feature::Access];
    let first = session(&cluster, "a", "api", &today);
    assert_eq!(programmed(target("api")).1, bare);
    let older = session(&cluster, "b", "api", &[Feature::EndpointChanges]);
    let stream = cluster.known("shop", "web-1");
    // Who says that it is another pod.
    let says_another = session(&cluster, "a", "db", &[]);
    let streams_as_another = cluster.index.watch_workload(&pod_key("shop", "a", "db"));
    let (reason, message) = programmed(target("api"));
    assert_eq!(reason, "PartiallyProgrammed");
    assert!(
        message.starts_with("controller-a: 1 of 2 sidecars that it tells of the policy are older"),
        "{message}"
    );
    assert!(message.ends_with(&format!("; {bare}")), "{message}");
    assert!(
        programmed(shop()).1.starts_with("controller-a: 2 of 3 sidecars"),
        "{}",
        programmed(shop()).1
    );
    assert!(programmed(target("web")).1.starts_with("controller-a: 1 of 1 sidecars"));
    drop((older, stream, says_another, streams_as_another));
    assert_eq!(programmed(target("api")).1, bare);
    drop(first);
}

#[test]
fn three_pods_without_a_sidecar_are_named_and_those_that_are_left_out_on_purpose_are_counted_apart() {
    let cluster = cluster();
    for name in ["e", "c", "a", "d", "b"] {
        let mut bare = pod(name, "api", false);
        if name == "b" {
            bare["metadata"]["labels"]["outrigger.dev/inject"] = "disabled".into();
        }
        cluster.apply_value(bare);
    }
    let api = json!({"kind": "Pod", "selector": {"matchLabels": {"app": "api"}}});
    cluster.apply_value(policy("p", api, json!({})));
    assert_eq!(
        said(&cluster, "p")[1].1,
        "4 of 5 pods have no sidecar, and let everybody in: shop/a, shop/c, shop/d and 1 more; \
         1 of 5 pods are left out on purpose (outrigger.dev/inject: disabled), and let everybody in"
    );
}

/// Of the whole mesh are the namespaces that are in it: no policy of this kind could ever be enforced in the others.
#[test]
fn the_mesh_is_what_is_injected() {
    let cluster = cluster();
    cluster.apply(
        "kind: Namespace\nmetadata: {name: in, labels: {outrigger.dev/inject: enabled}}\n---\nkind: Namespace\nmetadata: {name: out}\n",
    );
    for namespace in ["in", "out", "outrigger"] {
        let mut pod = pod("bare", "x", false);
        pod["metadata"]["namespace"] = namespace.into();
        cluster.apply_value(pod);
    }
    let mut mesh = policy("mesh", json!({"kind": "Namespace", "name": "outrigger"}), json!({}));
    mesh["metadata"]["namespace"] = "outrigger".into();
    cluster.apply_value(mesh);
    // web-1 has one, without a label on its namespace.
    assert_eq!(
        said(&cluster, "mesh")[1].1,
        "1 of 2 pods have no sidecar, and let everybody in: in/bare"
    );
}

/// Some 80 KB.
fn large_rules() -> Vec<Value> {
    let name = "n".repeat(250);
    let sources: Vec<_> = (0..16)
        .map(|n| json!({"type": "ServiceAccount", "serviceAccount": {"name": format!("{name}{n}")}}))
        .collect();
    (0..64).map(|_| json!({"sources": sources})).collect()
}

#[test]
fn policies_that_no_message_holds_say_so() {
    let cluster = cluster();
    let session = session(&cluster, "web-1", "web", &[Feature::Access]);
    let rules = large_rules();
    for n in 0..20 {
        cluster.apply_value(policy(&format!("p{n}"), shop(), json!({"rules": rules})));
    }
    cluster.index.flush();
    let one = said(&cluster, "p0");
    assert_eq!((&*one[0].0, &*one[1].0), ("Accepted", "PartiallyProgrammed"));
    assert!(
        one[1].1.starts_with("controller-a: 1 sidecars are not told of it"),
        "{}",
        one[1].1
    );
    let access = cluster.access("shop", "web-1");
    assert_eq!(access.enforced[0].name, "(too large)");
    assert!(one[1].1.ends_with("more than 256"), "{}", one[1].1);
    drop(session);
    assert_eq!(said(&cluster, "p0")[1].0, "Programmed");
}

#[test]
fn policies_in_audit_mode_that_give_way_say_so_and_those_in_force_do_not() {
    let cluster = cluster();
    let _session = session(&cluster, "web-1", "web", &[Feature::Access]);
    let rules = large_rules();
    for n in 0..20 {
        cluster.apply_value(policy(
            &format!("p{n}"),
            shop(),
            json!({"rules": rules, "mode": "Audit"}),
        ));
    }
    cluster.apply_value(policy("in-force", shop(), json!({})));
    cluster.index.flush();
    let message = said(&cluster, "p0").remove(1).1;
    assert!(
        message.starts_with("controller-a: 1 sidecars are not told of it"),
        "{message}"
    );
    assert!(message.ends_with("memory: nothing is audited there"), "{message}");
    assert_eq!(said(&cluster, "in-force")[1].0, "Programmed");
}

/// Where the pod's own connections take all that it may (`discovery::session`).
#[test]
fn a_sidecar_that_is_told_nobody_for_want_of_room_is_counted() {
    let cluster = cluster();
    let sidecar = session(&cluster, "web-1", "web", &[Feature::Access]);
    cluster.apply_value(policy("p", shop(), json!({})));
    cluster.index.flush();
    assert_eq!(said(&cluster, "p")[1].0, "Programmed");
    sidecar.inbox.set_closed(true);
    let (reason, message) = said(&cluster, "p").remove(1);
    assert_eq!(reason, "PartiallyProgrammed");
    assert!(
        message.starts_with("controller-a: 1 sidecars are not told of it"),
        "{message}"
    );
    sidecar.inbox.set_closed(false);
    assert_eq!(said(&cluster, "p")[1].0, "Programmed");
}

const USABLE: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// A policy with tokens of two providers, one of whose keys have to be fetched.
fn with_tokens() -> Value {
    let keys = json!({"remote": {"url": "https://login.example.com/keys"}});
    let provider =
        |name: &str, jwks: Value| json!({"name": name, "issuer": "https://i", "audiences": ["a"], "jwks": jwks});
    policy(
        "p",
        shop(),
        json!({
            "rules": [{"sources": [{"type": "JWT", "jwt": {"provider": "login"}}]}],
            "jwt": {"providers": [provider("login", keys), provider("other", json!({"inline": USABLE}))]},
        }),
    )
}

#[test]
fn where_keys_cannot_be_fetched_the_status_says_of_which_provider_and_why() {
    let cluster = cluster();
    cluster.apply_value(with_tokens());
    cluster.index.flush();
    let source = cluster.index.key_sources().borrow().first().cloned().unwrap();
    let set = |result: Result<&str, &str>, seconds: u64| {
        let at = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        cluster
            .index
            .set_keys(&source, result.map(str::to_owned).map_err(str::to_owned), at);
        said(&cluster, "p")
    };
    let place = "(https://login.example.com/keys)";
    let earlier = "; sidecars that were told keys of this place before go on with those";
    let accepted = ("Accepted".to_owned(), "In force".to_owned());
    let partly = |message: String| {
        [
            accepted.clone(),
            ("PartiallyProgrammed".to_owned(), format!("controller-a: {message}")),
        ]
    };
    let none = format!("no token of the provider login is valid before its keys have been fetched {place}{earlier}");
    assert_eq!(said(&cluster, "p"), partly(none));
    let failed = format!(
        "no token of the provider login is valid, because its keys cannot be fetched {place}: it is gone{earlier}"
    );
    assert_eq!(set(Err("it is gone"), 0), partly(failed));
    let programmed = ("Programmed".to_owned(), "All that it says is in force".to_owned());
    assert_eq!(set(Ok("keys"), 1), [accepted.clone(), programmed]);
    for seconds in [60, 120] {
        let old = format!(
            "the keys of the provider login are the last that could be fetched {place}: since 1970-01-01T00:01:00Z it is gone"
        );
        assert_eq!(set(Err("it is gone"), seconds), partly(old));
    }
}

#[test]
fn where_no_key_of_an_inline_set_can_be_used_the_status_says_why() {
    let cluster = cluster();
    for (keys, why) in [
        (
            r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}"#,
            "none of its keys can be used: key 0: its kty is \"oct\"",
        ),
        (r#"{"keys": []}"#, "it has no keys"),
        ("keys", "it is no JWK Set (line 1, column 1)"),
    ] {
        let mut policy = with_tokens();
        policy["spec"]["jwt"]["providers"][1]["jwks"] = json!({ "inline": keys });
        cluster.apply_value(policy);
        cluster.index.flush();
        let said = said(&cluster, "p");
        let mistake = format!("jwt.providers[1].jwks.inline: {why}");
        assert!(said.iter().any(|(_, message)| message.contains(&mistake)), "{said:?}");
    }
}

#[test]
fn sidecars_that_verify_no_tokens_are_counted_where_a_policy_has_providers() {
    let cluster = cluster();
    let _old = session(&cluster, "web-1", "web", &[Feature::Access]);
    let _new = session(&cluster, "web-1", "web", &[Feature::Access, Feature::Tokens]);
    cluster.apply_value(with_tokens());
    cluster.index.flush();
    let source = cluster.index.key_sources().borrow().first().cloned().unwrap();
    cluster
        .index
        .set_keys(&source, Ok("keys".to_owned()), std::time::SystemTime::UNIX_EPOCH);
    let (reason, message) = said(&cluster, "p").remove(1);
    assert_eq!(reason, "PartiallyProgrammed");
    assert!(
        message
            .starts_with("controller-a: 1 of 2 sidecars that it tells of the policy are older, and verify no tokens"),
        "{message}"
    );
    cluster.apply_value(policy("p", shop(), json!({})));
    assert_eq!(said(&cluster, "p").remove(1).0, "Programmed");
}
