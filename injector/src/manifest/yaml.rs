//! One YAML document becomes JSON, as it does in kubectl: keys are texts, aliases and merge keys are followed, the last of two equal
//! keys wins, and [scalars](super::scalar) are those of YAML 1.1.

use std::collections::{BTreeSet, HashMap};

use granit_parser::{Event, Parser, ScalarStyle, Span, StructureStyle, Tag as WrittenTag};
use serde_json::{Map, Value};

use super::Note;
use super::dialect;
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
const BEHIND_END: &str =
    "the document has ended, and kubectl would not read what stands here: a line \"---\" is missing before it";

/// Reads a text of one document, whose first line is number `line` of the whole.
///
/// # Errors
/// What is not YAML, is YAML that is no JSON, or stands behind the document's end, where kubectl does not look.
pub(super) fn read(text: &str, line: usize) -> Result<Read, Note> {
    if let Some((at, found)) = text.char_indices().find(|(_, c)| !is_readable(*c)) {
        let why = format!("{found:?} is a control character: YAML has it as an escape only, in double quotes");
        return Err(Note::new(line + text[..at].matches('\n').count(), why));
    }
    load(&dialect::to_1_2(text, line)?, line, false)
}

/// The same of an object that is JSON by its syntax.
///
/// # Errors
/// Where YAML reads it differently, and where a number is beyond what a number can be.
pub(super) fn read_json(text: &str, line: usize) -> Result<Read, Note> {
    load(text, line, true)
}

fn load(text: &str, line: usize, json: bool) -> Result<Read, Note> {
    let mut loader = Loader {
        text,
        first: line,
        json,
        ..Loader::default()
    };
    let mut ended = false;
    for next in Parser::new_from_str(text) {
        let (event, span) = next.map_err(|error| {
            let why = if ended { BEHIND_END } else { error.info() };
            Note::new(line + error.marker().line() - 1, why)
        })?;
        match event {
            Event::DocumentStart(..) if ended => return Err(Note::new(loader.line(&span), BEHIND_END)),
            Event::DocumentEnd => ended = true,
            event => loader
                .event(event, &span)
                .map_err(|why| Note::new(loader.line(&span), why))?,
        }
    }
    Ok(loader.read)
}

/// What may stand in a document as it is (YAML 1.1, section 4.1, as libyaml has it).
fn is_readable(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..)
}

#[derive(Default)]
struct Loader<'a> {
    text: &'a str,
    read: Read,
    /// Of the document's first line.
    first: usize,
    /// Whether the text is JSON by its syntax.
    json: bool,
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
    /// Whether it stands in brackets.
    flow: bool,
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
                if style == ScalarStyle::Plain && text.contains('?') && self.open.last().is_some_and(|open| open.flow) {
                    return Err(format!(
                        "in brackets the question mark of {text:?} begins a key: put it in quotes"
                    ));
                }
                self.begin(line, 1)?;
                let node = scalar(&text, style, tag.as_deref())?;
                if self.json && style == ScalarStyle::Plain && matches!(node, Node::Scalar(Scalar::Text(_))) {
                    return Err(format!("no number is as large as {text}"));
                }
                self.end(node, anchor, 1, line)
            }
            Event::Alias(anchor) => {
                let anchored = self.anchors.get(&anchor).cloned();
                let (node, nodes) = anchored.ok_or("the value of this anchor contains itself")?;
                self.aliased += nodes;
                self.begin(line, nodes)?;
                self.end(node, 0, nodes, line)
            }
            Event::SequenceStart(style, anchor, _) => self.open(anchor, Collection::Sequence(Vec::new()), style, line),
            Event::MappingStart(style, anchor, _) => {
                self.open(anchor, Collection::Mapping(Mapping::default()), style, line)
            }
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

    fn open(
        &mut self,
        anchor: usize,
        collection: Collection,
        style: StructureStyle,
        line: usize,
    ) -> Result<(), String> {
        if self.open.len() >= MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} maps and lists in one another"));
        }
        let nodes = self.nodes;
        self.begin(line, 1)?;
        self.open.push(Open {
            anchor,
            nodes,
            flow: style == StructureStyle::Flow,
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
