//! Reading YAML so that every error knows its line and field.
//!
//! The reader adds them to errors that arise while it is inside a value. `#[serde(try_from)]` and tagged enums check after
//! that, and lose them: hence these visitors, which check inside.

use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Reads a mapping as its plain fields `R`, then checks what they say together.
pub fn mapping<'de, D, R, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    R: Deserialize<'de>,
    T: TryFrom<R, Error: Display>,
{
    deserializer.deserialize_any(Mapping(PhantomData::<(R, T)>))
}

/// Reads a list, then checks what its elements say together.
pub fn list<'de, D, E, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    E: Deserialize<'de>,
    T: TryFrom<Vec<E>, Error: Display>,
{
    deserializer.deserialize_seq(List(PhantomData::<(E, T)>))
}

/// Reads a scalar as written, quoted or not: `0640` is text here, not a number.
pub fn text<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_str(Text(PhantomData))
}

struct Mapping<R, T>(PhantomData<(R, T)>);

impl<'de, R: Deserialize<'de>, T: TryFrom<R, Error: Display>> Visitor<'de> for Mapping<R, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`name: value` lines")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::try_from(R::deserialize(MapAccessDeserializer::new(map))?).map_err(A::Error::custom)
    }

    // The value may be a secret in the wrong place: it is not shown.
    fn visit_str<E: Error>(self, _: &str) -> Result<T, E> {
        Err(E::custom("invalid type: text, expected `name: value` lines"))
    }

    // An empty file.
    fn visit_none<E: Error>(self) -> Result<T, E> {
        self.visit_unit()
    }

    // A field with nothing after the colon.
    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Err(E::custom("nothing is here, expected `name: value` lines"))
    }
}

struct List<E, T>(PhantomData<(E, T)>);

impl<'de, E: Deserialize<'de>, T: TryFrom<Vec<E>, Error: Display>> Visitor<'de> for List<E, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<T, A::Error> {
        T::try_from(Vec::deserialize(SeqAccessDeserializer::new(seq))?).map_err(A::Error::custom)
    }
}

struct Text<T>(PhantomData<T>);

impl<T: FromStr<Err: Display>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a single value")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// `Deserialize` by [`text`] for types with `FromStr`.
#[macro_export]
macro_rules! from_text {
    ($($name:ty),+ $(,)?) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::yaml::text(deserializer)
            }
        }
    )+};
}

/// `Deserialize` by [`mapping`] for types made from their plain fields.
#[macro_export]
macro_rules! from_fields {
    ($($fields:ty => $name:ty),+ $(,)?) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::yaml::mapping::<D, $fields, $name>(deserializer)
            }
        }
    )+};
}

/// `Deserialize` by [`list`] for types made from a list.
#[macro_export]
macro_rules! from_list {
    ($element:ty => $name:ty) => {
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::yaml::list::<D, $element, $name>(deserializer)
            }
        }
    };
}
