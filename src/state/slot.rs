//! One slot: a header, the memory in postcard, and a checksum over both.
//!
//! | offset | size | what |
//! | --- | --- | --- |
//! | 0 | 8 | magic `bkstate\0` |
//! | 8 | 2 | format version, little-endian |
//! | 10 | 2 | length of the body |
//! | 12 | 8 | sequence |
//! | 20 | n | body: postcard of the memory |
//! | 20 + n | 32 | SHA-256 of all before it |
//!
//! The rest of the slot is zero. The checksum guards against accidents; a user who can write the file holds the key as well.

use ring::digest::{SHA256, digest};

use boundkey_join::device::Memory;

/// Size of a slot in bytes.
pub const SLOT_SIZE: usize = 4096;
/// The format that this version writes.
pub(super) const FORMAT: u16 = 2;
/// The format without the last field of the memory, the list of keys made for recovery codes.
const WITHOUT_RECOVERY_KEYS: u16 = 1;
/// An empty list, as postcard writes it.
const EMPTY_LIST: u8 = 0;

const MAGIC: &[u8; 8] = b"bkstate\0";
const HEADER: usize = 20;
const CHECKSUM: usize = 32;

/// Why a slot is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotError {
    /// The checksum does not fit: torn, or flipped bits.
    Checksum,
    /// Whole, but its body is not one that this version would write.
    Content,
    /// Never written, or not a state file.
    Empty,
    /// Written by a newer version of this program.
    FutureVersion(u16),
    /// The memory does not fit into a slot.
    TooLarge,
}

impl std::fmt::Display for SlotError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Checksum => f.write_str("torn or damaged (checksum)"),
            Self::Content => f.write_str("whole, but not readable"),
            Self::Empty => f.write_str("empty"),
            Self::FutureVersion(version) => write!(f, "of format {version}; this program knows {FORMAT}"),
            Self::TooLarge => write!(f, "larger than {SLOT_SIZE} bytes"),
        }
    }
}

impl std::error::Error for SlotError {}

/// A slot's bytes.
pub(super) fn encode(sequence: u64, memory: &Memory) -> Result<Vec<u8>, SlotError> {
    let body = postcard::to_allocvec(memory).map_err(|_| SlotError::Content)?;
    let length = u16::try_from(body.len()).map_err(|_| SlotError::TooLarge)?;
    let mut slot = Vec::with_capacity(SLOT_SIZE);
    slot.extend(MAGIC);
    slot.extend(FORMAT.to_le_bytes());
    slot.extend(length.to_le_bytes());
    slot.extend(sequence.to_le_bytes());
    slot.extend(body);
    let checksum = digest(&SHA256, &slot);
    slot.extend(checksum.as_ref());
    if slot.len() > SLOT_SIZE {
        return Err(SlotError::TooLarge);
    }
    slot.resize(SLOT_SIZE, 0);
    Ok(slot)
}

/// What a slot holds: its sequence and the memory.
pub(super) fn decode(slot: &[u8]) -> Result<(u64, Memory), SlotError> {
    let header: &[u8; HEADER] = slot.first_chunk().ok_or(SlotError::Empty)?;
    if !header.starts_with(MAGIC) {
        return Err(if header == &[0; HEADER] { SlotError::Empty } else { SlotError::Checksum });
    }
    let length = usize::from(u16::from_le_bytes([header[10], header[11]]));
    let (end, checksum_end) = (HEADER + length, HEADER + length + CHECKSUM);
    let checksum = slot.get(end..checksum_end).ok_or(SlotError::Checksum)?;
    if digest(&SHA256, &slot[..end]).as_ref() != checksum {
        return Err(SlotError::Checksum);
    }
    // Only now: a flipped bit must not pass for a newer version.
    let version = u16::from_le_bytes([header[8], header[9]]);
    let mut body = slot[HEADER..end].to_vec();
    match version {
        FORMAT => {}
        WITHOUT_RECOVERY_KEYS => body.push(EMPTY_LIST),
        other => return Err(SlotError::FutureVersion(other)),
    }
    let sequence = u64::from_le_bytes(std::array::from_fn(|i| header[12 + i]));
    let memory = postcard::from_bytes(&body).map_err(|_| SlotError::Content)?;
    // Postcard reads past what it does not need. A field that is passed over here would be gone with the next write.
    if postcard::to_allocvec(&memory).is_ok_and(|written| written == body) {
        Ok((sequence, memory))
    } else {
        Err(SlotError::Content)
    }
}
