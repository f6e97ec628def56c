//! Writes the Rust code of the protobuf of Outrigger, of what its sidecar speaks, and of its shop: `cargo run -p outrigger-protobuf`.
//!
//! That code is kept beside the protobuf, so that who builds Outrigger need not build a protobuf compiler first. Here the compiler is
//! a build dependency, which is never optimised.

use std::path::{Path, PathBuf};

/// A file of the repository.
struct Code {
    name: &'static str,
    content: &'static str,
}

macro_rules! code {
    ($folder:literal, $file:literal) => {
        Code {
            name: concat!($folder, "/", $file),
            content: include_str!(concat!(env!("OUT_DIR"), "/", $file)),
        }
    };
}

const ALL: [Code; 7] = [
    code!("api/src/generated", "outrigger.identity.v1.rs"),
    code!("api/src/generated", "outrigger.access.v1.rs"),
    code!("api/src/generated", "outrigger.limits.v1.rs"),
    code!("api/src/generated", "outrigger.discovery.v1.rs"),
    code!("proxy/src/generated", "envoy.service.auth.v3.rs"),
    code!("examples/shop-app/src/generated", "shop.v1.rs"),
    code!("examples/shop-app/src/generated", "grpc.health.v1.rs"),
];

impl Code {
    fn path(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(self.name)
    }
}

fn main() -> std::io::Result<()> {
    ALL.iter()
        .try_for_each(|code| std::fs::write(code.path(), code.content))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_code_is_what_the_protobuf_says() {
        for code in &super::ALL {
            let kept = std::fs::read_to_string(code.path()).unwrap_or_default();
            // Not by assert_eq, which would show all of both.
            assert!(
                kept == code.content,
                "{}: cargo run -p outrigger-protobuf writes it anew",
                code.name
            );
        }
    }
}
