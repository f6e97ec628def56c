//! The headers themselves, read and written.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::TraceContext;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
const UBER: HeaderName = HeaderName::from_static("uber-trace-id");

/// `trace-flags`: sampled (W3C Trace Context 3.2.2.5.1), and the trace ID is random (level 2). Others are not passed on.
const SAMPLED: u8 = 0x01;
const RANDOM: u8 = 0x02;

/// A set of the formats below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Formats(u8);

pub(super) const B3_SINGLE: Formats = Formats(1);
pub(super) const B3_MULTI: Formats = Formats(2);
pub(super) const JAEGER: Formats = Formats(4);
/// The trace ID came with 64 bits: B3 and Jaeger get it back as long as it was, for who knows no longer ones.
const SHORT: Formats = Formats(8);
/// A `traceparent` that is not valid, or a `tracestate` without one.
const INVALID_W3C: Formats = Formats(16);

impl Formats {
    pub(super) fn has(self, format: Formats) -> bool {
        self.0 & format.0 != 0
    }

    fn add(&mut self, format: Formats) {
        self.0 |= format.0;
    }
}

/// What the headers say.
#[derive(Default)]
pub(super) struct Parsed {
    /// Trace and span.
    pub(super) ids: Option<([u8; 16], [u8; 8])>,
    /// `None`: nobody has decided. B3 can decide without naming a trace.
    pub(super) sampled: Option<bool>,
    pub(super) debug: bool,
    pub(super) other_flags: u8,
    pub(super) w3c: bool,
    /// What is there, valid or not.
    pub(super) formats: Formats,
}

pub(super) fn parse(headers: &HeaderMap) -> Parsed {
    let mut parsed = Parsed::default();
    let b3_single = headers.contains_key(&B3);
    let b3_multi = [&B3_TRACE_ID, &B3_SPAN_ID, &B3_SAMPLED, &B3_FLAGS];
    let b3_multi = b3_multi.into_iter().any(|name| headers.contains_key(name));
    let jaeger = headers.contains_key(&UBER);
    for (there, format) in [(b3_single, B3_SINGLE), (b3_multi, B3_MULTI), (jaeger, JAEGER)] {
        if there {
            parsed.formats.add(format);
        }
    }
    if let Some((trace_id, span_id, flags)) = only(headers, &TRACEPARENT).and_then(traceparent) {
        parsed.ids = Some((trace_id, span_id));
        parsed.sampled = Some(flags & SAMPLED != 0);
        parsed.other_flags = flags & RANDOM;
        parsed.w3c = true;
    } else if [&TRACEPARENT, &TRACESTATE]
        .into_iter()
        .any(|name| headers.contains_key(name))
    {
        parsed.formats.add(INVALID_W3C);
    }
    // One header before several (the B3 specification, "Single Header").
    if b3_single {
        parsed.offer(only(headers, &B3).and_then(b3));
    }
    if b3_multi {
        parsed.offer(b3_headers(headers));
    }
    if jaeger {
        parsed.offer(only(headers, &UBER).and_then(uber));
    }
    parsed
}

/// One format's word.
#[derive(Default)]
struct Word {
    ids: Option<([u8; 16], [u8; 8])>,
    sampled: Option<bool>,
    debug: bool,
    short: bool,
}

impl Parsed {
    /// Takes a format's word where no earlier one has said it.
    fn offer(&mut self, word: Option<Word>) {
        let Some(word) = word else { return };
        let same_trace = match (self.ids, word.ids) {
            (None, Some(_)) if self.sampled.is_none() => {
                self.ids = word.ids;
                self.sampled = word.sampled;
                true
            }
            (None, None) if self.sampled.is_none() => {
                self.sampled = word.sampled;
                true
            }
            (Some((ours, _)), Some((theirs, _))) => ours == theirs,
            _ => false,
        };
        if same_trace {
            // B3 may leave it open, and another format say it.
            self.sampled = self.sampled.or(word.sampled);
            self.debug |= word.debug && self.sampled == Some(true);
            if word.short {
                self.formats.add(SHORT);
            }
        }
    }
}

/// The header's value if there is exactly one: of several, nobody can say which one counts.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value.as_bytes().trim_ascii()),
        _ => None,
    }
}

/// `version "-" trace-id "-" parent-id "-" trace-flags` (W3C Trace Context 3.2). A version after 00 may have more behind
/// a further dash, and is read as far as it is known; ff is never valid.
fn traceparent(value: &[u8]) -> Option<([u8; 16], [u8; 8], u8)> {
    const LENGTH: usize = 55;
    let (known, more) = value.split_at_checked(LENGTH)?;
    let dashes = [2, 35, 52].into_iter().all(|at| known[at] == b'-');
    let [version] = hex(&known[..2])?;
    let valid_end = match version {
        0x00 => more.is_empty(),
        0xff => false,
        _ => more.first().is_none_or(|next| *next == b'-'),
    };
    if !dashes || !valid_end {
        return None;
    }
    let [flags] = hex(&known[53..])?;
    Some((nonzero(hex(&known[3..35])?)?, nonzero(hex(&known[36..52])?)?, flags))
}

/// `{TraceId}-{SpanId}-{SamplingState}-{ParentSpanId}`, the last two optional; or the sampling state alone.
fn b3(value: &[u8]) -> Option<Word> {
    let mut parts = value.split(|byte| *byte == b'-');
    let first = parts.next()?;
    let Some(span_id) = parts.next() else {
        let (sampled, debug) = sampling_state(first)?;
        return Some(Word {
            sampled: Some(sampled),
            debug,
            ..Word::default()
        });
    };
    let (trace_id, short) = b3_trace_id(first)?;
    let state = match parts.next() {
        Some(state) => Some(sampling_state(state)?),
        None => None,
    };
    if let Some(parent) = parts.next() {
        hex::<8>(parent)?;
    }
    if parts.next().is_some() {
        return None;
    }
    Some(Word {
        ids: Some((trace_id, nonzero(hex(span_id)?)?)),
        sampled: state.map(|(sampled, _)| sampled),
        debug: state.is_some_and(|(_, debug)| debug),
        short,
    })
}

fn b3_headers(headers: &HeaderMap) -> Option<Word> {
    let debug = only(headers, &B3_FLAGS) == Some(b"1");
    let sampled = match debug {
        true => Some(true),
        false => only(headers, &B3_SAMPLED).and_then(b3_sampled),
    };
    let trace_id = only(headers, &B3_TRACE_ID).and_then(b3_trace_id);
    let span_id = only(headers, &B3_SPAN_ID).and_then(hex).and_then(nonzero);
    let ids = trace_id.zip(span_id);
    Some(Word {
        ids: ids.map(|((trace_id, _), span_id)| (trace_id, span_id)),
        sampled,
        debug,
        short: ids.is_some_and(|((_, short), _)| short),
    })
}

/// Early tracers wrote "true" and "false" (the B3 specification, "Sampling State").
fn b3_sampled(value: &[u8]) -> Option<bool> {
    match value {
        b"1" | b"true" => Some(true),
        b"0" | b"false" => Some(false),
        _ => None,
    }
}

/// 32 or 16 digits; and whether it was 16.
fn b3_trace_id(digits: &[u8]) -> Option<([u8; 16], bool)> {
    if digits.len() == 16 {
        let low: [u8; 8] = nonzero(hex(digits)?)?;
        return Some((u128::from(u64::from_be_bytes(low)).to_be_bytes(), true));
    }
    Some((nonzero(hex(digits)?)?, false))
}

/// Whether it is sampled, and whether it is for debugging.
fn sampling_state(state: &[u8]) -> Option<(bool, bool)> {
    match state {
        b"0" => Some((false, false)),
        b"1" => Some((true, false)),
        b"d" => Some((true, true)),
        _ => None,
    }
}

/// `{trace-id}:{span-id}:{parent-span-id}:{flags}`: hexadecimal without leading zeros, and the colons may be URL-encoded
/// (Jaeger's client libraries, "Propagation Format").
fn uber(value: &[u8]) -> Option<Word> {
    let mut rest = value;
    let mut next = || {
        let end = rest
            .iter()
            .position(|byte| matches!(byte, b':' | b'%'))
            .unwrap_or(rest.len());
        let (part, tail) = rest.split_at(end);
        rest = match tail {
            [b':', tail @ ..] | [b'%', b'3', b'A' | b'a', tail @ ..] => tail,
            tail => tail,
        };
        part
    };
    let (trace_id, span_id, parent, flags) = (next(), next(), next(), next());
    if !rest.is_empty() {
        return None;
    }
    let number = |digits: &[u8], longest: usize| {
        let valid = (1..=longest).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
        let digits = std::str::from_utf8(digits).ok().filter(|_| valid)?;
        u128::from_str_radix(digits, 16).ok()
    };
    let span = u64::try_from(number(span_id, 16)?).ok()?;
    // Deprecated, and often 0 or empty; it is not used.
    if !parent.is_empty() {
        number(parent, 16)?;
    }
    let flags = number(flags, 2)?;
    let debug = flags & 2 != 0;
    Some(Word {
        ids: Some((
            nonzero(number(trace_id, 32)?.to_be_bytes())?,
            nonzero(span.to_be_bytes())?,
        )),
        sampled: Some(debug || flags & 1 != 0),
        debug,
        short: trace_id.len() <= 16,
    })
}

pub(super) fn write_w3c(context: &TraceContext, span_id: [u8; 8], headers: &mut HeaderMap) {
    // The flag for a random ID is passed on and never set here: OpenTelemetry's Go library took a version 00 whose flags
    // are above 2 for invalid, and would lose the trace.
    let flags = context.other_flags | u8::from(context.sampled);
    let mut text = Text::<55>::new();
    text.push(b"00-");
    text.hex(&context.trace_id);
    text.push(b"-");
    text.hex(&span_id);
    text.push(b"-");
    text.hex(&[flags]);
    text.set(headers, TRACEPARENT);
    let empty = |headers: &HeaderMap| headers.get_all(&TRACESTATE).iter().all(HeaderValue::is_empty);
    if headers.contains_key(&TRACESTATE) && (!context.keep_state || empty(headers)) {
        headers.remove(&TRACESTATE);
    }
}

/// Removes what is not valid from headers that nothing is written into. `came`: what is there, and no valid `traceparent`.
pub(super) fn remove_invalid(came: Formats, headers: &mut HeaderMap) {
    if came.has(INVALID_W3C) {
        remove_unless(false, headers, &[&TRACEPARENT, &TRACESTATE]);
    }
    if came.has(B3_SINGLE) {
        let valid = only(headers, &B3).and_then(b3).is_some();
        remove_unless(valid, headers, &[&B3]);
    }
    if came.has(B3_MULTI) {
        let ids = b3_headers(headers).is_some_and(|word| word.ids.is_some());
        let parent = ids && only(headers, &B3_PARENT).and_then(hex::<8>).is_some();
        let sampled = only(headers, &B3_SAMPLED).and_then(b3_sampled).is_some();
        let flags = matches!(only(headers, &B3_FLAGS), Some(b"0" | b"1"));
        remove_unless(ids, headers, &[&B3_TRACE_ID, &B3_SPAN_ID]);
        remove_unless(parent, headers, &[&B3_PARENT]);
        remove_unless(sampled, headers, &[&B3_SAMPLED]);
        remove_unless(flags, headers, &[&B3_FLAGS]);
    }
    if came.has(JAEGER) {
        let valid = only(headers, &UBER).and_then(uber).is_some();
        remove_unless(valid, headers, &[&UBER]);
    }
}

fn remove_unless(valid: bool, headers: &mut HeaderMap, names: &[&HeaderName]) {
    for name in names.iter().filter(|_| !valid) {
        headers.remove(*name);
    }
}

pub(super) fn write_b3_single(context: &TraceContext, span_id: [u8; 8], headers: &mut HeaderMap) {
    let mut text = Text::<68>::new();
    text.hex(context.b3_trace_id());
    text.push(b"-");
    text.hex(&span_id);
    text.push(match (context.debug, context.sampled) {
        (true, _) => b"-d",
        (_, true) => b"-1",
        (_, false) => b"-0",
    });
    if let Some(parent) = context.parent {
        text.push(b"-");
        text.hex(&parent);
    }
    text.set(headers, B3);
}

pub(super) fn write_b3_multi(context: &TraceContext, span_id: [u8; 8], headers: &mut HeaderMap) {
    let hex = |bytes: &[u8], name: HeaderName, headers: &mut HeaderMap| {
        let mut text = Text::<32>::new();
        text.hex(bytes);
        text.set(headers, name);
    };
    hex(context.b3_trace_id(), B3_TRACE_ID, headers);
    hex(&span_id, B3_SPAN_ID, headers);
    match context.parent {
        Some(parent) => hex(&parent, B3_PARENT, headers),
        None => _ = headers.remove(&B3_PARENT),
    }
    // Debug implies sampled, and the two are not sent together (the B3 specification, "Debug Flag").
    if context.debug {
        headers.insert(B3_FLAGS, HeaderValue::from_static("1"));
        headers.remove(&B3_SAMPLED);
    } else {
        let sampled = if context.sampled { "1" } else { "0" };
        headers.insert(B3_SAMPLED, HeaderValue::from_static(sampled));
        headers.remove(&B3_FLAGS);
    }
}

pub(super) fn write_jaeger(context: &TraceContext, span_id: [u8; 8], headers: &mut HeaderMap) {
    let mut text = Text::<54>::new();
    text.hex(context.b3_trace_id());
    text.push(b":");
    text.hex(&span_id);
    // The parent is deprecated; "0" says that there is none.
    text.push(match (context.debug, context.sampled) {
        (true, _) => b":0:3",
        (_, true) => b":0:1",
        (_, false) => b":0:0",
    });
    text.set(headers, UBER);
}

impl TraceContext {
    /// The trace ID in as many bytes as it came in.
    fn b3_trace_id(&self) -> &[u8] {
        let short = self.formats.has(SHORT) && self.trace_id[..8] == [0; 8];
        if short { &self.trace_id[8..] } else { &self.trace_id }
    }
}

/// A header's value in the making, on the stack.
struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Text<N> {
    fn new() -> Self {
        Self {
            bytes: [0; N],
            length: 0,
        }
    }

    fn push(&mut self, text: &[u8]) {
        self.bytes[self.length..self.length + text.len()].copy_from_slice(text);
        self.length += text.len();
    }

    fn hex(&mut self, bytes: &[u8]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for byte in bytes {
            self.push(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }

    fn set(&self, headers: &mut HeaderMap, name: HeaderName) {
        // Digits and punctuation are always a valid value.
        if let Ok(value) = HeaderValue::from_bytes(&self.bytes[..self.length]) {
            headers.insert(name, value);
        }
    }
}

/// Exactly `2 * N` lower-case digits.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn nonzero<const N: usize>(bytes: [u8; N]) -> Option<[u8; N]> {
    (bytes != [0; N]).then_some(bytes)
}
