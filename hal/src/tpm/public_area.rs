//! Public areas of keys (TPMT_PUBLIC, TPM 2.0 part 2, section 12.2.4) as bytes: the templates, the Name, the public half.
//!
//! Written out by hand, so that reading a key file needs neither a TPM nor libtss2.

use core::fmt;
use core::str::FromStr;
use std::vec::Vec;

use crate::{Algorithm, PublicKey};

const ALG_ECC: u16 = 0x0023;
const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
const ALG_AES: u16 = 0x0006;
const ALG_CFB: u16 = 0x0043;
const ALG_ECDSA: u16 = 0x0018;
const CURVE_P256: u16 = 0x0003;

// Object attributes (part 2, section 8.3).
const FIXED_TPM: u32 = 1 << 1;
const FIXED_PARENT: u32 = 1 << 4;
const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
const USER_WITH_AUTH: u32 = 1 << 6;
const NO_DA: u32 = 1 << 10;
const RESTRICTED: u32 = 1 << 16;
const DECRYPT: u32 = 1 << 17;
const SIGN: u32 = 1 << 18;

/// What makes a key one that was born in this TPM and never leaves it.
const BOUND: u32 = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN;
const STORAGE_ATTRIBUTES: u32 = BOUND | USER_WITH_AUTH | NO_DA | RESTRICTED | DECRYPT;
const SIGNING_ATTRIBUTES: u32 = BOUND | USER_WITH_AUTH | NO_DA | SIGN;

/// Template of the storage key. With `unique` empty and noDA it is the one `tpm2-openssl` derives for parent 0x40000001.
pub(super) fn storage_template() -> Vec<u8> {
    let mut area = header(STORAGE_ATTRIBUTES);
    for field in [ALG_AES, 128, ALG_CFB, ALG_NULL, CURVE_P256, ALG_NULL, 0, 0] {
        area.extend(field.to_be_bytes());
    }
    area
}

/// Template of a P-256 key that signs ECDSA with SHA-256 and nothing else.
pub(super) fn signing_template() -> Vec<u8> {
    let mut area = header(SIGNING_ATTRIBUTES);
    for field in [ALG_NULL, ALG_ECDSA, ALG_SHA256, CURVE_P256, ALG_NULL, 0, 0] {
        area.extend(field.to_be_bytes());
    }
    area
}

/// Type, name algorithm, attributes and an empty policy.
fn header(attributes: u32) -> Vec<u8> {
    [&ALG_ECC.to_be_bytes()[..], &ALG_SHA256.to_be_bytes(), &attributes.to_be_bytes(), &[0, 0]].concat()
}

/// Whether `area` is a key to put others under: born in this TPM, and not one that power cuts lock (noDA).
pub(super) fn is_fit_storage_key(area: &[u8]) -> bool {
    let mut rest = Fields(area);
    let (_type, _name_algorithm) = (rest.u16(), rest.u16());
    rest.u32().is_some_and(|attributes| attributes & STORAGE_ATTRIBUTES == STORAGE_ATTRIBUTES)
}

/// The public half of a signing key; the error says why `area` is not one that this store may use.
pub(super) fn signing_key(area: &[u8]) -> Result<PublicKey, &'static str> {
    let mut rest = Fields(area);
    let short = "the public area is cut short";
    if rest.u16() != Some(ALG_ECC) || rest.u16() != Some(ALG_SHA256) {
        return Err("not an elliptic-curve key named with SHA-256");
    }
    let attributes = rest.u32().ok_or(short)?;
    if attributes & BOUND != BOUND {
        return Err("the key was not made in this TPM or can leave it");
    }
    if attributes & SIGN == 0 || attributes & RESTRICTED != 0 {
        return Err("not a signing key");
    }
    if !rest.sized().ok_or(short)?.is_empty() || attributes & USER_WITH_AUTH == 0 {
        return Err("a key with an authorization policy, which is not supported");
    }
    let scheme = (rest.u16() == Some(ALG_NULL)).then(|| rest.u16()).flatten();
    match scheme {
        Some(ALG_NULL) => {}
        Some(ALG_ECDSA) if rest.u16() == Some(ALG_SHA256) => {}
        _ => return Err("not a key for ECDSA with SHA-256"),
    }
    if rest.u16() != Some(CURVE_P256) || rest.u16() != Some(ALG_NULL) {
        return Err("not a P-256 key");
    }
    let (x, y) = (rest.sized().ok_or(short)?, rest.sized().ok_or(short)?);
    if !rest.0.is_empty() {
        return Err("the public area has a tail");
    }
    let (x, y) = (coordinate(x).ok_or("not a P-256 key")?, coordinate(y).ok_or("not a P-256 key")?);
    PublicKey::new(Algorithm::EcdsaP256, &[&[4][..], &x, &y].concat()).map_err(|e| e.0)
}

/// An integer of at most 32 bytes with the leading zeros that a TPM may leave out.
pub(super) fn coordinate(short: &[u8]) -> Option<[u8; 32]> {
    let mut whole = [0; 32];
    whole.get_mut(32usize.checked_sub(short.len())?..)?.copy_from_slice(short);
    Some(whole)
}

/// A key's Name: its hash algorithm and the digest of its public area. It identifies the key, and a storage key's Name the TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name([u8; 34]);

impl Name {
    /// The Name of the key with the public area `area`.
    pub(super) fn of(area: &[u8]) -> Self {
        let mut name = [0; 34];
        name[..2].copy_from_slice(&ALG_SHA256.to_be_bytes());
        name[2..].copy_from_slice(ring::digest::digest(&ring::digest::SHA256, area).as_ref());
        Self(name)
    }

    /// Takes a Name by SHA-256 as the TPM writes it.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let name: [u8; 34] = bytes.try_into().ok()?;
        name.starts_with(&ALG_SHA256.to_be_bytes()).then_some(Self(name))
    }

    /// The Name as the TPM writes it.
    pub fn as_bytes(&self) -> &[u8; 34] {
        &self.0
    }
}

/// As hexadecimal digits, as tpm2-tools print it.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Name {
    type Err = crate::InvalidKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(|p| Some(digit(p[0])? << 4 | digit(*p.get(1)?)?)).collect();
        bytes
            .and_then(|b| Self::from_bytes(&b))
            .ok_or(crate::InvalidKey("the Name of a TPM key is 000b and 64 hexadecimal digits"))
    }
}

/// Big-endian fields, taken one by one.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn u16(&mut self) -> Option<u16> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(u16::from_be_bytes(*head))
    }

    fn u32(&mut self) -> Option<u32> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(u32::from_be_bytes(*head))
    }

    fn sized(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.u16()?);
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString as _;

    use super::*;

    /// A signing key's public area with coordinates `x` and `y`.
    fn area(x: &[u8], y: &[u8]) -> Vec<u8> {
        let mut area = signing_template();
        area.truncate(area.len() - 4);
        for part in [x, y] {
            area.extend(u16::try_from(part.len()).expect("short").to_be_bytes());
            area.extend(part);
        }
        area
    }

    #[test]
    fn coordinates_keep_their_leading_zeros() {
        let key = signing_key(&area(&[7], &[8; 31])).expect("a key");
        assert_eq!(key.as_bytes()[1..33], [&[0; 31][..], &[7]].concat());
        assert_eq!(key.as_bytes()[33..], [&[0][..], &[8; 31]].concat());
    }

    #[test]
    fn every_truncation_and_tail_is_refused() {
        let whole = area(&[7; 32], &[8; 32]);
        for len in 0..whole.len() {
            signing_key(&whole[..len]).expect_err("cut short");
        }
        signing_key(&[&whole[..], &[0]].concat()).expect_err("a tail");
        signing_key(&area(&[7; 33], &[8; 32])).expect_err("too long a coordinate");
    }

    #[test]
    fn a_key_that_can_leave_the_tpm_is_refused() {
        let whole = area(&[7; 32], &[8; 32]);
        for bit in [FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN, SIGN, USER_WITH_AUTH] {
            let mut other = whole.clone();
            other[4..8].copy_from_slice(&(SIGNING_ATTRIBUTES & !bit).to_be_bytes());
            signing_key(&other).expect_err("an attribute is missing");
        }
        signing_key(&storage_template()).expect_err("a storage key");
    }

    #[test]
    fn a_storage_key_that_power_cuts_could_lock_is_not_fit() {
        let mut template = storage_template();
        assert!(is_fit_storage_key(&template));
        template[4..8].copy_from_slice(&(STORAGE_ATTRIBUTES & !NO_DA).to_be_bytes());
        assert!(!is_fit_storage_key(&template) && !is_fit_storage_key(&[]) && !is_fit_storage_key(&signing_template()));
    }

    #[test]
    fn a_name_is_read_as_it_is_written() {
        let name = Name::of(b"area");
        assert_eq!(name.to_string().parse(), Ok(name));
        assert_eq!(Name::from_bytes(name.as_bytes()), Some(name));
        for text in ["", "000b", "zz", &name.to_string()[1..], &name.to_string().replace("000b", "000c")] {
            text.parse::<Name>().expect_err(text);
        }
    }
}
