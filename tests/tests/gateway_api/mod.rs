//! Gateway API on a real cluster: the tests for meshes of its own conformance suite, whose report is docs/gateway-api-conformance.yaml, and a table of
//! what that suite leaves out.
//!
//! `tests/cluster/build gateway-api-conformance` makes the program and the image of its pods.

mod cases;
mod own;
mod recipes;
mod sessions;
mod tls;
mod verdict;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrigger_api::labels;
use outrigger_tests::cluster::{Cluster, INSTALL_NAMESPACE, on_cluster, repository, rolled_out};
use tokio::process::Command;
use verdict::Record;

/// What Outrigger supports, as far as a test for meshes needs it. The suite skips the tests of what is not said here.
const FEATURES: [&str; 17] = [
    "Mesh",
    "HTTPRoute",
    "GRPCRoute",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteNamedRouteRule",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteParentRefPort",
];
const DOCUMENT: &str = "docs/gateway-api-conformance.yaml";

#[test]
#[ignore = "needs root and a cluster"]
fn every_mesh_test_of_the_suite_passes() -> Result<()> {
    on_cluster(Duration::from_secs(1000), async |cluster| {
        install_crds(&cluster).await?;
        cluster.install().await?;
        rolled_out(&cluster.admin.namespace(INSTALL_NAMESPACE), "deployment").await?;

        let logs = repository().join("target/test-logs");
        std::fs::create_dir_all(&logs)?;
        let record = run_suite(&logs).await?;
        println!("passed:\n{}", record.passed().join("\n"));

        let found = logs.join("gateway-api-conformance.yaml");
        std::fs::write(&found, record.document())?;
        let documented = Record::from_document(&std::fs::read_to_string(repository().join(DOCUMENT))?)?;
        ensure!(
            record.says_the_same_as(&documented),
            "{DOCUMENT} says something else than {}, which is what the suite says now",
            found.display()
        );
        Ok(())
    })
}

/// All of one version and channel, which the suite asks for, and without the admission policy beside them that forbids to go
/// back to another channel.
async fn install_crds(cluster: &Cluster) -> Result<()> {
    let folder = std::env::var("OUTRIGGER_GATEWAY_API").context("OUTRIGGER_GATEWAY_API; tests/run sets it")?;
    let folder = Path::new(&folder).join("experimental");
    let mut apply = vec!["apply".to_owned(), "--server-side".to_owned()];
    for file in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = file?.path();
        if std::fs::read_to_string(&path)?.contains("\nkind: CustomResourceDefinition\n") {
            apply.extend(["-f".to_owned(), path.display().to_string()]);
        }
    }
    cluster.admin.run(apply).await?;
    for kind in ["httproutes", "grpcroutes", "tlsroutes", "tcproutes"] {
        let crd = format!("{kind}.gateway.networking.k8s.io");
        cluster.admin.wait_for_crd(&crd).await?;
    }
    Ok(())
}

/// Runs the suite against the cluster of `KUBECONFIG`. Its output is in a file of `logs`, and printed where it ends badly.
async fn run_suite(logs: &Path) -> Result<Record> {
    let output = logs.join("gateway-api-suite.log");
    let report = logs.join("gateway-api-report.yaml");
    if report.exists() {
        std::fs::remove_file(&report)?; // an earlier run's
    }
    let file = std::fs::File::create(&output)?;
    let status = Command::new("gateway-api-conformance")
        .args(arguments(&report))
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .kill_on_drop(true)
        .status()
        .await
        .context("gateway-api-conformance: tests/cluster/build gateway-api-conformance makes it, and tests/run puts it on the PATH")?;
    let output = std::fs::read_to_string(&output)?;
    if !status.success() {
        println!("{output}");
    }
    let report =
        std::fs::read_to_string(&report).with_context(|| format!("the suite ended with {status} and no report"))?;
    let record = Record::new(&output, &report)?;
    record.ensure_all_passed()?;
    ensure!(status.success(), "the suite ended with {status}");
    Ok(record)
}

fn arguments(report: &Path) -> Vec<String> {
    let home = "https://github.com/outrigger-mesh/outrigger";
    vec![
        "-test.v".to_owned(),
        // The package has tests of itself too.
        "-test.run=^TestConformance$".to_owned(),
        "-test.timeout=14m".to_owned(),
        "--conformance-profiles=MESH-HTTP,MESH-GRPC".to_owned(),
        format!("--namespace-labels={}={}", labels::INJECT, labels::ENABLED),
        format!("--supported-features={}", FEATURES.join(",")),
        "--organization=outrigger-mesh".to_owned(),
        "--project=outrigger".to_owned(),
        format!("--url={home}"),
        format!("--contact={home}/issues"),
        format!("--version=v{}", env!("CARGO_PKG_VERSION")),
        format!("--report-output={}", report.display()),
    ]
}
