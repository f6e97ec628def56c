
/// Writes what this sidecar asks, and what it makes of the recorded answers.
#[tokio::test]
async fn record() {
    let to = std::path::PathBuf::from(std::env::var("OUTRIGGER_RECORD_TO").unwrap());
    let mut requests = Vec::new();
    for (name, address) in [
        ("orders", "10.96.0.2:80"),
        ("canary", "10.96.0.3:80"),
        ("web-db", "10.96.0.1:3306"),
        ("pod", "10.244.0.2:8080"),
        ("pod-outside-the-mesh", "10.244.0.4:8080"),
        ("external", "192.0.2.1:443"),
    ] {
        let bytes = std::fs::read(to.join(format!("{name}.target"))).unwrap();
        let mut model = super::snapshot::target(&super::convert::target(&proto::Target::decode(&bytes[..]).unwrap()));
        // Compiled patterns, of whatever regex that version has.
        let routes = model.get_mut("routes").and_then(serde_json::Value::as_array_mut);
        for route in routes.into_iter().flatten() {
            route.as_object_mut().unwrap().remove("matches");
        }
        std::fs::write(to.join(format!("{name}.json")), serde_json::to_string_pretty(&model).unwrap() + "\n").unwrap();
        requests.push((name, address));
    }
    let bytes = std::fs::read(to.join("workload")).unwrap();
    let model = super::snapshot::workload(&super::convert::workload(&proto::Workload::decode(&bytes[..]).unwrap()));
    std::fs::write(to.join("workload.json"), serde_json::to_string_pretty(&model).unwrap() + "\n").unwrap();
    // As `watch_target` and `watch_workload` of discovery/controller.rs make them.
    for (name, address) in requests {
        let request = proto::WatchTargetRequest {
            address: address.to_owned(),
            namespace: "shop".to_owned(),
            pod: "web-1".to_owned(),
        };
        std::fs::write(to.join(format!("{name}.request")), request.encode_to_vec()).unwrap();
    }
    let request = proto::WatchWorkloadRequest {
        namespace: "shop".to_owned(),
        pod: "web-1".to_owned(),
    };
    std::fs::write(to.join("workload.request"), request.encode_to_vec()).unwrap();
}
