//! How much memory this process may use.

/// The limit of the container that this process is in, in bytes; `None` where there is none or it cannot be read.
pub fn memory_limit() -> Option<u64> {
    // In a container the cgroup file system begins at the container's own group: version 2, then version 1.
    [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]
    .iter()
    .find_map(|path| std::fs::read_to_string(path).ok())
    .and_then(|text| parse(&text))
}

/// "max" is no limit; so is version 1's way to say so, a number near 2^63.
fn parse(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|&bytes| bytes < 1 << 62)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_limit_or_none() {
        assert_eq!(parse("268435456\n"), Some(256 << 20));
        assert_eq!(parse("max\n"), None);
        assert_eq!(parse("9223372036854771712\n"), None);
        assert_eq!(parse(""), None);
    }
}
