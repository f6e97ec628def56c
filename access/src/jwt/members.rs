//! What a JWK Set says of each key, read as it comes: nothing is kept of what does not matter here, so that a set takes no more memory
//! than it has bytes, whatever is in it.

use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A member that ought to be a text.
#[derive(Debug, Default)]
pub(super) enum Text {
    #[default]
    None,
    Some(String),
    /// Something else.
    Wrong,
}

/// Whether a key says that it may verify.
#[derive(Debug, Default, PartialEq)]
pub(super) enum Operations {
    #[default]
    None,
    Verify,
    Others,
    /// They are no list of texts.
    Wrong,
}

/// What of a key matters here (RFC 7517 section 4, RFC 7518 section 6, RFC 8037 section 2).
#[derive(Debug, Default)]
pub(super) struct Members {
    pub(super) kty: Text,
    pub(super) kid: Text,
    pub(super) intended: Text,
    pub(super) key_ops: Operations,
    pub(super) alg: Text,
    pub(super) crv: Text,
    pub(super) x: Text,
    pub(super) y: Text,
    pub(super) n: Text,
    pub(super) e: Text,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Name {
    Kty,
    Kid,
    Use,
    KeyOps,
    Alg,
    Crv,
    X,
    Y,
    N,
    E,
    #[serde(other)]
    Other,
}

/// The rest of a value of any kind that is not the one that was looked for.
macro_rules! others_are {
    ($wrong:expr; $($of:ident)*) => {
        $(others_are!(@ $of $wrong);)*
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok($wrong)
        }
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok($wrong)
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok($wrong)
        }
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok($wrong)
        }
    };
    (@ text $wrong:expr) => {
        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok($wrong)
        }
    };
    (@ null $wrong:expr) => {
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok($wrong)
        }
    };
    (@ list $wrong:expr) => {
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok($wrong)
        }
    };
    (@ object $wrong:expr) => {
        fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
            while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok($wrong)
        }
    };
}

struct OfText;

impl<'de> Visitor<'de> for OfText {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text::Some(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Text, E> {
        Ok(Text::None)
    }

    others_are!(Text::Wrong; list object);
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OfText)
    }
}

struct OfOperations;

impl<'de> Visitor<'de> for OfOperations {
    type Value = Operations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of texts")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Operations, A::Error> {
        let mut found = Operations::Others;
        while let Some(operation) = list.next_element()? {
            match operation {
                Text::Some(name) if name == "verify" && found != Operations::Wrong => found = Operations::Verify,
                Text::Some(_) => {}
                Text::None | Text::Wrong => found = Operations::Wrong,
            }
        }
        Ok(found)
    }

    fn visit_unit<E>(self) -> Result<Operations, E> {
        Ok(Operations::None)
    }

    others_are!(Operations::Wrong; text object);
}

impl<'de> Deserialize<'de> for Operations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OfOperations)
    }
}

/// An element of a set. `None`: it is no object.
struct Element(Option<Members>);

struct OfElement;

impl<'de> Visitor<'de> for OfElement {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Element, A::Error> {
        let mut members = Members::default();
        while let Some(name) = object.next_key()? {
            // Of a name that is there twice the last counts (RFC 7517 section 4).
            match name {
                Name::Kty => members.kty = object.next_value()?,
                Name::Kid => members.kid = object.next_value()?,
                Name::Use => members.intended = object.next_value()?,
                Name::KeyOps => members.key_ops = object.next_value()?,
                Name::Alg => members.alg = object.next_value()?,
                Name::Crv => members.crv = object.next_value()?,
                Name::X => members.x = object.next_value()?,
                Name::Y => members.y = object.next_value()?,
                Name::N => members.n = object.next_value()?,
                Name::E => members.e = object.next_value()?,
                Name::Other => {
                    object.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Element(Some(members)))
    }

    others_are!(Element(None); text null list);
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OfElement)
    }
}

/// The object that a JWK Set is: hands each of the first so many elements on, and says how many there are. The rest is only skipped.
pub(super) struct Set<F> {
    pub(super) most: usize,
    /// Is told the number of an element, and what it says, if it is an object.
    pub(super) each: F,
}

impl<'de, F: FnMut(usize, Option<Members>)> DeserializeSeed<'de> for Set<F> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(usize, Option<Members>)> Visitor<'de> for Set<F> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JWK Set")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut object: A) -> Result<usize, A::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "snake_case")]
        enum Name {
            Keys,
            #[serde(other)]
            Other,
        }
        let mut count = None;
        while let Some(name) = object.next_key()? {
            match name {
                Name::Keys if count.is_some() => return Err(serde::de::Error::duplicate_field("keys")),
                Name::Keys => {
                    let (most, each) = (self.most, &mut self.each);
                    count = Some(object.next_value_seed(Elements { most, each })?);
                }
                Name::Other => {
                    object.next_value::<IgnoredAny>()?;
                }
            }
        }
        count.ok_or_else(|| serde::de::Error::missing_field("keys"))
    }
}

struct Elements<'a, F> {
    most: usize,
    each: &'a mut F,
}

impl<'de, F: FnMut(usize, Option<Members>)> DeserializeSeed<'de> for Elements<'_, F> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(usize, Option<Members>)> Visitor<'de> for Elements<'_, F> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of keys")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<usize, A::Error> {
        let mut count = 0;
        while count < self.most {
            let Some(Element(members)) = list.next_element()? else {
                return Ok(count);
            };
            (self.each)(count, members);
            count += 1;
        }
        while list.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(count)
    }
}
