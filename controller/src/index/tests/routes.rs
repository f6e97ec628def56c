use outrigger_api::discovery as proto;
use outrigger_api::discovery::string_match::Kind as Text;
use serde_json::json;

use crate::discovery::Discover;
use crate::objects::Kind;
use crate::objects::route::RouteKind;
use crate::testing::{Cluster, addresses};

/// Services web (10.96.0.1), canary (2) and other (3) in shop, and far (4) in elsewhere.
fn cluster() -> Cluster {
    let cluster = Cluster::new();
    cluster.add_service("web", 1);
    cluster.add_service("canary", 2);
    cluster.add_service("other", 3);
    cluster.add_service_in("elsewhere", "far", 4);
    cluster
}

/// An HTTPRoute in shop on web with these rules.
fn route(name: &str, rules: &str) -> String {
    format!(
        "
kind: HTTPRoute
metadata: {{namespace: shop, name: {name}, creationTimestamp: '2026-01-01T00:00:00Z'}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web}}]
  rules: {rules}
"
    )
}

fn names(service: &proto::Service) -> Vec<&str> {
    service.routes.iter().map(|r| r.name.as_str()).collect()
}

/// A route's backends as (name, weight); "-" is an invalid one.
fn split(service: &proto::Service, route: usize) -> Vec<(&str, u32)> {
    let backends = service.routes[route].backends.iter();
    let name = |backend: u32| {
        let backend = service.backends.get(backend as usize);
        backend.map_or("-", |b| b.r#ref.as_ref().unwrap().name.as_str())
    };
    backends.map(|b| (name(b.backend), b.weight)).collect()
}

#[test]
fn weights() {
    let cluster = cluster();
    cluster.apply(&route(
        "split",
        "[{backendRefs: [{name: web, port: 80, weight: 90}, {name: canary, port: 80, weight: 10}, {name: other, port: 80, weight: 0}]}]",
    ));
    let service = cluster.service("10.96.0.1:80");
    assert_eq!(names(&service), ["shop/split/0"]);
    assert_eq!(split(&service, 0), [("web", 90), ("canary", 10)]);
    assert!(
        service.routes[0].matches.is_empty(),
        "a rule without matches takes everything"
    );
    // The Service itself comes first, and is there once.
    assert_eq!(service.backends.len(), 2);
    assert_eq!(addresses(&service.backends[0]), ["10.244.0.1:8080"]);
    assert_eq!(addresses(&service.backends[1]), ["10.244.0.2:8080"]);
    // Without a weight it is 1.
    cluster.apply(&route("split", "[{backendRefs: [{name: canary, port: 80}]}]"));
    assert_eq!(split(&cluster.service("10.96.0.1:80"), 0), [("canary", 1)]);
    // A Service that is only a backend has no routes of its own making.
    assert!(cluster.service("10.96.0.2:80").routes.is_empty());
    // Gone: as before.
    cluster.delete(Kind::Route(RouteKind::Http), "shop", "split");
    assert!(cluster.service("10.96.0.1:80").routes.is_empty());
}

#[test]
fn a_backends_endpoints_reach_whoever_watches_the_route() {
    let cluster = cluster();
    cluster.apply(&route("split", "[{backendRefs: [{name: canary, port: 80}]}]"));
    let mut watched = cluster.index.watch_target("10.96.0.1:80".parse().unwrap(), "client");
    watched.mark_unchanged();
    cluster.delete(Kind::EndpointSlice, "shop", "canary-x");
    assert!(watched.has_changed().unwrap());
    watched.mark_unchanged();
    cluster.delete(Kind::EndpointSlice, "shop", "other-x");
    assert!(!watched.has_changed().unwrap());
}

#[test]
fn who_is_asked_is_a_backend_like_others_and_is_never_left_out() {
    let cluster = cluster();
    cluster.apply(&route(
        "asks",
        "
  - name: a
    matches: [{path: {value: /a}}]
    filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: canary, port: 80}, http: {path: /check}}}]
    backendRefs: [{name: web, port: 80}]
  - name: b
    matches: [{path: {value: /b}}]
    filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: nobody, port: 80}, grpc: {}, forwardBody: {maxSize: 5}}}]
    backendRefs: [{name: web, port: 80}]
  - name: c
    matches: [{path: {value: /c}}]
    filters: [{type: ExternalAuth, externalAuth: {protocol: OTHER, backendRef: {name: canary, port: 80}}}]
    backendRefs: [{name: web, port: 80}]
",
    ));
    let service = cluster.service("10.96.0.1:80");
    let auth = |index: usize| match service.routes[index].filters[..] {
        [
            proto::Filter {
                kind: Some(proto::filter::Kind::ExternalAuth(ref auth)),
            },
        ] => Some((auth.backend, auth.max_body)),
        _ => None,
    };
    let canary = { service.backends.iter() }
        .position(|backend| backend.r#ref.as_ref().is_some_and(|name| name.name == "canary"));
    assert_eq!(auth(0), canary.map(|index| (u32::try_from(index).unwrap(), 0)));
    assert_eq!(
        auth(1),
        Some((u32::MAX, 5)),
        "without it the requests would be let through"
    );
    assert_eq!((auth(2), service.routes[2].backends.len()), (None, 0), "answered 500");
    assert_eq!(service.routes[1].backends.len(), 1);
}

#[test]
fn matches_filters_timeouts_and_retries() {
    let cluster = cluster();
    cluster.apply(&route(
        "all",
        "
  - matches:
    - path: {type: RegularExpression, value: '/v[0-9]+/.*'}
      method: POST
      headers: [{name: x-user, value: me}, {name: x-beta, type: RegularExpression, value: '.+'}]
      queryParams: [{name: q, value: '1'}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: a, value: b}], add: [{name: c, value: d}], remove: [e]}
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: a, value: b}]}
    - type: URLRewrite
      urlRewrite: {hostname: example.com, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}
    - type: RequestMirror
      requestMirror: {backendRef: {name: canary, port: 80}, percent: 25}
    - type: RequestMirror
      requestMirror: {backendRef: {name: canary, port: 80}, fraction: {numerator: 1, denominator: 3}}
    - type: RequestMirror
      requestMirror: {backendRef: {name: nobody, port: 80}}
    backendRefs: [{name: web, port: 80}]
    timeouts: {request: 2s, backendRequest: 500ms}
    retry: {codes: [500, 503], attempts: 3, backoff: 100ms}
    sessionPersistence: {sessionName: x}
    somethingNew: {a: b}
  - matches: [{path: {type: Exact, value: /old}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {scheme: https, hostname: new.example.com, port: 8443, statusCode: 301, path: {type: ReplaceFullPath, replaceFullPath: /new}}
",
    ));
    let service = cluster.service("10.96.0.1:80");
    // The exact path goes first, although its rule is the second.
    assert_eq!(names(&service), ["shop/all/1", "shop/all/0"]);
    let redirect = &service.routes[0];
    assert!(redirect.backends.is_empty());
    let Some(proto::filter::Kind::Redirect(redirect)) = &redirect.filters[0].kind else {
        panic!("{redirect:?}");
    };
    assert_eq!(
        (&*redirect.scheme, &*redirect.hostname, redirect.port, redirect.status),
        ("https", "new.example.com", 8443, 301)
    );
    let full = &service.routes[1];
    let matched = &full.matches[0];
    assert_eq!(matched.method, "POST");
    assert_eq!(
        matched.path.as_ref().unwrap().kind,
        Some(Text::Regex("/v[0-9]+/.*".to_owned()))
    );
    assert_eq!(
        matched.headers[0].value.as_ref().unwrap().kind,
        Some(Text::Exact("me".to_owned()))
    );
    assert_eq!(
        matched.headers[1].value.as_ref().unwrap().kind,
        Some(Text::Regex(".+".to_owned()))
    );
    assert_eq!(matched.query[0].name, "q");
    let kinds = full.filters.iter().map(|f| f.kind.as_ref().unwrap());
    let mirrors: Vec<_> = kinds
        .clone()
        .filter_map(|k| match k {
            proto::filter::Kind::Mirror(mirror) => Some((mirror.backend, mirror.parts_per_million)),
            _ => None,
        })
        .collect();
    assert_eq!(
        mirrors,
        [(1, 250_000), (1, 333_333)],
        "a mirror that leads nowhere is left out"
    );
    assert_eq!(full.filters.len(), 5);
    let proto::filter::Kind::Rewrite(rewrite) = kinds.clone().nth(2).unwrap() else {
        panic!();
    };
    assert_eq!(
        rewrite.path.as_ref().unwrap().kind,
        Some(proto::path_modifier::Kind::ReplacePrefix("/v2".to_owned()))
    );
    let policy = full.policy.as_ref().unwrap();
    assert_eq!(policy.request_timeout_ms, Some(2000));
    assert_eq!(policy.backend_request_timeout_ms, Some(500));
    let retry = policy.retry.as_ref().unwrap();
    assert_eq!(
        (retry.attempts, retry.statuses_set, retry.backoff_base_ms),
        (Some(3), true, Some(100))
    );
    assert_eq!(retry.statuses, [500, 503]);
}

#[test]
fn the_most_specific_match_goes_first() {
    let cluster = cluster();
    let rules = [
        "{}",
        "{path: {value: /a}}",
        "{path: {value: /a/b}}",
        "{path: {type: Exact, value: /x}}",
        "{path: {value: /a}, headers: [{name: a, value: b}]}",
        "{path: {value: /a}, headers: [{name: a, value: b}, {name: c, value: d}]}",
        "{path: {value: /a}, method: GET}",
        "{path: {value: /a}, queryParams: [{name: a, value: b}]}",
        "{path: {type: RegularExpression, value: '/.*'}}",
    ];
    let rules: Vec<_> = rules.iter().map(|m| format!("{{matches: [{m}]}}")).collect();
    cluster.apply(&route("r", &format!("[{}]", rules.join(", "))));
    let service = cluster.service("10.96.0.1:80");
    let order: Vec<_> = names(&service)
        .iter()
        .map(|name| name.trim_start_matches("shop/r/").to_owned())
        .collect();
    assert_eq!(order, ["3", "8", "2", "6", "5", "4", "7", "1", "0"]);
}

#[test]
fn equal_matches_go_by_age_then_name_then_position() {
    let cluster = cluster();
    let rules = "[{matches: [{path: {value: /a}}]}, {matches: [{path: {value: /a}}]}]";
    cluster.apply(&route("b", rules));
    cluster.apply(&route("a", rules));
    cluster.apply(&route("c", rules).replace("2026-01-01", "2025-01-01"));
    assert_eq!(
        names(&cluster.service("10.96.0.1:80")),
        ["shop/c/0", "shop/c/1", "shop/a/0", "shop/a/1", "shop/b/0", "shop/b/1"]
    );
}

#[test]
fn matches_of_one_rule_are_ranked_one_by_one_and_stay_together_where_they_can() {
    let cluster = cluster();
    cluster.apply(&route(
        "r",
        "
  - matches: [{path: {value: /long/prefix}}, {path: {value: /a}}, {path: {value: /b}}]
  - matches: [{path: {value: /middle}}]
",
    ));
    let service = cluster.service("10.96.0.1:80");
    assert_eq!(names(&service), ["shop/r/0", "shop/r/1", "shop/r/0"]);
    assert_eq!(service.routes[2].matches.len(), 2);
}

#[test]
fn ports_and_sections_of_parents() {
    let cluster = cluster();
    cluster.apply(
        "
kind: Service
metadata: {namespace: shop, name: two}
spec: {clusterIPs: [10.96.0.20], ports: [{name: a, port: 80}, {name: b, port: 81}]}
---
kind: HTTPRoute
metadata: {namespace: shop, name: by-port}
spec: {parentRefs: [{group: '', kind: Service, name: two, port: 81}], rules: [{}]}
---
kind: HTTPRoute
metadata: {namespace: shop, name: by-section}
spec: {parentRefs: [{group: '', kind: Service, name: two, sectionName: a}], rules: [{}]}
---
kind: HTTPRoute
metadata: {namespace: shop, name: of-a-gateway}
spec: {parentRefs: [{name: two}], rules: [{}]}
",
    );
    assert_eq!(names(&cluster.service("10.96.0.20:81")), ["shop/by-port/0"]);
    assert_eq!(names(&cluster.service("10.96.0.20:80")), ["shop/by-section/0"]);
}

#[test]
fn a_consumers_route_holds_for_its_own_namespace_only() {
    let cluster = cluster();
    cluster.apply(&route("producer", "[{backendRefs: [{name: web, port: 80}]}]"));
    cluster.apply(
        "
kind: HTTPRoute
metadata: {namespace: client, name: consumer}
spec:
  parentRefs: [{group: '', kind: Service, namespace: shop, name: web}]
  rules: [{backendRefs: [{namespace: shop, name: web, port: 80}]}]
",
    );
    assert_eq!(
        names(&cluster.service_for("10.96.0.1:80", "client")),
        ["client/consumer/0"]
    );
    assert_eq!(names(&cluster.service_for("10.96.0.1:80", "shop")), ["shop/producer/0"]);
    assert_eq!(
        names(&cluster.service_for("10.96.0.1:80", "another")),
        ["shop/producer/0"]
    );
    assert_eq!(split(&cluster.service_for("10.96.0.1:80", "client"), 0), [("web", 1)]);
}

#[test]
fn grpc_routes_go_before_http_routes() {
    let cluster = cluster();
    cluster.apply(&route("http", "[{}]"));
    cluster.apply(
        "
kind: GRPCRoute
metadata: {namespace: shop, name: grpc}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules:
  - backendRefs: [{name: web, port: 80}]
  - matches: [{method: {service: shop.Orders}}]
  - matches: [{method: {service: shop.Orders, method: Get}}]
  - matches: [{method: {method: Get}}]
  - matches: [{method: {type: RegularExpression, service: 'shop[.].*', method: 'Get|List'}}]
  - matches: [{method: {service: shop.Orders, method: Get}, headers: [{name: a, value: b}]}]
",
    );
    let service = cluster.service("10.96.0.1:80");
    assert_eq!(
        names(&service),
        [
            "shop/grpc/5",
            "shop/grpc/2",
            "shop/grpc/1",
            "shop/grpc/4",
            "shop/grpc/3",
            "shop/grpc/0"
        ]
    );
    let paths: Vec<_> = service
        .routes
        .iter()
        .filter_map(|r| r.matches.first()?.path.as_ref()?.kind.clone())
        .collect();
    assert_eq!(
        paths,
        [
            Text::Exact("/shop.Orders/Get".to_owned()),
            Text::Exact("/shop.Orders/Get".to_owned()),
            Text::PathPrefix("/shop.Orders".to_owned()),
            Text::Regex("/(?:shop[.].*)/(?:Get|List)".to_owned()),
            Text::Regex("/[^/]+/Get".to_owned()),
        ]
    );
    assert!(service.routes[5].matches.is_empty());
}

#[test]
fn invalid_backends_keep_their_share() {
    let cluster = cluster();
    cluster.apply(&route(
        "r",
        "
  - backendRefs:
    - {name: web, port: 80}
    - {name: nobody, port: 80}
    - {name: web, port: 81}
    - {name: web}
    - {group: example.com, kind: Bucket, name: web, port: 80}
",
    ));
    assert_eq!(
        split(&cluster.service("10.96.0.1:80"), 0),
        [("web", 1), ("-", 1), ("-", 1), ("-", 1), ("-", 1)]
    );
    // The Service that was missing comes.
    cluster.add_service("nobody", 9);
    assert_eq!(split(&cluster.service("10.96.0.1:80"), 0)[1], ("nobody", 1));
}

/// Producers' and consumers' routes, with a backend that is neither theirs nor their parent's: no ReferenceGrant is asked for, and
/// so none changes what a route means (GEP-1294, "Namespace boundaries").
#[test]
fn a_backend_may_be_in_any_namespace() {
    for kind in ["HTTPRoute", "GRPCRoute"] {
        for (namespace, consumer) in [("shop", "other"), ("client", "client")] {
            let cluster = cluster();
            cluster.apply(&format!(
                "kind: {kind}
metadata: {{namespace: {namespace}, name: r}}
spec:
  parentRefs: [{{group: '', kind: Service, namespace: shop, name: web}}]
  rules: [{{backendRefs: [{{namespace: elsewhere, name: far, port: 80}}]}}]
"
            ));
            let service = cluster.service_for("10.96.0.1:80", consumer);
            assert_eq!(split(&service, 0), [("far", 1)], "{kind} in {namespace}");
        }
    }
}

#[test]
fn a_filter_that_is_not_known_never_loosens_its_rule() {
    let cluster = cluster();
    for filter in [
        "{type: ExtensionRef, extensionRef: {group: example.com, kind: Auth, name: a}}",
        "{type: ExternalAuth, externalAuth: {}}",
        "{type: SomethingNew}",
        "{type: URLRewrite, urlRewrite: {path: {type: Backwards}}}",
    ] {
        cluster.apply(&route(
            "r",
            &format!(
                "[{{matches: [{{path: {{value: /secret}}}}], filters: [{filter}], backendRefs: [{{name: web, port: 80}}]}}, \
                 {{backendRefs: [{{name: web, port: 80, filters: [{filter}]}}]}}, {{backendRefs: [{{name: web, port: 80}}]}}]"
            ),
        ));
        let service = cluster.service("10.96.0.1:80");
        assert_eq!(names(&service), ["shop/r/0", "shop/r/1", "shop/r/2"]);
        // Without backends the answer is 500; the other rule is not touched by it.
        assert!(
            service.routes[0].backends.is_empty() && service.routes[0].filters.is_empty(),
            "{filter}"
        );
        assert!(service.routes[1].backends.is_empty(), "{filter}");
        assert_eq!(split(&service, 2), [("web", 1)]);
    }
}

#[test]
fn a_match_that_cannot_be_read_matches_nothing() {
    let cluster = cluster();
    cluster.apply(&route(
        "r",
        "[{matches: [{path: {type: RegularExpression, value: '(['}}, {path: {value: /ok}}, {path: {type: Glob, value: '*'}}]}]",
    ));
    let service = cluster.service("10.96.0.1:80");
    let paths = service.routes[0]
        .matches
        .iter()
        .map(|m| m.path.clone().unwrap().kind.unwrap());
    let never = Text::Exact("\0".to_owned());
    assert_eq!(
        paths.collect::<Vec<_>>(),
        [Text::PathPrefix("/ok".to_owned()), never.clone(), never]
    );
}

/// Patterns of the answer, by route.
fn patterns(service: &proto::Service) -> Vec<(String, usize)> {
    let is_pattern = |m: &&proto::Match| matches!(m.path.as_ref().and_then(|p| p.kind.as_ref()), Some(Text::Regex(_)));
    let mut by_route = std::collections::BTreeMap::<String, usize>::new();
    for route in &service.routes {
        let name = route.name.rsplit_once('/').unwrap().0.to_owned();
        *by_route.entry(name).or_default() += route.matches.iter().filter(is_pattern).count();
    }
    by_route.into_iter().collect()
}

/// The table that the sidecar runs, too: what it would not compile is told as what no request has.
#[test]
fn patterns_that_are_none_match_nothing() {
    let rows = include_str!("../../../../api/tests/patterns.txt").lines();
    for row in rows.filter(|row| !row.starts_with('#')) {
        let [pattern, _, expected] = row.split(" => ").collect::<Vec<_>>()[..] else {
            panic!("{row}");
        };
        let cluster = cluster();
        cluster.apply_value(json!({
            "kind": "HTTPRoute", "apiVersion": "gateway.networking.k8s.io/v1",
            "metadata": {"namespace": "shop", "name": "r"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
                "rules": [{"matches": [{"headers": [{"name": "v", "type": "RegularExpression", "value": pattern}]}]}],
            },
        }));
        cluster.index.flush();
        let told = &cluster.service("10.96.0.1:80").routes[0].matches[0];
        let kind = told.headers.first().and_then(|header| header.value.clone()?.kind);
        let expected = (expected != "refused").then(|| Text::Regex(pattern.to_owned()));
        assert_eq!(kind, expected, "{row}");
    }
}

/// The service and the method are two patterns, whatever each of them says.
#[test]
fn a_pattern_of_a_grpc_method_ends_with_it() {
    for (service, method, path, expected) in [
        ("shop[.].*", "Get|List", "/shop.Orders/List", Some(true)),
        ("a|b", "Get", "/a/Get", Some(true)),
        ("a|b", "Get", "/a", Some(false)),
        ("(?i)shop", "Get", "/SHOP/Get", Some(true)),
        ("(?i)shop", "Get", "/SHOP/GET", Some(false)),
        ("(?x) shop # the shop", "Get", "/shop/Get", Some(true)),
        ("(?x) shop # ) of | all", "Get", "/shop", Some(false)),
        ("shop", "(?x) Get # it", "/shop/Get", Some(true)),
        ("a)|(b", "Get", "", None),
        ("shop", "(?x)(Get # )", "", None),
    ] {
        let cluster = cluster();
        cluster.apply_value(json!({
            "kind": "GRPCRoute", "apiVersion": "gateway.networking.k8s.io/v1",
            "metadata": {"namespace": "shop", "name": "r"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
                "rules": [{"matches": [{"method": {"type": "RegularExpression", "service": service, "method": method}}]}],
            },
        }));
        cluster.index.flush();
        let told = cluster.service("10.96.0.1:80").routes[0].matches[0]
            .path
            .clone()
            .unwrap()
            .kind
            .unwrap();
        let found = match told {
            Text::Regex(pattern) => {
                let compiled = outrigger_api::pattern::Budget::default().compile(&pattern).unwrap();
                Some(compiled.is_match(path.as_bytes()))
            }
            _ => None,
        };
        assert_eq!(found, expected, "{service} {method} {path}");
    }
}

/// A route with so many patterns, in rules of 60 matches.
fn many_patterns(name: &str, created: u8, count: usize) -> String {
    let matches: Vec<String> = (0..count)
        .map(|i| format!("{{path: {{type: RegularExpression, value: '/{name}{i}/[a-z]{{1,60}}(foo|bar)+'}}}}"))
        .collect();
    let rules: Vec<String> = matches
        .chunks(60)
        .map(|some| format!("{{matches: [{}]}}", some.join(", ")))
        .collect();
    route(name, &format!("[{}]", rules.join(", "))).replace("2026-01-01", &format!("2026-01-0{created}"))
}

#[test]
fn the_patterns_of_a_service_have_a_budget_and_the_oldest_route_has_it_first() {
    let cluster = cluster();
    cluster.apply(&many_patterns("hostile", 1, 3_840));
    let service = cluster.service("10.96.0.1:80");
    let found = patterns(&service);
    assert!(found[0].1 > 0 && found[0].1 <= 64, "{found:?}");
    // All matches are there, so that no rule turns into one that takes everything.
    assert_eq!(
        service.routes.iter().map(|route| route.matches.len()).sum::<usize>(),
        3_840
    );

    let cluster = self::cluster();
    cluster.apply(&many_patterns("old", 1, 10));
    cluster.apply(&many_patterns("older-again", 2, 10));
    cluster.apply(&many_patterns("new", 3, 50));
    assert_eq!(
        patterns(&cluster.service("10.96.0.1:80")),
        [
            ("shop/new".to_owned(), 0),
            ("shop/old".to_owned(), 10),
            ("shop/older-again".to_owned(), 10)
        ]
    );
}

#[test]
fn of_equal_names_the_first_counts() {
    let cluster = cluster();
    cluster.apply(&route(
        "r",
        "[{matches: [{headers: [{name: X-A, value: '1'}, {name: x-a, value: '2'}], \
          queryParams: [{name: q, value: '1'}, {name: Q, value: '2'}, {name: q, value: '3'}]}]}]",
    ));
    let service = cluster.service("10.96.0.1:80");
    let matched = &service.routes[0].matches[0];
    assert_eq!(matched.headers.len(), 1);
    assert_eq!(
        matched.headers[0].value.as_ref().unwrap().kind,
        Some(Text::Exact("1".to_owned()))
    );
    assert_eq!(matched.query.len(), 2);
}

#[test]
fn objects_as_the_published_types_write_them() {
    // The published bindings and our own lenient reading agree on names of fields.
    use gateway_api::apis::experimental::httproutes as published;
    let spec = published::HttpRouteSpec {
        parent_refs: Some(vec![published::HttpRouteParentRefs {
            group: Some(String::new()),
            kind: Some("Service".to_owned()),
            name: "web".to_owned(),
            ..Default::default()
        }]),
        rules: Some(vec![published::HttpRouteRules {
            backend_refs: Some(vec![published::HttpRouteRulesBackendRefs {
                name: "canary".to_owned(),
                port: Some(80),
                weight: Some(7),
                ..Default::default()
            }]),
            retry: Some(published::HttpRouteRulesRetry {
                attempts: Some(4),
                backoff: Some("10ms".to_owned()),
                codes: Some(vec![503]),
            }),
            timeouts: Some(published::HttpRouteRulesTimeouts {
                request: Some("1s".to_owned()),
                backend_request: Some("100ms".to_owned()),
            }),
            ..Default::default()
        }]),
        ..Default::default()
    };
    let cluster = cluster();
    let mut object = serde_json::to_value(published::HttpRoute::new("r", spec)).unwrap();
    object["metadata"]["namespace"] = "shop".into();
    cluster.apply_value(object);
    let service = cluster.service("10.96.0.1:80");
    assert_eq!(split(&service, 0), [("canary", 7)]);
    let policy = service.routes[0].policy.as_ref().unwrap();
    assert_eq!(
        (policy.request_timeout_ms, policy.backend_request_timeout_ms),
        (Some(1000), Some(100))
    );
    let retry = policy.retry.as_ref().unwrap();
    assert_eq!((retry.attempts, retry.backoff_base_ms), (Some(4), Some(10)));
}

/// A TLSRoute or TCPRoute in shop on web.
fn of_bytes(kind: &str, name: &str, created: &str, spec: &str) -> String {
    format!(
        "
kind: {kind}
metadata: {{namespace: shop, name: {name}, creationTimestamp: '{created}T00:00:00Z'}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web}}]
  {spec}
"
    )
}

/// A route of bytes: its name, hostnames, backends by name and weight.
type OfBytes<'a> = (&'a str, Vec<&'a str>, Vec<(&'a str, u32)>);

fn byte_routes(service: &proto::Service) -> Vec<OfBytes<'_>> {
    let name = |backend: u32| {
        let backend = service.backends.get(backend as usize);
        backend.map_or("-", |b| b.r#ref.as_ref().unwrap().name.as_str())
    };
    let route = |route: &'_ proto::ByteRoute| {
        let backends = route.backends.iter();
        backends.map(|b| (name(b.backend), b.weight)).collect()
    };
    let routes = service.byte_routes.iter();
    routes
        .map(|r| {
            (
                r.name.as_str(),
                r.hostnames.iter().map(String::as_str).collect(),
                route(r),
            )
        })
        .collect()
}

#[test]
fn routes_of_bytes() {
    let cluster = cluster();
    let to = |name: &str| {
        format!("rules: [{{backendRefs: [{{name: {name}, port: 80, weight: 3}}, {{name: gone, port: 80}}]}}]")
    };
    cluster.apply(&of_bytes("TCPRoute", "tcp", "2026-01-02", &to("canary")));
    let service = cluster.service("10.96.0.1:80");
    assert_eq!(service.protocol(), proto::Protocol::Opaque);
    assert_eq!(
        byte_routes(&service),
        [("shop/tcp/0", vec![], vec![("canary", 3), ("-", 1)])]
    );
    assert!(service.routes.is_empty());
    // TLSRoutes go before it, the oldest first.
    let tls = |names: &str, backend: &str| format!("hostnames: {names}\n  {}", to(backend));
    cluster.apply(&of_bytes(
        "TLSRoute",
        "late",
        "2026-01-03",
        &tls("['*.example']", "canary"),
    ));
    cluster.apply(&of_bytes(
        "TLSRoute",
        "z-early",
        "2026-01-01",
        &tls("[a.example, b.example]", "other"),
    ));
    let service = cluster.service("10.96.0.1:80");
    assert_eq!(service.protocol(), proto::Protocol::Tls);
    assert_eq!(
        byte_routes(&service),
        [
            (
                "shop/z-early/0",
                vec!["a.example", "b.example"],
                vec![("other", 3), ("-", 1)]
            ),
            ("shop/late/0", vec!["*.example"], vec![("canary", 3), ("-", 1)]),
        ]
    );
    // An HTTPRoute goes before both; its hostnames mean nothing.
    cluster.apply(&route("http", "[{backendRefs: [{name: canary, port: 80}]}]"));
    let service = cluster.service("10.96.0.1:80");
    assert_eq!((names(&service), byte_routes(&service).len()), (vec!["shop/http/0"], 0));
    assert_eq!(service.protocol(), proto::Protocol::Unspecified);
    // A change of the names alone is a change.
    cluster.delete(Kind::Route(RouteKind::Http), "shop", "http");
    cluster.apply(&of_bytes(
        "TLSRoute",
        "late",
        "2026-01-03",
        &tls("['*.other']", "canary"),
    ));
    assert_eq!(byte_routes(&cluster.service("10.96.0.1:80"))[1].1, ["*.other"]);
    // What the Service declares is overruled while such a route holds, and holds again after it.
    for name in ["late", "z-early"] {
        cluster.delete(Kind::Route(RouteKind::Tls), "shop", name);
    }
    cluster.delete(Kind::Route(RouteKind::Tcp), "shop", "tcp");
    let service = cluster.service("10.96.0.1:80");
    assert_eq!(
        (service.protocol(), byte_routes(&service).len()),
        (proto::Protocol::Unspecified, 0)
    );
}

#[test]
fn routes_of_bytes_of_the_callers_own_namespace_replace_the_owners() {
    let cluster = cluster();
    let spec = "rules: [{backendRefs: [{name: canary, port: 80}]}]";
    cluster.apply(&of_bytes(
        "TLSRoute",
        "owners",
        "2026-01-01",
        &format!("hostnames: [a]\n  {spec}"),
    ));
    cluster.apply(
        "
kind: TCPRoute
metadata: {namespace: client, name: theirs}
spec:
  parentRefs: [{group: '', kind: Service, namespace: shop, name: web}]
  rules: [{backendRefs: [{namespace: shop, name: other, port: 80}]}]
",
    );
    let theirs = cluster.service_for("10.96.0.1:80", "client");
    assert_eq!(byte_routes(&theirs), [("client/theirs/0", vec![], vec![("other", 1)])]);
    let others = cluster.service_for("10.96.0.1:80", "somebody");
    assert_eq!(
        byte_routes(&others),
        [("shop/owners/0", vec!["a"], vec![("canary", 1)])]
    );
}
