//! The state file.
//!
//! First byte: odd for the file as it stands. Even for two slots that get magic, length and checksum here: a byte that says which slots
//! there are and in which format (this one, the one before, the one to come), two sequences, how long the first body is, and the bodies.

use std::collections::BTreeMap;
use std::io;

use boundkey::join::Id;
use boundkey::join::device::Memory;
use boundkey::state::{SLOT_SIZE, STATE_FILE, StateFile, Storage};
use ring::digest::{SHA256, digest};

use super::{Told, choice, refused};

/// Files in memory; nothing is ever lost.
#[derive(Clone, Debug, Default)]
pub struct Files(pub BTreeMap<String, Vec<u8>>);

impl Storage for Files {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.get(name).cloned())
    }
    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.0.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        file.resize(file.len().max(start + bytes.len()), 0);
        file[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn sync(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.insert(name.into(), bytes.to_vec());
        Ok(())
    }
}

impl Files {
    /// One file.
    pub fn with(name: &str, content: Vec<u8>) -> Self {
        Self(BTreeMap::from([(name.to_owned(), content)]))
    }
}

pub fn run(data: &[u8]) -> Told {
    let (way, data) = choice(data);
    let file = if way % 2 == 1 { data.to_vec() } else { slots(data) };
    let mut state = match StateFile::open(Files::with(STATE_FILE, file)) {
        Ok(state) => state,
        Err(e) => return refused(&e),
    };
    let memory = state.memory().clone();
    let damaged = state.damaged();
    let before = state.storage().0[STATE_FILE].clone();
    state.store(&memory).expect("nothing is written");
    assert_eq!(state.storage().0[STATE_FILE], before, "nothing is written that did not change");
    let told = format!("ok: {} keys, state {}, {damaged:?}", memory.keys.len().min(11), memory.join_state.is_some());

    // What was read is what would be written.
    let mut fresh = StateFile::open(Files::default()).expect("no file is a device that never joined");
    fresh.store(&memory).expect("what came out of a slot fits into one");
    let written = body(&fresh.storage().0[STATE_FILE]);
    let read = |slot: &[u8]| {
        let mut body = body(slot)?.to_vec();
        if slot[8..10] == [1, 0] {
            body.push(0);
        }
        Some(body)
    };
    assert!(before.chunks(SLOT_SIZE).any(|slot| read(slot).as_deref() == written), "another body than was read");

    // It goes on from there.
    let next = Memory { attempt: Some(Id([0xa5; 16])), ..memory };
    let stored = state.store(&next);
    let again = StateFile::open(state.storage().clone()).expect("the other slot at least");
    match stored {
        Ok(()) => assert_eq!(again.memory(), &next),
        Err(e) => return format!("{told}, then {e}"),
    }
    told
}

fn body(slot: &[u8]) -> Option<&[u8]> {
    let length = u16::from_le_bytes([*slot.get(10)?, *slot.get(11)?]);
    slot.get(20..20 + usize::from(length))
}

/// The two slots that `data` describes.
fn slots(data: &[u8]) -> Vec<u8> {
    let (which, data) = choice(data);
    let mut input = data;
    let mut number = || {
        let (head, rest) = input.split_at(input.len().min(8));
        input = rest;
        head.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let (first, second, split) = (number(), number(), number());
    let split = usize::try_from(split).unwrap_or(usize::MAX).min(input.len());
    let (a, b) = input.split_at(split);
    let format = |bit: u8| if which & bit == 0 { 2 } else { 1 + 2 * u16::from(which >> 4 & 1) };
    let mut file = if which & 1 == 0 { slot(first, format(4), a) } else { vec![0; SLOT_SIZE] };
    file.extend(if which & 2 == 0 { slot(second, format(8), b) } else { vec![0; SLOT_SIZE] });
    file
}

/// A slot as docs/state-format.md has it.
pub fn slot(sequence: u64, format: u16, body: &[u8]) -> Vec<u8> {
    let body = &body[..body.len().min(SLOT_SIZE - 52)];
    let length = u16::try_from(body.len()).expect("cut");
    let mut slot = [&b"bkstate\0"[..], &format.to_le_bytes(), &length.to_le_bytes(), &sequence.to_le_bytes(), body].concat();
    slot.extend(digest(&SHA256, &slot).as_ref());
    slot.resize(SLOT_SIZE, 0);
    slot
}
