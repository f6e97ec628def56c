//! Keys of tokens, on their way to sidecars.

use std::sync::Arc;
use std::time::SystemTime;

use outrigger_api::access as proto;
use outrigger_api::access::{condition, source};
use outrigger_api::discovery::{Feature, ToSidecar, to_sidecar};
use prost::Message;

use super::cluster;
use crate::discovery::Discover;
use crate::index::Index;
use crate::objects::Kind;
use crate::objects::keys::{KeyPlace, KeySource};
use crate::objects::policy::PolicyKind;
use crate::room::Room;
use crate::testing::{Cluster, pod_key};
use crate::topic::{Followed, Inbox, Reader};

/// Of the namespace, on all pods with the label, with keys at this place.
fn policy(namespace: &str, name: &str, app: &str, jwks: &str) -> String {
    format!(
        "kind: AccessPolicy\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec:\n  targetRefs: [{{kind: Pod, selector: \
         {{matchLabels: {{app: {app}}}}}}}]\n  rules: [{{sources: [{{type: JWT, jwt: {{provider: login}}}}, {{type: \
         Unauthenticated}}]}}]\n  jwt: {{providers: [{{name: login, issuer: 'https://i', audiences: [a], jwks: {jwks}}}]}}\n"
    )
}

const MAP: &str = "{configMapRef: {name: keys}}";
const URL: &str = "{remote: {url: 'https://login.example.com/keys'}}";

fn sources(cluster: &Cluster) -> Vec<KeySource> {
    cluster.index.key_sources().borrow().iter().cloned().collect()
}

fn keys_come(cluster: &Cluster, source: &KeySource, keys: &str) {
    cluster
        .index
        .set_keys(source, Ok(keys.to_owned()), SystemTime::UNIX_EPOCH);
    cluster.index.flush();
}

fn told(cluster: &Cluster, namespace: &str, pod: &str) -> Vec<String> {
    let policies = cluster.access(namespace, pod).enforced.into_iter();
    let providers = policies.flat_map(|policy| policy.providers);
    providers.map(|provider| provider.jwks).collect()
}

/// A sidecar of the pod, which finds 7 in its inbox when it is to be told something.
fn session(cluster: &Cluster, pod: &str) -> (Arc<Inbox>, Followed<crate::access::Access>) {
    let inbox = Arc::new(Inbox::new([Feature::Access, Feature::Tokens].into_iter()));
    let reader = Reader {
        inbox: Arc::clone(&inbox),
        number: 7,
    };
    let (account, _) = pod.split_once('-').unwrap();
    let followed = cluster.index.follow_access(&pod_key("shop", pod, account), reader);
    (inbox, followed)
}

async fn is_marked(inbox: &Inbox) -> bool {
    let at_once = std::time::Duration::ZERO;
    tokio::time::timeout(at_once, inbox.next()).await.is_ok()
}

#[tokio::test]
async fn keys_that_come_reach_the_pods_of_the_policy_and_nobody_else() {
    let cluster = cluster();
    cluster.apply(&policy("shop", "p", "web", MAP));
    cluster.apply(&policy("shop", "q", "other", URL));
    let (web, _web) = session(&cluster, "web-1");
    let (other, _other) = session(&cluster, "other-1");
    assert_eq!(told(&cluster, "shop", "web-1"), [""]);
    assert!(!is_marked(&web).await);
    let sources = sources(&cluster);
    let [map, url] = &sources[..] else {
        panic!("{sources:?}")
    };
    assert!(matches!(map.place, KeyPlace::ConfigMap(_)) && matches!(url.place, KeyPlace::Url { .. }));

    keys_come(&cluster, map, "k1");
    assert_eq!(
        (told(&cluster, "shop", "web-1"), told(&cluster, "shop", "other-1")),
        (vec!["k1".into()], vec!["".into()])
    );
    assert!(is_marked(&web).await && !is_marked(&other).await);
    // The same again, and a failure, change nothing for anybody.
    keys_come(&cluster, map, "k1");
    cluster
        .index
        .set_keys(map, Err("gone".to_owned()), SystemTime::UNIX_EPOCH);
    cluster.index.flush();
    assert_eq!(told(&cluster, "shop", "web-1"), ["k1"]);
    assert!(!is_marked(&web).await);
    keys_come(&cluster, map, "k2");
    assert!(is_marked(&web).await && !is_marked(&other).await);
    assert_eq!(told(&cluster, "shop", "web-1"), ["k2"]);
}

/// Another timeout, or time that they are good for, is the same trust; another place is another.
#[test]
fn keys_are_known_by_their_place() {
    let cluster = cluster();
    let of = |more: &str| format!("{{remote: {{url: 'https://login.example.com/{more}}}}}");
    cluster.apply(&policy("shop", "p", "web", &of("keys'")));
    let [before] = &sources(&cluster)[..] else { panic!() };
    keys_come(&cluster, before, "k1");
    for (more, jwks) in [
        ("keys', timeout: 9s", "k1"),
        ("keys', cacheDuration: 1m", "k1"),
        ("others'", ""),
        ("keys'", ""),
    ] {
        cluster.apply(&policy("shop", "p", "web", &of(more)));
        assert_eq!(told(&cluster, "shop", "web-1"), [jwks], "{more}");
        assert_eq!(sources(&cluster).len(), 1, "{more}");
    }
}

/// Whoever has keys of the same place goes on with them, and whoever has those of another one does not.
#[test]
fn what_is_not_fetched_yet_is_told_by_its_place() {
    let cluster = cluster();
    let providers = |jwks: &str| {
        cluster.apply(&policy("shop", "p", "web", jwks));
        let policies = cluster.access("shop", "web-1").enforced.into_iter();
        let mut providers = policies.flat_map(|policy| policy.providers);
        let provider = providers.next().unwrap();
        (provider.jwks, provider.jwks_place)
    };
    let (none, place) = providers(URL);
    assert!(none.is_empty() && place == sources(&cluster)[0].word());
    keys_come(&cluster, &sources(&cluster)[0], "k");
    assert_eq!(providers(URL), ("k".to_owned(), place.clone()));
    let (none, other) = providers(MAP);
    assert!(none.is_empty() && !other.is_empty() && other != place);
    let (some, inline) = providers("{inline: '{}'}");
    assert_eq!((&*some, &*inline), ("", ""), "nothing is said of before");
}

/// One namespace's ConfigMap is another one's object of the same name.
#[test]
fn a_namespace_has_its_own_keys() {
    let cluster = cluster();
    cluster.apply(&policy("shop", "p", "web", MAP));
    cluster.apply(&policy("elsewhere", "p", "far", MAP));
    let sources = sources(&cluster);
    let shop = sources.iter().find(|source| &*source.namespace == "shop").unwrap();
    assert_eq!(sources.len(), 2);
    keys_come(&cluster, shop, "k");
    assert_eq!(
        (told(&cluster, "shop", "web-1"), told(&cluster, "elsewhere", "far-1")),
        (vec!["k".into()], vec!["".into()])
    );
}

#[test]
fn sources_are_followed_as_long_as_a_policy_names_them() {
    let cluster = cluster();
    let access = Kind::Policy(PolicyKind::Access);
    for name in ["p", "q"] {
        cluster.apply(&policy("shop", name, "web", MAP));
    }
    let first = sources(&cluster);
    assert_eq!(first.len(), 1);
    keys_come(&cluster, &first[0], "k");
    // A change of something else does not lose them, nor does one of two policies that goes.
    cluster.apply(&policy("shop", "p", "other", MAP));
    cluster.delete(access, "shop", "q");
    assert_eq!(
        (told(&cluster, "shop", "other-1"), sources(&cluster)),
        (vec!["k".into()], first.clone())
    );
    cluster.apply(&policy("shop", "p", "other", URL));
    assert_eq!(told(&cluster, "shop", "other-1"), [""]);
    assert_ne!(sources(&cluster), first);
    let key = "{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}";
    let inline = |keys: &str| policy("shop", "p", "other", &format!("{{inline: '{{\"keys\":[{keys}]}}'}}"));
    // What is no key for sidecars they are not told of, wherever it stands.
    let private = key.replace("\"x\"", "\"d\":\"secret\",\"x\"");
    let shared = "{\"kty\":\"oct\",\"k\":\"c2VjcmV0\"}";
    for keys in [key.to_owned(), private, format!("{shared},{key}")] {
        cluster.apply(&inline(&keys));
        assert_eq!(told(&cluster, "shop", "other-1"), [format!("{{\"keys\":[{key}]}}")]);
    }
    cluster.apply(&inline(shared));
    assert_eq!(told(&cluster, "shop", "other-1"), [""]);
    assert!(sources(&cluster).is_empty());
    // Keys that come too late are nobody's.
    keys_come(&cluster, &first[0], "late");
    cluster.apply(&policy("shop", "p", "other", MAP));
    assert_eq!(told(&cluster, "shop", "other-1"), [""]);
}

/// To a sidecar that verifies none, nobody has a token: a Deny rule that asks for one would hold for nobody.
#[test]
fn a_sidecar_that_verifies_no_tokens_is_told_of_conditions_that_it_does_not_understand() {
    let cluster = cluster();
    cluster.apply(&policy("shop", "p", "web", MAP));
    let (_, followed) = session(&cluster, "web-1");
    let read = |verifies: bool| match ToSidecar::decode(followed.newest().message(verifies)).unwrap().kind {
        Some(to_sidecar::Kind::Access(proto::Access { enforced, .. })) => enforced.into_iter().next().unwrap(),
        other => panic!("{other:?}"),
    };
    let kinds = |policy: &proto::Policy| {
        let condition::Kind::Sources(sources) = policy.rules[0].conditions[0].kind.clone().unwrap() else {
            panic!("no sources");
        };
        sources.any.into_iter().map(|source| source.kind).collect::<Vec<_>>()
    };
    let (old, new) = (read(false), read(true));
    assert!(old.providers.is_empty() && new.providers.len() == 1);
    let unauthenticated = Some(source::Kind::Unauthenticated(proto::Unauthenticated {}));
    assert_eq!(kinds(&old), [None, unauthenticated.clone()]);
    assert!(matches!(kinds(&new)[0], Some(source::Kind::Jwt(_))));
    assert_eq!((&old.name, kinds(&new).pop()), (&new.name, Some(unauthenticated)));
}

/// What fetched keys take is charged to their namespace, and what has no room leaves those that came before.
#[test]
fn keys_of_one_namespace_leave_the_room_to_others() {
    const LARGE: usize = 100 << 10;
    let index = Index::within(Room::new(2 << 20), "cluster.local", Arc::default());
    let cluster = Cluster { index };
    for n in 0..40 {
        cluster.apply(&policy(
            "evil",
            &format!("p{n}"),
            "a",
            &format!("{{configMapRef: {{name: k{n}}}}}"),
        ));
    }
    cluster.apply(&policy("shop", "p", "web", MAP));
    let problems = |namespace: &str| {
        let of_it = sources(&cluster)
            .into_iter()
            .filter(|source| &*source.namespace == namespace);
        let problems = of_it.map(|source| cluster.index.read(|store| store.keys_at(&source)?.problem.clone()));
        problems.flatten().map(|problem| problem.why).collect::<Vec<_>>()
    };
    let come = |namespace: &str, bytes: usize| {
        for source in sources(&cluster)
            .iter()
            .filter(|source| &*source.namespace == namespace)
        {
            keys_come(&cluster, source, &"k".repeat(bytes));
        }
    };
    come("evil", LARGE);
    let refused = problems("evil");
    // It has as much as is left to others.
    assert_eq!(refused.len(), 30);
    assert!(refused[0].starts_with("there is no room for them"), "{refused:?}");
    come("shop", LARGE);
    assert_eq!(problems("shop"), [""; 0]);
    // What is no more than before has its room; what is more has none, and changes nothing.
    come("evil", LARGE);
    assert_eq!(problems("evil").len(), refused.len());
    come("evil", 4 * LARGE);
    assert_eq!(problems("evil").len(), 40);
    let kept = cluster.index.read(|store| {
        let of_evil = store
            .key_sources()
            .into_iter()
            .filter(|source| &*source.namespace == "evil");
        { of_evil }
            .filter(|source| {
                store
                    .keys_at(source)
                    .unwrap()
                    .jwks()
                    .is_some_and(|keys| keys.len() == LARGE)
            })
            .count()
    });
    assert_eq!(kept, 40 - refused.len());
    // With the policies all of it is given back.
    for n in 0..40 {
        cluster.delete(Kind::Policy(PolicyKind::Access), "evil", &format!("p{n}"));
    }
    cluster.delete(Kind::Policy(PolicyKind::Access), "shop", "p");
    assert_eq!(cluster.index.room.used(), 0);
}

#[test]
fn a_sidecar_asks_for_the_keys_of_its_own_pods_policies_alone() {
    let cluster = cluster();
    cluster.apply(&policy("shop", "p", "web", URL));
    cluster.apply(&policy("elsewhere", "p", "far", URL));
    cluster.apply(&policy("outrigger", "pods", "web", URL));
    cluster.apply(&policy("outrigger", "mesh", "web", MAP).replace(
        "{kind: Pod, selector: {matchLabels: {app: web}}}",
        "{kind: Namespace, name: outrigger}",
    ));
    let mut asked = cluster.index.asked_for_keys();
    let mut ask = |pod: &str, policy: &str, provider: &str| {
        let (account, _) = pod.split_once('-').unwrap();
        cluster
            .index
            .unknown_key(&pod_key("shop", pod, account), policy, provider);
        asked.try_recv().ok().map(|source| source.namespace.to_string())
    };
    assert_eq!(ask("web-1", "shop/p", "login").as_deref(), Some("shop"));
    assert_eq!(ask("other-1", "outrigger/mesh", "login").as_deref(), Some("outrigger"));
    for (pod, policy, provider) in [
        ("other-1", "shop/p", "login"),
        ("web-1", "elsewhere/p", "login"),
        ("web-1", "outrigger/pods", "login"),
        ("web-1", "shop/p", "logout"),
        ("web-1", "shop/gone", "login"),
        ("web-1", "p", "login"),
        // Not the pod that it says it is.
        ("stranger-1", "shop/p", "login"),
    ] {
        assert_eq!(ask(pod, policy, provider), None, "{pod} {policy} {provider}");
    }
}
