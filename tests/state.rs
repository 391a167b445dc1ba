//! The state file under power cuts: at every call, at every byte, with unsynced writes kept, lost or torn.
#![cfg(feature = "agent")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use boundkey::join::device::{KnownKey, MAX_KEYS, Memory, RecoveryKey};
use boundkey::join::{Id, Step, Thumbprint};
use boundkey::state::{LoadError, SLOT_SIZE, STATE_FILE, SlotError, StateFile, Storage};
use boundkey_hal::{Algorithm, PublicKey};

/// A medium whose power can be cut: what was written and not synced may be there, or not, or in part.
#[derive(Clone, Default)]
struct Medium(Rc<RefCell<Inner>>);

#[derive(Default)]
struct Inner {
    durable: BTreeMap<String, Vec<u8>>,
    /// Writes since the last sync, in order.
    pending: Vec<(String, u64, Vec<u8>)>,
    /// Calls that still succeed; the next one fails, and all after it.
    calls_left: Option<usize>,
    calls: usize,
}

impl Medium {
    fn call(&self) -> io::Result<std::cell::RefMut<'_, Inner>> {
        let mut inner = self.0.borrow_mut();
        inner.calls += 1;
        if let Some(left) = &mut inner.calls_left {
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("power cut"))?;
        }
        Ok(inner)
    }

    /// The power comes back; of the last pending write `kept` bytes made it, from its start or its end.
    fn power_up(&self, kept: usize, from_end: bool) -> Self {
        let inner = self.0.borrow();
        let mut durable = inner.durable.clone();
        for (name, offset, bytes) in &inner.pending {
            let kept = kept.min(bytes.len());
            let range = if from_end { bytes.len() - kept..bytes.len() } else { 0..kept };
            apply(durable.get_mut(name).expect("written files exist"), *offset + range.start as u64, &bytes[range]);
        }
        Self(Rc::new(RefCell::new(Inner { durable, ..Inner::default() })))
    }

    fn file(&self) -> Vec<u8> {
        self.0.borrow().durable[STATE_FILE].clone()
    }

    fn holding(bytes: Vec<u8>) -> Self {
        let durable = BTreeMap::from([(STATE_FILE.to_owned(), bytes)]);
        Self(Rc::new(RefCell::new(Inner { durable, ..Inner::default() })))
    }
}

fn apply(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let offset = usize::try_from(offset).expect("small");
    file.resize(file.len().max(offset + bytes.len()), 0);
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl Storage for Medium {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.call()?.durable.get(name).cloned())
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // A cut during the call leaves any part of it: it is pending before the call can fail.
        self.0.borrow_mut().pending.push((name.into(), offset, bytes.into()));
        self.call().map(drop)
    }

    fn sync(&mut self, _: &str) -> io::Result<()> {
        let mut inner = self.call()?;
        for (name, offset, bytes) in std::mem::take(&mut inner.pending) {
            apply(inner.durable.get_mut(&name).expect("written files exist"), offset, &bytes);
        }
        Ok(())
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.call()?.durable.insert(name.into(), bytes.into());
        Ok(())
    }
}

fn memory(generation: u32) -> Memory {
    let key = PublicKey::new(Algorithm::Ed25519, &[7; 32]).expect("32 bytes");
    let known = |n| KnownKey {
        id: format!("bound-{n}"),
        thumbprint: Thumbprint::of(&key),
        algorithm: Algorithm::Ed25519.into(),
        bound: true,
    };
    Memory {
        token: "gateway-0042".into(),
        cluster: "fleet.example".into(),
        step: Some(Step { recovery: 1, generation, instance: Id([1; 16]) }),
        join_state: Some("s".repeat(900)),
        attempt: generation.is_multiple_of(2).then_some(Id([2; 16])),
        keys: (1..=10).map(known).collect(),
        ..Memory::default()
    }
}

/// After a cut at any call, with any part of the unsynced write on the medium, the file holds the memory from before or the
/// new one, whole; and what was stored successfully is never lost.
#[test]
fn a_cut_at_any_byte_leaves_the_old_or_the_new_memory() {
    let mut opened = 0;
    for cut_at in 0.. {
        let medium = Medium::default();
        let mut file = StateFile::open(medium.clone()).expect("an empty medium");
        file.store(&memory(1)).expect("the first write");
        medium.0.borrow_mut().calls_left = Some(cut_at);
        let mut stored = 1;
        let cut = (2..=4).any(|generation| {
            let failed = file.store(&memory(generation)).is_err();
            stored = if failed { stored } else { generation };
            failed
        });
        for kept in 0..=SLOT_SIZE {
            for from_end in [false, true] {
                let found = StateFile::open(medium.power_up(kept, from_end)).expect("one slot holds").memory().clone();
                assert!(found == memory(stored) || found == memory(stored + 1), "cut at call {cut_at}, {kept} bytes kept");
                opened += 1;
            }
        }
        if !cut {
            break;
        }
    }
    assert!(opened > 6 * 2 * SLOT_SIZE, "every call of three stores was cut: {opened}");
}

/// A store that failed, be it by a full or a failing medium, may be tried again.
#[test]
fn a_failed_write_is_made_good_by_the_next() {
    let medium = Medium::default();
    let mut file = StateFile::open(medium.clone()).expect("an empty medium");
    file.store(&memory(1)).expect("the first write");
    medium.0.borrow_mut().calls_left = Some(1);
    assert!(file.store(&memory(2)).is_err());
    assert_eq!(*file.memory(), memory(1));
    medium.0.borrow_mut().calls_left = None;
    file.store(&memory(3)).expect("the medium works again");
    assert_eq!(*StateFile::open(medium.power_up(0, false)).expect("a slot").memory(), memory(3));
}

/// The same wherever it fails, with any part of the write that failed on the medium, and as often as it fails: the process goes on, or
/// another one starts.
#[test]
fn an_error_at_any_call_is_made_good_by_the_next() {
    let mut failures = 0;
    for fails_at in 0.. {
        let medium = Medium::default();
        let mut file = StateFile::open(medium.clone()).expect("an empty medium");
        file.store(&memory(1)).expect("the first write");
        medium.0.borrow_mut().calls_left = Some(fails_at);
        let Err(_) = file.store(&memory(2)) else { break };
        for _ in 0..3 {
            medium.0.borrow_mut().calls_left = Some(0);
            assert!(file.store(&memory(2)).is_err(), "the medium still fails");
        }
        for kept in [0, 1, SLOT_SIZE / 2, SLOT_SIZE] {
            let mended = medium.power_up(kept, false);
            let mut later = StateFile::open(mended.clone()).expect("a slot holds");
            later.store(&memory(3)).expect("the medium works again");
            assert_eq!(*StateFile::open(mended.power_up(0, false)).expect("a slot").memory(), memory(3));
        }
        medium.0.borrow_mut().calls_left = None;
        file.store(&memory(3)).expect("the medium works again");
        assert_eq!(*StateFile::open(medium.power_up(0, false)).expect("a slot").memory(), memory(3));
        failures += 1;
    }
    assert!(failures >= 2, "write and sync failed: {failures}");
}

#[test]
fn nothing_is_written_that_did_not_change() {
    let medium = Medium::default();
    let mut file = StateFile::open(medium.clone()).expect("an empty medium");
    file.store(&memory(1)).expect("the first write");
    let calls = medium.0.borrow().calls;
    file.store(&memory(1)).expect("the same again");
    assert_eq!(medium.0.borrow().calls, calls);
}

/// A process died between write and sync, and the next one reads what it wrote: it must not count on it before it is durable.
/// (A request could leave with an attempt that a power cut then takes away: to the server, a second holder of the key.)
#[test]
fn what_is_found_is_made_durable_before_it_counts() {
    let medium = Medium::default();
    StateFile::open(medium.clone()).and_then(|mut file| file.store(&memory(1)).map_err(LoadError::Io)).expect("the first write");
    for next in [memory(1), memory(2)] {
        let medium = medium.power_up(0, false);
        let mut file = StateFile::open(medium.clone()).expect("a slot");
        medium.0.borrow_mut().calls_left = Some(0);
        assert!(file.store(&next).is_err(), "the sync is to be the first call");
        assert!(medium.0.borrow().pending.is_empty(), "nothing is written before it");
        medium.0.borrow_mut().calls_left = None;
        file.store(&next).expect("stored");
        let calls = medium.0.borrow().calls;
        file.store(&next).expect("the same again");
        assert_eq!(medium.0.borrow().calls, calls, "once is enough");
    }
}

/// Any flipped bit of the newer slot is noticed, and the older one holds.
#[test]
fn a_flipped_bit_is_noticed() {
    let medium = Medium::default();
    let mut file = StateFile::open(medium.clone()).expect("an empty medium");
    file.store(&memory(1)).expect("first slot");
    file.store(&memory(2)).expect("second slot");
    let bytes = medium.file();
    let used = bytes[SLOT_SIZE..].iter().rposition(|b| *b != 0).expect("a written slot");
    for at in 0..=used {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[SLOT_SIZE + at] ^= 1 << bit;
            let file = StateFile::open(Medium::holding(flipped)).expect("the other slot holds");
            assert_eq!(*file.memory(), memory(1), "byte {at}, bit {bit}");
            assert_eq!(file.damaged(), Some(SlotError::Checksum));
        }
    }
}

/// Neither slot holds: a named error, and the file is left as it is.
#[test]
fn two_damaged_slots_are_an_error_and_nothing_is_overwritten() {
    for length in [0, 1, 100, SLOT_SIZE, 2 * SLOT_SIZE] {
        let medium = Medium::holding(vec![0x5a; length]);
        let Err(LoadError::Unusable(_)) = StateFile::open(medium.clone()) else {
            panic!("{length} bytes of rubbish were taken for a state file");
        };
        assert_eq!(medium.file(), vec![0x5a; length]);
    }
}

/// A slot of a newer format may be the newer memory: going on from the other one would look like a second holder of the key.
#[test]
fn a_slot_of_a_newer_version_stops_this_one() {
    let medium = Medium::default();
    let mut file = StateFile::open(medium.clone()).expect("an empty medium");
    file.store(&memory(1)).expect("first slot");
    file.store(&memory(2)).expect("second slot");
    let mut bytes = medium.file();
    bytes[SLOT_SIZE + 8] = 3;
    let body = usize::from(u16::from_le_bytes([bytes[SLOT_SIZE + 10], bytes[SLOT_SIZE + 11]]));
    let end = SLOT_SIZE + 20 + body;
    let checksum = ring::digest::digest(&ring::digest::SHA256, &bytes[SLOT_SIZE..end]);
    bytes[end..end + 32].copy_from_slice(checksum.as_ref());
    assert!(matches!(StateFile::open(Medium::holding(bytes)), Err(LoadError::Newer(3))));
}

/// Memory that does not fit is refused, and the old one stays.
#[test]
fn too_large_a_memory_is_refused() {
    let medium = Medium::default();
    let mut file = StateFile::open(medium.clone()).expect("an empty medium");
    file.store(&memory(1)).expect("the first write");
    let large = Memory { join_state: Some("x".repeat(SLOT_SIZE)), ..memory(2) };
    assert!(file.store(&large).is_err());
    assert_eq!(*StateFile::open(medium.power_up(0, false)).expect("a slot").memory(), memory(1));
}

/// A slot of format 1, which has no list of keys made for recovery codes: byte for byte as it was written.
#[test]
fn a_slot_of_the_format_before_is_read_and_written_anew() {
    // Token "gw", cluster "c", nothing else: see docs/state-format.md.
    let body = [&b"\x02gw\x01c"[..], &[0; 10]].concat();
    let length = u16::try_from(body.len()).expect("short");
    let mut slot = [&b"bkstate\0"[..], &1_u16.to_le_bytes(), &length.to_le_bytes(), &7_u64.to_le_bytes(), &body].concat();
    slot.extend(ring::digest::digest(&ring::digest::SHA256, &slot).as_ref());
    slot.resize(2 * SLOT_SIZE, 0);
    let medium = Medium::holding(slot);
    let mut file = StateFile::open(medium.clone()).expect("a slot");
    let expected = Memory { token: "gw".into(), cluster: "c".into(), ..Memory::default() };
    assert_eq!((file.memory(), file.damaged()), (&expected, None));
    let next = Memory { attempt: Some(Id([2; 16])), ..expected };
    file.store(&next).expect("stored");
    assert_eq!(u16::from_le_bytes([medium.file()[SLOT_SIZE + 8], medium.file()[SLOT_SIZE + 9]]), 2);
    assert_eq!(*StateFile::open(medium.power_up(0, false)).expect("a slot").memory(), next);
}

/// The most that a device ever remembers fits into a slot.
#[test]
fn the_largest_memory_fits() {
    let mut largest = Memory { join_state: Some("s".repeat(1024)), keystore_pin: Some(vec![1; 34]), ..memory(2) };
    largest.token = "t".repeat(253);
    largest.cluster = "c".repeat(253);
    largest.keys = (0..MAX_KEYS)
        .map(|n| KnownKey {
            id: format!("bound-{}", u32::MAX),
            thumbprint: Thumbprint::of(&PublicKey::new(Algorithm::Ed25519, &[u8::try_from(n).expect("few"); 32]).expect("a key")),
            algorithm: Algorithm::Ed25519.into(),
            bound: false,
        })
        .collect();
    largest.recovery_keys =
        largest.keys.iter().map(|key| RecoveryKey { thumbprint: key.thumbprint, request: Id([1; 16]) }).collect();
    let medium = Medium::default();
    let mut file = StateFile::open(medium.clone()).expect("an empty medium");
    file.store(&largest).expect("it fits");
    assert_eq!(*StateFile::open(medium).expect("a slot").memory(), largest);
}
