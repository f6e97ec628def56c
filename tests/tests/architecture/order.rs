//! What ARCHITECTURE.md says of who may know whom, and whether the arrows keep to it.

use std::collections::{BTreeMap, BTreeSet};

use super::modules::{Arrow, Modules};

/// The lists of ARCHITECTURE.md: those of one section, `name: …` a line in a block of code.
///
/// # Errors
/// Where there is no such list.
pub(super) fn lists(document: &str, section: &str) -> Result<BTreeMap<String, String>, String> {
    let (_, behind) = document
        .split_once(&format!("\n{section}\n"))
        .ok_or_else(|| format!("no {section:?}"))?;
    let block = behind
        .split("```")
        .nth(1)
        .ok_or_else(|| format!("no block behind {section:?}"))?;
    let lines = block.lines().skip(1).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let (name, list) = line.split_once(':').ok_or_else(|| format!("no name: {line:?}"))?;
            Ok((name.to_owned(), list.trim().to_owned()))
        })
        .collect()
}

/// The layers of a crate's modules. A module knows those of lower layers only.
pub(super) struct Layers(BTreeMap<String, usize>);

impl Layers {
    /// From `low_a low_b < middle < high`.
    pub(super) fn parse(text: &str) -> Self {
        let layers = text.split('<').enumerate();
        Self(
            layers
                .flat_map(|(height, names)| names.split_whitespace().map(move |name| (name.to_owned(), height)))
                .collect(),
        )
    }

    /// Everything in which the modules of a crate are not as is said here.
    pub(super) fn problems(&self, modules: &Modules) -> Vec<String> {
        let named: BTreeSet<&String> = self.0.keys().collect();
        let there: BTreeSet<&String> = modules.names.iter().collect();
        let mut problems: Vec<String> = there
            .difference(&named)
            .map(|name| format!("{name} is in no layer"))
            .chain(
                named
                    .difference(&there)
                    .map(|name| format!("{name} has a layer, and is not there")),
            )
            .collect();
        let wrong = modules
            .arrows
            .iter()
            .filter(|arrow| self.0.get(&arrow.to) >= self.0.get(&arrow.from));
        problems.extend(wrong.map(|arrow| describe(arrow, &modules.arrows)));
        problems
    }
}

fn describe(Arrow { from, to, file }: &Arrow, arrows: &BTreeSet<Arrow>) -> String {
    let back = match way(to, from, arrows) {
        Some(way) => format!("a circle: {from} → {}", way.join(" → ")),
        None => "it is not in a lower layer".to_owned(),
    };
    format!("{from} must not know {to} ({}): {back}", file.display())
}

/// The shortest way from one module to another, with both ends.
fn way<'a>(from: &'a str, to: &str, arrows: &'a BTreeSet<Arrow>) -> Option<Vec<&'a str>> {
    let mut ways = vec![vec![from]];
    let mut seen = BTreeSet::from([from]);
    for at in 0.. {
        let way = ways.get(at)?.clone();
        let last = *way.last()?;
        if last == to {
            return Some(way);
        }
        for next in arrows.iter().filter(|arrow| arrow.from == last) {
            if seen.insert(&next.to) {
                ways.push([way.as_slice(), &[next.to.as_str()]].concat());
            }
        }
    }
    None
}
