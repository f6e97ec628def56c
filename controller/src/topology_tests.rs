use std::sync::Arc;

use outrigger_api::discovery as proto;
use outrigger_api::discovery::target;

use super::{Candidate, Candidates, OTHERS_OF_A_NODE, Place, TargetViews};
use crate::room::Payer;

/// "name", and then any of: "!" (terminating), "@node", ">zone" and ">>node" hints.
fn candidate(text: &str) -> Candidate {
    let mut words = text.split(' ');
    let mut candidate = Candidate::from(proto::Endpoint {
        address: words.next().unwrap().to_owned(),
        ..proto::Endpoint::default()
    });
    for word in words {
        if word == "!" {
            candidate.ready = false;
        } else if let Some(node) = word.strip_prefix('@') {
            candidate.node = Some(node.into());
        } else if let Some(node) = word.strip_prefix(">>") {
            candidate.for_nodes.push(node.into());
        } else if let Some(zone) = word.strip_prefix('>') {
            candidate.for_zones.push(zone.into());
        } else {
            panic!("{word}");
        }
    }
    candidate
}

fn candidates(local: bool, list: &[&str]) -> Candidates {
    Candidates {
        local,
        secured: false,
        list: list.iter().map(|text| candidate(text)).collect(),
    }
}

/// "node/zone"; "-": unknown.
fn place(text: &str) -> Place {
    let (node, zone) = text.split_once('/').unwrap();
    let known = |text: &str| (text != "-").then(|| Arc::from(text));
    Place {
        node: known(node),
        zone: known(zone),
    }
}

fn names(endpoints: &[Arc<proto::Endpoint>]) -> String {
    let names: Vec<_> = endpoints.iter().map(|e| e.address.as_str()).collect();
    names.join(" ")
}

/// The cases of kube-proxy's own table (`pkg/proxy/topology_test.go`), and some more.
#[test]
fn choices() {
    const CLUSTER: bool = false;
    const LOCAL: bool = true;
    let cases: &[(&str, bool, &[&str], &str, &str)] = &[
        ("none", CLUSTER, &[], "n1/z1", ""),
        ("no hints", CLUSTER, &["a @n1", "b @n2"], "n1/z1", "a b"),
        (
            "hints for the zone",
            CLUSTER,
            &["a >z1", "b >z2", "c >z1"],
            "n1/z1",
            "a c",
        ),
        ("a hint is missing", CLUSTER, &["a >z1", "b", "c >z1"], "n1/z1", "a b c"),
        ("no hint for the zone", CLUSTER, &["a >z1", "b >z2"], "n1/z3", "a b"),
        ("the zone is not known", CLUSTER, &["a >z1", "b >z2"], "n1/-", "a b"),
        ("nothing is known", CLUSTER, &["a >z1 >>n1", "b >z2 >>n2"], "-/-", "a b"),
        (
            "for several zones",
            CLUSTER,
            &["a >z1 >z2", "b >z2", "c >z3"],
            "n1/z2",
            "a b",
        ),
        (
            "hints for the node",
            CLUSTER,
            &["a >z1 >>n1", "b >z1 >>n2"],
            "n1/z1",
            "a",
        ),
        (
            "none for this node: the zone",
            CLUSTER,
            &["a >z1 >>n1", "b >z1 >>n2", "c >z2 >>n3"],
            "n9/z1",
            "a b",
        ),
        (
            "none for node or zone",
            CLUSTER,
            &["a >z1 >>n1", "b >z2 >>n2"],
            "n9/z9",
            "a b",
        ),
        (
            "a hint for a node is missing: the zone",
            CLUSTER,
            &["a >z1 >>n1", "b >z1"],
            "n1/z1",
            "a b",
        ),
        ("nodes without zones", CLUSTER, &["a >>n1", "b >>n2"], "n2/-", "b"),
        ("terminating ones give way", CLUSTER, &["a !", "b", "c !"], "n1/z1", "b"),
        ("only terminating ones", CLUSTER, &["a !", "b !"], "n1/z1", "a b"),
        (
            "hints of terminating ones do not count",
            CLUSTER,
            &["a ! >z1", "b ! >z2"],
            "n1/z1",
            "a b",
        ),
        (
            "nor that they have none",
            CLUSTER,
            &["a !", "b >z1", "c >z2"],
            "n1/z1",
            "b",
        ),
        (
            "hinted ones terminate: others",
            CLUSTER,
            &["a ! >z1", "b >z2"],
            "n1/z1",
            "b",
        ),
        ("local", LOCAL, &["a @n1", "b @n2", "c @n1"], "n1/z1", "a c"),
        ("nobody here", LOCAL, &["a @n1", "b @n2"], "n3/z1", ""),
        ("nobody says where", LOCAL, &["a", "b"], "n1/z1", ""),
        ("the caller's node is not known", LOCAL, &["a", "b @n1"], "-/-", ""),
        ("local and terminating", LOCAL, &["a @n1 !", "b @n2"], "n1/z1", "a"),
        ("local, ready first", LOCAL, &["a @n1 !", "b @n1"], "n1/z1", "b"),
        (
            "local and hints",
            LOCAL,
            &["a @n1 >z2 >>n2", "b @n2 >z1 >>n1"],
            "n1/z1",
            "a",
        ),
    ];
    for (what, local, list, caller, chosen) in cases {
        let got = candidates(*local, list).of(&place(caller));
        assert_eq!(names(&got), *chosen, "{what}");
    }
}

/// Those that hints keep away from a caller, for sidecars that may call them.
#[test]
fn others() {
    let cases: &[(&str, bool, &[&str], &str, &str)] = &[
        ("no hints", false, &["a @n1", "b @n2"], "n1/z1", ""),
        (
            "of other zones",
            false,
            &["a >z1", "b >z2", "c >z1", "d >z3"],
            "n1/z1",
            "b d",
        ),
        ("none is for the zone", false, &["a >z1", "b >z2"], "n1/z3", ""),
        (
            "of other nodes",
            false,
            &["a >z1 >>n1", "b >z1 >>n2", "c >z2 >>n3"],
            "n1/z1",
            "b c",
        ),
        ("terminating", false, &["a >z1", "b >z2 !", "c >z2"], "n1/z1", "c"),
        ("local", true, &["a @n1 >z1 >>n1", "b @n2 >z2 >>n2"], "n1/z1", ""),
    ];
    for (what, local, list, caller, expected) in cases {
        let candidates = candidates(*local, list);
        let others = candidates.chosen(&place(caller)).others;
        let others: Vec<_> = others.into_iter().map(|c| Arc::clone(&c.endpoint)).collect();
        assert_eq!(names(&others), *expected, "{what}");
    }
}

#[test]
fn of_other_nodes_a_caller_gets_a_few_and_not_the_same_as_others() {
    let list: Vec<_> = (0..1000).map(|n| format!("e{n} >z{} >>n{n}", n % 10)).collect();
    let list: Vec<_> = list.iter().map(String::as_str).collect();
    let candidates = candidates(false, &list);
    let others = |at| -> std::collections::BTreeSet<_> {
        let others = candidates.chosen(&place(at)).others.into_iter();
        others.map(|c| c.endpoint.address.clone()).collect()
    };
    let (one, ten) = (others("n1/z1"), others("n11/z1"));
    assert_eq!((one.len(), ten.len()), (OTHERS_OF_A_NODE, OTHERS_OF_A_NODE));
    assert!(
        !one.contains("e1") && one.iter().all(|name| name.ends_with('1')),
        "{one:?}"
    );
    assert_ne!(one, ten);
    assert_eq!(one, others("n1/z1"));
}

/// A view that says that nothing of the place matters must be the same from everywhere.
#[test]
fn what_a_choice_depends_on() {
    let cases: &[(&str, bool, &[&str], &str)] = &[
        ("none", false, &[], ""),
        ("none, local", true, &[], ""),
        ("no hints", false, &["a @n1", "b"], ""),
        ("incomplete hints", false, &["a >z1 >>n1", "b"], ""),
        ("zones", false, &["a >z1", "b >z2"], "zone"),
        ("nodes", false, &["a >>n1", "b >>n2"], "node"),
        ("both", false, &["a >z1 >>n1", "b >z2 >>n2"], "node zone"),
        ("terminating", false, &["a ! >z1", "b ! >z2"], ""),
        ("local", true, &["a @n1 >z1", "b"], "node"),
    ];
    let places = ["-/-", "n1/z1", "n1/z2", "n2/z1", "n2/z2", "n3/z3"];
    for (what, local, list, expected) in cases {
        let candidates = candidates(*local, list);
        let needs = candidates.needs();
        let (node, zone) = (expected.contains("node"), expected.contains("zone"));
        assert_eq!((needs.node, needs.zone), (node, zone), "{what}");
        assert_eq!(candidates.is_same_everywhere(), expected.is_empty(), "{what}");
        for caller in places {
            let place = place(caller);
            assert_eq!(
                candidates.of(&place),
                candidates.of(&needs.of(&place)),
                "{what} {caller}"
            );
        }
    }
}

#[test]
fn a_view_is_encoded_once_for_all_callers_that_share_it() {
    let service = proto::Service {
        backends: vec![proto::Backend::default(), proto::Backend::default()],
        ..proto::Service::default()
    };
    let target = proto::Target {
        kind: Some(target::Kind::Service(service)),
    };
    let same = |views: &TargetViews, a: &str, b: &str| {
        let view = |at| views.view(&place(at)).unwrap();
        let (a, b) = (view(a), view(b));
        assert_eq!(a.fingerprint == b.fingerprint, a.bytes == b.bytes);
        (a.bytes == b.bytes, a.bytes.as_ptr() == b.bytes.as_ptr())
    };
    let one = TargetViews::from(target.clone());
    assert_eq!(same(&one, "n1/z1", "n2/z2"), (true, true));
    let by_zone = |hints| TargetViews::new(&target, vec![(1, candidates(false, hints))], Payer::default(), 0);
    let zones = by_zone(&["a >z1", "b >z2"]);
    // Nodes do not matter.
    assert_eq!(same(&zones, "n1/z1", "n2/z1"), (true, true));
    assert_eq!(same(&zones, "n1/z1", "n1/z2"), (false, false));
    assert_eq!(zones.views.lock().len(), 2);
    let changed = by_zone(&["a >z1", "b >z1"]);
    assert!(zones != changed);
}
