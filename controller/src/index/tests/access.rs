//! Who may call a pod.

use std::sync::Arc;

use futures_util::FutureExt;
use outrigger_api::access as proto;
use outrigger_api::access::{condition, identity, source};

use super::cluster;
use crate::discovery::Discover;
use crate::objects::Kind;
use crate::objects::policy::PolicyKind;
use crate::testing::pod_key;
use crate::topic::{Inbox, Reader};

const ANY: &str = "rules: [{sources: [{type: Any}]}]";

fn policy(namespace: &str, name: &str, target: &str, spec: &str) -> String {
    format!(
        "kind: AccessPolicy\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec: {{targetRefs: [{target}], {spec}}}\n"
    )
}

/// The names of the policies in force, without their namespace, and their ports.
fn enforced(access: &proto::Access) -> Vec<(&str, Option<&[u32]>)> {
    let policies = access.enforced.iter();
    let policies = policies.map(|policy| {
        let name = policy.name.rsplit('/').next().unwrap();
        (name, policy.ports.as_ref().map(|ports| &*ports.numbers))
    });
    policies.collect()
}

#[test]
fn without_a_policy_nothing_is_said() {
    let cluster = cluster();
    assert_eq!(cluster.access("shop", "web-1"), proto::Access::default());
    cluster.apply(&policy("elsewhere", "p", "{kind: Namespace, name: elsewhere}", ANY));
    assert_eq!(cluster.access("shop", "web-1"), proto::Access::default());
}

#[test]
fn all_that_select_a_pod_are_joined() {
    let cluster = cluster();
    for (namespace, name, target) in [
        ("outrigger", "a-mesh", "{kind: Namespace, name: outrigger}"),
        ("shop", "b-namespace", "{kind: Namespace, name: shop}"),
        ("shop", "c-pods", "{kind: Pod, selector: {matchLabels: {app: web}}}"),
        ("shop", "d-all", "{kind: Pod, selector: {}}"),
        ("shop", "e-service", "{kind: Service, name: web}"),
        ("shop", "f-port", "{kind: Service, name: web, sectionName: http}"),
        // None of these selects it.
        ("outrigger", "pods-there", "{kind: Pod, selector: {}}"),
        ("elsewhere", "namespace", "{kind: Namespace, name: shop}"),
        ("elsewhere", "service", "{kind: Service, name: web}"),
        ("elsewhere", "pods", "{kind: Pod, selector: {matchLabels: {app: web}}}"),
        ("shop", "no-port", "{kind: Service, name: web, sectionName: https}"),
        ("shop", "no-service", "{kind: Service, name: gone}"),
        ("shop", "no-pods", "{kind: Pod, selector: {matchLabels: {app: webs}}}"),
        (
            "shop",
            "route",
            "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: web}",
        ),
    ] {
        cluster.apply(&policy(namespace, name, target, ANY));
    }
    let access = cluster.access("shop", "web-1");
    let names: Vec<_> = access.enforced.iter().map(|policy| policy.name.as_str()).collect();
    let expected = [
        "outrigger/a-mesh",
        "shop/b-namespace",
        "shop/c-pods",
        "shop/d-all",
        "shop/e-service",
        "shop/f-port",
    ];
    assert_eq!(names, expected);
    let all = |name| (name, None);
    assert_eq!(
        enforced(&cluster.access("shop", "other-1")),
        [all("a-mesh"), all("b-namespace"), all("d-all")]
    );
    assert_eq!(enforced(&cluster.access("elsewhere", "far-1")), [all("a-mesh")]);
}

#[test]
fn a_service_selects_its_ports_of_each_pod() {
    let cluster = cluster();
    let pod = |name: &str, port: u16| {
        format!(
            "kind: Pod\nmetadata: {{namespace: shop, name: {name}, labels: {{app: two}}}}\nspec: {{serviceAccountName: two, containers: \
             [{{name: outrigger-proxy}}, {{name: app, ports: [{{name: www, containerPort: {port}}}]}}]}}\n"
        )
    };
    cluster.apply(&pod("old", 8080));
    cluster.apply(&pod("new", 9090));
    cluster.apply(
        "kind: Pod\nmetadata: {namespace: shop, name: none, labels: {app: two}}\nspec: {serviceAccountName: two, containers: []}\n",
    );
    cluster.apply(
        "kind: Service\nmetadata: {namespace: shop, name: two}\nspec: {selector: {app: two}, ports: [{name: http, port: 80, \
         targetPort: www}, {name: admin, port: 81, targetPort: 7000}, {name: twin, port: 82, targetPort: 7000}]}\n",
    );
    cluster.apply(&policy(
        "shop",
        "http",
        "{kind: Service, name: two, sectionName: http}",
        ANY,
    ));
    cluster.apply(&policy("shop", "whole", "{kind: Service, name: two}", ANY));
    let several = "{kind: Service, name: two, sectionName: http}, {kind: Service, name: two, sectionName: admin}";
    cluster.apply(&policy("shop", "several", several, ANY));
    let wide = "{kind: Service, name: two, sectionName: http}, {kind: Namespace, name: shop}";
    cluster.apply(&policy("shop", "wide", wide, ANY));
    let of = |pod: &str| cluster.access_of("shop", pod, "two");
    let expected: [(&str, Option<&[u32]>); 4] = [
        ("http", Some(&[8080])),
        ("several", Some(&[7000, 8080])),
        ("whole", Some(&[7000, 8080])),
        ("wide", None),
    ];
    assert_eq!(enforced(&of("old")), expected);
    let expected: [(&str, Option<&[u32]>); 4] = [
        ("http", Some(&[9090])),
        ("several", Some(&[7000, 9090])),
        ("whole", Some(&[7000, 9090])),
        ("wide", None),
    ];
    assert_eq!(enforced(&of("new")), expected);
    // It has no port of that name: what is for that port is nothing to it.
    let expected: [(&str, Option<&[u32]>); 3] = [("several", Some(&[7000])), ("whole", Some(&[7000])), ("wide", None)];
    assert_eq!(enforced(&of("none")), expected);
}

#[test]
fn what_only_the_cluster_knows() {
    let cluster = cluster();
    cluster.apply(
        "kind: Namespace\nmetadata: {name: blue, labels: {team: a}}\n---\nkind: Namespace\nmetadata: {name: red, labels: {team: a}}\n\
         ---\nkind: Namespace\nmetadata: {name: green, labels: {team: b}}\n",
    );
    cluster.apply(
        "kind: Pod\nmetadata: {namespace: shop, name: web-1, labels: {app: web}}\nspec: {serviceAccountName: web, containers: [{name: app, \
         ports: [{name: www, containerPort: 8080}]}]}\n",
    );
    let rule = "rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: a}}, {type: Namespace, namespace: {selector: \
                {matchLabels: {team: a}}}}], networkAttributes: {ports: [www, gone, 9000]}}]";
    cluster.apply(&policy("shop", "p", "{kind: Namespace, name: shop}", rule));
    let access = cluster.access("shop", "web-1");
    let conditions = &access.enforced[0].rules[0].conditions;
    let Some(condition::Kind::Sources(sources)) = &conditions[0].kind else {
        panic!("{conditions:?}")
    };
    let exact = identity::Kind::Exact("spiffe://cluster.local/ns/shop/sa/a".to_owned());
    assert_eq!(
        sources.any[0].kind,
        Some(source::Kind::Identity(proto::Identity { kind: Some(exact) }))
    );
    let namespaces = proto::Namespaces {
        trust_domain: "cluster.local".to_owned(),
        names: vec!["blue".to_owned(), "red".to_owned()],
    };
    assert_eq!(sources.any[1].kind, Some(source::Kind::Namespaces(namespaces)));
    let ports = proto::Ports {
        numbers: vec![8080, 9000],
    };
    assert_eq!(conditions[1].kind, Some(condition::Kind::Ports(ports)));
}

#[test]
fn what_is_audited_is_told_apart() {
    let cluster = cluster();
    cluster.apply(&policy(
        "shop",
        "audited",
        "{kind: Namespace, name: shop}",
        "mode: Audit",
    ));
    cluster.apply(&policy(
        "shop",
        "enforced",
        "{kind: Namespace, name: shop}",
        "mode: Enforce",
    ));
    let access = cluster.access("shop", "web-1");
    assert_eq!(enforced(&access), [("enforced", None)]);
    assert_eq!(access.audited.len(), 1);
    assert_eq!(access.audited[0].name, "shop/audited");
}

/// Whether nobody can meet the rule, because something of it is not known.
fn is_doubted(rule: &proto::Rule) -> bool {
    rule.conditions.iter().any(|condition| condition.kind.is_none())
}

#[test]
fn a_policy_that_is_not_valid_is_there_and_opens_nothing() {
    let cluster = cluster();
    let rules = |access: &proto::Access| -> Vec<bool> {
        assert_eq!(access.enforced.len(), 1, "{access:?}");
        access.enforced[0].rules.iter().map(is_doubted).collect()
    };
    for (target, spec, expected) in [
        // A mistake in one rule.
        (
            "{kind: Namespace, name: shop}",
            "rules: [{sources: [{type: Any}]}, {sources: []}]",
            vec![false, true],
        ),
        // Fields of a newer version: of a rule, of all, of what selects.
        (
            "{kind: Namespace, name: shop}",
            "rules: [{sources: [{type: Any}], when: {}}, {sources: [{type: Any}]}]",
            vec![true, false],
        ),
        (
            "{kind: Namespace, name: shop}",
            "rules: [{sources: [{type: Any}]}, {sources: [{type: Any, also: 1}]}]",
            vec![false, true],
        ),
        (
            "{kind: Namespace, name: shop}",
            "when: {}, rules: [{sources: [{type: Any}]}]",
            vec![true],
        ),
        ("{kind: Namespace, name: shop, newer: 1}", ANY, vec![true]),
        (
            "{kind: Pod, selector: {matchExpressions: [{key: app, operator: Newer}]}}",
            ANY,
            vec![true],
        ),
        // Nothing of it can be read.
        ("{kind: Namespace, name: shop}", "rules: [{sources: Any}]", vec![true]),
        (
            "{kind: Namespace, name: shop}",
            "action: Newer, rules: [{sources: [{type: Any}]}]",
            vec![true],
        ),
    ] {
        cluster.apply(&policy("shop", "p", target, spec));
        let access = cluster.access("shop", "web-1");
        assert_eq!(rules(&access), expected, "{target} {spec}");
        let refuses = access.enforced[0].exclusive || access.enforced[0].deny;
        assert!(refuses, "{target} {spec}: {access:?}");
    }
}

/// A sidecar may ask before the controller has heard of its pod, and says itself which pod it is.
#[test]
fn of_a_pod_that_is_not_known_nobody_can_say_that_no_policy_selects_it() {
    let nobody = |access: &proto::Access| access.enforced.iter().any(|policy| policy.name == "(unknown pod)");
    for (namespace, target, spec, closed) in [
        ("shop", "{kind: Pod, selector: {matchLabels: {app: web}}}", ANY, true),
        ("shop", "{kind: Service, name: other}", ANY, true),
        (
            "shop",
            "{kind: Service, name: gone}",
            "action: Deny, rules: [{sources: [{type: Any}]}]",
            true,
        ),
        // What refuses nobody is not missed.
        ("shop", "{kind: Pod, selector: {}}", "mode: Audit", false),
        (
            "shop",
            "{kind: Pod, selector: {}}",
            "exclusive: false, rules: [{sources: [{type: Any}]}]",
            false,
        ),
        // For these the namespace is enough.
        ("shop", "{kind: Namespace, name: shop}", ANY, false),
        ("outrigger", "{kind: Namespace, name: outrigger}", ANY, false),
        ("elsewhere", "{kind: Pod, selector: {}}", ANY, false),
        // But for the names of ports.
        (
            "shop",
            "{kind: Namespace, name: shop}",
            "rules: [{sources: [{type: Any}], networkAttributes: {ports: [http]}}]",
            true,
        ),
    ] {
        let cluster = cluster();
        cluster.apply(&policy(namespace, "p", target, spec));
        assert_eq!(
            nobody(&cluster.access("shop", "new-1")),
            closed,
            "{namespace} {target} {spec}"
        );
        // One that says that it is a pod of another ServiceAccount.
        assert_eq!(nobody(&cluster.access_of("shop", "other-1", "web")), closed);
        assert!(!nobody(&cluster.access("shop", "other-1")));
        let selected = target.contains("Namespace") && namespace != "elsewhere";
        let known = cluster.access("shop", "new-1").enforced;
        assert_eq!(
            known.iter().any(|policy| policy.name.ends_with("/p")),
            selected,
            "{target}"
        );
    }
}

/// Those who follow the pods web-1, other-1 and far-1, by their numbers.
#[test]
fn a_change_reaches_whom_it_is_for() {
    let cluster = cluster();
    let namespace = |name: &str, labels: &str| {
        format!("kind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}, annotations: {{a: b}}}}\n")
    };
    cluster.apply(&namespace("blue", "team: a"));
    let by_label = "rules: [{sources: [{type: Namespace, namespace: {selector: {matchLabels: {team: a}}}}]}]";
    cluster.apply(&policy(
        "shop",
        "by-label",
        "{kind: Pod, selector: {matchLabels: {app: web}}}",
        by_label,
    ));
    let inbox = Arc::new(Inbox::default());
    let pods = [("shop", "web"), ("shop", "other"), ("elsewhere", "far")];
    let _followed: Vec<_> = (0..)
        .zip(pods)
        .map(|(number, (namespace, account))| {
            let reader = Reader {
                inbox: Arc::clone(&inbox),
                number,
            };
            let key = pod_key(namespace, &format!("{account}-1"), account);
            cluster.index.follow_access(&key, reader)
        })
        .collect();
    let changed = |yaml: &str| {
        cluster.apply(yaml);
        let mut changed: Vec<_> = std::iter::from_fn(|| inbox.next().now_or_never()).collect();
        changed.sort_unstable();
        changed
    };
    // Labels of namespaces.
    assert_eq!(changed(&namespace("red", "team: a")), [0]);
    assert_eq!(changed(&namespace("green", "team: b")), [0; 0]);
    assert_eq!(changed(&namespace("green", "team: a")), [0]);
    assert_eq!(changed(&namespace("green", "team: a, more: x")), [0; 0]);
    // Policies.
    assert_eq!(
        changed(&policy("shop", "q", "{kind: Namespace, name: shop}", ANY)),
        [0, 1]
    );
    assert_eq!(
        changed(&policy("shop", "q", "{kind: Service, name: other}", ANY)),
        [0, 1]
    );
    assert_eq!(
        changed(&policy("outrigger", "q", "{kind: Namespace, name: outrigger}", ANY)),
        [0, 1, 2]
    );
    assert_eq!(
        changed(
            "kind: TrafficPolicy\nmetadata: {namespace: shop, name: t}\nspec: {targetRefs: [{kind: Namespace, name: shop}]}\n"
        ),
        [0; 0]
    );
    // A status that was written is a new version of the object.
    let mut same = policy("shop", "q", "{kind: Service, name: other}", ANY);
    same += "status: {conditions: []}\n";
    assert_eq!(changed(&same), [0; 0]);
    // Services.
    let service = |port: u16| {
        format!(
            "kind: Service\nmetadata: {{namespace: shop, name: other}}\nspec: {{clusterIP: 10.96.0.2, selector: {{app: other}}, ports: \
             [{{name: http, port: 80, targetPort: {port}}}]}}\n"
        )
    };
    assert_eq!(changed(&service(8081)), [1]);
    // Pods.
    let pod = |name: &str, labels: &str| {
        format!(
            "kind: Pod\nmetadata: {{namespace: shop, name: {name}, labels: {{{labels}}}}}\nspec: {{serviceAccountName: other, containers: \
             [{{name: outrigger-proxy}}]}}\n"
        )
    };
    assert_eq!(changed(&pod("other-1", "app: other, more: x")), [0; 0]);
    assert_eq!(changed(&pod("other-1", "app: web")), [1]);
    assert_eq!(changed(&pod("third-1", "app: web")), [0; 0]);
    cluster.delete(Kind::Policy(PolicyKind::Access), "outrigger", "q");
    let mut left: Vec<_> = std::iter::from_fn(|| inbox.next().now_or_never()).collect();
    left.sort_unstable();
    assert_eq!(left, [0, 1, 2]);
}
