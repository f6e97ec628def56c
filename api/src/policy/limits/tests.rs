#![allow(clippy::unwrap_used)]

use super::{GlobalSpec, RateLimitPolicySpec};
use crate::limits::{OnFailure, PerAddress, Rate, ResponseHeaders, key_part};
use crate::policy::access::{Cluster, JwksSpec};
use crate::policy::selector::LabelSelector;

struct Nowhere;

impl Cluster for Nowhere {
    fn trust_domain(&self) -> &'static str {
        "cluster.local"
    }

    fn namespaces(&self, _: &LabelSelector) -> Vec<String> {
        Vec::new()
    }

    fn port(&self, _: &str) -> Option<u16> {
        None
    }

    fn jwks(&self, _: &JwksSpec) -> String {
        String::new()
    }
}

fn parse(yaml: &str) -> RateLimitPolicySpec {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

#[test]
fn what_is_left_out_has_its_default() {
    let spec = parse(
        "limits: [{per: [{type: Identity}, {type: Address}], rate: {requests: 6, interval: 1m}, scope: Pod, \
         matches: [{sources: [{type: ServiceAccount, serviceAccount: {name: web}}]}]}]",
    );
    let policy = spec.to_wire("shop/p", "shop").unwrap().resolve(None, Some(3), &Nowhere);
    assert_eq!((policy.name.as_str(), policy.shadow), ("shop/p", false));
    assert_eq!(policy.headers(), ResponseHeaders::Unspecified);
    let limit = &policy.limits[0];
    let rate = Rate {
        requests: 6,
        interval_ms: 60_000,
        burst: 6,
    };
    assert_eq!(limit.rate, Some(rate));
    assert_eq!((limit.name.as_str(), limit.shares, limit.max_keys), ("0", 0, 10_000));
    assert!(!limit.reject_overflow && limit.cost.is_none());
    let address = key_part::Kind::Address(PerAddress {
        v4_prefix: 32,
        v6_prefix: 64,
    });
    assert_eq!(limit.per[1].kind, Some(address));
    assert_eq!(limit.matches[0].all.len(), 1);
}

#[test]
fn what_is_divided_is_told_with_the_number_of_pods_and_only_then() {
    let spec = parse(
        "limits: [{rate: {requests: 100, interval: 1s}, scope: Service, overrides: [{sources: [{type: Any}], rate: {requests: 7, interval: 1s}}]}, \
         {rate: {requests: 5, interval: 1s}, scope: Pod}]",
    );
    let policy = spec.to_wire("shop/p", "shop").unwrap();
    let shares = |pods| {
        let limits = policy.resolve(None, pods, &Nowhere).limits;
        limits.iter().map(|limit| limit.shares).collect::<Vec<_>>()
    };
    assert_eq!(shares(Some(5)), [5, 0]);
    assert_eq!(shares(None), [0]);
    assert_eq!(policy.divided().collect::<Vec<_>>(), [("0", 7)]);
}

#[test]
fn what_a_store_counts_is_told_with_the_share_that_holds_without_it() {
    let spec = parse(
        "{limits: [{rate: {requests: 100, interval: 1s}, scope: Global}, {rate: {requests: 5, interval: 1s}, scope: Pod}], \
         global: {address: 'redis.shop.svc:6379'}}",
    );
    let policy = spec.to_wire("shop/p", "shop").unwrap();
    assert!(policy.asks_store() && policy.counts_pods() && policy.divided().next().is_none());
    for (pods, shares) in [(Some(5), 5), (None, 0)] {
        let told = policy.resolve(None, pods, &Nowhere);
        let limits: Vec<_> = told.limits.iter().map(|limit| (limit.shares, limit.global)).collect();
        assert_eq!(limits, [(shares, true), (0, false)]);
        let global = told.global.unwrap();
        assert_eq!((global.timeout_ms, global.on_failure()), (20, OnFailure::Unspecified));
    }
}

#[test]
fn a_store_has_a_whole_name_or_an_address() {
    for (address, is_good) in [
        ("redis.shop.svc:6379", true),
        ("10.0.0.7:1", true),
        ("[fd00::7]:65535", true),
        ("redis:6379", false),
        ("localhost:6379", false),
        ("redis.shop.svc", false),
        ("redis.shop.svc:0", false),
        ("redis.shop.svc:65536", false),
        ("redis.shop.svc:6379/0", false),
        ("redis://redis.shop.svc:6379", false),
        ("user@redis.shop.svc:6379", false),
        ("fd00::7:6379", false),
        ("[redis.shop.svc]:6379", false),
        ("redis.shop.svc:6379\r\n", false),
        (":6379", false),
    ] {
        let spec = GlobalSpec {
            address: address.to_owned(),
            ..GlobalSpec::default()
        };
        let limits = parse("limits: [{rate: {requests: 1, interval: 1s}, scope: Global}]");
        let policy = RateLimitPolicySpec {
            global: Some(spec),
            ..limits
        };
        assert_eq!(policy.to_wire("shop/p", "shop").is_ok(), is_good, "{address}");
    }
}

#[test]
fn all_mistakes_are_reported_together() {
    let spec = parse(
        "mode: Audit\n\
         response: {headers: All}\n\
         targetRefs: [{kind: Pod, name: a}]\n\
         limits:\n\
         - {name: a b, rate: {requests: 0, interval: 1ms}, burst: 2000000, scope: Mesh, keys: {max: 0, overflow: Drop}}\n\
         - {name: x, matches: [], per: [], overrides: [], rate: {requests: 1, interval: 25h}, scope: Pod, cost: {header: 'a b', max: 0}}\n\
         - name: x\n\
         \x20 matches: [{}, {sources: [{type: JWT, jwt: {accessPolicy: A_b, provider: p}}]}, {sources: []}, {httpAttributes: [{paths: [{type: Exact, value: a}]}]}]\n\
         \x20 per: [{type: Claim}, {type: Claim, claim: {accessPolicy: a/b/c, provider: p, name: /~}}, {type: Header}, {type: Header, header: {name: Host}}, {type: Identity, address: {}}, \
                    {type: Address, address: {v4Prefix: 33, v6Prefix: 0}}]\n\
         \x20 overrides: [{rate: {requests: 1, interval: 1s}}]\n\
         \x20 rate: {requests: 1, interval: 1s}\n\
         \x20 scope: Service\n",
    );
    let mut mistakes = spec.to_wire("shop/p", "shop").unwrap_err();
    mistakes.iter_mut().for_each(|m| m.truncate(m.find(": ").unwrap()));
    let expected = [
        "mode",
        "response.headers",
        "targetRefs[0].selector",
        "targetRefs[0].name",
        "limits[0].name",
        "limits[0].scope",
        "limits[0].keys",
        "limits[0].keys.max",
        "limits[0].keys.overflow",
        "limits[0].rate.requests",
        "limits[0].rate.interval",
        "limits[0].burst",
        "limits[1].matches",
        "limits[1].per",
        "limits[1].rate.interval",
        "limits[1].overrides",
        "limits[1].cost.header",
        "limits[1].cost.max",
        "limits[2].matches[0]",
        "limits[2].matches[1].sources[0].jwt.accessPolicy",
        "limits[2].matches[2].sources",
        "limits[2].matches[3].httpAttributes[0].paths[0].value",
        "limits[2].per[0].claim",
        "limits[2].per[1].claim.name",
        "limits[2].per[1].claim.accessPolicy",
        "limits[2].per[2].header",
        "limits[2].per[3].header.name",
        "limits[2].per[4].address",
        "limits[2].per[5].address.v4Prefix",
        "limits[2].per[5].address.v6Prefix",
        "limits[2].overrides[0].sources",
        "limits[2].name",
    ];
    assert_eq!(mistakes, expected);
    assert_eq!(parse("{}").to_wire("shop/p", "shop").unwrap_err().len(), 1);
    for (spec, expected) in [
        ("connections: {}", &["connections"][..]),
        ("{limits: [], connections: {max: 1}}", &["limits"]),
        (
            "connections: {max: 0, perIdentity: 1000001, newPerSecond: 0}",
            &["connections.max", "connections.perIdentity", "connections.newPerSecond"],
        ),
        ("connections: {perIdentity: 7}", &[]),
        (
            "limits: [{rate: {requests: 1, interval: 1s}, scope: Global}]",
            &["global"],
        ),
        (
            "{limits: [{rate: {requests: 1, interval: 1s}, scope: Service}], global: {address: 'redis.shop.svc:6379'}}",
            &["global"],
        ),
        (
            "{limits: [{rate: {requests: 1, interval: 1s}, scope: Global}], global: {address: redis, timeout: 2s, onFailure: Wait}}",
            &["global.address", "global.timeout", "global.onFailure"],
        ),
        (
            "{limits: [{rate: {requests: 1, interval: 1s}, scope: Global}], global: {address: '[fd00::7]:6379', timeout: 1ms, onFailure: Deny}}",
            &[],
        ),
    ] {
        let mut mistakes = parse(spec).to_wire("shop/p", "shop").err().unwrap_or_default();
        mistakes.iter_mut().for_each(|m| m.truncate(m.find(": ").unwrap()));
        assert_eq!(mistakes, expected, "{spec}");
    }
}

#[test]
fn headers_that_no_limit_finds_are_refused() {
    let said = |header: &str| {
        let spec = parse(&format!(
            "limits: [{{per: [{{type: Header, header: {{name: {header}}}}}], cost: {{header: {header}, max: 9}}, \
             rate: {{requests: 1, interval: 1s}}, scope: Pod}}]"
        ));
        spec.to_wire("shop/p", "shop").map(drop)
    };
    for header in [
        "Host",
        "Outrigger-Client-Id",
        "outrigger-x",
        "Connection",
        "Keep-Alive",
        "Proxy-Connection",
        "TE",
        "Transfer-Encoding",
        "upgrade",
    ] {
        let mut mistakes = said(header).unwrap_err();
        mistakes.iter_mut().for_each(|m| m.truncate(m.find(": ").unwrap()));
        assert_eq!(
            mistakes,
            ["limits[0].per[0].header.name", "limits[0].cost.header"],
            "{header}"
        );
    }
    for header in ["x-tenant", "Authorization", "content-length"] {
        assert_eq!(said(header), Ok(()), "{header}");
    }
}
