//! A short soak; `cargo run -p outrigger-tests --bin outrigger-soak -- --for 30m` is a long one.

use std::process::Command;

use serde_json::Value;

#[test]
fn half_a_minute_of_faults_loses_nothing() {
    let mut soak = Command::new(env!("CARGO_BIN_EXE_outrigger-soak"));
    let output = soak.args(["--for", "25s", "--seed", "1", "--json"]).output().unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    let messages = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_str(&report).unwrap_or_else(|_| panic!("{report}\n{messages}"));
    assert!(output.status.success() && report["well"] == true, "{report:#}");

    // It was a soak: every kind of request, and every kind of fault.
    let requests = report["requests"].as_object().unwrap();
    assert_eq!(requests.len(), 10);
    assert!(
        requests.values().all(|kind| kind["succeeded"].as_u64() >= Some(5)),
        "{report:#}"
    );
    for fault in [
        "kill",
        "drain",
        "app restart",
        "reset",
        "endpoint leaves",
        "delay",
        "stall",
        "controller lost",
        "controller slow",
    ] {
        assert!(report["faults"][fault].as_u64() >= Some(1), "no {fault}: {report:#}");
    }
    assert_eq!(report["sidecars"].as_array().unwrap().len(), 5);
}
