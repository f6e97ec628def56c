#![allow(clippy::unwrap_used)]

use super::{AccessPolicySpec, Cluster, JwksSpec, RemoteJwksSpec, Unresolved};
use crate::access as proto;
use crate::access::{condition, http_condition, identity, source};
use crate::discovery::{NamedMatch, StringMatch, string_match};
use crate::policy::selector::LabelSelector;

/// Two namespaces and one port.
struct Here;

impl Cluster for Here {
    fn trust_domain(&self) -> &str {
        "example.org"
    }

    fn namespaces(&self, selector: &LabelSelector) -> Vec<String> {
        let labels = |name: &str| [("name".to_owned(), name.to_owned())].into();
        let names = ["a", "b"].into_iter().filter(|name| selector.matches(&labels(name)));
        names.map(str::to_owned).collect()
    }

    fn port(&self, name: &str) -> Option<u16> {
        (name == "http").then_some(8080)
    }

    fn jwks(&self, keys: &JwksSpec) -> String {
        keys.inline.clone().unwrap_or_default()
    }
}

fn read(yaml: &str) -> (Unresolved, Vec<String>) {
    let spec: AccessPolicySpec = serde_saphyr::from_str(yaml).unwrap_or_else(|e| panic!("{yaml}: {e}"));
    spec.to_wire("shop/p", "shop")
}

fn resolved(yaml: &str) -> proto::Policy {
    let (policy, mistakes) = read(yaml);
    assert_eq!(mistakes, [""; 0], "{yaml}");
    policy.resolve(None, &Here)
}

fn sources(condition: &proto::Condition) -> Vec<Option<source::Kind>> {
    match &condition.kind {
        Some(condition::Kind::Sources(any)) => any.any.iter().map(|source| source.kind.clone()).collect(),
        other => panic!("{other:?}"),
    }
}

fn of_rule(rule: &str) -> Vec<proto::Condition> {
    resolved(&format!("rules: [{rule}]")).rules.remove(0).conditions
}

#[test]
fn what_is_not_said() {
    let policy = resolved("{}");
    let expected = proto::Policy {
        name: "shop/p".to_owned(),
        exclusive: true,
        ..proto::Policy::default()
    };
    assert_eq!(policy, expected, "a default deny");
    let (policy, _) = read("mode: Audit");
    assert!(policy.audit);
    assert!(!read("mode: Enforce").0.audit && !read("{}").0.audit);
    assert!(!resolved("exclusive: false").exclusive);
    let deny = resolved("{action: Deny, rules: [{sources: [{type: Any}]}, {name: b, sources: [{type: Any}]}]}");
    assert!(deny.deny && !deny.exclusive);
    assert_eq!((&*deny.rules[0].name, &*deny.rules[1].name), ("0", "b"));
    assert!(serde_saphyr::from_str::<AccessPolicySpec>("rule: []").is_err());
}

#[test]
fn who_calls() {
    let exact = |id: &str| {
        let kind = Some(identity::Kind::Exact(id.to_owned()));
        source::Kind::Identity(proto::Identity { kind })
    };
    let prefix = |id: &str| {
        let kind = Some(identity::Kind::Prefix(id.to_owned()));
        source::Kind::Identity(proto::Identity { kind })
    };
    let namespaces = |names: &[&str]| {
        source::Kind::Namespaces(proto::Namespaces {
            trust_domain: "example.org".to_owned(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        })
    };
    for (source, expected) in [
        ("{type: Any}", source::Kind::Any(proto::Anybody {})),
        (
            "{type: Unauthenticated}",
            source::Kind::Unauthenticated(proto::Unauthenticated {}),
        ),
        (
            "{type: ServiceAccount, serviceAccount: {name: web}}",
            exact("spiffe://example.org/ns/shop/sa/web"),
        ),
        (
            "{type: ServiceAccount, serviceAccount: {namespace: x, name: web.v2}}",
            exact("spiffe://example.org/ns/x/sa/web.v2"),
        ),
        (
            "{type: ServiceAccount, serviceAccount: {namespace: x, name: '*'}}",
            namespaces(&["x"]),
        ),
        ("{type: Namespace, namespace: {name: x}}", namespaces(&["x"])),
        ("{type: Namespace, namespace: {selector: {}}}", namespaces(&["a", "b"])),
        (
            "{type: Namespace, namespace: {selector: {matchLabels: {name: b}}}}",
            namespaces(&["b"]),
        ),
        (
            "{type: Namespace, namespace: {selector: {matchLabels: {name: c}}}}",
            namespaces(&[]),
        ),
        (
            "{type: SPIFFE, spiffe: 'spiffe://other.org/ns/x/sa/y'}",
            exact("spiffe://other.org/ns/x/sa/y"),
        ),
        (
            "{type: SPIFFE, spiffe: 'spiffe://other.org/Any/Thing'}",
            exact("spiffe://other.org/Any/Thing"),
        ),
        (
            "{type: SPIFFE, spiffe: 'spiffe://other.org/ns/x/*'}",
            prefix("spiffe://other.org/ns/x/"),
        ),
        (
            "{type: SPIFFE, spiffe: 'spiffe://other.org/*'}",
            prefix("spiffe://other.org/"),
        ),
        (
            "{type: Address, address: {cidrs: [10.0.0.0/8, 'fd00::/8'], except: [10.1.2.3/32]}}",
            source::Kind::Networks(proto::Networks {
                cidrs: vec!["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()],
                except: vec!["10.1.2.3/32".to_owned()],
            }),
        ),
    ] {
        let conditions = of_rule(&format!("{{sources: [{source}]}}"));
        assert_eq!(conditions.len(), 1);
        assert_eq!(sources(&conditions[0]), [Some(expected)], "{source}");
    }
    // Any of `sources`, and all of `requires`.
    let conditions = of_rule(
        "{sources: [{type: Any}, {type: Unauthenticated}], requires: [{type: Namespace, namespace: {name: x}}, {type: Any}]}",
    );
    let counts: Vec<_> = conditions.iter().map(|condition| sources(condition).len()).collect();
    assert_eq!(counts, [2, 1, 1]);
}

#[test]
fn where_and_which_requests() {
    let exact = |text: &str| StringMatch {
        kind: Some(string_match::Kind::Exact(text.to_owned())),
    };
    let conditions = of_rule(
        "{sources: [{type: Any}], networkAttributes: {ports: [9000, http, nowhere, 8080]}, httpAttributes: [\
           {methods: [GET, M-SEARCH], paths: [{type: Exact, value: /a}, {type: PathPrefix, value: /b}, \
            {type: RegularExpression, value: '/c/[0-9]+'}], \
            headers: [{name: x-a, value: '1'}, {name: X-B, type: RegularExpression, value: '2.*'}], \
            hosts: [a.example.com, '*.example.com', '::1'], grpc: {service: shop.v1.Orders, method: Place}},\
           {paths: [{type: Exact, value: /a//b}], ambiguousPaths: Match}]}",
    );
    let ports = proto::Ports {
        numbers: vec![8080, 9000],
    };
    assert_eq!(conditions[1].kind, Some(condition::Kind::Ports(ports)));
    let Some(condition::Kind::Http(http)) = &conditions[2].kind else {
        panic!("{conditions:?}")
    };
    let kinds: Vec<_> = http.any[0].all.iter().map(|one| one.kind.clone().unwrap()).collect();
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let paths = vec![
        exact("/a"),
        StringMatch {
            kind: Some(string_match::Kind::PathPrefix("/b".to_owned())),
        },
        StringMatch {
            kind: Some(string_match::Kind::Regex("/c/[0-9]+".to_owned())),
        },
    ];
    let header = |name: &str, value| {
        http_condition::Kind::Header(NamedMatch {
            name: name.to_owned(),
            value: Some(value),
        })
    };
    let expected = [
        http_condition::Kind::Methods(proto::Methods {
            any: texts(&["GET", "M-SEARCH"]),
        }),
        http_condition::Kind::Paths(proto::Paths {
            any: paths,
            take_ambiguous: false,
        }),
        header("x-a", exact("1")),
        header(
            "X-B",
            StringMatch {
                kind: Some(string_match::Kind::Regex("2.*".to_owned())),
            },
        ),
        http_condition::Kind::Hosts(proto::Hosts {
            any: texts(&["a.example.com", "*.example.com", "::1"]),
        }),
        http_condition::Kind::Grpc(proto::GrpcMethod {
            service: "shop.v1.Orders".to_owned(),
            method: "Place".to_owned(),
        }),
    ];
    assert_eq!(kinds, expected);
    let taken = http_condition::Kind::Paths(proto::Paths {
        any: vec![exact("/a//b")],
        take_ambiguous: true,
    });
    assert_eq!(http.any[1].all[0].kind, Some(taken));
}

const PROVIDER: &str =
    "jwt: {providers: [{name: p, issuer: 'https://i', audiences: [a], jwks: {inline: '{\"keys\": [{}]}'}}]}";

#[test]
fn tokens() {
    let provider = resolved(PROVIDER).providers.remove(0);
    let expected = proto::Provider {
        name: "p".to_owned(),
        issuer: "https://i".to_owned(),
        audiences: vec!["a".to_owned()],
        algorithms: vec!["RS256".to_owned(), "ES256".to_owned()],
        jwks: "{\"keys\": [{}]}".to_owned(),
        jwks_place: String::new(),
        from: Vec::new(),
        forward: true,
        claim_to_headers: Vec::new(),
        clock_skew_ms: 60_000,
    };
    assert_eq!(provider, expected);
    let more = "algorithms: [EdDSA], forward: false, clockSkew: 5s, from: [{header: {name: X-T}}, {header: {name: A, prefix: 'B '}}], \
                claimToHeaders: [{claim: sub, header: x-sub}, {claim: /a/b~1c, header: x-c}], jwks: {remote: {url: 'https://i/k'}}";
    let all = PROVIDER.replace("jwks: {inline: '{\"keys\": [{}]}'}", more);
    let provider = resolved(&all).providers.remove(0);
    assert_eq!(
        (&*provider.algorithms[0], provider.forward, provider.clock_skew_ms),
        ("EdDSA", false, 5000)
    );
    assert_eq!(
        (provider.from.len(), provider.claim_to_headers.len(), &*provider.jwks),
        (2, 2, "")
    );
    let (policy, _) = read(&all);
    let remote = policy.providers().next().unwrap().1.remote.clone().unwrap();
    assert_eq!(
        (remote.cache_duration().as_secs(), remote.timeout().as_secs()),
        (300, 2)
    );

    let rule = "rules: [{sources: [{type: JWT, jwt: {provider: p, claims: [{name: groups, values: [x, y]}], scopes: [read]}}]}]";
    let policy = resolved(&format!("{PROVIDER}\n{rule}"));
    let expected = source::Kind::Jwt(proto::Jwt {
        provider: "p".to_owned(),
        claims: vec![proto::ClaimMatch {
            name: "groups".to_owned(),
            values: vec!["x".to_owned(), "y".to_owned()],
        }],
        scopes: vec!["read".to_owned()],
        policy: String::new(),
    });
    assert_eq!(sources(&policy.rules[0].conditions[0]), [Some(expected)]);
}

/// Whether a sidecar can never find it true.
fn is_never_met(rule: &proto::Rule) -> bool {
    rule.conditions.iter().any(|condition| match &condition.kind {
        None => true,
        Some(condition::Kind::Sources(any)) => any.any.iter().all(|source| source.kind.is_none()),
        Some(condition::Kind::Http(any)) => any.any.iter().all(|one| one.all.iter().any(|one| one.kind.is_none())),
        Some(condition::Kind::Ports(ports)) => ports.numbers.is_empty(),
    })
}

#[test]
fn each_mistake_of_a_rule_is_named_and_lets_nobody_in() {
    let any = |more: &str| format!("{{sources: [{{type: Any}}], {more}}}");
    let from = |source: &str| format!("{{sources: [{source}]}}");
    let http = |attributes: &str| any(&format!("httpAttributes: [{attributes}]"));
    for (rule, field) in [
        ("{}".to_owned(), "sources"),
        ("{sources: []}".to_owned(), "sources"),
        (any("requires: []"), "requires"),
        (any("requires: [{type: Ghost}]"), "requires[0].type"),
        (any("networkAttributes: {}"), "networkAttributes.ports"),
        (any("networkAttributes: {ports: []}"), "networkAttributes.ports"),
        (any("networkAttributes: {ports: [0]}"), "networkAttributes.ports[0]"),
        (
            any("networkAttributes: {ports: [80, 65536]}"),
            "networkAttributes.ports[1]",
        ),
        (
            any("networkAttributes: {ports: [80, Web]}"),
            "networkAttributes.ports[1]",
        ),
        (any("httpAttributes: []"), "httpAttributes"),
        (from("{type: Country}"), "sources[0].type"),
        (from("{type: Any, spiffe: 'spiffe://a/b'}"), "sources[0].spiffe"),
        (from("{type: SPIFFE}"), "sources[0].spiffe"),
        (
            from("{type: SPIFFE, spiffe: 'spiffe://a/b', jwt: {provider: p}}"),
            "sources[0].jwt",
        ),
        (from("{type: SPIFFE, spiffe: 'spiffe://a'}"), "sources[0].spiffe"),
        (from("{type: SPIFFE, spiffe: 'spiffe://A/b'}"), "sources[0].spiffe"),
        (from("{type: SPIFFE, spiffe: 'spiffe://a/b/'}"), "sources[0].spiffe"),
        (from("{type: SPIFFE, spiffe: 'spiffe://a/b*'}"), "sources[0].spiffe"),
        (from("{type: SPIFFE, spiffe: 'spiffe://*/b'}"), "sources[0].spiffe"),
        (from("{type: SPIFFE, spiffe: 'spiffe://a/*/b'}"), "sources[0].spiffe"),
        (from("{type: SPIFFE, spiffe: 'spiffe://a/../b'}"), "sources[0].spiffe"),
        (from("{type: SPIFFE, spiffe: 'spiffe://a//*'}"), "sources[0].spiffe"),
        (from("{type: SPIFFE, spiffe: 'https://a/b'}"), "sources[0].spiffe"),
        (from("{type: ServiceAccount}"), "sources[0].serviceAccount"),
        (
            from("{type: ServiceAccount, serviceAccount: {name: 'web*'}}"),
            "sources[0].serviceAccount.name",
        ),
        (
            from("{type: ServiceAccount, serviceAccount: {name: a/b}}"),
            "sources[0].serviceAccount.name",
        ),
        (
            from("{type: ServiceAccount, serviceAccount: {name: a, namespace: '*'}}"),
            "sources[0].serviceAccount.namespace",
        ),
        (from("{type: Namespace, namespace: {}}"), "sources[0].namespace"),
        (
            from("{type: Namespace, namespace: {name: a, selector: {}}}"),
            "sources[0].namespace",
        ),
        (
            from("{type: Namespace, namespace: {name: '*'}}"),
            "sources[0].namespace.name",
        ),
        (
            from("{type: Namespace, namespace: {selector: {matchExpressions: [{key: a, operator: In}]}}}"),
            "sources[0].namespace.selector.matchExpressions[0]",
        ),
        (from("{type: Address, address: {}}"), "sources[0].address.cidrs"),
        (
            from("{type: Address, address: {cidrs: [10.0.0.1]}}"),
            "sources[0].address.cidrs[0]",
        ),
        (
            from("{type: Address, address: {cidrs: [10.0.0.0/8, 10.0.0.0/33]}}"),
            "sources[0].address.cidrs[1]",
        ),
        (
            from("{type: Address, address: {cidrs: [10.0.0.0/+8]}}"),
            "sources[0].address.cidrs[0]",
        ),
        (
            from("{type: Address, address: {cidrs: ['::ffff:10.0.0.0/104']}}"),
            "sources[0].address.cidrs[0]",
        ),
        (
            from("{type: Address, address: {cidrs: [10.0.0.0/8], except: []}}"),
            "sources[0].address.except",
        ),
        (
            from("{type: Address, address: {cidrs: [10.0.0.0/8], except: [x]}}"),
            "sources[0].address.except[0]",
        ),
        (from("{type: JWT, jwt: {provider: q}}"), "sources[0].jwt.provider"),
        (from("{type: JWT, jwt: {provider: broken}}"), "sources[0].jwt.provider"),
        (from("{type: JWT, jwt: {provider: twice}}"), "sources[0].jwt.provider"),
        (
            from("{type: JWT, jwt: {provider: p, claims: []}}"),
            "sources[0].jwt.claims",
        ),
        (
            from("{type: JWT, jwt: {provider: p, claims: [{name: a}]}}"),
            "sources[0].jwt.claims[0].values",
        ),
        (
            from("{type: JWT, jwt: {provider: p, claims: [{name: '/a~2', values: [x]}]}}"),
            "sources[0].jwt.claims[0].name",
        ),
        (
            from("{type: JWT, jwt: {provider: p, scopes: []}}"),
            "sources[0].jwt.scopes",
        ),
        (
            from("{type: JWT, jwt: {provider: p, scopes: [a b]}}"),
            "sources[0].jwt.scopes[0]",
        ),
        (http("{}"), "httpAttributes[0]"),
        (http("{methods: []}"), "httpAttributes[0].methods"),
        (http("{methods: [GET, 'A B']}"), "httpAttributes[0].methods[1]"),
        (http("{paths: []}"), "httpAttributes[0].paths"),
        (
            http("{paths: [{type: Exact, value: a}]}"),
            "httpAttributes[0].paths[0].value",
        ),
        (
            http("{paths: [{type: Exact, value: '/a?b'}]}"),
            "httpAttributes[0].paths[0].value",
        ),
        (
            http("{paths: [{type: Exact, value: /a}, {type: Glob, value: /a}]}"),
            "httpAttributes[0].paths[1].type",
        ),
        (
            http("{paths: [{type: RegularExpression, value: '('}]}"),
            "httpAttributes[0].paths[0].value",
        ),
        (
            http("{paths: [{type: RegularExpression, value: '(?:a{1000}){1000}'}]}"),
            "httpAttributes[0].paths[0].value",
        ),
        (
            http("{paths: [{type: Exact, value: /a}], ambiguousPaths: Allow}"),
            "httpAttributes[0].ambiguousPaths",
        ),
        (
            http("{methods: [GET], ambiguousPaths: Match}"),
            "httpAttributes[0].ambiguousPaths",
        ),
        (http("{headers: []}"), "httpAttributes[0].headers"),
        (
            http("{headers: [{name: Host, value: a}]}"),
            "httpAttributes[0].headers[0].name",
        ),
        (
            http("{headers: [{name: 'a b', value: a}]}"),
            "httpAttributes[0].headers[0].name",
        ),
        (
            http("{headers: [{name: a, type: Prefix, value: a}]}"),
            "httpAttributes[0].headers[0].type",
        ),
        (
            http("{headers: [{name: a, type: RegularExpression, value: '['}]}"),
            "httpAttributes[0].headers[0].value",
        ),
        (
            http("{headers: [{name: Outrigger-Client-Id, value: a}]}"),
            "httpAttributes[0].headers[0].name",
        ),
        (
            http(r#"{headers: [{name: a, value: "a\rb"}]}"#),
            "httpAttributes[0].headers[0].value",
        ),
        (
            http(r#"{headers: [{name: a, type: RegularExpression, value: "a\x7fb"}]}"#),
            "httpAttributes[0].headers[0].value",
        ),
        (
            http(r#"{paths: [{type: RegularExpression, value: "/a\nb"}]}"#),
            "httpAttributes[0].paths[0].value",
        ),
        (
            http("{paths: [{type: RegularExpression, value: 'orders/.*|carts'}]}"),
            "httpAttributes[0].paths[0].value",
        ),
        (http("{hosts: []}"), "httpAttributes[0].hosts"),
        (http("{hosts: ['a:80']}"), "httpAttributes[0].hosts[0]"),
        (http("{hosts: ['*']}"), "httpAttributes[0].hosts[0]"),
        (http("{hosts: [a.*.b]}"), "httpAttributes[0].hosts[0]"),
        (http("{grpc: {}}"), "httpAttributes[0].grpc"),
        (http("{grpc: {service: a/b}}"), "httpAttributes[0].grpc.service"),
        (http("{grpc: {method: a.b}}"), "httpAttributes[0].grpc.method"),
    ] {
        let providers = "jwt: {providers: [\
             {name: p, issuer: i, audiences: [a], jwks: {inline: '{\"keys\": [{}]}'}},\
             {name: broken, issuer: i, jwks: {inline: '{\"keys\": [{}]}'}},\
             {name: twice, issuer: i, audiences: [a], jwks: {inline: '{\"keys\": [{}]}'}},\
             {name: twice, issuer: i, audiences: [a], jwks: {inline: '{\"keys\": [{}]}'}}]}";
        let yaml = format!("{providers}\nrules: [{rule}, {{sources: [{{type: Any}}]}}]");
        let (policy, mistakes) = read(&yaml);
        let [first, second, mistake] = &mistakes[..] else {
            panic!("{rule}: {mistakes:?}")
        };
        assert!(first.starts_with("jwt.providers[1].audiences: "), "{first}");
        assert!(second.starts_with("jwt.providers[3].name: "), "{second}");
        assert!(mistake.starts_with(&format!("rules[0].{field}: ")), "{rule}: {mistake}");
        let policy = policy.resolve(None, &Here);
        assert!(is_never_met(&policy.rules[0]), "{rule}: {policy:?}");
        assert!(!is_never_met(&policy.rules[1]), "the other rule of the policy holds");
    }
}

/// One source that cannot be read leaves the others of the rule as they are.
#[test]
fn what_can_be_read_of_a_list_of_sources_holds() {
    let (policy, mistakes) = read("rules: [{sources: [{type: Country}, {type: Unauthenticated}]}]");
    assert_eq!(mistakes.len(), 1);
    let policy = policy.resolve(None, &Here);
    let kinds = sources(&policy.rules[0].conditions[0]);
    assert_eq!(
        kinds,
        [None, Some(source::Kind::Unauthenticated(proto::Unauthenticated {}))]
    );
}

#[test]
fn each_mistake_of_the_policy_is_named() {
    let target = |target: &str| format!("{{targetRefs: [{target}], rules: [{{sources: [{{type: Any}}]}}]}}");
    for (yaml, field) in [
        (target("{kind: Pod}"), "targetRefs[0].selector"),
        (
            target("{kind: Service, name: a, selector: {}}"),
            "targetRefs[0].selector",
        ),
        (target("{kind: Service}"), "targetRefs[0].name"),
        (target("{kind: Pod, name: a, selector: {}}"), "targetRefs[0].name"),
        (
            target("{kind: Namespace, name: a, sectionName: b}"),
            "targetRefs[0].sectionName",
        ),
        (
            target("{kind: Pod, selector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}}"),
            "targetRefs[0].selector.matchExpressions[0]",
        ),
    ] {
        let (policy, mistakes) = read(&yaml);
        assert!(
            mistakes.len() == 1 && mistakes[0].starts_with(&format!("{field}: ")),
            "{yaml}: {mistakes:?}"
        );
        assert!(is_never_met(&policy.resolve(None, &Here).rules[0]), "{yaml}");
    }
    for (yaml, field) in [
        (
            "{action: Deny, exclusive: true, rules: [{sources: [{type: Any}]}]}",
            "exclusive",
        ),
        ("{action: Deny}", "rules"),
        ("{mode: Shadow}", "mode"),
    ] {
        let (policy, mistakes) = read(yaml);
        assert!(
            mistakes.len() == 1 && mistakes[0].starts_with(&format!("{field}: ")),
            "{yaml}: {mistakes:?}"
        );
        assert!(!policy.audit, "what is not known is enforced");
    }
    // Of an action that is not known, nothing opens anything.
    let (policy, mistakes) = read("{action: Log, mode: Audit, rules: [{sources: [{type: Any}]}]}");
    assert!(mistakes[0].starts_with("action: "), "{mistakes:?}");
    assert!(policy.audit);
    let policy = policy.resolve(None, &Here);
    assert!(policy.deny && policy.rules[0].conditions == [proto::Condition { kind: None }]);
}

#[test]
fn each_mistake_of_a_provider_is_named_and_takes_no_token_for_valid() {
    let good = "name: p, issuer: 'https://i', audiences: [a], jwks: {inline: '{\"keys\": [{}]}'}";
    for (from, to, field) in [
        ("name: p", "name: ''", "name"),
        ("issuer: 'https://i'", "issuer: ''", "issuer"),
        ("audiences: [a]", "audiences: []", "audiences"),
        ("audiences: [a]", "audiences: ['']", "audiences"),
        ("audiences: [a]", "audiences: [a], algorithms: []", "algorithms"),
        (
            "audiences: [a]",
            "audiences: [a], algorithms: [RS256, HS256]",
            "algorithms[1]",
        ),
        ("audiences: [a]", "audiences: [a], algorithms: [none]", "algorithms[0]"),
        ("audiences: [a]", "audiences: [a], clockSkew: 11m", "clockSkew"),
        ("audiences: [a]", "audiences: [a], from: []", "from"),
        (
            "audiences: [a]",
            "audiences: [a], from: [{header: {name: 'a b'}}]",
            "from[0].header",
        ),
        ("audiences: [a]", "audiences: [a], claimToHeaders: []", "claimToHeaders"),
        (
            "audiences: [a]",
            "audiences: [a], claimToHeaders: [{claim: /, header: x}, {claim: '', header: y}]",
            "claimToHeaders[0].claim",
        ),
        (
            "audiences: [a]",
            "audiences: [a], claimToHeaders: [{claim: sub, header: Host}]",
            "claimToHeaders[0].header",
        ),
        (
            "audiences: [a]",
            "audiences: [a], claimToHeaders: [{claim: sub, header: Outrigger-Error}]",
            "claimToHeaders[0].header",
        ),
        ("inline: '{\"keys\": [{}]}'", "", "jwks"),
        (
            "inline: '{\"keys\": [{}]}'",
            "inline: '{\"keys\": [{}]}', configMapRef: {name: a}",
            "jwks",
        ),
        ("{\"keys\": [{}]}", "{\"keys\": []}", "jwks.inline"),
        ("{\"keys\": [{}]}", "keys", "jwks.inline"),
        (
            "inline: '{\"keys\": [{}]}'",
            "configMapRef: {name: ''}",
            "jwks.configMapRef.name",
        ),
        (
            "inline: '{\"keys\": [{}]}'",
            "configMapRef: {name: ../secrets/a}",
            "jwks.configMapRef.name",
        ),
        (
            "inline: '{\"keys\": [{}]}'",
            "configMapRef: {name: a, key: a/b}",
            "jwks.configMapRef.key",
        ),
        (
            "inline: '{\"keys\": [{}]}'",
            "remote: {url: 'https://i', caConfigMapRef: {name: a, key: ''}}",
            "jwks.remote.caConfigMapRef.key",
        ),
        ("inline: '{\"keys\": [{}]}'", "remote: {}", "jwks.remote"),
        (
            "inline: '{\"keys\": [{}]}'",
            "remote: {url: 'http://i/k'}",
            "jwks.remote.url",
        ),
        (
            "inline: '{\"keys\": [{}]}'",
            "remote: {url: 'https://u@i/k'}",
            "jwks.remote.url",
        ),
        (
            "inline: '{\"keys\": [{}]}'",
            "remote: {url: 'https://i', cacheDuration: 1s}",
            "jwks.remote.cacheDuration",
        ),
        (
            "inline: '{\"keys\": [{}]}'",
            "remote: {url: 'https://i', timeout: 1m}",
            "jwks.remote.timeout",
        ),
        (
            "inline: '{\"keys\": [{}]}'",
            "remote: {url: 'https://i', caConfigMapRef: {name: ''}}",
            "jwks.remote.caConfigMapRef.name",
        ),
        (
            "inline: '{\"keys\": [{}]}'",
            "remote: {backendRef: {name: a, port: 80, path: /k}, caConfigMapRef: {name: a}}",
            "jwks.remote.caConfigMapRef",
        ),
        (
            "inline: '{\"keys\": [{}]}'",
            "remote: {backendRef: {name: a, port: 0, path: /k}}",
            "jwks.remote.backendRef",
        ),
    ] {
        let (policy, mistakes) = read(&format!("jwt: {{providers: [{{{}}}]}}", good.replace(from, to)));
        assert!(
            !mistakes.is_empty() && mistakes[0].starts_with(&format!("jwt.providers[0].{field}: ")),
            "{to}: {mistakes:?}"
        );
        assert_eq!(policy.resolve(None, &Here).providers[0].algorithms, [""; 0], "{to}");
    }
}

#[test]
fn a_rule_with_something_unknown_is_in_doubt() {
    let rules = "rules: [{sources: [{type: Any}]}, {sources: [{type: Any}]}]";
    let never_met = |rule| {
        let (mut policy, _) = read(rules);
        policy.doubt(rule);
        policy
            .resolve(None, &Here)
            .rules
            .iter()
            .map(is_never_met)
            .collect::<Vec<_>>()
    };
    assert_eq!(never_met(Some(1)), [false, true]);
    assert_eq!(never_met(None), [true, true]);
}

#[test]
fn patterns_are_bounded() {
    let path = |n: usize| format!("{{type: RegularExpression, value: '/{n}.*'}}");
    let rule = |from: usize| {
        let paths: Vec<_> = (from..from + 13).map(path).collect();
        format!(
            "{{sources: [{{type: Any}}], httpAttributes: [{{paths: [{}]}}]}}",
            paths.join(", ")
        )
    };
    let rules: Vec<_> = (0..5).map(|n| rule(13 * n)).collect();
    let (policy, mistakes) = read(&format!("rules: [{}]", rules.join(", ")));
    assert_eq!(mistakes.len(), 1);
    assert!(
        mistakes[0].starts_with("rules[4].httpAttributes[0].paths[12].value: "),
        "{mistakes:?}"
    );
    let never_met: Vec<_> = policy.resolve(None, &Here).rules.iter().map(is_never_met).collect();
    assert_eq!(never_met, [false, false, false, false, true]);
}

/// As the sidecar counts it: in any case of letters a pattern takes more.
#[test]
fn a_pattern_of_a_deny_rule_is_bounded_as_it_is_compiled() {
    let pattern = (100..2000)
        .step_by(100)
        .map(|n| format!("/[a-z]{{{n}}}"))
        .find(|text| crate::pattern::Budget::default().compile_any_case(text).is_err())
        .unwrap();
    for (action, mistaken) in [("Allow", 0), ("Deny", 1)] {
        let (_, mistakes) = read(&format!(
            "{{action: {action}, rules: [{{sources: [{{type: Any}}], httpAttributes: [{{paths: [{{type: RegularExpression, value: '{pattern}'}}]}}]}}]}}"
        ));
        assert_eq!(mistakes.len(), mistaken, "{action} {pattern}: {mistakes:?}");
    }
}

#[test]
fn a_url_has_a_host_a_port_and_a_path_and_nothing_that_a_server_could_read_otherwise() {
    let https = |url: &str| {
        let remote = RemoteJwksSpec {
            url: Some(url.to_owned()),
            ..RemoteJwksSpec::default()
        };
        remote.https().map(|(host, port, path)| format!("{host} {port} {path}"))
    };
    for (url, expected) in [
        (
            "https://login.example.com/keys?a=b&c",
            "login.example.com 443 /keys?a=b&c",
        ),
        ("https://login.example.com", "login.example.com 443 /"),
        ("https://login.example.com:8443/", "login.example.com 8443 /"),
        ("https://10.0.0.1/k", "10.0.0.1 443 /k"),
        ("https://[fd00::1]/k", "[fd00::1] 443 /k"),
        ("https://[fd00::1]:8443/k", "[fd00::1] 8443 /k"),
    ] {
        assert_eq!(https(url).as_deref(), Some(expected), "{url}");
    }
    for url in [
        "http://login.example.com/",
        "HTTPS://login.example.com/",
        "https://",
        "https:///keys",
        "https://user@login.example.com/",
        "https://login.example.com:/",
        "https://login.example.com:0/",
        "https://login.example.com:65536/",
        "https://login.example.com:443:443/",
        "https://fd00::1/",
        "https://login.example.com\\@10.0.0.1/",
        "https://login.example.com?x",
        "https://login.example.com/#a",
        "https://login.example.com/ a",
        "https://login.example.com/\r\nhost: a",
        "https://l\u{f6}gin.example.com/",
        "https://%31/",
    ] {
        assert_eq!(https(url), None, "{url}");
    }
}
