//! `AdmissionReview` (`admission.k8s.io/v1`): as much of it as a webhook for pods needs.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Pod;
use outrigger_api::names::is_namespace;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::inject::{Outcome, Refusal};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// What kube-apiserver asks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Names the question; the answer has it too.
    pub uid: String,
    /// Of the object.
    #[serde(default)]
    pub namespace: String,
    kind: Kind,
    operation: String,
    #[serde(default)]
    sub_resource: String,
    #[serde(default)]
    object: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    #[serde(default)]
    group: String,
    kind: String,
}

/// Reads a review.
///
/// # Errors
/// Says why it is none that this webhook understands.
pub fn parse(body: &[u8]) -> Result<Request, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Review {
        api_version: String,
        kind: String,
        request: Request,
    }
    let review: Review =
        serde_json::from_slice(body).map_err(|e| format!("the body is not an AdmissionReview: {e}"))?;
    if review.api_version != API_VERSION || review.kind != KIND {
        let (version, kind) = (review.api_version, review.kind);
        return Err(format!(
            "{version} {kind} is not {API_VERSION} {KIND}: check admissionReviewVersions of the webhook"
        ));
    }
    if review.request.uid.is_empty() {
        return Err("request.uid is empty".to_owned());
    }
    Ok(review.request)
}

impl Request {
    /// The pod that is being made; `None` when something else happens, which this webhook has nothing to say about.
    ///
    /// # Errors
    /// When the object is not a pod, or the namespace is none: its name becomes part of a URL of the API server.
    pub fn pod(&mut self) -> Result<Option<Pod>, String> {
        let is_pod = self.kind.group.is_empty() && self.kind.kind == "Pod" && self.sub_resource.is_empty();
        if !is_pod || self.operation != "CREATE" {
            return Ok(None);
        }
        if !is_namespace(&self.namespace) {
            return Err(format!(
                "request.namespace {:?} is no name of a namespace",
                self.namespace
            ));
        }
        let object = self.object.take().ok_or("request.object is missing")?;
        serde_json::from_value(object)
            .map(Some)
            .map_err(|e| format!("request.object is not a pod: {e}"))
    }
}

/// Lets the object in as it is.
pub fn allow(uid: &str) -> Value {
    answer(json!({"uid": uid, "allowed": true}))
}

/// What the injector decided, as an answer.
pub fn answer_to(uid: &str, decision: &Result<Outcome, Refusal>) -> Value {
    match decision {
        Ok(Outcome::Patched { patch, warnings }) => {
            let patch = json!(patch).to_string().into_bytes();
            let mut response = json!({
                "uid": uid,
                "allowed": true,
                "patchType": "JSONPatch",
                "patch": ByteString(patch), // base64
            });
            if !warnings.is_empty() {
                response["warnings"] = json!(warnings);
            }
            answer(response)
        }
        Ok(Outcome::LeftAlone(why)) => {
            let warning = format!("Outrigger leaves this pod alone: {why}");
            answer(json!({"uid": uid, "allowed": true, "warnings": [warning]}))
        }
        Ok(_) => allow(uid),
        Err(refusal) => answer(json!({
            "uid": uid,
            "allowed": false,
            "status": {"code": 422, "reason": "Invalid", "message": refusal.to_string()},
        })),
    }
}

fn answer(response: Value) -> Value {
    json!({"apiVersion": API_VERSION, "kind": KIND, "response": response})
}
