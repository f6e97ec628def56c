#![allow(clippy::unwrap_used)]

use super::*;
use crate::model::PathMatch;

fn address(n: u16) -> SocketAddr {
    ([10, 96, 0, 1], n).into()
}

/// A Service whose route has a pattern, and whose backends are these sets.
fn routes(sets: &[&str]) -> proto::Target {
    let backend = |name: &&str| proto::Backend {
        kind: Some(backend::Kind::EndpointSet((*name).to_owned())),
        ..proto::Backend::default()
    };
    let pattern = proto::StringMatch {
        kind: Some(proto::string_match::Kind::Regex("/v[0-9]+".to_owned())),
    };
    let route = proto::Route {
        matches: vec![proto::Match {
            path: Some(pattern),
            ..proto::Match::default()
        }],
        ..proto::Route::default()
    };
    proto::Target {
        kind: Some(target::Kind::Service(proto::Service {
            routes: vec![route],
            backends: sets.iter().map(backend).collect(),
            ..proto::Service::default()
        })),
    }
}

fn set(name: &str, version: u64, since: u64, endpoints: &[&str], removed: &[&str]) -> proto::EndpointSet {
    let endpoints = endpoints.iter().map(|endpoint| {
        let (address, pod) = endpoint.split_once(' ').unwrap_or((endpoint, ""));
        proto::Endpoint {
            address: address.to_owned(),
            pod: pod.to_owned(),
            ..proto::Endpoint::default()
        }
    });
    proto::EndpointSet {
        name: name.to_owned(),
        version,
        since,
        endpoints: endpoints.collect(),
        removed: removed.iter().map(|&address| address.to_owned()).collect(),
    }
}

fn service(target: &Target) -> &Service {
    match target {
        Target::Service(service) => service,
        Target::External => panic!("not a Service"),
    }
}

fn endpoints(target: &Target, backend: usize) -> Vec<String> {
    let Endpoints::Known(endpoints) = &service(target).backends[backend].endpoints else {
        panic!("a name");
    };
    let text = |e: &Arc<Endpoint>| {
        format!(
            "{}{}",
            e.address,
            e.pod.as_ref().map_or(String::new(), |pod| format!(" {pod}"))
        )
    };
    endpoints.iter().map(text).collect()
}

#[test]
fn an_endpoint_that_flaps_compiles_nothing() {
    let mut told = Told::default();
    told.endpoints(&set("a", 1, 0, &["10.0.0.1:80", "10.0.0.2:80"], &[]))
        .unwrap();
    told.endpoints(&set("b", 1, 0, &["10.0.1.1:80"], &[])).unwrap();
    let before = told.routes(address(1), &routes(&["a", "b"]));
    assert_eq!(endpoints(&before, 0), ["10.0.0.1:80", "10.0.0.2:80"]);
    assert!(matches!(
        service(&before).routes[0].matches[0].path,
        Some(PathMatch::Regex(_))
    ));
    let changed = told.endpoints(&set("a", 2, 1, &[], &["10.0.0.1:80"])).unwrap();
    let [(at, after)] = &changed[..] else {
        panic!("{} have changed", changed.len());
    };
    assert_eq!((*at, endpoints(after, 0)), (address(1), vec!["10.0.0.2:80".to_owned()]));
    // The very same routes, and the very same other backend.
    assert!(Arc::ptr_eq(&service(&before).routes, &service(after).routes));
    assert!(Arc::ptr_eq(&service(&before).backends[1], &service(after).backends[1]));
    // The same state again changes nothing.
    assert!(
        told.endpoints(&set("a", 3, 0, &["10.0.0.2:80"], &[]))
            .unwrap()
            .is_empty()
    );
    let again = told.routes(address(1), &routes(&["a", "b"]));
    assert!(Arc::ptr_eq(&service(&again).routes, &service(after).routes));
    // Other routes are others.
    let other = told.routes(address(1), &routes(&["a"]));
    assert!(!Arc::ptr_eq(&service(&other).routes, &service(after).routes));
    assert_eq!(endpoints(&other, 0), ["10.0.0.2:80"]);
}

#[test]
fn changes_come_on_top_of_the_state_that_they_are_changes_of() {
    let mut told = Told::default();
    told.endpoints(&set("a", 5, 0, &["10.0.0.2:80", "10.0.0.10:80"], &[]))
        .unwrap();
    told.routes(address(1), &routes(&["a"]));
    let change = set(
        "a",
        6,
        5,
        &["10.0.0.1:80", "10.0.0.2:80 other"],
        &["10.0.0.10:80", "10.0.0.77:80"],
    );
    let changed = told.endpoints(&change).unwrap();
    assert_eq!(endpoints(&changed[0].1, 0), ["10.0.0.1:80", "10.0.0.2:80 other"]);
    // Not a second time, and nothing in between is left out.
    for (version, since) in [(6, 5), (9, 8)] {
        assert!(told.endpoints(&set("a", version, since, &[], &[])).is_err());
    }
    assert!(told.endpoints(&set("b", 2, 1, &[], &[])).is_err());
    // Of another session.
    told.begin(|_| true);
    assert!(told.endpoints(&set("a", 7, 6, &[], &[])).is_err());
    assert_eq!(told.endpoints(&set("a", 1, 0, &["10.0.0.3:80"], &[])).unwrap().len(), 1);
}

#[test]
fn nothing_is_kept_that_nobody_needs() {
    let mut told = Told::default();
    for name in ["a", "b", "c"] {
        told.endpoints(&set(name, 1, 0, &["10.0.0.1:80"], &[])).unwrap();
    }
    told.routes(address(1), &routes(&["a", "b"]));
    told.routes(address(2), &routes(&["b"]));
    let kept = |told: &Told| {
        let mut names: Vec<_> = told.sets.keys().cloned().collect();
        names.sort_unstable();
        names.join("")
    };
    // What the controller keeps up to date stays, whoever names it.
    told.forget(address(1));
    assert_eq!(kept(&told), "abc");
    told.gone("a");
    told.gone("c");
    assert_eq!(kept(&told), "b");
    // Routes that were on their way may name what is gone: it is as it was, until they are gone too.
    told.gone("b");
    assert_eq!(kept(&told), "b");
    let known = told.routes(address(2), &routes(&["b"]));
    assert_eq!(endpoints(&known, 0), ["10.0.0.1:80"]);
    told.routes(address(2), &routes(&["d"]));
    assert_eq!(kept(&told), "d");
    told.begin(|_| true);
    told.forget(address(2));
    assert_eq!((kept(&told), told.targets.len()), (String::new(), 0));
    // What was dropped while there was no session is not dropped by a word.
    told.endpoints(&set("a", 1, 0, &["10.0.0.1:80"], &[])).unwrap();
    told.routes(address(1), &routes(&["a"]));
    told.routes(address(2), &routes(&["e"]));
    told.begin(|wanted| wanted == address(2));
    assert_eq!((kept(&told), told.targets.len()), ("e".to_owned(), 1));
}

#[test]
fn a_set_that_is_not_told_has_no_endpoints() {
    let mut told = Told::default();
    let target = told.routes(address(1), &routes(&["later"]));
    assert_eq!(endpoints(&target, 0), [] as [&str; 0]);
    let changed = told.endpoints(&set("later", 1, 0, &["10.0.0.1:80"], &[])).unwrap();
    assert_eq!(endpoints(&changed[0].1, 0), ["10.0.0.1:80"]);
}
