//! Crates that are not as is written, and some that are: the test of the test.

use std::collections::BTreeMap;
use std::path::Path;

use super::modules::read;
use super::order::{Layers, lists};

const LAYERS: &str = "low other < high";
const ROOT: (&str, &str) = ("lib.rs", "mod low; mod other; pub mod high;");

/// Everything that is wrong with a crate of these files.
fn problems(files: &[(&str, &str)], layers: &str) -> Vec<String> {
    let files: BTreeMap<_, _> = files.iter().copied().collect();
    let text = |file: &Path| files.get(file.to_str().unwrap()).map(|text| (*text).to_owned());
    match read("fixture", Path::new("lib.rs"), &text) {
        Ok(modules) => Layers::parse(layers).problems(&modules),
        Err(problem) => vec![problem],
    }
}

/// The same, where `high` knows `low`, and `low` has this code.
fn with_low(code: &str) -> Vec<String> {
    let files = [
        ROOT,
        ("low.rs", code),
        ("other.rs", ""),
        ("high.rs", "pub fn f() { crate::low::f() }"),
    ];
    problems(&files, LAYERS)
}

#[test]
fn arrows_against_the_order_are_found_however_they_are_written() {
    for code in [
        "use crate::high::F;",
        "use crate::{other::G, high};",
        "use crate::{\n    other,\n    high::{self, F},\n};",
        "use super::high;",
        "use super::{high::F};",
        "use self::super::high;",
        "use fixture::high;",
        "pub(crate) use crate::high::F as G;",
        "fn f(x: crate::high::F) {}",
        "fn f() -> Vec<Option<crate::high::F>> { Vec::new() }",
        "fn f() { super::high::f() }",
        "fn f() { use crate::high::f; f() }",
        "fn f() { println!(\"{}\", crate::high::f()) }",
        "macro_rules! m { () => { $crate::high::f() } }",
        "impl crate::high::T for u8 {}",
        "#[derive(Serialize)] struct S { #[serde(with = \"crate::high\")] f: u8 }",
        "mod inner { use super::super::high; }",
        "mod inner { mod more { fn f() { super::super::super::high::f() } } }",
        "#[cfg(test)] mod tests { use crate::high::f; }\nuse crate::high::F;",
        "#[cfg(test)] const N: Vec<(u8, u8)> = Vec::new(); fn f() { crate::high::f() }",
        "struct S { #[cfg(test)] a: Option<u8>, b: crate::high::F }",
        "#[cfg(not(test))] use crate::high::F;",
    ] {
        let circle = "low must not know high (low.rs): a circle: low → high → low";
        let found = with_low(code);
        assert!(found.iter().any(|problem| problem == circle), "{code}: {found:?}");
    }
    let same_layer = ["low must not know other (low.rs): it is not in a lower layer"];
    assert_eq!(with_low("use crate::other;"), same_layer);
}

#[test]
fn arrows_are_found_in_files_below() {
    for (file, inner) in [
        ("low/inner.rs", "mod inner;"),
        ("low/inner/mod.rs", "mod inner;"),
        ("elsewhere.rs", "#[path = \"elsewhere.rs\"] mod inner;"),
    ] {
        let files = [
            ROOT,
            ("low.rs", inner),
            (file, "fn f() { super::super::high::f() }"),
            ("other.rs", ""),
            ("high/mod.rs", ""),
        ];
        let found = problems(&files, LAYERS);
        assert_eq!(
            found,
            [format!("low must not know high ({file}): it is not in a lower layer")]
        );
    }
}

#[test]
fn a_long_circle_is_shown_whole() {
    let files = [
        ROOT,
        ("low.rs", "use crate::high::F;"),
        ("high.rs", "use crate::other::F;"),
        ("other.rs", "use crate::low::F;"),
    ];
    let found = problems(&files, LAYERS);
    let circle = "a circle: low → high → other → low";
    assert!(found.iter().any(|problem| problem.ends_with(circle)), "{found:?}");
}

/// `pub use` at the root is a way around no more than a path is.
#[test]
fn what_the_root_has_out_of_a_module_is_of_that_module() {
    for root in [
        "pub use high::F;",
        "pub use crate::high::{G as F};",
        "pub use self::high::inner::F;",
    ] {
        let root = format!("mod low; mod high; {root}");
        for code in ["use crate::F;", "fn f() -> super::F { todo!() }"] {
            let files = [("lib.rs", root.as_str()), ("low.rs", code), ("high.rs", "")];
            let found = problems(&files, "low < high");
            assert_eq!(
                found,
                ["low must not know high (low.rs): it is not in a lower layer"],
                "{root} {code}"
            );
        }
    }
}

#[test]
fn what_hides_where_a_name_comes_from_is_refused() {
    for code in [
        "use crate::*;",
        "use super::*;",
        "use crate::{*};",
        "use crate as root;",
        "use super as root;",
    ] {
        let found = with_low(code);
        assert!(
            matches!(&found[..], [one] if one.contains("hides")),
            "{code}: {found:?}"
        );
    }
    let found = problems(&[("lib.rs", "mod low; pub use low::*;"), ("low.rs", "")], "low");
    assert!(matches!(&found[..], [one] if one.contains("hides")), "{found:?}");
}

#[test]
fn what_is_as_it_is_written_is_let_be() {
    for code in [
        "",
        "//! As [`crate::high`] says.\n\n/// See `crate::high::f`.\nfn f() {}",
        "fn f() { println!(\"see crate::high\") }",
        "#[cfg(test)]\nmod tests { use crate::high::f; }",
        "#[cfg(test)]\nmod tests;",
        "#[cfg(test)] use crate::high::{f, g};",
        "#[cfg(test)] fn f(x: &crate::high::F) -> Vec<u8> { crate::high::f() }",
        "struct S; impl S { #[cfg(test)] fn f() { crate::high::f() } }",
        "#[cfg(all(test, unix))] use crate::high::f;",
        "pub(crate) mod inner { pub(in crate::low) fn f() {} pub(super) fn g() { super::f(); self::f() } } fn f() {}",
        "use other_crate::high; fn f() { other_crate::crate_::high() }",
    ] {
        assert_eq!(with_low(code), [""; 0], "{code}");
    }
}

#[test]
fn every_module_has_a_layer() {
    let files = [
        ("lib.rs", "mod low; mod high {} #[cfg(test)] mod testing;"),
        ("low.rs", ""),
    ];
    let found = problems(&files, "low < gone");
    assert_eq!(found, ["high is in no layer", "gone has a layer, and is not there"]);
}

#[test]
fn lists_are_read_out_of_a_document() {
    let document = "# A\n\n### B\n\ntext\n\n```\none: a b\ntwo:\n```\n\n### C\n\n```\nthree: c\n```\n";
    let list = lists(document, "### B").unwrap();
    assert_eq!(
        list.into_iter().collect::<Vec<_>>(),
        [("one".to_owned(), "a b".to_owned()), ("two".to_owned(), String::new())]
    );
    assert!(lists(document, "### D").is_err());
}
