//! All that apps may take a path for.
//!
//! A server, a framework and a router each rewrite a path before it is looked up, and nobody knows which of them stand behind a port,
//! or in which order. So every rewriting that is in use is applied to every reading, until there is nothing new. Each makes a path
//! shorter, or leaves fewer backslashes: so there is an end, and it is bounded besides.

use super::decoded;

/// Readings of one path; beyond, a Deny rule is met.
pub const MAX_READINGS: usize = 64;
/// Bytes of all readings of one path together; beyond, a Deny rule is met.
pub const MAX_BYTES: usize = 64 * 1024;

/// All readings of a path.
#[derive(Debug)]
pub(super) enum Readings {
    All(Vec<Vec<u8>>),
    /// They are too many, or one is not UTF-8, of which apps make what they like.
    Unknown,
}

/// Something that servers do to a path. `None`: it changes nothing.
type Rewriting = fn(&[u8]) -> Option<Vec<u8>>;

const REWRITINGS: [Rewriting; 10] = [
    decode,
    take_backslashes_for_slashes,
    drop_parameters,
    cut_at_parameters,
    merge_slashes,
    resolve_dots,
    cut_at_query,
    trim_segments,
    drop_controls,
    cut_at_controls,
];

impl Readings {
    pub(super) fn of(path: &str) -> Self {
        let mut all = vec![path.as_bytes().to_vec()];
        let mut bytes = path.len();
        let mut next = 0;
        while next < all.len() {
            for rewrite in REWRITINGS {
                let Some(reading) = rewrite(&all[next]) else { continue };
                if all.contains(&reading) {
                    continue;
                }
                bytes += reading.len();
                if all.len() == MAX_READINGS || bytes > MAX_BYTES || std::str::from_utf8(&reading).is_err() {
                    return Self::Unknown;
                }
                all.push(reading);
            }
            next += 1;
        }
        Self::All(all)
    }
}

/// Once. What is encoded twice is rewritten twice.
fn decode(path: &[u8]) -> Option<Vec<u8>> {
    path.contains(&b'%')
        .then(|| decoded(path))
        .filter(|decoded| decoded.len() < path.len())
}

/// As Windows does, and the URL of browsers.
fn take_backslashes_for_slashes(path: &[u8]) -> Option<Vec<u8>> {
    path.contains(&b'\\').then(|| {
        let slash = |&byte: &u8| if byte == b'\\' { b'/' } else { byte };
        path.iter().map(slash).collect()
    })
}

/// "/a;x=1/b" is "/a/b": servlets.
fn drop_parameters(path: &[u8]) -> Option<Vec<u8>> {
    path.contains(&b';').then(|| {
        let segments = path.split(|&byte| byte == b'/');
        let bare = segments.map(|segment| before(segment, |byte| byte == b';'));
        bare.collect::<Vec<_>>().join(&b'/')
    })
}

/// "/a;x=1/b" is "/a".
fn cut_at_parameters(path: &[u8]) -> Option<Vec<u8>> {
    let cut = before(path, |byte| byte == b';');
    (cut.len() < path.len()).then(|| cut.to_vec())
}

fn merge_slashes(path: &[u8]) -> Option<Vec<u8>> {
    path.windows(2).any(|two| two == b"//").then(|| {
        let mut merged = path.to_vec();
        merged.dedup_by(|a, b| (*a, *b) == (b'/', b'/'));
        merged
    })
}

/// RFC 3986 section 5.2.4.
fn resolve_dots(path: &[u8]) -> Option<Vec<u8>> {
    let segments = || Some(path.strip_prefix(b"/")?.split(|&byte| byte == b'/'));
    let is_dots = |segment: &[u8]| matches!(segment, b"." | b"..");
    if !segments()?.any(is_dots) {
        return None;
    }
    let mut kept: Vec<&[u8]> = Vec::new();
    for segment in segments()? {
        match segment {
            b"." => {}
            b".." => drop(kept.pop()),
            name => kept.push(name),
        }
    }
    // "/a/.." and "/a/." are folders.
    if segments()?.next_back().is_some_and(is_dots) {
        kept.push(b"");
    }
    Some([&b"/"[..], &kept.join(&b'/')].concat())
}

/// What was encoded is given to somebody who reads a URL.
fn cut_at_query(path: &[u8]) -> Option<Vec<u8>> {
    let cut = before(path, |byte| matches!(byte, b'?' | b'#'));
    (cut.len() < path.len()).then(|| cut.to_vec())
}

/// "/a%20/b", for routers that trim what stands between slashes.
fn trim_segments(path: &[u8]) -> Option<Vec<u8>> {
    let segments = || path.split(|&byte| byte == b'/');
    let is_trimmed = |segment: &[u8]| segment.trim_ascii().len() == segment.len();
    (!segments().all(is_trimmed)).then(|| segments().map(<[u8]>::trim_ascii).collect::<Vec<_>>().join(&b'/'))
}

/// As a browser's URL drops tabs and line ends.
fn drop_controls(path: &[u8]) -> Option<Vec<u8>> {
    let is_text = |byte: &u8| !byte.is_ascii_control();
    (!path.iter().all(is_text)).then(|| path.iter().copied().filter(is_text).collect())
}

/// A string of C ends at NUL.
fn cut_at_controls(path: &[u8]) -> Option<Vec<u8>> {
    let cut = before(path, |byte| byte.is_ascii_control());
    (cut.len() < path.len()).then(|| cut.to_vec())
}

fn before(path: &[u8], ends: impl Fn(u8) -> bool) -> &[u8] {
    let end = path.iter().position(|&byte| ends(byte));
    &path[..end.unwrap_or(path.len())]
}
