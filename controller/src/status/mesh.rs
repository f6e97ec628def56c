//! What an XMesh's status should say.

use serde_json::{Value, json};

use super::entries::{Verdict, conditions};
use crate::objects::mesh::Mesh;

/// By the names of Gateway API's conformance suite, in the order of the alphabet.
const FEATURES: [&str; 38] = [
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteRetryBackendTimeout",
    "HTTPRouteRetryConnectionError",
    "HTTPRouteSchemeRedirect",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "TCPRoute",
    "TLSRoute",
];

/// The status as it should be. `None`: it is so already. `now` is RFC 3339.
pub(super) fn status(mesh: &Mesh, now: &str) -> Option<Value> {
    let accepted = match mesh.has_parameters {
        false => ("Accepted", "Outrigger carries out the routes whose parent is a Service"),
        true => ("InvalidParameters", "spec.parametersRef: Outrigger has no parameters"),
    };
    let verdict = Verdict::new("Accepted", accepted.0, accepted.1.to_owned());
    // The CRD's defaults have a second one, which nobody ever makes known: a list that is written takes its place.
    let conditions = conditions(&[verdict], &mesh.conditions, mesh.generation, now);
    let features = FEATURES.map(|name| json!({ "name": name })).to_vec();
    let same = conditions == mesh.conditions && features == mesh.features;
    (!same).then(|| json!({"conditions": conditions, "supportedFeatures": features}))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{FEATURES, status};
    use crate::objects::mesh::Mesh;

    #[test]
    fn it_is_written_once() {
        let mut mesh = Mesh {
            generation: 3,
            resource_version: "1".to_owned(),
            has_parameters: false,
            // As the CRD makes it.
            conditions: vec![
                json!({"type": "Accepted", "status": "Unknown", "reason": "Pending"}),
                json!({"type": "Programmed", "status": "Unknown", "reason": "Pending"}),
            ],
            features: Vec::new(),
        };
        let written = status(&mesh, "2026-01-01T00:00:00Z").unwrap();
        let conditions = written["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 1);
        let said = (
            &conditions[0]["reason"],
            &conditions[0]["status"],
            &conditions[0]["observedGeneration"],
        );
        assert_eq!(said, (&json!("Accepted"), &json!("True"), &json!(3)));
        mesh.conditions.clone_from(conditions);
        mesh.features = written["supportedFeatures"].as_array().unwrap().clone();
        assert_eq!(status(&mesh, "2026-01-02T00:00:00Z"), None);
        mesh.has_parameters = true;
        let written = status(&mesh, "2026-01-02T00:00:00Z").unwrap();
        assert_eq!(written["conditions"][0]["reason"], "InvalidParameters");
        assert_eq!(written["conditions"][0]["status"], "False");
    }

    /// The CRD asks for it, and for at most 64.
    #[test]
    fn features_are_sorted() {
        assert!(FEATURES.is_sorted() && FEATURES.len() <= 64);
    }
}
