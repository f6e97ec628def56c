//! h2spec, a client that sends what it should not, against the listeners of sidecars.

use std::net::SocketAddr;

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_tests::mesh::text;
use tokio::net::TcpListener;

use super::{Way, authority, program};

/// What does not begin like HTTP/2 is answered in HTTP/1.1 with 400 and a close where the port is said to be HTTP, and is the
/// app's where nothing is said, which resets it. This h2spec takes neither for a close. In a mesh connection it passes: only
/// HTTP/2 can be there.
const IN_PLAINTEXT: &[&str] = &["http2/3.5: Sends invalid connection preface"];

/// How a case ended.
#[derive(Debug)]
struct Case {
    /// Section and description.
    name: String,
    /// `None`: it passed or was skipped.
    failure: Option<String>,
    skipped: bool,
}

/// The cases of a JUnit report as h2spec writes it. The text of a failure is not escaped there, so it is no XML for a parser.
fn cases(report: &str) -> Vec<Case> {
    let attribute = |case: &str, name: &str| {
        let value = case
            .split_once(&format!("{name}=\""))
            .unwrap()
            .1
            .split_once('"')
            .unwrap()
            .0;
        let plain = [
            ("&#34;", "\""),
            ("&#39;", "'"),
            ("&lt;", "<"),
            ("&gt;", ">"),
            ("&amp;", "&"),
        ];
        plain
            .iter()
            .fold(value.to_owned(), |text, (from, to)| text.replace(from, to))
    };
    let parse = |case: &str| {
        let failure = case.split_once("<error>").or_else(|| case.split_once("<failure>"));
        Case {
            name: format!("{}: {}", attribute(case, "package"), attribute(case, "classname")),
            failure: failure.map(|(_, text)| text.split("</").next().unwrap().to_owned()),
            skipped: case.contains("<skipped"),
        }
    };
    report.split("<testcase ").skip(1).map(parse).collect()
}

/// Runs all cases; `known` are those that fail, as they should.
async fn run(way: Way, known: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report.xml");
    let output = program("h2spec")
        .args(["--strict", "--host", "127.0.0.1", "--port"])
        .arg(way.to.port().to_string())
        .arg("--junit-report")
        .arg(&report)
        .output();
    let output = output.await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let report = std::fs::read_to_string(&report).unwrap_or_else(|e| panic!("h2spec makes no report: {e}\n{said}"));
    let cases = cases(&report);
    let count = |wanted: &dyn Fn(&Case) -> bool| cases.iter().filter(|case| wanted(case)).count();
    let (skipped, failed) = (count(&|c| c.skipped), count(&|c| c.failure.is_some()));
    println!(
        "{}: {} cases, {failed} failed, {skipped} skipped",
        way.name,
        cases.len()
    );
    let unexpected: Vec<&Case> = cases
        .iter()
        .filter(|case| case.failure.is_some() != known.contains(&case.name.as_str()))
        .collect();
    assert!(unexpected.is_empty(), "not as expected: {unexpected:#?}\n{said}");
}

/// An app that speaks HTTP/2 and nothing else.
async fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = async |request: Request<Incoming>| {
        // hyper leaves it to the app that HEAD has no content.
        let head = request.method() == Method::HEAD;
        request.into_body().collect().await?;
        Ok::<_, hyper::Error>(Response::new(text(if head {
            ""
        } else {
            "longer than the windows of some cases"
        })))
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(connection.serve_connection(TokioIo::new(stream), service_fn(answer)));
        }
    });
    address
}

#[tokio::test]
#[ignore = "needs h2spec and the gRPC interop programs"]
async fn outbound() {
    let (authority, app) = (authority().await, app().await);
    run(Way::through_two(&authority, app).await, IN_PLAINTEXT).await;
}

#[tokio::test]
#[ignore = "needs h2spec and the gRPC interop programs"]
async fn inbound_in_plaintext() {
    let (authority, app) = (authority().await, app().await);
    run(Way::inside(&authority, app).await, IN_PLAINTEXT).await;
}

#[tokio::test]
#[ignore = "needs h2spec and the gRPC interop programs"]
async fn inbound_in_mutual_tls() {
    let (authority, app) = (authority().await, app().await);
    run(Way::inside_tls(&authority, app).await, &[]).await;
}
