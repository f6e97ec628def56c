//! Who calls, by the tokens of a request.

/// The verified tokens of a request.
#[derive(Debug)]
pub struct Tokens(());

impl Tokens {
    /// None at all.
    pub const NONE: Self = Self(());
}
