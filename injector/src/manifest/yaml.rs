//! One YAML document becomes JSON, as it does in kubectl: keys are texts, aliases and merge keys are followed, the last of two equal
//! keys wins, and [scalars](super::scalar) are those of YAML 1.1.

use std::collections::{BTreeSet, HashMap};

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag as WrittenTag};
use serde_json::{Map, Value};

use super::Note;
use super::scalar::{Scalar, Tag};

/// A document that was read.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// `null` where there is nothing but comments.
    pub(super) value: Value,
    /// Where each node stands, by its JSON pointer.
    pub(super) lines: HashMap<String, usize>,
    /// Keys that are there twice in one map.
    pub(super) doubled: Vec<Note>,
}

/// Nodes in one another. Objects of Kubernetes, the schemas of CRDs included, have some tens.
const MAX_DEPTH: usize = 500;
const CORE: &str = "tag:yaml.org,2002:";
/// More than the dashes and braces before a quoted scalar on its line.
const MARGIN: usize = 80;
const BEHIND_END: &str =
    "the document has ended, and kubectl would not read what stands here: a line \"---\" is missing before it";

/// Reads a text of one document, whose first line is number `line` of the whole.
///
/// # Errors
/// What is not YAML, is YAML that is no JSON, or stands behind the document's end, where kubectl does not look.
pub(super) fn read(original: &str, line: usize) -> Result<Read, Note> {
    let mut repaired = None;
    loop {
        let text = repaired.as_deref().unwrap_or(original);
        let error = match load(text, line)? {
            Ok(read) => return Ok(read),
            Err(error) => error,
        };
        match repair(text, original, &error) {
            Some(text) => repaired = Some(text),
            None => return Err(Note::new(line + error.marker().line() - 1, error.info())),
        }
    }
}

/// The outer error is one of what the YAML says, the inner one says that it is none.
fn load(text: &str, line: usize) -> Result<Result<Read, ScanError>, Note> {
    let mut loader = Loader {
        text,
        first: line,
        ..Loader::default()
    };
    let mut ended = false;
    for next in Parser::new_from_str(text) {
        let (event, span) = match next {
            Ok(next) => next,
            Err(error) if ended => return Err(Note::new(line + error.marker().line() - 1, BEHIND_END)),
            Err(error) => return Ok(Err(error)),
        };
        match event {
            Event::DocumentStart(..) if ended => return Err(Note::new(loader.line(&span), BEHIND_END)),
            Event::DocumentEnd => ended = true,
            event => loader
                .event(event, &span)
                .map_err(|why| Note::new(loader.line(&span), why))?,
        }
    }
    Ok(Ok(loader.read))
}

/// What the parser refuses, and kubectl reads: the same text in a form that both read.
fn repair(text: &str, original: &str, error: &ScanError) -> Option<String> {
    let at = error.marker().byte_offset()?;
    let (before, behind) = (text.get(..at)?, text.get(at..)?);
    match error.info() {
        // White space at the beginning of a line is no part of a quoted scalar.
        "invalid indentation in multiline quoted scalar" => {
            // Not that of lines that were repaired: each would be longer than the one before.
            let indents = original.lines().map(|line| line.len() - line.trim_start().len());
            let indent = indents.max().unwrap_or_default() + MARGIN;
            let begin = before.rfind('\n').map_or(0, |end| end + 1);
            let (before, line) = text.split_at(begin);
            Some(format!("{before}{}{line}", " ".repeat(indent)))
        }
        "':' must be followed by a valid YAML whitespace" => {
            let key = before.trim_end_matches(['\t', ' ']);
            (key.len() < before.len()).then(|| format!("{key}{}{behind}", " ".repeat(before.len() - key.len())))
        }
        _ => None,
    }
}

#[derive(Default)]
struct Loader<'a> {
    text: &'a str,
    read: Read,
    /// Of the document's first line.
    first: usize,
    /// The collections that are not complete.
    open: Vec<Open>,
    /// By the parser's number.
    anchors: HashMap<usize, (Node, usize)>,
    /// As go-yaml counts them, to know a document that is made of aliases of aliases.
    nodes: usize,
    aliased: usize,
}

/// A node that is complete.
#[derive(Clone)]
enum Node {
    Scalar(Scalar),
    /// A plain `<<`.
    Merge,
    Collection(Value),
}

struct Open {
    anchor: usize,
    /// Nodes of the document before it.
    nodes: usize,
    collection: Collection,
}

enum Collection {
    Sequence(Vec<Value>),
    Mapping(Mapping),
}

#[derive(Default)]
struct Mapping {
    entries: Map<String, Value>,
    /// Keys that no merge has put there.
    own: BTreeSet<String>,
    key: Option<Key>,
}

enum Key {
    Name(String),
    Merge,
}

impl Loader<'_> {
    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), String> {
        let line = self.line(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if style == ScalarStyle::Plain && self.is_ambiguous(span) {
                    return Err(format!("a space is missing behind the colon of {text:?}"));
                }
                self.begin(line, 1)?;
                self.end(scalar(&text, style, tag.as_deref())?, anchor, 1, line)
            }
            Event::Alias(anchor) => {
                let anchored = self.anchors.get(&anchor).cloned();
                let (node, nodes) = anchored.ok_or("the value of this anchor contains itself")?;
                self.aliased += nodes;
                self.begin(line, nodes)?;
                self.end(node, 0, nodes, line)
            }
            Event::SequenceStart(_, anchor, _) => self.open(anchor, Collection::Sequence(Vec::new()), line),
            Event::MappingStart(_, anchor, _) => self.open(anchor, Collection::Mapping(Mapping::default()), line),
            Event::SequenceEnd | Event::MappingEnd => {
                // The parser closes what it has opened.
                let Some(open) = self.open.pop() else { return Ok(()) };
                let value = match open.collection {
                    Collection::Sequence(items) => Value::Array(items),
                    Collection::Mapping(mapping) => Value::Object(mapping.entries),
                };
                self.end(Node::Collection(value), open.anchor, self.nodes - open.nodes, line)
            }
            _ => Ok(()),
        }
    }

    fn line(&self, span: &Span) -> usize {
        self.first + span.start.line() - 1
    }

    /// YAML 1.1 takes the colon in `{a:,b}` for a part of the key, YAML 1.2 does not.
    fn is_ambiguous(&self, span: &Span) -> bool {
        let behind = span.byte_range().and_then(|range| self.text.get(range.end..));
        let behind = behind.and_then(|text| text.strip_prefix(':'));
        behind.is_some_and(|text| text.starts_with([',', '[', ']', '{', '}']))
    }

    fn open(&mut self, anchor: usize, collection: Collection, line: usize) -> Result<(), String> {
        if self.open.len() >= MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} maps and lists in one another"));
        }
        let nodes = self.nodes;
        self.begin(line, 1)?;
        self.open.push(Open {
            anchor,
            nodes,
            collection,
        });
        Ok(())
    }

    /// A node of `nodes` nodes stands on this line.
    fn begin(&mut self, line: usize, nodes: usize) -> Result<(), String> {
        if let Some(pointer) = self.pointer() {
            self.read.lines.insert(pointer, line);
        }
        self.nodes += nodes;
        // The bounds of go-yaml: 99 % may be aliases in small documents, 10 % in large ones.
        let large = ((self.nodes as f64 - 400_000.0) / 3_600_000.0).clamp(0.0, 1.0);
        let allowed = (0.99 - 0.89 * large) * self.nodes as f64;
        match self.aliased > 100 && self.nodes > 1000 && self.aliased as f64 > allowed {
            true => Err("most of this document is made of aliases of aliases".to_owned()),
            false => Ok(()),
        }
    }

    fn end(&mut self, node: Node, anchor: usize, nodes: usize, line: usize) -> Result<(), String> {
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), nodes));
        }
        match self.open.last_mut().map(|open| &mut open.collection) {
            None => self.read.value = node.value()?,
            Some(Collection::Sequence(items)) => items.push(node.value()?),
            Some(Collection::Mapping(mapping)) => match mapping.key.take() {
                None => mapping.key = Some(node.key()?),
                Some(Key::Merge) => mapping.merge(node.value()?)?,
                Some(Key::Name(name)) => {
                    if !mapping.own.insert(name.clone()) {
                        let why = format!("the key {name:?} is there twice: the last one holds");
                        self.read.doubled.push(Note::new(line, why));
                    }
                    mapping.entries.insert(name, node.value()?);
                }
            },
        }
        Ok(())
    }

    /// Of the node that comes next; `None` where that is a key.
    fn pointer(&self) -> Option<String> {
        let mut pointer = String::new();
        for open in &self.open {
            pointer.push('/');
            match &open.collection {
                Collection::Sequence(items) => pointer += &items.len().to_string(),
                Collection::Mapping(mapping) => match mapping.key.as_ref()? {
                    Key::Name(name) => pointer += &escaped(name),
                    Key::Merge => return None,
                },
            }
        }
        Some(pointer)
    }
}

impl Node {
    fn value(self) -> Result<Value, String> {
        match self {
            Self::Scalar(scalar) => scalar.value(),
            Self::Merge => Ok(Value::from("<<")),
            Self::Collection(value) => Ok(value),
        }
    }

    fn key(self) -> Result<Key, String> {
        match self {
            Self::Scalar(scalar) => scalar.key().map(Key::Name),
            Self::Merge => Ok(Key::Merge),
            Self::Collection(_) => Err("a map or a list cannot be a key".to_owned()),
        }
    }
}

impl Mapping {
    /// What is merged replaces what stands before it: so does go-yaml v2, unlike others. Of several maps, the first one wins.
    fn merge(&mut self, value: Value) -> Result<(), String> {
        let wrong = || "<< merges a map, or a list of maps".to_owned();
        let maps = match value {
            Value::Array(maps) => maps,
            map => vec![map],
        };
        for map in maps.into_iter().rev() {
            let Value::Object(map) = map else { return Err(wrong()) };
            self.entries.extend(map);
        }
        Ok(())
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&WrittenTag>) -> Result<Node, String> {
    let plain = style == ScalarStyle::Plain;
    let tag = match tag {
        None if !plain => Tag::Text,
        None => Tag::None,
        Some(tag) => Tag::new(tag.suffix_in_namespace(CORE).as_deref()),
    };
    if text == "<<" && (tag == Tag::None || tag == Tag::Merge) {
        return Ok(Node::Merge);
    }
    Scalar::resolve(text, tag).map(Node::Scalar)
}

/// As a part of a JSON pointer (RFC 6901, section 3).
pub(super) fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
