//! What a run of the suite says, and whether it is what the document says.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// How many tests for meshes the suite has, at the version that tests/cluster pins.
const MESH_TESTS: usize = 22;
const PROFILES: [&str; 2] = ["MESH-GRPC", "MESH-HTTP"];
const HEAD: &str = "\
# Gateway API's conformance suite on Outrigger: these tests, and what the suite reports. `tests/run gateway-api` compares this
# file with what it finds, and writes what it finds to target/test-logs/gateway-api-conformance.yaml. The suite counts a test in
# a profile only where all features of the test are the profile's; so sixteen of these tests are counted below.
#
";

/// A run's tests, and its report.
#[derive(Debug)]
pub(crate) struct Record {
    passed: BTreeSet<String>,
    /// Failed, or a test for meshes that was skipped; each with what the suite says of it.
    not_passed: Vec<String>,
    /// The report as the suite wrote it.
    text: String,
    report: Value,
}

impl Record {
    /// From the output of `go test -v` and the report.
    ///
    /// # Errors
    /// When the report is not YAML.
    pub(crate) fn new(output: &str, report: &str) -> Result<Self> {
        let mut passed = BTreeSet::new();
        let mut not_passed = Vec::new();
        for (outcome, name) in output.lines().filter_map(outcome) {
            match outcome {
                "PASS" => drop(passed.insert(name.to_owned())),
                // The tests for Gateways: their features are not said to be supported.
                "SKIP" if !name.starts_with("Mesh") => {}
                _ => not_passed.push(format!("{outcome} {name}")),
            }
        }
        Ok(Self {
            passed,
            not_passed,
            text: report.to_owned(),
            report: serde_saphyr::from_str(report).context("the suite's report is not YAML")?,
        })
    }

    /// The reverse of [`Record::document`].
    ///
    /// # Errors
    /// When it is not YAML.
    pub(crate) fn from_document(text: &str) -> Result<Self> {
        let names = text.lines().filter_map(|line| line.strip_prefix("# - "));
        Ok(Self {
            passed: names.map(str::to_owned).collect(),
            not_passed: Vec::new(),
            text: text.to_owned(),
            report: serde_saphyr::from_str(text).context("the document is not YAML")?,
        })
    }

    /// What the file in docs/ should be.
    pub(crate) fn document(&self) -> String {
        let names: String = self.passed.iter().map(|name| format!("# - {name}\n")).collect();
        format!("{HEAD}{names}{}", self.text)
    }

    /// The names of the tests that passed.
    pub(crate) fn passed(&self) -> Vec<&str> {
        self.passed.iter().map(String::as_str).collect()
    }

    /// # Errors
    /// When a test failed, a test for meshes was skipped, there are not as many as the suite has, or the report's own counts
    /// say otherwise.
    pub(crate) fn ensure_all_passed(&self) -> Result<()> {
        ensure!(self.not_passed.is_empty(), "not passed: {:?}", self.not_passed);
        ensure!(
            self.passed.len() == MESH_TESTS,
            "{} tests passed, and there are {MESH_TESTS}: {:?}",
            self.passed.len(),
            self.passed
        );
        let profiles = self.profiles();
        let names: Vec<&Value> = profiles.iter().map(|profile| &profile["name"]).collect();
        ensure!(names == PROFILES, "the report has the profiles {names:?}");
        for profile in profiles {
            for level in [Some(&profile["core"]), profile.get("extended")].into_iter().flatten() {
                let counts = &level["statistics"];
                ensure!(
                    level["result"] == "success" && counts["Failed"] == 0 && counts["Skipped"] == 0,
                    "{} is not a success: {level}",
                    profile["name"]
                );
            }
        }
        Ok(())
    }

    /// Whether the same tests passed with the same results; the day of the run and the version of Outrigger may differ.
    pub(crate) fn says_the_same_as(&self, other: &Self) -> bool {
        self.passed == other.passed && self.timeless() == other.timeless()
    }

    fn timeless(&self) -> Value {
        let mut report = self.report.clone();
        report["date"].take();
        report["implementation"]["version"].take();
        report["profiles"] = self.profiles().into_iter().cloned().collect();
        report
    }

    /// In an order that is always the same; the suite writes them in any.
    fn profiles(&self) -> Vec<&Value> {
        let mut profiles: Vec<&Value> = self.report["profiles"].as_array().into_iter().flatten().collect();
        profiles.sort_by_key(|profile| profile["name"].as_str());
        profiles
    }
}

/// "    --- PASS: TestConformance/MeshBasic (1.23s)"; what is further in is a part of a test.
fn outcome(line: &str) -> Option<(&str, &str)> {
    let (outcome, rest) = line.strip_prefix("    --- ")?.split_once(": TestConformance/")?;
    let (name, _) = rest.split_once(' ')?;
    Some((outcome, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(passed: usize, more: &str) -> String {
        let lines = (0..passed).map(|n| format!("    --- PASS: TestConformance/Mesh{n} (0.10s)\n"));
        let parts = "        --- PASS: TestConformance/Mesh0/a_part (0.10s)\n    --- SKIP: TestConformance/HTTPRouteWeight (0.00s)\n";
        lines.collect::<String>() + parts + more
    }

    fn report(statistics: &str) -> String {
        let status = format!("{{result: success, statistics: {statistics}}}");
        format!(
            "date: \"2026-01-01\"\nimplementation: {{version: v1}}\nprofiles:\n\
             - {{name: MESH-HTTP, core: {status}, extended: {status}}}\n- {{name: MESH-GRPC, core: {status}}}\n"
        )
    }

    fn verdict(output: &str, report: &str) -> Result<()> {
        Record::new(output, report)?.ensure_all_passed()
    }

    const GOOD: &str = "{Failed: 0, Passed: 3, Skipped: 0}";

    #[test]
    fn all_must_pass() {
        verdict(&output(MESH_TESTS, ""), &report(GOOD)).unwrap();
        verdict(&output(MESH_TESTS - 1, ""), &report(GOOD)).unwrap_err();
        for bad in [
            "FAIL: TestConformance/MeshBasic",
            "SKIP: TestConformance/MeshBasic",
            "FAIL: TestConformance/Other",
        ] {
            let more = format!("    --- {bad} (0.00s)\n");
            verdict(&output(MESH_TESTS, &more), &report(GOOD)).unwrap_err();
        }
    }

    #[test]
    fn the_report_must_say_so_too() {
        let all = output(MESH_TESTS, "");
        for bad in [
            "{Failed: 1, Passed: 3, Skipped: 0}",
            "{Failed: 0, Passed: 3, Skipped: 1}",
            "{}",
        ] {
            verdict(&all, &report(bad)).unwrap_err();
        }
        verdict(&all, &report(GOOD).replace("success", "partial")).unwrap_err();
        verdict(&all, &report(GOOD).replace("MESH-GRPC", "GATEWAY-GRPC")).unwrap_err();
        verdict(&all, "profiles: []").unwrap_err();
    }

    #[test]
    fn a_document_says_what_the_run_said() {
        let run = Record::new(&output(MESH_TESTS, ""), &report(GOOD)).unwrap();
        let same = |text: &str| run.says_the_same_as(&Record::from_document(text).unwrap());
        let document = run.document();
        assert!(same(&document));
        assert!(same(&document.replace("2026-01-01", "2027-01-01").replace("v1", "v2")));
        assert!(!same(&document.replace("# - Mesh7\n", "")));
        assert!(!same(&document.replace("Passed: 3", "Passed: 4")));
        // The suite's order of profiles is any.
        let (head, profiles) = document.split_once("profiles:\n").unwrap();
        let turned: Vec<&str> = profiles.lines().rev().collect();
        assert!(same(&format!("{head}profiles:\n{}\n", turned.join("\n"))));
    }

    /// The file in docs/ by itself: nobody has to bring a cluster up to see that it is whole.
    #[test]
    fn the_document_is_whole() {
        let path = outrigger_tests::cluster::repository().join(super::super::DOCUMENT);
        let text = std::fs::read_to_string(path).unwrap();
        Record::from_document(&text).unwrap().ensure_all_passed().unwrap();
    }
}
