//! Identity and policy from kube-apiserver to a sidecar.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outrigger_api::labels;
use outrigger_issuer::ca::{Ca, CaPem};
use outrigger_proxy::discovery::TargetKey;
use outrigger_proxy::model::{Endpoints, Service, Target, WorkloadInfo};
use outrigger_tests::control_plane::ControlPlane;
use outrigger_tests::kube::{Kubectl, eventually};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{namespace, pod, run};

/// The shop of these tests: a Service with one endpoint, and the ServiceAccount of whoever calls it.
async fn shop(plane: &ControlPlane) -> Result<(Kubectl, SocketAddr)> {
    let shop = namespace(&plane.admin, "policy", true).await?;
    let objects = [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web"}}),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "orders"},
            "spec": {"ports": [{"name": "http", "port": 8080, "appProtocol": "http"}]}
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "orders-1", "labels": {"kubernetes.io/service-name": "orders"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.244.9.9"], "conditions": {"ready": true}}]
        }),
    ];
    for object in objects {
        shop.apply(&object.to_string()).await?;
    }
    let service = shop.get(["service", "orders"]).await?;
    let ip = service["spec"]["clusterIP"].as_str().context("no ClusterIP")?;
    Ok((shop.clone(), format!("{ip}:8080").parse()?))
}

#[test]
#[ignore = "needs a kube-apiserver"]
fn a_token_becomes_an_svid() -> Result<()> {
    run(async |plane| {
        let controller = plane.controller().await?;
        let (shop, _) = shop(&plane).await?;
        let right = plane.sidecar(&controller, &shop, "web", "outrigger").await?;
        let credentials = tokio::time::timeout(Duration::from_secs(10), right.identity.ready()).await;
        let expected = format!("spiffe://cluster.local/ns/{}/sa/web", shop.current_namespace());
        let credentials = credentials.with_context(|| right.identity.problem().unwrap_or_default())?;
        ensure!(credentials.id.as_str() == expected, "{}", credentials.id);

        let wrong = plane.sidecar(&controller, &shop, "web", "somebody-else").await?;
        let refused = eventually("it is refused", Duration::from_secs(10), async || {
            wrong.identity.problem().context("no problem yet")
        });
        println!("a token for another audience: {}", refused.await?);
        ensure!(
            wrong.identity.current().is_none(),
            "a token for another audience was taken"
        );

        let ca = async || {
            plane
                .admin
                .namespace("outrigger")
                .run(["get", "secret", "outrigger-ca", "-o", "yaml"])
                .await
        };
        let before = ca().await?;
        controller.stop().await?;
        let again = plane.controller().await?;
        ensure!(ca().await? == before, "a restart of the controller changed its CA");
        // Deleted by mistake, and brought back empty by `helm upgrade`, it gets the same CA: the last process to end would take
        // the only key with it.
        let outrigger = plane.admin.namespace("outrigger");
        let data = async || {
            let secret = outrigger.get(["secret", "outrigger-ca"]).await?;
            secret.get("data").cloned().context("it is empty")
        };
        let kept = data().await?;
        outrigger.run(["delete", "secret", "outrigger-ca"]).await?;
        let event = async || {
            let events = outrigger.get(["events.events.k8s.io"]).await?;
            let events = events["items"].as_array().into_iter().flatten();
            let mut reasons = events.filter_map(|event| event["reason"].as_str());
            reasons
                .find(|reason| *reason == "SecretDeleted")
                .map(str::to_owned)
                .context("no event")
        };
        eventually("an event says so", Duration::from_secs(10), event).await?;
        let empty = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "outrigger-ca"}});
        outrigger.apply(&empty.to_string()).await?;
        let back = eventually("the CA's Secret is there again", Duration::from_secs(10), data).await?;
        ensure!(back == kept, "it has another CA");
        again.stop().await
    })
}

/// Waits until the trust bundle has so many roots.
async fn published(namespace: &Kubectl, number: usize) -> Result<()> {
    let what = format!("{number} roots are published");
    eventually(&what, Duration::from_secs(20), async || {
        let map = namespace.get(["configmap", labels::TRUST_BUNDLE_CONFIG_MAP]).await?;
        let pem = map["data"][labels::TRUST_BUNDLE_KEY].as_str();
        let roots = pem.context("no trust bundle")?.matches("BEGIN").count();
        ensure!(roots == number, "{roots}");
        Ok(())
    })
    .await
}

/// Waits until the Secret has the key of the CA before.
async fn kept(outrigger: &Kubectl) -> Result<()> {
    eventually("the one before is kept", Duration::from_secs(20), async || {
        let secret = outrigger.get(["secret", "outrigger-ca"]).await?;
        let names = secret["data"].as_object().into_iter().flatten().map(|(name, _)| name);
        let kept: Vec<_> = names.filter(|name| name.starts_with("previous")).collect();
        ensure!(kept == ["previous-ca.crt", "previous.crt", "previous.key"], "{kept:?}");
        Ok(())
    })
    .await
}

/// Somebody puts another CA into the Secret, as cert-manager does. In [`rotation`](outrigger_issuer::ca::rotation) is what
/// becomes of it in time; here, that the API server lets the controller do it.
#[test]
#[ignore = "needs a kube-apiserver"]
fn a_new_ca_is_published_first_and_the_one_before_it_is_kept() -> Result<()> {
    run(async |plane| {
        let controller = plane.controller().await?;
        let (shop, _) = shop(&plane).await?;
        let outrigger = plane.admin.namespace("outrigger");
        published(&shop, 1).await?;
        let before = outrigger.get(["secret", "outrigger-ca"]).await?;
        let patch = async |pem: &CaPem| {
            let data = json!({"stringData": {"tls.crt": pem.certificates, "tls.key": pem.key, "ca.crt": pem.roots}});
            outrigger
                .run(["patch", "secret", "outrigger-ca", "--patch", &data.to_string()])
                .await
        };
        patch(Ca::generate("cluster.local")?.pem()).await?;
        published(&shop, 2).await?;
        kept(&outrigger).await?;
        controller.stop().await?;
        // Another process goes on where this one was.
        let again = plane.controller().await?;
        let sidecar = plane.sidecar(&again, &shop, "web", "outrigger").await?;
        let ready = tokio::time::timeout(Duration::from_secs(10), sidecar.identity.ready()).await;
        ready.with_context(|| sidecar.identity.problem().unwrap_or_default())?;
        patch(Ca::generate("cluster.local")?.pem()).await?;
        published(&shop, 3).await?;
        kept(&outrigger).await?;
        // Back to the first, so that the tests after this one find what was there.
        again.stop().await?;
        let data = json!([{"op": "replace", "path": "/data", "value": before["data"]}]).to_string();
        let restore = ["patch", "secret", "outrigger-ca", "--type=json", "--patch", &data];
        outrigger.run(restore).await?;
        let last = plane.controller().await?;
        published(&shop, 1).await?;
        last.stop().await
    })
}

/// Waits until what discovery says satisfies `wanted`.
async fn seen(target: &mut watch::Receiver<Arc<Target>>, wanted: impl Fn(&Service) -> bool) -> Result<()> {
    let arrived = target.wait_for(|target| matches!(&**target, Target::Service(service) if wanted(service)));
    let arrived = tokio::time::timeout(Duration::from_secs(20), arrived)
        .await
        .map(|found| found.is_ok());
    ensure!(arrived == Ok(true), "not seen: {:?}", target.borrow());
    Ok(())
}

fn condition(object: &Value, path: &str, kind: &str) -> Option<(String, String)> {
    let conditions = object.pointer(path)?.as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == kind)?;
    Some((
        found["status"].as_str()?.to_owned(),
        found["reason"].as_str()?.to_owned(),
    ))
}

fn policy(name: &str, service: &str, spec: Value) -> Value {
    let mut policy = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": name},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": service}]}
    });
    policy["spec"]
        .as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    policy
}

#[test]
#[ignore = "needs a kube-apiserver"]
fn a_policy_reaches_sidecars_within_a_second() -> Result<()> {
    run(async |plane| {
        let controller = plane.controller().await?;
        let (shop, address) = shop(&plane).await?;
        let sidecar = plane.sidecar(&controller, &shop, "web", "outrigger").await?;
        let mut target = sidecar
            .discovery
            .watch(TargetKey::Address(address), Duration::from_secs(10))
            .await?;
        seen(&mut target, |service| service.rules.request.timeout.is_none()).await?;

        let timeout = Duration::from_millis(8765);
        let spec = json!({"timeouts": {"request": "8765ms"}, "retry": {"attempts": 7}});
        let began = Instant::now();
        shop.apply(&policy("patient", "orders", spec).to_string()).await?;
        seen(&mut target, |service| {
            let rules = &service.rules;
            rules.request.timeout == Some(timeout) && rules.attempt.retry.attempts == 7
        })
        .await?;
        let took = began.elapsed(); // with kubectl's own time
        println!("in the stream {took:?} after it was applied");
        ensure!(took < Duration::from_secs(1), "it took {took:?}");
        shop.apply(&policy("astray", "no-such-service", json!({"retry": {"attempts": 1}})).to_string())
            .await?;
        for (name, expected) in [("patient", "True"), ("astray", "False")] {
            eventually(&format!("{name} has a status"), Duration::from_secs(5), async || {
                let policy = shop.get(["trafficpolicy", name]).await?;
                for path in ["/status/conditions", "/status/ancestors/0/conditions"] {
                    let found = condition(&policy, path, "Accepted");
                    ensure!(
                        found.as_ref().is_some_and(|(status, _)| status == expected),
                        "{path}: {found:?}"
                    );
                    println!("{name}: Accepted is {found:?}");
                }
                let programmed = condition(&policy, "/status/ancestors/0/conditions", "Programmed");
                ensure!(programmed.is_some() == (expected == "True"), "{programmed:?}");
                Ok(())
            })
            .await?;
        }
        // What the API server must refuse by the CRD's schema and its rules.
        for wrong in [
            json!({"retry": {"attempts": 11}}),
            json!({"retryConstraint": {"budget": {"percent": 101}}}),
            json!({"retryConstraint": {"budget": {"interval": "999ms"}}}),
            json!({"retryConstraint": {"budget": {"interval": "61m"}}}),
            json!({"retryConstraint": {"minRetryRate": {"count": 0}}}),
            json!({"retryConstraint": {"minRetryRate": {"interval": "0s"}}}),
            json!({"retry": {"budget": {"percent": 20}}, "retryConstraint": {}}),
            json!({"targetRefs": []}),
        ] {
            let policy = policy("wrong", "orders", wrong.clone());
            ensure!(shop.apply(&policy.to_string()).await.is_err(), "{wrong} was taken");
        }
        let constraint =
            json!({"budget": {"percent": 30, "interval": "1m"}, "minRetryRate": {"count": 30, "interval": "1m"}});
        shop.apply(&policy("constrained", "orders", json!({"retryConstraint": constraint})).to_string())
            .await?;
        shop.run(["delete", "trafficpolicy", "constrained"]).await?;
        shop.run(["delete", "trafficpolicy", "patient"]).await?;
        seen(&mut target, |service| service.rules.request.timeout.is_none()).await?;
        controller.stop().await
    })
}

/// Of the endpoints that are called first: hints keep none of them away.
fn addresses(service: &Service) -> Vec<String> {
    match &service.backends[0].endpoints {
        Endpoints::Known(endpoints) => {
            let near = endpoints.iter().filter(|e| !e.remote);
            near.map(|e| e.address.to_string()).collect()
        }
        Endpoints::Dns { .. } | Endpoints::NoSuchPort(_) => Vec::new(),
    }
}

#[test]
#[ignore = "needs a kube-apiserver"]
fn endpoints_by_node_and_zone() -> Result<()> {
    run(async |plane| {
        let controller = plane.controller().await?;
        let (shop, address) = shop(&plane).await?;
        let node = |zone: &str| {
            json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": "outrigger-of-web", "labels": {"topology.kubernetes.io/zone": zone}}
            })
        };
        plane.admin.apply(&node("a").to_string()).await?;
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "orders-1", "labels": {"kubernetes.io/service-name": "orders"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.244.9.1"], "hints": {"forZones": [{"name": "a"}]}, "nodeName": "outrigger-of-web"},
                {"addresses": ["10.244.9.2"], "hints": {"forZones": [{"name": "b"}]}, "nodeName": "another"}
            ]
        });
        shop.apply(&slice.to_string()).await?;
        let sidecar = plane.sidecar(&controller, &shop, "web", "outrigger").await?;
        let mut target = sidecar
            .discovery
            .watch(TargetKey::Address(address), Duration::from_secs(10))
            .await?;
        // Nobody knows yet where its pod runs.
        seen(&mut target, |service| addresses(service).len() == 2).await?;
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": "web-1"},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "outrigger-of-web"}
        });
        let path = format!("/api/v1/namespaces/{}/pods/web-1/binding", shop.current_namespace());
        shop.run_with_input(["create", "--raw", &path, "-f", "-"], &binding.to_string())
            .await?;
        seen(&mut target, |service| addresses(service) == ["10.244.9.1:8080"]).await?;
        plane.admin.apply(&node("b").to_string()).await?;
        seen(&mut target, |service| addresses(service) == ["10.244.9.2:8080"]).await?;
        let patch = async |spec: Value| {
            let patch = json!({ "spec": spec }).to_string();
            shop.run(["patch", "service", "orders", "--patch", &patch]).await
        };
        patch(json!({"internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"})).await?;
        seen(&mut target, |service| {
            addresses(service) == ["10.244.9.1:8080"] && service.backends[0].client_affinity
        })
        .await?;
        patch(json!({"internalTrafficPolicy": "Cluster", "sessionAffinity": "None"})).await?;
        plane.admin.run(["delete", "node", "outrigger-of-web"]).await?;
        seen(&mut target, |service| {
            addresses(service).len() == 2 && !service.backends[0].client_affinity
        })
        .await?;
        controller.stop().await
    })
}

#[test]
#[ignore = "needs a kube-apiserver"]
fn gateway_api_may_come_later() -> Result<()> {
    run(async |plane| {
        let crds = std::env::var("OUTRIGGER_GATEWAY_API").context("OUTRIGGER_GATEWAY_API; tests/run sets it")?;
        let kinds = ["httproutes", "grpcroutes"].map(|kind| format!("{kind}.gateway.networking.k8s.io"));
        for kind in &kinds {
            plane.admin.run(["delete", "crd", kind, "--ignore-not-found"]).await?;
        }
        let controller = plane.controller().await?;
        let (shop, address) = shop(&plane).await?;
        let sidecar = plane.sidecar(&controller, &shop, "web", "outrigger").await?;
        let mut target = sidecar
            .discovery
            .watch(TargetKey::Address(address), Duration::from_secs(10))
            .await?;
        seen(&mut target, |service| service.routes.is_empty()).await?;

        for kind in &kinds {
            let file = format!(
                "{crds}/experimental/gateway.networking.k8s.io_{}.yaml",
                kind.split('.').next().unwrap()
            );
            plane.admin.run(["apply", "--server-side", "-f", &file]).await?;
            plane.admin.wait_for_crd(kind).await?;
        }
        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "orders"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "orders", "port": 8080}],
                "rules": [{
                    "timeouts": {"request": "4321ms"}, "retry": {"attempts": 5},
                    "backendRefs": [{"name": "orders", "port": 8080}]
                }]
            }
        });
        eventually("a route is taken", Duration::from_secs(10), async || {
            shop.apply(&route.to_string()).await
        })
        .await?;
        let timeout = Some(Duration::from_millis(4321));
        seen(&mut target, |service| {
            let rules = service.routes.first().map(|route| &route.rules);
            rules.is_some_and(|rules| rules.request.timeout == timeout && rules.attempt.retry.attempts == 5)
        })
        .await?;
        eventually("the route has a status", Duration::from_secs(5), async || {
            let route = shop.get(["httproute", "orders"]).await?;
            let found = condition(&route, "/status/parents/0/conditions", "Accepted");
            ensure!(found.as_ref().is_some_and(|(status, _)| status == "True"), "{found:?}");
            Ok(())
        })
        .await?;
        controller.stop().await
    })
}

/// Waits until the sidecar has heard these networks of the cluster.
async fn networks(workload: &mut watch::Receiver<Arc<WorkloadInfo>>, wanted: impl Fn(&[String]) -> bool) -> Result<()> {
    let heard = |info: &Arc<WorkloadInfo>| {
        info.cluster_networks
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let arrived = workload.wait_for(|info| wanted(&heard(info)));
    let arrived = tokio::time::timeout(Duration::from_secs(20), arrived)
        .await
        .map(|found| found.is_ok());
    ensure!(arrived == Ok(true), "not seen: {:?}", heard(&workload.borrow()));
    Ok(())
}

#[test]
#[ignore = "needs a kube-apiserver"]
fn sidecars_hear_of_the_clusters_networks_until_a_pod_proves_them_wrong() -> Result<()> {
    run(async |plane| {
        let controller = plane.controller().await?;
        let (shop, _) = shop(&plane).await?;
        let sidecar = plane.sidecar(&controller, &shop, "web", "outrigger").await?;
        let mut workload = sidecar.discovery.workload();
        // The kit's own value; and the one ServiceCIDR that every cluster has, and another.
        networks(&mut workload, |heard| {
            heard.contains(&"10.0.0.0/8".to_owned()) && heard.len() > 1
        })
        .await?;
        let more = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "outrigger-more"},
            "spec": {"cidrs": ["198.51.100.0/24"]}
        });
        plane.admin.apply(&more.to_string()).await?;
        networks(&mut workload, |heard| heard.contains(&"198.51.100.0/24".to_owned())).await?;
        plane
            .admin
            .run(["delete", "servicecidr", "outrigger-more", "--wait=false"])
            .await?;

        shop.apply(&pod("astray", json!({})).to_string()).await?;
        let status = json!({"status": {"podIP": "203.0.113.9", "podIPs": [{"ip": "203.0.113.9"}]}}).to_string();
        shop.run(["patch", "pod", "astray", "--subresource=status", "-p", &status])
            .await?;
        networks(&mut workload, <[String]>::is_empty).await?;
        shop.run(["delete", "pod", "astray", "--grace-period=0", "--force"])
            .await?;
        controller.stop().await
    })
}
