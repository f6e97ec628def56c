//! The table of `own`.

use super::own::{Ask, Case, Sees};

/// Three versions of an echo server, a Service for each, one for all, one for nobody; and a client.
pub(super) const PODS: &str = r#"
{apiVersion: v1, kind: List, items: [
{apiVersion: v1, kind: Service, metadata: {name: echo}, spec: {selector: {app: echo, version: v1}, ports: [
  {name: http, port: 80, targetPort: 8080, appProtocol: http}, {name: tls, port: 443, targetPort: 8443}, {name: tcp, port: 9090}, {name: grpc, port: 7070, appProtocol: grpc}]}},
{apiVersion: v1, kind: Service, metadata: {name: echo-v1}, spec: {selector: {app: echo, version: v1}, ports: [
  {name: http, port: 80, targetPort: 8080, appProtocol: http}, {name: tls, port: 443, targetPort: 8443}, {name: tcp, port: 9090}, {name: grpc, port: 7070, appProtocol: grpc}]}},
{apiVersion: v1, kind: Service, metadata: {name: echo-v2}, spec: {selector: {app: echo, version: v2}, ports: [
  {name: http, port: 80, targetPort: 8080, appProtocol: http}, {name: tls, port: 443, targetPort: 8443}, {name: tcp, port: 9090}, {name: grpc, port: 7070, appProtocol: grpc}]}},
{apiVersion: v1, kind: Service, metadata: {name: echo-v3}, spec: {selector: {app: echo, version: v3}, ports: [
  {name: http, port: 80, targetPort: 8080, appProtocol: http}]}},
{apiVersion: v1, kind: Service, metadata: {name: orders}, spec: {selector: {app: echo, version: v1}, ports: [{port: 8080, appProtocol: http}]}},
{apiVersion: v1, kind: Service, metadata: {name: orders-v1}, spec: {selector: {app: echo, version: v1}, ports: [{port: 8080, appProtocol: http}]}},
{apiVersion: v1, kind: Service, metadata: {name: orders-v2}, spec: {selector: {app: echo, version: v2}, ports: [{port: 8080, appProtocol: http}]}},
{apiVersion: v1, kind: Service, metadata: {name: nobody}, spec: {selector: {app: nobody}, ports: [{name: http, port: 80, appProtocol: http}]}},
{apiVersion: apps/v1, kind: Deployment, metadata: {name: echo-v1}, spec: {selector: {matchLabels: {app: echo, version: v1}}, template: {
  metadata: {labels: {app: echo, version: v1}}, spec: {terminationGracePeriodSeconds: 5, containers: [{name: echo, image: "registry.k8s.io/gateway-api/echo-advanced:v1.5.1",
  args: [--tcp=9090, --port=8080, --grpc=7070, --port=8443, --tls=8443, --crt=/cert.crt, --key=/cert.key]}]}}}},
{apiVersion: apps/v1, kind: Deployment, metadata: {name: echo-v2}, spec: {selector: {matchLabels: {app: echo, version: v2}}, template: {
  metadata: {labels: {app: echo, version: v2}}, spec: {terminationGracePeriodSeconds: 5, containers: [{name: echo, image: "registry.k8s.io/gateway-api/echo-advanced:v1.5.1",
  args: [--tcp=9090, --port=8080, --grpc=7070, --port=8443, --tls=8443, --crt=/cert.crt, --key=/cert.key]}]}}}},
{apiVersion: apps/v1, kind: Deployment, metadata: {name: echo-v3}, spec: {selector: {matchLabels: {app: echo, version: v3}}, template: {
  metadata: {labels: {app: echo, version: v3}}, spec: {terminationGracePeriodSeconds: 5, containers: [{name: echo, image: "registry.k8s.io/gateway-api/echo-advanced:v1.5.1",
  args: [--port=8080]}]}}}},
{apiVersion: apps/v1, kind: Deployment, metadata: {name: client}, spec: {selector: {matchLabels: {app: caller}}, template: {
  metadata: {labels: {app: caller}}, spec: {terminationGracePeriodSeconds: 5, containers: [{name: echo, image: "registry.k8s.io/gateway-api/echo-advanced:v1.5.1", args: [--port=8080]}]}}}},
]}
"#;

/// A mesh that says what it supports, and one that is another's.
pub(super) const MESHES: &str = "
apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XMesh
metadata: {name: outrigger}
spec: {controllerName: outrigger.dev/controller}
---
apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XMesh
metadata: {name: another}
spec: {controllerName: example.com/another}
";

/// Istio's sample of a server that is asked, twice: one lets the service account "default" through where a request says nothing, one nobody.
const AUTHORIZED: &str = r#"
{apiVersion: v1, kind: List, items: [
{apiVersion: v1, kind: Service, metadata: {name: ext-authz}, spec: {selector: {app: ext-authz}, ports: [
  {name: http, port: 8000, appProtocol: http}, {name: grpc, port: 9000, appProtocol: grpc}]}},
{apiVersion: v1, kind: Service, metadata: {name: ext-authz-other}, spec: {selector: {app: ext-authz-other}, ports: [{name: grpc, port: 9000, appProtocol: grpc}]}},
{apiVersion: apps/v1, kind: Deployment, metadata: {name: ext-authz}, spec: {selector: {matchLabels: {app: ext-authz}}, template: {
  metadata: {labels: {app: ext-authz}}, spec: {terminationGracePeriodSeconds: 5, containers: [{name: ext-authz, image: "registry.istio.io/testing/ext-authz:latest",
  imagePullPolicy: IfNotPresent, args: [-allow_service_account=default]}]}}}},
{apiVersion: apps/v1, kind: Deployment, metadata: {name: ext-authz-other}, spec: {selector: {matchLabels: {app: ext-authz-other}}, template: {
  metadata: {labels: {app: ext-authz-other}}, spec: {terminationGracePeriodSeconds: 5, containers: [{name: ext-authz, image: "registry.istio.io/testing/ext-authz:latest",
  imagePullPolicy: IfNotPresent, args: [-allow_service_account=nobody]}]}}}},
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: authorized}, spec: {parentRefs: [{group: '', kind: Service, name: echo, port: 80}], rules: [
  {matches: [{path: {value: /http}}], backendRefs: [{name: echo-v1, port: 80}],
   filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: ext-authz, port: 8000}, http: {allowedHeaders: [x-ext-authz]}}}]},
  {matches: [{path: {value: /grpc}}], backendRefs: [{name: echo-v1, port: 80}],
   filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: ext-authz, port: 9000}, grpc: {}, forwardBody: {maxSize: 1024}}}]},
  {matches: [{path: {value: /grpc-other}}], backendRefs: [{name: echo-v1, port: 80}],
   filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: ext-authz-other, port: 9000}, grpc: {}}}]},
]}},
]}
"#;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "time limits of a request and of an attempt",
        objects: "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: limits}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 80}]
  rules:
  - matches: [{path: {value: /whole}}]
    timeouts: {request: 500ms}
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /attempt}}]
    timeouts: {request: 10s, backendRequest: 300ms}
    backendRefs: [{name: echo-v1, port: 80}]
  - backendRefs: [{name: echo-v2, port: 80}]
",
        says: &["httproute/limits Accepted ResolvedRefs"],
        asks: &[
            Ask { client: "http://echo/whole", sees: Sees::All("200 v1") },
            Ask { client: "http://echo/whole?delay=3s", sees: Sees::Has("504 -", &["Outrigger-Error:request-timeout"]) },
            Ask { client: "http://echo/attempt", sees: Sees::All("200 v1") },
            Ask { client: "http://echo/attempt?delay=3s", sees: Sees::Has("504 -", &["Outrigger-Error:attempt-timeout"]) },
            Ask { client: "http://echo/other?delay=1s", sees: Sees::All("200 v2") },
        ],
    },
    Case {
        name: "retry by status",
        objects: "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: again}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 80}]
  rules:
  - matches: [{path: {value: /again}}]
    retry: {codes: [500], attempts: 8, backoff: 1ms}
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /never}}]
    retry: {codes: [], attempts: 8}
    backendRefs: [{name: echo-v1, port: 80}]
",
        says: &["httproute/again Accepted ResolvedRefs"],
        asks: &[
            // Ten failures a second are tried again, whatever the budget.
            Ask { client: "--count 100 --qps 8 --timeout 30s http://echo/again?codes=500:50,200:50", sees: Sees::Shares(&[("200 v1", 97..=100)]) },
            Ask { client: "--count 100 http://echo/never?codes=500:50,200:50", sees: Sees::Shares(&[("500 v1", 25..=75)]) },
        ],
    },
    Case {
        name: "mirrors: several, by percent, and one that is not there",
        objects: "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mirrors}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 80}]
  rules:
  - filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: echo-v2, port: 80}, percent: 50}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: echo-v3, port: 80}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: gone, port: 80}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: nobody, port: 80}}}
    backendRefs: [{name: echo-v1, port: 80}]
",
        says: &["httproute/mirrors Accepted BackendNotFound"],
        asks: &[Ask {
            client: "--count 100 --qps 50 http://echo/",
            sees: Sees::Mirrored("200 v1", &[("v2", 25..=75), ("v3", 100..=100)]),
        }],
    },
    Case {
        name: "external authorization, by an echo server that answers as it is asked to",
        objects: "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: asked}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 80}]
  rules:
  - matches: [{path: {value: /away}}]
    filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: nobody, port: 80}, http: {}}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /gone}}]
    filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: gone, port: 80}, http: {}}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: echo-v2, port: 80}, http: {path: /check, allowedResponseHeaders: [x-none]}}}]
    backendRefs: [{name: echo-v1, port: 80}]
",
        says: &["httproute/asked Accepted BackendNotFound"],
        asks: &[
            Ask { client: "--count 20 http://echo/?codes=200:100", sees: Sees::All("200 v1") },
            Ask { client: "--count 20 http://echo/?codes=401:100", sees: Sees::All("401 v2") },
            Ask { client: "--count 20 http://echo/away", sees: Sees::All("503 -") },
            Ask { client: "--count 20 http://echo/gone", sees: Sees::All("500 -") },
        ],
    },
    Case {
        name: "ExternalAuth with a server of others, in HTTP and in gRPC",
        objects: AUTHORIZED,
        says: &["httproute/authorized Accepted ResolvedRefs"],
        asks: &[
            Ask { client: "-H x-ext-authz:allow http://echo/http", sees: Sees::Has("200 v1", &["RequestHeader=X-Ext-Authz-Check-Result:allowed"]) },
            Ask { client: "-H x-ext-authz:no http://echo/http", sees: Sees::Has("403 -", &["denied by ext_authz", "X-Ext-Authz-Check-Result:denied"]) },
            Ask { client: "http://echo/http", sees: Sees::All("403 -") },
            Ask { client: "-H x-ext-authz:allow http://echo/grpc", sees: Sees::Has("200 v1", &["RequestHeader=X-Ext-Authz-Check-Result:allowed"]) },
            Ask { client: "-H x-ext-authz:no http://echo/grpc", sees: Sees::Has("403 -", &["denied by ext_authz", "X-Ext-Authz-Check-Result:denied"]) },
            // Without that header it asks whose the call is: of the service account "default".
            Ask { client: "http://echo/grpc", sees: Sees::Has("200 v1", &["RequestHeader=X-Ext-Authz-Check-Result:allowed"]) },
            Ask { client: "http://echo/grpc-other", sees: Sees::Has("403 -", &["denied by ext_authz"]) },
            Ask { client: "--count 20 -H x-ext-authz:allow --msg hello http://echo/grpc", sees: Sees::All("200 v1") },
        ],
    },
    Case {
        name: "CORS",
        objects: "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cors}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 80}]
  rules:
  - filters: [{type: CORS, cors: {allowOrigins: ['https://*.example'], allowMethods: [PUT], allowHeaders: [x-a], exposeHeaders: [x-b], allowCredentials: true, maxAge: 60}}]
    backendRefs: [{name: echo-v1, port: 80}]
",
        says: &["httproute/cors Accepted ResolvedRefs"],
        asks: &[
            Ask {
                client: "--method OPTIONS -H Origin:https://shop.example -H Access-Control-Request-Method:PUT http://echo/",
                sees: Sees::Has(
                    "204 -",
                    &[
                        "Access-Control-Allow-Origin:https://shop.example",
                        "Access-Control-Allow-Credentials:true",
                        "Access-Control-Allow-Methods:PUT",
                        "Access-Control-Allow-Headers:x-a",
                        "Access-Control-Max-Age:60",
                    ],
                ),
            },
            Ask {
                client: "-H Origin:https://shop.example http://echo/",
                sees: Sees::Has("200 v1", &["Access-Control-Allow-Origin:https://shop.example", "Access-Control-Expose-Headers:x-b"]),
            },
        ],
    },
    Case {
        name: "TLSRoutes by the server that is asked for",
        objects: "
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: wide}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 443}]
  hostnames: ['*.example']
  rules: [{backendRefs: [{name: echo-v2, port: 443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: narrow}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 443}]
  hostnames: [a.example]
  rules: [{backendRefs: [{name: echo-v1, port: 443}]}]
",
        says: &["tlsroute/wide Accepted ResolvedRefs", "tlsroute/narrow Accepted ResolvedRefs"],
        asks: &[
            Ask { client: "-k --server-name a.example https://echo/", sees: Sees::Has("200 v1", &["Sni=a.example"]) },
            Ask { client: "-k --server-name b.example https://echo/", sees: Sees::Has("200 v2", &["Sni=b.example"]) },
            Ask { client: "-k --server-name c.other --timeout 2s https://echo/", sees: Sees::All("failed") },
        ],
    },
    Case {
        name: "a TCPRoute by weight, and one whose backend is not there",
        objects: "
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: split}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 9090}]
  rules: [{backendRefs: [{name: echo-v1, port: 9090, weight: 1}, {name: echo-v2, port: 9090, weight: 3}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: broken}
spec:
  parentRefs: [{group: '', kind: Service, name: echo-v2, port: 9090}]
  rules: [{backendRefs: [{name: gone, port: 9090}]}]
",
        says: &[
            "tcproute/split Accepted ResolvedRefs",
            "tcproute/broken Accepted BackendNotFound",
        ],
        asks: &[
            Ask {
                client: "--count 100 --timeout 5s tcp://echo:9090",
                sees: Sees::Shares(&[("200 v1", 5..=50), ("200 v2", 50..=95)]),
            },
            Ask {
                client: "--timeout 5s tcp://echo-v2:9090",
                sees: Sees::All("failed"),
            },
        ],
    },
    Case {
        name: "header filters of a GRPCRoute",
        objects: "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: headers}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 7070}]
  rules:
  - filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: set}], remove: [x-removed]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-answered, value: ours}]}}
    backendRefs: [{name: echo-v2, port: 7070}]
",
        says: &["grpcroute/headers Accepted ResolvedRefs"],
        asks: &[Ask {
            client: "-H x-set:theirs -H x-removed:1 -H x-kept:1 grpc://echo:7070",
            sees: Sees::Has("200 v2", &["RequestHeader=x-set:set", "RequestHeader=x-kept:1", "ResponseHeader=x-answered:ours"]),
        }],
    },
    Case {
        name: "paths after rewrites, redirects without backends",
        objects: "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: paths}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 80}]
  rules:
  - matches: [{path: {value: /old}}]
    filters: [{type: URLRewrite, urlRewrite: {hostname: new.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /full}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /all}}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: there.example, statusCode: 308, path: {type: ReplacePrefixMatch, replacePrefixMatch: /here}}}]
",
        says: &["httproute/paths Accepted ResolvedRefs"],
        asks: &[
            Ask { client: "http://echo/old/a?b=c", sees: Sees::Has("200 v1", &["URL=/new/a?b=c", "Host=new.example"]) },
            Ask { client: "http://echo/full/a", sees: Sees::Has("200 v1", &["URL=/all"]) },
            Ask { client: "http://echo/moved/a", sees: Sees::Has("308 -", &["Location:http://there.example/here/a"]) },
            // No rule matches: never the Service itself.
            Ask { client: "http://echo/older", sees: Sees::Has("404 -", &["Outrigger-Error:no-route"]) },
        ],
    },
    Case {
        name: "an unresolved backend takes its share, and a Service without endpoints says so",
        objects: "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: broken}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 80}]
  rules:
  - matches: [{path: {value: /half}}]
    backendRefs: [{name: echo-v1, port: 80}, {name: gone, port: 80}]
  - matches: [{path: {value: /nobody}}]
    backendRefs: [{name: nobody, port: 80}]
  - matches: [{path: {value: /none}}]
    backendRefs: []
",
        says: &["httproute/broken Accepted BackendNotFound"],
        asks: &[
            Ask { client: "--count 100 http://echo/half", sees: Sees::Shares(&[("200 v1", 25..=75), ("500 -", 25..=75)]) },
            Ask { client: "http://echo/nobody", sees: Sees::Has("503 -", &["Outrigger-Error:no-endpoints"]) },
            Ask { client: "http://echo/none", sees: Sees::Has("500 -", &["Outrigger-Error:invalid-backend"]) },
        ],
    },
    Case {
        name: "rules that overlap: the most specific, then the oldest",
        objects: "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: a-wide}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 80}]
  rules:
  - backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {value: /p}}]
    backendRefs: [{name: echo-v1, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: b-narrow}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 80}]
  rules:
  - matches: [{path: {value: /p}}]
    backendRefs: [{name: echo-v2, port: 80}]
  - matches: [{path: {value: /p/longer}}]
    backendRefs: [{name: echo-v2, port: 80}]
  - matches: [{path: {type: Exact, value: /p/longer/exact}}]
    backendRefs: [{name: echo-v3, port: 80}]
  - matches: [{path: {value: /p/longer}, headers: [{name: x-v, value: '3'}]}]
    backendRefs: [{name: echo-v3, port: 80}]
",
        says: &["httproute/a-wide Accepted ResolvedRefs", "httproute/b-narrow Accepted ResolvedRefs"],
        asks: &[
            Ask { client: "http://echo/", sees: Sees::All("200 v1") },
            Ask { client: "http://echo/p", sees: Sees::All("200 v1") },
            Ask { client: "http://echo/p/longer", sees: Sees::All("200 v2") },
            Ask { client: "http://echo/p/longer/exact", sees: Sees::All("200 v3") },
            Ask { client: "-H x-v:3 http://echo/p/longer", sees: Sees::All("200 v3") },
        ],
    },
    Case {
        name: "kinds that give way, and routes that are not in force",
        objects: "
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: gives-way}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 80}]
  rules: [{backendRefs: [{name: echo-v2, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: holds}
spec:
  parentRefs: [{group: '', kind: Service, name: echo, port: 80}]
  rules: [{backendRefs: [{name: echo-v3, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: no-parent}
spec:
  parentRefs: [{group: '', kind: Service, name: nothing, port: 80}]
  rules: [{backendRefs: [{name: echo-v2, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: no-filter}
spec:
  parentRefs: [{group: '', kind: Service, name: echo-v2, port: 80}]
  rules:
  - filters: [{type: ExtensionRef, extensionRef: {group: example.com, kind: Auth, name: a}}]
    backendRefs: [{name: echo-v2, port: 80}]
",
        says: &[
            "tcproute/gives-way Conflicted ResolvedRefs",
            "httproute/holds Accepted ResolvedRefs",
            "httproute/no-parent NoMatchingParent ResolvedRefs",
            "httproute/no-filter UnsupportedValue ResolvedRefs",
        ],
        asks: &[
            Ask { client: "http://echo/", sees: Sees::All("200 v3") },
            // A filter must not be skipped.
            Ask { client: "http://echo-v2/", sees: Sees::Has("500 -", &["Outrigger-Error:invalid-backend"]) },
        ],
    },
];
