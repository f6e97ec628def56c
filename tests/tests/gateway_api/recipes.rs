//! The recipes of docs/releases.md: each is applied while a client sends requests, of which none may be lost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrigger_tests::cluster::Cluster;
use outrigger_tests::kube::{Kubectl, eventually};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::own::{Ask, NAMESPACE, SOON, Sees};

/// A route, and what is done to it.
struct Recipe {
    name: &'static str,
    object: &'static str,
    steps: &'static [Step],
}

struct Step {
    /// A JSON Patch of the HTTPRoute `orders`; "" leaves it as it is.
    patch: &'static str,
    asks: &'static [Ask],
}

const MANY: &str = "--count 100 http://orders:8080/";

/// What changes the weights of the first rule.
macro_rules! weights {
    ($v1:literal, $v2:literal) => {
        concat!(
            r#"[{"op": "replace", "path": "/spec/rules/0/backendRefs/0/weight", "value": "#,
            $v1,
            r#"}, {"op": "replace", "path": "/spec/rules/0/backendRefs/1/weight", "value": "#,
            $v2,
            "}]"
        )
    };
}

const RECIPES: &[Recipe] = &[
    Recipe {
        name: "canary",
        object: include_str!("../../../examples/releases/canary.yaml"),
        steps: &[
            Step {
                patch: "",
                asks: &[Ask {
                    client: MANY,
                    sees: Sees::Shares(&[("200 v1", 75..=99), ("200 v2", 1..=25)]),
                }],
            },
            Step {
                patch: weights!("50", "50"),
                asks: &[Ask {
                    client: MANY,
                    sees: Sees::Shares(&[("200 v1", 25..=75), ("200 v2", 25..=75)]),
                }],
            },
            // As Argo Rollouts' setHeaderRoute: a rule with its name before the others.
            Step {
                patch: r#"[{"op": "add", "path": "/spec/rules/0", "value": {"name": "canary-header",
                    "matches": [{"path": {"type": "PathPrefix", "value": "/"}, "headers": [{"name": "x-canary", "type": "Exact", "value": "yes"}]}],
                    "backendRefs": [{"group": "", "kind": "Service", "name": "orders-v2", "port": 8080}]}}]"#,
                asks: &[
                    Ask {
                        client: "--count 100 -H x-canary:yes http://orders:8080/",
                        sees: Sees::All("200 v2"),
                    },
                    Ask {
                        client: MANY,
                        sees: Sees::Shares(&[("200 v1", 25..=75), ("200 v2", 25..=75)]),
                    },
                ],
            },
            Step {
                patch: r#"[{"op": "remove", "path": "/spec/rules/0"}]"#,
                asks: &[],
            },
            Step {
                patch: weights!("0", "100"),
                asks: &[Ask {
                    client: MANY,
                    sees: Sees::All("200 v2"),
                }],
            },
        ],
    },
    Recipe {
        name: "canary, as Flagger writes it",
        object: "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, annotations: {kustomize.toolkit.fluxcd.io/reconcile: disabled}}
spec:
  parentRefs: [{group: '', kind: Service, name: orders, port: 8080}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /}}]
    filters: []
    backendRefs:
    - {group: '', kind: Service, name: orders-v1, port: 8080, weight: 100}
    - {group: '', kind: Service, name: orders-v2, port: 8080, weight: 0}
    timeouts: {request: 10s}
",
        steps: &[
            Step {
                patch: "",
                asks: &[Ask {
                    client: MANY,
                    sees: Sees::All("200 v1"),
                }],
            },
            Step {
                patch: weights!("80", "20"),
                asks: &[Ask {
                    client: MANY,
                    sees: Sees::Shares(&[("200 v1", 60..=96), ("200 v2", 4..=40)]),
                }],
            },
            // Its A/B test: two rules, the first for who has the header or the cookie.
            Step {
                patch: r#"[{"op": "replace", "path": "/spec/rules", "value": [
                    {"matches": [{"path": {"type": "PathPrefix", "value": "/"}, "headers": [{"name": "x-user", "type": "Exact", "value": "test"}]}],
                     "backendRefs": [{"group": "", "kind": "Service", "name": "orders-v1", "port": 8080, "weight": 0},
                                     {"group": "", "kind": "Service", "name": "orders-v2", "port": 8080, "weight": 100}]},
                    {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                     "backendRefs": [{"group": "", "kind": "Service", "name": "orders-v1", "port": 8080, "weight": 100}]}]}]"#,
                asks: &[
                    Ask {
                        client: "-H x-user:test http://orders:8080/",
                        sees: Sees::All("200 v2"),
                    },
                    Ask {
                        client: MANY,
                        sees: Sees::All("200 v1"),
                    },
                ],
            },
        ],
    },
    Recipe {
        name: "blue-green, and back",
        object: include_str!("../../../examples/releases/blue-green.yaml"),
        steps: &[
            Step {
                patch: "",
                asks: &[Ask {
                    client: MANY,
                    sees: Sees::All("200 v1"),
                }],
            },
            Step {
                patch: weights!("0", "1"),
                asks: &[Ask {
                    client: MANY,
                    sees: Sees::All("200 v2"),
                }],
            },
            Step {
                patch: weights!("1", "0"),
                asks: &[Ask {
                    client: MANY,
                    sees: Sees::All("200 v1"),
                }],
            },
        ],
    },
    Recipe {
        name: "a version by header, URL and cookie",
        object: include_str!("../../../examples/releases/versions.yaml"),
        steps: &[Step {
            patch: "",
            asks: &[
                Ask {
                    client: "-H x-version:v2 http://orders:8080/",
                    sees: Sees::All("200 v2"),
                },
                Ask {
                    client: "http://orders:8080/v2/a",
                    sees: Sees::All("200 v2"),
                },
                Ask {
                    client: "http://orders:8080/a?version=v2",
                    sees: Sees::All("200 v2"),
                },
                Ask {
                    client: "-H cookie:a=b;version=v2;c=d http://orders:8080/",
                    sees: Sees::All("200 v2"),
                },
                Ask {
                    client: "-H cookie:version=v2 http://orders:8080/",
                    sees: Sees::All("200 v2"),
                },
                Ask {
                    client: "-H cookie:version=v20;aversion=v2 http://orders:8080/",
                    sees: Sees::All("200 v1"),
                },
                Ask {
                    client: "-H x-version:v3 http://orders:8080/v20",
                    sees: Sees::All("200 v1"),
                },
            ],
        }],
    },
    Recipe {
        name: "a mirror",
        object: include_str!("../../../examples/releases/mirror.yaml"),
        steps: &[],
    },
];

/// All of them, one after the other.
pub(super) async fn all(cluster: &Cluster, routes: &Kubectl) -> Result<()> {
    for recipe in RECIPES {
        routes.apply(recipe.object).await.context(recipe.name)?;
        // Of one name, ten statuses a minute are written.
        eventually(recipe.name, Duration::from_secs(90), async || {
            super::own::conditions_are(&routes.get(["httproute/orders"]).await?, "Accepted", "ResolvedRefs")
        })
        .await?;
        let load = ["--for", "300", "--rate", "50", "http://orders:8080/"];
        let client = cluster.start_client(NAMESPACE, true, &load).await?;
        recipe.steps(cluster, routes).await.context(recipe.name)?;
        client.stop().await?.ensure_none_lost(10).context(recipe.name)?;
        if recipe.name == "a mirror" {
            // With nobody else who calls.
            let mirrored = Ask {
                client: "--count 100 --qps 50 http://orders:8080/",
                sees: Sees::Mirrored("200 v1", &[("v2", 4..=45)]),
            };
            eventually(recipe.name, SOON, async || mirrored.is_answered(cluster, routes).await).await?;
        }
        println!("holds: {}", recipe.name);
        routes.run(["delete", "httproute/orders"]).await?;
    }
    chaos(cluster, routes).await.context("chaos")?;
    println!("holds: chaos");
    Ok(())
}

/// What is lost here is lost on purpose, until the time that is written when the policy is applied.
async fn chaos(cluster: &Cluster, routes: &Kubectl) -> Result<()> {
    let policy = include_str!("../../../examples/releases/chaos.yaml");
    let some_fail = Ask {
        client: MANY,
        sees: Sees::Shares(&[("200 v1", 80..=99), ("503 -", 1..=20)]),
    };
    let none_fails = Ask {
        client: MANY,
        sees: Sees::All("200 v1"),
    };
    ensure!(routes.apply(policy).await.is_err(), "it is taken without a time");
    for (until, sees) in [
        (time::Duration::minutes(10), &some_fail),
        (time::Duration::ZERO, &none_fails),
    ] {
        let until = (OffsetDateTime::now_utc() + until).format(&Rfc3339)?;
        routes.apply(&policy.replace("UNTIL", &until)).await?;
        eventually(&until, SOON, async || sees.is_answered(cluster, routes).await).await?;
    }
    routes.run(["delete", "trafficpolicy/chaos"]).await?;
    Ok(())
}

impl Recipe {
    async fn steps(&self, cluster: &Cluster, routes: &Kubectl) -> Result<()> {
        for step in self.steps {
            if !step.patch.is_empty() {
                routes
                    .run(["patch", "httproute/orders", "--type=json", "-p", step.patch])
                    .await?;
            }
            for ask in step.asks {
                eventually(ask.client, SOON, async || ask.is_answered(cluster, routes).await).await?;
            }
        }
        Ok(())
    }
}
