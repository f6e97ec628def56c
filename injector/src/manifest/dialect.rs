//! kubectl reads YAML 1.1, as libyaml does, and our parser 1.2. What only the one of them reads is written here so that both do, on the
//! same lines.

use granit_parser::{BufferedInput, ScalarStyle, Scanner, Token, TokenType};

use super::Note;

/// The same document, whose first line is number `line` of the whole, for a reader of YAML 1.2. The work is linear: no character is
/// scanned more than twice.
///
/// # Errors
/// What has no tokens in either version.
pub(super) fn to_1_2(text: &str, line: usize) -> Result<String, Note> {
    // 1.2 wants a space behind a colon, 1.1 any white space.
    let spaced = text.replace(":\t", ": ");
    // What is not ASCII is part of words only, so that the scanner may count its bytes instead of its characters.
    let ascii: String = spaced
        .bytes()
        .map(|byte| if byte.is_ascii() { char::from(byte) } else { 'z' })
        .collect();
    let mut written = String::with_capacity(text.len());
    // Where the scanner begins, and what the line breaks of the node there become.
    let (mut from, mut line_break) = (0, "\n".to_owned());
    loop {
        let mut scanner = Scanner::new(BufferedInput::new(ascii[from..].chars().inspect(count)));
        let (mut done, mut depth, mut behind) = (from, 0_usize, from);
        // The outermost pair of brackets that is open: where it begins here, and in what is written.
        let mut node = (from, written.len());
        let error = loop {
            let Token(span, token) = match scanner.next_token() {
                Ok(Some(token)) => token,
                Ok(None) => {
                    written += &spaced[done..];
                    return Ok(written);
                }
                Err(error) => break error,
            };
            let range = from + span.start.index()..from + span.end.index();
            behind = behind.max(range.end);
            match token {
                TokenType::FlowSequenceStart | TokenType::FlowMappingStart => {
                    if depth == 0 {
                        written += &spaced[done..range.start];
                        done = range.start;
                        node = (done, written.len());
                    }
                    depth += 1;
                    continue;
                }
                TokenType::FlowSequenceEnd | TokenType::FlowMappingEnd => depth = depth.saturating_sub(1),
                TokenType::Scalar(..) => {}
                _ => continue,
            }
            // Tabs in a scalar stay.
            let source = match token {
                TokenType::Scalar(style, _) if style != ScalarStyle::Plain => text,
                _ => &spaced,
            };
            written += &spaced[done..range.start].replace('\n', &line_break);
            written += &source[range.clone()].replace('\n', &line_break);
            done = range.end;
            if depth == 0 {
                line_break.truncate(1);
            }
        };
        // 1.1 does not ask how far the lines of a quoted scalar, or between brackets, are indented. To 1.2 they must be farther to the
        // right than the map or list around them: the scanner goes on where the node begins, as if there were nothing around it.
        let begin = match error.info() {
            "invalid indentation"
            | "invalid indentation in flow construct"
            | "invalid indentation in multiline quoted scalar"
            | "tab cannot be used as indentation"
            | "tabs disallowed in this context"
            | "tabs disallowed within this context (block indentation)" => match depth {
                0 => next_node(&ascii, behind),
                _ => {
                    written.truncate(node.1);
                    done = node.0;
                    Some(node.0)
                }
            },
            _ => None,
        };
        let within = from + 1..from + error.marker().index();
        let Some(begin) = begin.filter(|begin| within.contains(begin)) else {
            let before = ascii[..from].matches('\n').count();
            return Err(Note::new(line + before + error.marker().line() - 1, error.info()));
        };
        written += &spaced[done..begin];
        let column = begin - ascii[..begin].rfind('\n').map_or(0, |end| end + 1);
        line_break.extend(std::iter::repeat_n(' ', column + 1));
        from = begin;
    }
}

/// Where the next node begins from `at` on, behind comments, anchors, tags, and the signs of lists and maps.
fn next_node(ascii: &str, mut at: usize) -> Option<usize> {
    let to = |at: usize, ends: fn(char) -> bool| ascii[at..].find(ends);
    loop {
        match ascii.as_bytes().get(at)? {
            b' ' | b'\t' | b'\r' | b'\n' | b'-' | b':' | b'?' => at += 1,
            b'#' => at += to(at, |c| c == '\n')?,
            b'&' | b'!' => at += to(at, |c| c.is_ascii_whitespace())?,
            _ => return Some(at),
        }
    }
}

#[cfg(not(test))]
fn count(_: &char) {}

#[cfg(test)]
use tests::count;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::Cell;

    use super::to_1_2;

    thread_local! {
        /// Characters that scanners of this thread have taken.
        static TAKEN: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn count(_: &char) {
        TAKEN.set(TAKEN.get() + 1);
    }

    fn written(text: &str) -> String {
        to_1_2(text, 1).unwrap()
    }

    #[test]
    fn no_character_is_read_a_third_time() {
        for value in [
            " \"a\nb\"",
            " 'a\nb\n\tc'",
            "\tb",
            " # '\n  &x !y \"\\\"\n\"",
            "\n  l: [\nm,\n{n: \"\no\"}]",
        ] {
            let text: String = (0..3000).map(|number| format!("k{number}:{value}\n")).collect();
            TAKEN.set(0);
            assert_eq!(written(&text).lines().count(), text.lines().count());
            // Where a scanner ended, it has looked some characters ahead.
            let most = 2 * text.len() + 3000 * 16;
            assert!(TAKEN.get() <= most, "{value:?}: {} of {most}", TAKEN.get());
        }
    }

    #[test]
    fn what_both_read_stays_as_it_is() {
        for text in [
            "",
            "a: \"b:\tc\"\nd: 'e:\tf'\ng: |\n  h:\ti\nj: é\n",
            "a: \"b\n  c\"\n",
            "- 'a\n  ''b'\n- {c: \"d\ne\"}\n",
            "a: {\n  b: [c]\n}\nd: [\n e\n]\n",
        ] {
            assert_eq!(written(text), text);
        }
    }

    #[test]
    fn lines_are_indented_where_only_1_2_wants_it() {
        for (text, expected) in [
            ("a: \"é\nb\"\nc:\td\n", "a: \"é\n    b\"\nc: d\n"),
            (
                "a:\n- b: 'c\n\nd:\te'\n  f: g\n",
                "a:\n- b: 'c\n      \n      d:\te'\n  f: g\n",
            ),
            (
                "a: # '\n  &x !y \"\\\"\nb\" # c\n",
                "a: # '\n  &x !y \"\\\"\n         b\" # c\n",
            ),
            (
                "a:\n  b: \"c\n\td\"\n  e: 'f\ng'\n",
                "a:\n  b: \"c\n      \td\"\n  e: 'f\n      g'\n",
            ),
            (
                "a:\n  b: [\nc:\td, {e: \"f:\t\n\tg\"},\n] # h\n  i: \"j\nk\"\n",
                "a:\n  b: [\n      c: d, {e: \"f:\t\n      \tg\"},\n      ] # h\n  i: \"j\n      k\"\n",
            ),
        ] {
            assert_eq!(written(text), expected);
        }
    }

    #[test]
    fn what_neither_reads_is_refused_at_its_line() {
        let error = to_1_2("a:\n  b: \"c\nd\"\n  e: }\n", 7).unwrap_err();
        assert_eq!(error.line, 10, "{error}");
    }
}
