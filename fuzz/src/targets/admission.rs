//! The review that kube-apiserver sends, with whatever pod somebody has written.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Pod;
use outrigger_injector::inject::{self, Given, NamespaceMeta, Outcome};
use outrigger_injector::review;
use outrigger_injector::settings::Settings;
use serde_json::Value;

/// A sidecar in JSON, in base64, with all that a pod's annotations may add for it, is smaller.
const MAX_ADDED: usize = 32 * 1024;

/// Any body.
pub fn run(body: &[u8]) {
    let mut request = match review::parse(body) {
        Ok(request) => request,
        Err(why) => {
            assert!(why.len() <= 1000 + 6 * body.len());
            return;
        }
    };
    let pod = match request.pod() {
        Ok(Some(pod)) => pod,
        Ok(None) => return check(&review::allow(&request.uid), &request.uid, body),
        Err(_) => return,
    };
    let namespace = NamespaceMeta {
        name: request.namespace.clone(),
        labels: [("outrigger.dev/inject".to_owned(), "enabled".to_owned())].into(),
        ..NamespaceMeta::default()
    };
    let settings = Settings::default();
    let given = Given {
        key: "key",
        roots: Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        controller: None,
    };
    let decision = inject::patch(&pod, &namespace, &settings, given);
    if let Ok(Outcome::Patched { patch, .. }) = &decision {
        let mut document = serde_json::to_value(&pod).expect("a pod is JSON");
        json_patch::patch(&mut document, patch).expect("the patch fits the pod");
        let patched: Pod = serde_json::from_value(document).expect("it is still a pod");
        let again = inject::patch(&patched, &namespace, &settings, given);
        assert_eq!(again, Ok(Outcome::AlreadyInjected), "a second time");
    }
    let answer = review::answer_to(&request.uid, &decision);
    let patch: Option<ByteString> =
        serde_json::from_value(answer["response"]["patch"].clone()).expect("base64 or nothing");
    if let Some(patch) = patch {
        let operations: Vec<Value> = serde_json::from_slice(&patch.0).expect("a list");
        assert!(
            operations.iter().all(only_adds_or_rewrites),
            "the rest of the pod is never rewritten"
        );
    }
    check(&answer, &request.uid, body)
}

/// What kubelet asks, and what the sidecar is told of it, is all that is rewritten.
fn only_adds_or_rewrites(operation: &Value) -> bool {
    let path = operation["path"].as_str().unwrap_or_default();
    let asks = ["/httpGet", "/tcpSocket", "/grpc"]
        .iter()
        .any(|action| path.ends_with(action));
    operation["op"] == "add" || asks || path.contains("/env/")
}

fn check(answer: &Value, uid: &str, body: &[u8]) {
    assert_eq!(
        (&answer["apiVersion"], &answer["kind"]),
        (&"admission.k8s.io/v1".into(), &"AdmissionReview".into())
    );
    let response = &answer["response"];
    assert_eq!(response["uid"], uid);
    assert!(response["allowed"].is_boolean());
    let length = answer.to_string().len();
    assert!(
        length <= MAX_ADDED + 12 * body.len(),
        "{length} bytes for a review of {}",
        body.len()
    );
}
