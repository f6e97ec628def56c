//! Each target on its corpus, and on what is made from it.

use outrigger_fuzz::{fuzz, targets};

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            fuzz(stringify!($name), targets::$name::run);
        })*
    };
}

targets!(
    admission,
    certificate,
    config,
    detect,
    discovery,
    framing,
    grpc_timeout,
    headers,
    hello,
    notation,
    retry,
    route,
    spiffe,
    trace,
);
