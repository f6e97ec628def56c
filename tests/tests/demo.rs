//! The demo, as its user runs it: the built programs, without root and without a cluster.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The whole command line, and what the README's first command builds.
const PROGRAMS: [&str; 2] = ["outrigger", "outrigger-demo"];

/// A program that `cargo build` left beside this test, or that is in the folder `OUTRIGGER_BINARIES`.
pub(crate) fn built(program: &str) -> Command {
    let beside = || {
        let test = std::env::current_exe().unwrap(); // target/<profile>/deps/layers-<hash>
        test.parent().unwrap().parent().unwrap().to_owned()
    };
    let folder = std::env::var_os("OUTRIGGER_BINARIES").map_or_else(beside, PathBuf::from);
    let file = folder.join(program);
    assert!(
        file.exists(),
        "{} is not there: run `cargo build -p {program}` before",
        file.display()
    );
    Command::new(file)
}

fn outrigger() -> Command {
    built("outrigger-demo")
}

fn demo(arguments: &[&str]) -> (Output, Value) {
    let output = outrigger().arg("demo").args(arguments).output().unwrap();
    let messages = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|error| panic!("standard output is not JSON: {error}\n{messages}"));
    (output, report)
}

#[test]
fn five_seconds_of_the_demo_are_all_well() {
    let (output, report) = demo(&["--for", "5s", "--json", "--rate", "30", "--seed", "7"]);
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{messages}");

    let number = |key: &str| {
        report[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key} is no number in {report}"))
    };
    assert!(number("requests") >= 100.0, "{report}");
    assert_eq!(number("succeeded"), number("requests"));
    assert_eq!(number("failed"), 0.0);
    assert!(number("retries") >= 5.0, "inventory fails 15 % of the time: {report}");
    assert!(
        number("p50_ms") > 0.0 && number("p50_ms") <= number("p99_ms"),
        "{report}"
    );
    assert!(number("mtls_connections") >= 4.0, "{report}");
    assert!(number("traces") >= number("requests"), "{report}");

    let trace = &report["longest_trace"];
    assert_eq!(trace["trace_id"].as_str().unwrap().len(), 32);
    let services: Vec<_> = trace["services"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s.as_str().unwrap())
        .collect();
    assert_eq!(services, ["load", "web", "orders", "inventory", "payments"]);
    check_spans(trace["spans"].as_array().unwrap());
}

/// Client and server spans of every sidecar on the way, each under the right one, and a retry.
fn check_spans(spans: &[Value]) {
    let text = |span: &Value, key: &str| span[key].as_str().unwrap_or_default().to_owned();
    let side = |span: &Value| format!("{} {}", text(span, "service"), text(span, "kind"));
    let by_id: HashMap<_, _> = spans.iter().map(|span| (text(span, "span_id"), span)).collect();
    let mut calls = Vec::new();
    for span in spans {
        assert!(
            span["duration_ms"].as_f64().unwrap() > 0.0 && !text(span, "name").is_empty(),
            "{span}"
        );
        assert!(["ok", "error"].contains(&text(span, "status").as_str()), "{span}");
        match span["parent_span_id"].as_str() {
            None => assert_eq!(side(span), "load client"),
            Some(parent) => calls.push(format!("{} > {}", side(by_id[parent]), side(span))),
        }
    }
    for call in [
        "load client > web server",
        "web server > web client",
        "web client > orders server",
        "orders server > orders client",
        "orders client > inventory server",
        "orders client > payments server",
    ] {
        assert!(calls.iter().any(|c| c == call), "no {call} in {calls:?}");
    }
    let attempts = calls
        .iter()
        .filter(|call| *call == "orders server > orders client")
        .count();
    assert!(attempts >= 3, "the longest trace has a retry: {calls:?}");
    assert!(spans.iter().any(|span| text(span, "status") == "error"));
}

#[test]
fn killed_or_interrupted_it_leaves_no_process() {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let directory = tempfile::tempdir().unwrap(); // a killed demo cannot clean up
        let mut demo = outrigger()
            .arg("demo")
            .env("TMPDIR", directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(demo.id()).unwrap();
        let children = eventually("ten children", || {
            Some(children(pid)).filter(|children| children.len() == 10)
        });
        kill(Pid::from_raw(pid), signal).unwrap();
        demo.wait().unwrap();
        eventually("their end", || children.iter().all(|child| !runs(*child)).then_some(()));
        let left = std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, usize::from(signal == Signal::SIGKILL));
    }
}

#[test]
fn mistakes_are_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (arguments, mistake) in [
        (["--for", "soon"], "\"soon\" is not a duration"),
        (["--otlp", "localhost:4317"], "--otlp takes the URL"),
        (["--rate", "0"], "the rate is a number from 0.01"),
        (
            ["--page-port", &port],
            &format!("--page-port {port}: cannot listen there"),
        ),
    ] {
        for program in PROGRAMS {
            let told = refused(program, &[&["demo"], &arguments[..]].concat());
            assert!(told.contains(mistake), "{program}: {told}");
        }
    }
}

#[test]
fn the_demo_by_itself_says_where_the_other_commands_are() {
    let told = refused("outrigger-demo", &["inject", "--filename", "pods.yaml"]);
    let command = "cargo run --release -p outrigger -- inject --filename pods.yaml";
    assert!(told.contains(command), "{told}");
}

/// What the program says when it fails.
fn refused(program: &str, arguments: &[&str]) -> String {
    let output = built(program).args(arguments).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn children(pid: i32) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// A zombie does not run.
fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|state| !"ZX".contains(state))
}
