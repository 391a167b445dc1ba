//! Recovery codes: the name of a key that a technician reads to an operator over a phone.
//!
//! A code is 16 symbols of Crockford's base32, in four groups: the first 75 bits of the key's thumbprint, then a check symbol. It names a
//! key and proves nothing: a listener can do no more with it than let the holder of that key in.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Thumbprint;

/// Crockford's base32: no I, L, O (taken for 1, 1, 0) and no U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const LENGTH: usize = 16;
const GROUP: usize = 4;
const BITS_PER_SYMBOL: usize = 5;

/// The first 75 bits of a key's thumbprint and a check symbol, for a person to read out and to type.
///
/// Reads what people type: lower case, the letters O, I and L for the digits that they look like, blanks and hyphens anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryCode {
    /// Values below 32, of which the last is the check symbol.
    symbols: [u8; LENGTH],
}

impl RecoveryCode {
    /// The code that names `key`.
    pub fn of(key: &Thumbprint) -> Self {
        let bytes = key.as_bytes();
        let bit = |at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
        let symbol = |at: usize| (0..BITS_PER_SYMBOL).fold(0, |value, i| value << 1 | bit(at * BITS_PER_SYMBOL + i));
        let mut symbols = std::array::from_fn(|at| if at < LENGTH - 1 { symbol(at) } else { 0 });
        symbols[LENGTH - 1] = remainder(&symbols);
        Self { symbols }
    }

    /// Whether this code names `key`. That it names another key as well takes 2^75 tries on average.
    pub fn matches(&self, key: Thumbprint) -> bool {
        *self == Self::of(&key)
    }
}

/// What is left of `symbols`, as coefficients of a polynomial over GF(32), at a root that is a generator of the field: zero for a code.
///
/// Every symbol has a weight of its own, a power of the generator, so that one wrong symbol and two swapped ones leave something.
fn remainder(symbols: &[u8; LENGTH]) -> u8 {
    symbols.iter().fold(0, |sum, symbol| times_generator(sum) ^ symbol)
}

/// Multiplies by x in GF(2)[x] / (x^5 + x^2 + 1), where x generates all 31 values but zero.
fn times_generator(value: u8) -> u8 {
    let shifted = value << 1;
    if shifted & 0x20 == 0 { shifted } else { shifted ^ 0x25 }
}

impl fmt::Display for RecoveryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, symbol) in self.symbols.iter().enumerate() {
            if at > 0 && at % GROUP == 0 {
                f.write_char('-')?;
            }
            f.write_char(char::from(ALPHABET[usize::from(*symbol)]))?;
        }
        Ok(())
    }
}

/// Why a text is not a recovery code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidRecoveryCode {
    /// The check symbol does not fit the others.
    Check,
    /// There are so many symbols.
    Length(usize),
    /// A character that no code has.
    Symbol(char),
}

impl fmt::Display for InvalidRecoveryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Check => {
                f.write_str("a symbol was misread or mistyped: its check symbol does not fit; have the code read out again")
            }
            Self::Length(length) => {
                write!(f, "it has {length} symbols, and a recovery code has {LENGTH}, in four groups of four")
            }
            Self::Symbol(symbol) => write!(f, "no recovery code has {symbol:?}: its symbols are digits and letters, without U"),
        }
    }
}

impl std::error::Error for InvalidRecoveryCode {}

impl FromStr for RecoveryCode {
    type Err = InvalidRecoveryCode;

    fn from_str(text: &str) -> Result<Self, InvalidRecoveryCode> {
        let mut symbols = [0; LENGTH];
        let mut length = 0;
        for character in text.chars().filter(|c| !is_separator(*c)) {
            let value = value_of(character).ok_or(InvalidRecoveryCode::Symbol(character))?;
            if let Some(symbol) = symbols.get_mut(length) {
                *symbol = value;
            }
            length += 1;
        }
        if length != LENGTH {
            return Err(InvalidRecoveryCode::Length(length));
        }
        if remainder(&symbols) != 0 {
            return Err(InvalidRecoveryCode::Check);
        }
        Ok(Self { symbols })
    }
}

/// Blanks, the hyphen, and the dashes (U+2010 to U+2015) that programs for text put in its place.
fn is_separator(character: char) -> bool {
    character.is_whitespace() || matches!(character, '-' | '\u{2010}'..='\u{2015}')
}

fn value_of(character: char) -> Option<u8> {
    let meant = match character.to_ascii_uppercase() {
        'I' | 'L' => '1',
        'O' => '0',
        other => other,
    };
    let place = ALPHABET.iter().position(|symbol| char::from(*symbol) == meant)?;
    u8::try_from(place).ok()
}

impl Serialize for RecoveryCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RecoveryCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base64url;

    /// Thumbprints that have nothing in common, the same at every run.
    fn thumbprints(count: u32) -> impl Iterator<Item = Thumbprint> {
        (0..count).map(|n| {
            let bytes = ring::digest::digest(&ring::digest::SHA256, &n.to_le_bytes());
            base64url::encode(bytes).parse().unwrap()
        })
    }

    fn written(symbols: &[u8]) -> String {
        symbols.iter().map(|symbol| char::from(ALPHABET[usize::from(*symbol)])).collect()
    }

    /// The thumbprint is that of RFC 8037 appendix A.3.
    #[test]
    fn a_code_is_the_front_of_the_thumbprint() {
        let print: Thumbprint = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k".parse().unwrap();
        let code = RecoveryCode::of(&print).to_string();
        assert_eq!(code, "J3XC-NZN9-P5AP-D629");
        // Base32 of the first 9 bytes and 3 bits, by another way.
        let front = print.as_bytes()[..16].iter().fold(0_u128, |sum, byte| sum << 8 | u128::from(*byte));
        let symbols: Vec<u8> = (1..16).map(|place| u8::try_from(front >> (128 - 5 * place) & 31).unwrap()).collect();
        assert_eq!(code.replace('-', "")[..15], written(&symbols));
    }

    #[test]
    fn a_code_survives_writing_and_names_its_key_alone() {
        let all: Vec<_> = thumbprints(200).collect();
        for (n, print) in all.iter().enumerate() {
            let code = RecoveryCode::of(print);
            assert_eq!(code.to_string().parse(), Ok(code.clone()));
            let json = serde_json::to_string(&code).unwrap();
            assert_eq!(json, format!("\"{code}\""));
            assert_eq!(serde_json::from_str::<RecoveryCode>(&json).unwrap(), code);
            assert!(all.iter().enumerate().all(|(other, key)| code.matches(*key) == (other == n)));
        }
    }

    #[test]
    fn what_people_type_is_taken() {
        for print in thumbprints(200) {
            let code = RecoveryCode::of(&print);
            let text = code.to_string();
            let one_by_one: String = text.replace('-', "").chars().flat_map(|symbol| [symbol, ' ']).collect();
            for typed in [
                text.to_lowercase(),
                text.replace('-', ""),
                text.replace('-', " - "),
                text.replace('-', "\u{2013}"),
                one_by_one,
                format!("  {text}\n"),
                text.replace('0', "O").replace('1', "I"),
                text.replace('0', "o").replace('1', "l"),
            ] {
                assert_eq!(typed.parse(), Ok(code.clone()), "{typed:?}");
            }
        }
    }

    /// Exhaustive for each of the codes: every symbol in every place, and every two neighbours.
    #[test]
    fn one_wrong_symbol_and_two_swapped_ones_are_noticed() {
        for print in thumbprints(500) {
            let RecoveryCode { symbols } = RecoveryCode::of(&print);
            for at in 0..LENGTH {
                for wrong in (0..32).filter(|wrong| *wrong != symbols[at]) {
                    let mut typed = symbols;
                    typed[at] = wrong;
                    assert_eq!(written(&typed).parse::<RecoveryCode>(), Err(InvalidRecoveryCode::Check));
                }
            }
            for at in (1..LENGTH).filter(|at| symbols[*at] != symbols[at - 1]) {
                let mut typed = symbols;
                typed.swap(at - 1, at);
                assert_eq!(written(&typed).parse::<RecoveryCode>(), Err(InvalidRecoveryCode::Check));
            }
        }
    }

    #[test]
    fn what_is_no_code_is_told_apart() {
        let code = RecoveryCode::of(&thumbprints(1).next().unwrap()).to_string();
        let parse = |text: &str| text.parse::<RecoveryCode>().unwrap_err();
        assert_eq!(parse(""), InvalidRecoveryCode::Length(0));
        assert_eq!(parse(&code[..18]), InvalidRecoveryCode::Length(15));
        assert_eq!(parse(&format!("{code}7")), InvalidRecoveryCode::Length(17));
        assert_eq!(parse(&code.repeat(10_000)), InvalidRecoveryCode::Length(160_000));
        for symbol in ['U', 'u', '*', '\u{1b}', 'é', '０'] {
            assert_eq!(parse(&format!("{code}{symbol}")), InvalidRecoveryCode::Symbol(symbol));
        }
        let told = parse("\u{202e}").to_string();
        assert!(!told.contains('\u{202e}'), "{told}");
    }
}
