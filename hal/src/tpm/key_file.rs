//! TSS2 PRIVATE KEY files: a wrapped key, as `tpm2-openssl` and other programs read it.
//!
//! ```text
//! TPMKey ::= SEQUENCE {
//!     type        OBJECT IDENTIFIER,          -- 2.23.133.10.1.3, a key to be loaded
//!     emptyAuth   [0] EXPLICIT BOOLEAN OPTIONAL,
//!     policy      [1] ... [4] OPTIONAL,       -- not supported here
//!     parent      INTEGER,                    -- handle of the storage key, 0x40000001 for one to be derived
//!     pubkey      OCTET STRING,               -- TPM2B_PUBLIC
//!     privkey     OCTET STRING }              -- TPM2B_PRIVATE
//! ```

use std::string::String;
use std::vec::Vec;

use crate::der::{BOOLEAN, Der, INTEGER, OBJECT_IDENTIFIER, OCTET_STRING, SEQUENCE, context};

/// The storage key made persistent where the TCG's provisioning guidance puts it.
pub(super) const PERSISTENT: u32 = 0x8100_0001;
/// The owner hierarchy: the storage key is derived from its seed each time.
pub(super) const OWNER: u32 = 0x4000_0001;

const LABEL: &str = "TSS2 PRIVATE KEY";
const LOADABLE_KEY: [u8; 6] = [0x67, 0x81, 0x05, 0x0a, 0x01, 0x03];

const EMPTY_AUTH: u8 = context(0);
const POLICY: [u8; 4] = [context(1), context(2), context(3), context(4)];

/// A key as it leaves the TPM: useless without the storage key it lies under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WrappedKey {
    /// [`PERSISTENT`] or [`OWNER`].
    pub(super) parent: u32,
    /// Whether the key has no auth value. Only a hint where `false`: other programs write that for any key.
    pub(super) empty_auth: bool,
    /// TPMT_PUBLIC.
    pub(super) public: Vec<u8>,
    /// Content of the TPM2B_PRIVATE.
    pub(super) private: Vec<u8>,
}

impl WrappedKey {
    /// The file's text. `None` where a part is longer than any TPM makes it.
    pub(super) fn to_pem(&self) -> Option<String> {
        // Written even where it is FALSE: tpm2-openssl takes its absence for an empty auth value, and its failures count against the TPM's lockout.
        let empty_auth = tlv(BOOLEAN, &[if self.empty_auth { 0xff } else { 0 }])?;
        // A handle is a positive number: one zero byte in front keeps its highest bit from being the sign.
        let parent = [&[0][..], &self.parent.to_be_bytes()].concat();
        let parent = parent.strip_prefix(if self.parent >> 31 == 0 { &[0][..] } else { &[] })?;
        let fields = [
            tlv(OBJECT_IDENTIFIER, &LOADABLE_KEY)?,
            tlv(EMPTY_AUTH, &empty_auth)?,
            tlv(INTEGER, parent)?,
            tlv(OCTET_STRING, &sized(&self.public)?)?,
            tlv(OCTET_STRING, &sized(&self.private)?)?,
        ];
        pem_rfc7468::encode_string(LABEL, pem_rfc7468::LineEnding::LF, &tlv(SEQUENCE, &fields.concat())?).ok()
    }

    /// Reads a file's text; the error says what is wrong with it.
    pub(super) fn from_pem(text: &str) -> Result<Self, &'static str> {
        let (label, der) = pem_rfc7468::decode_vec(text.as_bytes()).map_err(|_| "not a whole PEM file")?;
        if label != LABEL {
            return Err("not a wrapped TPM key (PEM label TSS2 PRIVATE KEY)");
        }
        let damaged = "the TSS2 PRIVATE KEY is damaged";
        let mut file = Der(&der);
        let mut fields = Der(file.take(SEQUENCE).ok_or(damaged)?);
        if fields.take(OBJECT_IDENTIFIER) != Some(&LOADABLE_KEY) {
            return Err("a TSS2 PRIVATE KEY that is not a loadable key");
        }
        let empty_auth = match fields.take(EMPTY_AUTH) {
            // Any non-zero value is TRUE: tpm2-openssl writes 01.
            Some(explicit) => matches!(Der(explicit).take(BOOLEAN), Some([b]) if *b != 0),
            None => false,
        };
        if POLICY.iter().any(|tag| fields.take(*tag).is_some()) {
            return Err("a key with an authorization policy, which is not supported");
        }
        let parent = handle(fields.take(INTEGER).ok_or(damaged)?).ok_or(damaged)?;
        if ![PERSISTENT, OWNER].contains(&parent) {
            return Err("a key under another parent than the storage key (0x81000001, or 0x40000001 derived)");
        }
        let public = unsized_(fields.take(OCTET_STRING).ok_or(damaged)?).ok_or(damaged)?;
        let private = unsized_(fields.take(OCTET_STRING).ok_or(damaged)?).ok_or(damaged)?;
        if !fields.is_empty() || !file.is_empty() {
            return Err(damaged);
        }
        Ok(Self { parent, empty_auth, public: public.to_vec(), private: private.to_vec() })
    }
}

/// One DER element. `None` past 65535 bytes.
fn tlv(tag: u8, content: &[u8]) -> Option<Vec<u8>> {
    let mut der = std::vec![tag];
    match u16::try_from(content.len()).ok()?.to_be_bytes() {
        [0, short @ 0..=0x7f] => der.push(short),
        [0, len] => der.extend([0x81, len]),
        [high, low] => der.extend([0x82, high, low]),
    }
    der.extend(content);
    Some(der)
}

/// With the length in front that makes a TPM2B.
fn sized(content: &[u8]) -> Option<Vec<u8>> {
    Some([&u16::try_from(content.len()).ok()?.to_be_bytes()[..], content].concat())
}

/// Without the length in front, which must fit exactly.
fn unsized_(tpm2b: &[u8]) -> Option<&[u8]> {
    let (len, content) = tpm2b.split_first_chunk()?;
    (usize::from(u16::from_be_bytes(*len)) == content.len()).then_some(content)
}

/// A TPM handle from the content of an INTEGER. Some writers leave the sign byte out: 0x81000001 then reads as negative.
fn handle(integer: &[u8]) -> Option<u32> {
    let digits = if let [0, digits @ ..] = integer { digits } else { integer };
    Some(u32::from_be_bytes(digits.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> WrappedKey {
        WrappedKey { parent: PERSISTENT, empty_auth: false, public: std::vec![7; 88], private: std::vec![8; 300] }
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        for parent in [PERSISTENT, OWNER] {
            for empty_auth in [false, true] {
                let key = WrappedKey { parent, empty_auth, ..key() };
                assert_eq!(WrappedKey::from_pem(&key.to_pem().expect("short enough")), Ok(key));
            }
        }
    }

    #[test]
    fn the_parent_is_a_positive_integer() {
        let der =
            |parent| pem_rfc7468::decode_vec(WrappedKey { parent, ..key() }.to_pem().expect("pem").as_bytes()).expect("der").1;
        assert!(der(PERSISTENT).windows(7).any(|w| w == [2, 5, 0, 0x81, 0, 0, 1]));
        assert!(der(OWNER).windows(6).any(|w| w == [2, 4, 0x40, 0, 0, 1]));
    }

    #[test]
    fn damage_at_any_byte_never_panics_and_truncation_never_passes() {
        let (_, der) = pem_rfc7468::decode_vec(key().to_pem().expect("pem").as_bytes()).expect("der");
        let pem = |der: &[u8]| pem_rfc7468::encode_string(LABEL, pem_rfc7468::LineEnding::LF, der).expect("pem");
        for at in 0..der.len() {
            WrappedKey::from_pem(&pem(&der[..at])).expect_err("truncated");
            for bit in 0..8 {
                let mut other = der.clone();
                other[at] ^= 1 << bit;
                let _ = WrappedKey::from_pem(&pem(&other));
            }
        }
        WrappedKey::from_pem(&pem(&[&der[..], &[0]].concat())).expect_err("a tail");
    }

    #[test]
    fn what_other_programs_write_is_read() {
        // As tpm2-openssl: TRUE is 01. As some others: no emptyAuth, and a handle without its sign byte.
        let field = |tag, content: &[u8]| tlv(tag, content).expect("short");
        let tail = [field(OCTET_STRING, &[0, 1, 7]), field(OCTET_STRING, &[0, 1, 8])].concat();
        let head = field(OBJECT_IDENTIFIER, &LOADABLE_KEY);
        let lax = [head.clone(), field(EMPTY_AUTH, &[1, 1, 1]), field(INTEGER, &[0x81, 0, 0, 1]), tail.clone()].concat();
        let bare = [head.clone(), field(INTEGER, &[0x40, 0, 0, 1]), tail.clone()].concat();
        let policy = [head.clone(), field(0xa1, &[0x30, 0]), field(INTEGER, &[0x40, 0, 0, 1]), tail.clone()].concat();
        let elsewhere = [head, field(INTEGER, &[0, 0x81, 0, 0, 2]), tail].concat();
        let read = |fields: &[u8]| {
            let der = field(SEQUENCE, fields);
            WrappedKey::from_pem(&pem_rfc7468::encode_string(LABEL, pem_rfc7468::LineEnding::LF, &der).expect("pem"))
        };
        assert!(read(&lax).is_ok_and(|k| k.empty_auth && k.parent == PERSISTENT));
        assert!(read(&bare).is_ok_and(|k| !k.empty_auth && k.parent == OWNER));
        assert!(read(&policy).is_err_and(|why| why.contains("policy")));
        assert!(read(&elsewhere).is_err_and(|why| why.contains("parent")));
    }
}
