//! Patterns of routes: what they may cost, and how they are compiled. Whoever may write a route in a namespace decides what
//! every caller's sidecar compiles, so there is a budget, and the controller and the sidecars count by the same rule.

use regex_automata::meta;
use regex_automata::util::syntax;
use regex_syntax::hir::literal::{ExtractKind, Extractor};
use regex_syntax::hir::{Hir, Look};

pub use regex_syntax::escape;

/// Bytes that one compiled pattern may take, and as many again for the cache of its lazy DFA.
pub const MAX_COMPILED: usize = 256 * 1024;
/// Patterns of one target: of all rules of all routes that hold for a Service.
pub const MAX_PATTERNS: usize = 64;
/// Bytes that the compiled patterns of one target may take together.
pub const MAX_TOTAL: usize = 2 * 1024 * 1024;

/// A pattern for a whole value.
#[derive(Clone, Debug)]
pub struct Pattern {
    compiled: meta::Regex,
    /// As it was written.
    text: Box<str>,
}

/// What a value begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// May be empty.
    pub text: Box<[u8]>,
    /// Nothing follows.
    pub is_all: bool,
}

/// What the patterns of one target may still take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    patterns: usize,
    bytes: usize,
}

/// What patterns cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// How many they are.
    pub patterns: usize,
    /// What they take when they are compiled.
    pub bytes: usize,
}

/// Why a pattern is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is no regular expression.
    #[error("it is not a regular expression that can be used: {0}")]
    Syntax(String),
    /// Compiled, it would take more than [`MAX_COMPILED`], or more than is left of [`MAX_TOTAL`].
    #[error(
        "compiled, it takes more than {} KiB, or together with the others of its target more than {} KiB",
        MAX_COMPILED / 1024,
        MAX_TOTAL / 1024
    )]
    TooLarge,
    /// There are [`MAX_PATTERNS`] of the target already.
    #[error("a target may have {MAX_PATTERNS} patterns, all routes of a Service together")]
    TooMany,
}

impl Pattern {
    /// Whether all of the value is as the pattern says. Patterns are about characters: each byte that is of none (a header may
    /// have any, RFC 9110 section 5.5) is one that no pattern names, U+FFFD.
    pub fn is_match(&self, value: &[u8]) -> bool {
        self.compiled.is_match(&*String::from_utf8_lossy(value))
    }

    /// All that a value begins with that the pattern may match. `None`: that is too much to list, or anything.
    pub fn beginnings(&self) -> Option<Vec<Beginning>> {
        let mut extractor = Extractor::new();
        extractor.kind(ExtractKind::Prefix);
        let hir = syntax::parse(&self.text).ok()?;
        let found = extractor.extract(&hir);
        let beginning = |literal: &regex_syntax::hir::literal::Literal| Beginning {
            text: literal.as_bytes().into(),
            is_all: literal.is_exact(),
        };
        Some(found.literals()?.iter().map(beginning).collect())
    }

    /// What it takes.
    pub fn cost(&self) -> Cost {
        Cost {
            patterns: 1,
            bytes: self.compiled.memory_usage(),
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            patterns: MAX_PATTERNS,
            bytes: MAX_TOTAL,
        }
    }
}

impl Budget {
    /// Compiles a pattern. What it costs is taken out of the budget, also where it was too large: the work was done.
    ///
    /// # Errors
    /// When it is no pattern, or there is no budget for it.
    pub fn compile(&mut self, pattern: &str) -> Result<Pattern, PatternError> {
        self.compile_by(pattern, syntax::Config::new())
    }

    /// The same of one that is met in any case of letters, but where it says `(?-i)` itself. It may cost more than [`Self::compile`].
    ///
    /// # Errors
    /// As there.
    pub fn compile_any_case(&mut self, pattern: &str) -> Result<Pattern, PatternError> {
        self.compile_by(pattern, syntax::Config::new().case_insensitive(true))
    }

    fn compile_by(&mut self, pattern: &str, config: syntax::Config) -> Result<Pattern, PatternError> {
        self.patterns = self.patterns.checked_sub(1).ok_or(PatternError::TooMany)?;
        let limit = MAX_COMPILED.min(self.bytes);
        let compiled = compile(pattern, &config, limit);
        let bytes = match &compiled {
            Ok(pattern) => pattern.cost().bytes,
            Err(PatternError::TooLarge) => limit,
            Err(_) => 0,
        };
        let left = self.bytes.checked_sub(bytes);
        self.bytes = left.unwrap_or(0);
        left.ok_or(PatternError::TooLarge)?;
        compiled
    }

    /// Takes out what was compiled elsewhere. False: there is no budget for it, and nothing changes.
    pub fn take(&mut self, cost: Cost) -> bool {
        match (
            self.patterns.checked_sub(cost.patterns),
            self.bytes.checked_sub(cost.bytes),
        ) {
            (Some(patterns), Some(bytes)) => {
                *self = Self { patterns, bytes };
                true
            }
            _ => false,
        }
    }
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.patterns += other.patterns;
        self.bytes += other.bytes;
    }
}

/// A pattern as a part of a larger one: what its flags, comments and alternatives are about ends with it.
///
/// # Errors
/// When it is no pattern by itself.
pub fn part(pattern: &str) -> Result<String, PatternError> {
    let syntax = |error: regex_syntax::ast::Error| PatternError::Syntax(error.to_string());
    let parsed = regex_syntax::ast::parse::Parser::new().parse(pattern).map_err(syntax)?;
    let mut printed = String::from("(?:");
    // A String takes all that is written.
    let _ = regex_syntax::ast::print::Printer::new().print(&parsed, &mut printed);
    printed.push(')');
    Ok(printed)
}

fn compile(pattern: &str, config: &syntax::Config, limit: usize) -> Result<Pattern, PatternError> {
    // By itself, and its ends around it then: "a)|(b" would be valid once it was wrapped as text.
    let whole = syntax::parse_with(pattern, config).map_err(|error| PatternError::Syntax(error.to_string()))?;
    let whole = Hir::concat(vec![Hir::look(Look::Start), whole, Hir::look(Look::End)]);
    let config = meta::Config::new()
        .nfa_size_limit(Some(limit))
        .hybrid_cache_capacity(MAX_COMPILED)
        // Only whether it matches is asked: neither is needed, and both take memory.
        .onepass(false)
        .dfa(false);
    match meta::Builder::new().configure(config).build_from_hir(&whole) {
        Ok(compiled) => Ok(Pattern {
            compiled,
            text: pattern.into(),
        }),
        Err(error) if error.size_limit().is_some() => Err(PatternError::TooLarge),
        Err(error) => Err(PatternError::Syntax(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Budget, Cost, MAX_PATTERNS, MAX_TOTAL, PatternError, part};

    fn matches(pattern: &str, text: &str) -> bool {
        Budget::default().compile(pattern).unwrap().is_match(text.as_bytes())
    }

    #[test]
    fn a_pattern_is_for_the_whole_value() {
        assert!(matches("/v[0-9]+|/x", "/v12") && matches("/v[0-9]+|/x", "/x"));
        assert!(!matches("/v[0-9]+|/x", "/x/") && !matches("/v[0-9]+|/x", "a/x") && !matches("/x", "/x\n"));
        assert!(matches("", "") && !matches("", "a"));
        assert!(matches("(?i)/a", "/A") && matches("(?m)a$", "a") && !matches("(?m)a$", "a\nb"));
        assert!(matches("ü.", "üß"));
    }

    #[test]
    fn what_it_begins_with() {
        for (pattern, expected) in [
            ("/a", Some("/a.")),
            ("^/a$|/b.*", Some("/a. /b")),
            ("(?i)/a", Some("/A. /a.")),
            ("/[ab]", Some("/a. /b.")),
            ("", Some(".")),
            ("a{2,3}", Some("aa")),
            (".*", None),
            ("[^/]+", None),
            // Of nothing there is no beginning.
            ("[a&&b]", Some("")),
        ] {
            let pattern = Budget::default().compile(pattern).unwrap();
            let beginnings = pattern.beginnings().map(|beginnings| {
                let texts = beginnings.iter().map(|beginning| {
                    let end = if beginning.is_all { "." } else { "" };
                    format!("{}{end}", String::from_utf8_lossy(&beginning.text))
                });
                texts.collect::<Vec<_>>().join(" ")
            });
            assert_eq!(beginnings.as_deref(), expected, "{}", pattern.as_str());
        }
    }

    #[test]
    fn in_any_case_where_that_is_asked_for() {
        for (pattern, text, expected) in [
            ("/a[b-d]", "/AC", true),
            ("/a|/b", "/B", true),
            ("/a|/b", "/c", false),
            ("/ü", "/Ü", true),
            ("/(?-i:a)b", "/AB", false),
            ("/(?-i:a)b", "/aB", true),
        ] {
            let compiled = Budget::default().compile_any_case(pattern).unwrap();
            assert_eq!(compiled.is_match(text.as_bytes()), expected, "{pattern} and {text}");
            assert_eq!(compiled.as_str(), pattern);
            assert!(!matches(pattern, text), "{pattern} and {text}");
        }
    }

    /// Of percent-encoding.
    fn decoded(text: &str) -> Vec<u8> {
        let mut parts = text.split('%');
        let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
        for part in parts {
            bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
            bytes.extend_from_slice(&part.as_bytes()[2..]);
        }
        bytes
    }

    /// The table that the controller and the sidecar run, too.
    #[test]
    fn what_each_pattern_is_about() {
        for row in include_str!("../tests/patterns.txt")
            .lines()
            .filter(|row| !row.starts_with('#'))
        {
            let [pattern, value, expected] = row.split(" => ").collect::<Vec<_>>()[..] else {
                panic!("{row}");
            };
            let value = decoded(value);
            let found = match Budget::default().compile(pattern) {
                Ok(compiled) if compiled.is_match(&value) => "yes",
                Ok(_) => "no",
                Err(_) => "refused",
            };
            assert_eq!(found, expected, "{row}");
        }
    }

    #[test]
    fn a_part_ends_where_it_ends() {
        for (pattern, text, expected) in [
            ("a|b", "/a/z", true),
            ("a|b", "/a", false),
            ("a|b", "b/z", false),
            ("(?i)a", "/A/z", true),
            ("(?i)a", "/A/Z", false),
            ("(?x) a # all ) of | it", "/a/z", true),
            ("(?x) a # all ) of | it", "/a", false),
            (r"(?x) a\ \# b", "/a #b/z", true),
            ("(?s-u)a", "/a/z", true),
            (r"\w+[^/]{2}\.x$", "/ab1.x/z", false),
            (r"\w+[^/]{2}\.x", "/ab1.x/z", true),
            ("", "//z", true),
        ] {
            let whole = format!("/{}/z", part(pattern).unwrap());
            assert_eq!(matches(&whole, text), expected, "{pattern} in {text}");
        }
        for pattern in ["a)|(b", "(", "(?x)(a # )", "a{2,1}"] {
            assert!(part(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn what_is_no_pattern_by_itself_is_none() {
        for pattern in ["a)|(b", "(", "[", "a{2", "(?P<x>a)(?P<x>b)", r"\1", "(?=a)"] {
            let error = Budget::default().compile(pattern).unwrap_err();
            assert!(
                matches!(error, PatternError::Syntax(_)) || pattern == "a{2",
                "{pattern}: {error}"
            );
        }
    }

    #[test]
    fn one_that_is_too_large_is_refused() {
        for pattern in [r"\w{200}", "(?:a{1000}){1000}", r"(?:\pL{100}){100}"] {
            let error = Budget::default().compile(pattern).unwrap_err();
            assert_eq!(error, PatternError::TooLarge, "{pattern}");
        }
    }

    /// Ten thousand patterns, of whichever size, compile no more than the budget.
    #[test]
    fn a_target_has_a_budget() {
        let small = |i: usize| format!("/a{i}/.*");
        let large = |i: usize| format!("/a{i}/[a-z]{{1000}}.*");
        for (pattern, most) in [
            (&small as &dyn Fn(usize) -> String, MAX_PATTERNS),
            (&large, MAX_PATTERNS - 1),
        ] {
            let mut budget = Budget::default();
            let mut cost = Cost::default();
            for i in 0..10_000 {
                if let Ok(compiled) = budget.compile(&pattern(i)) {
                    cost += compiled.cost();
                }
            }
            assert!(cost.patterns > 0 && cost.patterns <= most, "{cost:?}");
            assert!(cost.bytes <= MAX_TOTAL, "{cost:?}");
            assert_eq!(budget.compile("/x").unwrap_err(), PatternError::TooMany);
        }
    }

    #[test]
    fn what_was_compiled_elsewhere_counts() {
        let mut budget = Budget::default();
        let cost = |patterns, bytes| Cost { patterns, bytes };
        assert!(budget.take(cost(63, MAX_TOTAL - 1)));
        assert!(!budget.take(cost(2, 0)) && !budget.take(cost(1, 2)));
        assert!(budget.take(cost(1, 1)));
        assert!(!budget.take(cost(1, 0)) && budget.take(Cost::default()));
    }
}
