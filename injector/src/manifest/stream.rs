//! The documents of a text, as kubectl finds them (`NewYAMLOrJSONDecoder` of Kubernetes' apimachinery): JSON objects one behind the
//! other where the text begins with one, and else YAML between lines that begin with `---`.

use std::ops::Range;

use serde::de::IgnoredAny;
use serde_json::Value;

use super::Note;
use super::yaml::{self, Read};

/// One document.
#[derive(Debug)]
pub(super) struct Document {
    /// Where its object stands in the text: behind the comments and the `---` before it.
    pub(super) range: Range<usize>,
    /// Of the object's beginning, from 1.
    pub(super) line: usize,
    pub(super) form: Form,
    pub(super) read: Read,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Yaml,
}

const SEPARATOR: &str = "---";
/// So far kubectl looks for the brace that makes a text JSON, in bytes.
const LOOK: usize = 4096;

/// All of them, those without an object left out; and what kubectl cannot read, or would leave out.
pub(super) fn documents(text: &str) -> (Vec<Document>, Vec<Note>) {
    let (mut documents, mut mistakes) = (Vec::new(), Vec::new());
    let begin = text.len() - text.trim_start().len();
    let yaml_from = match begin < LOOK && text[begin..].starts_with('{') {
        true => json(text, &mut documents, &mut mistakes),
        false => 0,
    };
    for chunk in chunks(text, yaml_from) {
        match chunk.and_then(|chunk| chunk.document(text)) {
            Ok(document) => documents.extend(document),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    (documents, mistakes)
}

/// Reads objects as long as they are JSON, and says where YAML begins.
fn json(text: &str, documents: &mut Vec<Document>, mistakes: &mut Vec<Note>) -> usize {
    // As kubectl does: the syntax says what is JSON, and what it says is read then.
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let mut count = 0;
    // Byte and line of the last object: lines are counted on from there.
    let (mut counted, mut line) = (0, 1);
    loop {
        let end = values.byte_offset();
        let begin = end + (text[end..].len() - text[end..].trim_start().len());
        match values.next() {
            None => return text.len(),
            Some(Ok(IgnoredAny)) => {
                count += 1;
                line += breaks(&text[counted..begin]);
                counted = begin;
                let range = begin..values.byte_offset();
                let read = json_value(&text[range.clone()], line);
                match read.and_then(|read| document(range, line, Form::Json, read)) {
                    Ok(document) => documents.extend(document),
                    Err(mistake) => mistakes.push(mistake),
                }
            }
            Some(Err(error)) if count > 1 => {
                mistakes.push(Note::new(
                    error.line(),
                    format!("behind two JSON objects kubectl takes nothing but JSON: {error}"),
                ));
                return text.len();
            }
            // What does not begin with JSON may be YAML that begins with a brace; and behind one object YAML may come.
            Some(Err(_)) => return end,
        }
    }
}

/// JSON is YAML, whose reader knows the lines, and the last digit of each number; but not each way of indentation.
fn json_value(text: &str, line: usize) -> Result<Read, Note> {
    yaml::read_json(text, line).or_else(|mistake| {
        let value = serde_json::from_str(text).map_err(|_| mistake)?;
        Ok(Read {
            value,
            ..Read::default()
        })
    })
}

/// What stands between two separators.
struct Chunk {
    range: Range<usize>,
    line: usize,
}

/// The chunks from byte `from` on. A line that begins with `---` is never inside of a document: Kubernetes' objects are maps,
/// and what is in a map is indented.
fn chunks(text: &str, from: usize) -> Vec<Result<Chunk, Note>> {
    let mut chunks = Vec::new();
    let mut offset = from;
    if from > 0 {
        // Behind a JSON object: what is blank of its line.
        let rest = text[from..].trim_start_matches(|c: char| c.is_whitespace() && c != '\n');
        offset = text.len() - rest.strip_prefix('\n').unwrap_or(rest).len();
    }
    let (mut start, mut first) = (offset, line_of(text, offset));
    for (line, content) in (first..).zip(text[offset..].split_inclusive('\n')) {
        if let Some(behind) = content.strip_prefix(SEPARATOR) {
            let behind = behind.trim();
            if !behind.is_empty() && !behind.starts_with('#') {
                let why = format!("behind \"---\" kubectl takes a comment and nothing else on its line: {behind:?}");
                chunks.push(Err(Note::new(line, why)));
            }
            chunks.push(Ok(Chunk {
                range: start..offset,
                line: first,
            }));
            (start, first) = (offset + content.len(), line + 1);
        }
        offset += content.len();
    }
    chunks.push(Ok(Chunk {
        range: start..text.len(),
        line: first,
    }));
    chunks
}

impl Chunk {
    fn document(self, text: &str) -> Result<Option<Document>, Note> {
        let own = &text[self.range.clone()];
        // As kubectl hands them on: without carriage returns, and the last line ends too.
        let lines: String = own.lines().flat_map(|line| [line, "\n"]).collect();
        let lines = lines.strip_prefix('\u{feff}').unwrap_or(&lines);
        let read = yaml::read(lines, self.line)?;
        // A comment before the object stays where it is, whatever becomes of the object.
        let is_before = |line: &&str| line.trim().is_empty() || line.trim_start().starts_with('#');
        let before: Vec<_> = own.split_inclusive('\n').take_while(is_before).collect();
        let begin = self.range.start + before.iter().map(|line| line.len()).sum::<usize>();
        document(begin..self.range.end, self.line + before.len(), Form::Yaml, read)
    }
}

fn document(range: Range<usize>, line: usize, form: Form, read: Read) -> Result<Option<Document>, Note> {
    match read.value {
        Value::Null => Ok(None),
        Value::Object(_) => Ok(Some(Document {
            range,
            line,
            form,
            read,
        })),
        _ => Err(Note::new(line, "this is no object: kubectl takes maps only")),
    }
}

/// Characters that end a line in YAML 1.1, which kubectl reads, and do not in YAML 1.2.
pub(super) fn ambiguous(document: &Document, text: &str) -> Option<Note> {
    let own = &text[document.range.clone()];
    let (at, found) = own
        .char_indices()
        .find(|(_, c)| document.form == Form::Yaml && ['\u{85}', '\u{2028}', '\u{2029}'].contains(c))?;
    let why = format!("{found:?} ends a line in YAML 1.1: write it as an escape, in double quotes");
    Some(Note::new(line_of(text, document.range.start + at), why))
}

/// The number of the line, from 1, that byte `offset` is in.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    1 + breaks(&text[..offset])
}

fn breaks(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}
