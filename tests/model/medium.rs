//! A holder's medium: files, and what a power cut may take away of them. Keys are files too, named by a pool of real keys.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use boundkey::state::Storage;
use boundkey_hal::file::PrivateKey;
use boundkey_hal::{Algorithm, Capabilities, Error, ErrorKind, KeyId, KeyStore, PublicKey, Signature};

/// What is on a medium, and what the system has taken but not made durable.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Medium {
    durable: BTreeMap<String, Vec<u8>>,
    pending: Vec<Pending>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Pending {
    /// A whole file under a new name; lost unless its directory is synced.
    Rename { name: String, bytes: Vec<u8> },
    /// Part of a file that exists; lost, kept or torn unless the file is synced.
    Write { name: String, offset: usize, bytes: Vec<u8> },
}

impl Pending {
    /// In how many ways a cut may treat it.
    fn fates(&self) -> usize {
        match self {
            Self::Rename { .. } => 2,
            Self::Write { .. } => 4,
        }
    }

    /// Fate 0 is lost, 1 kept, 2 and 3 torn: the first or the second half is kept. (`tests/state.rs` tears at every byte.)
    fn land(&self, files: &mut BTreeMap<String, Vec<u8>>, fate: usize) {
        match (self, fate) {
            (_, 0) => {}
            (Self::Rename { name, bytes }, _) => drop(files.insert(name.clone(), bytes.clone())),
            (Self::Write { name, offset, bytes }, fate) => {
                // The body, not the padding behind it, is what tears.
                let middle = bytes.iter().rposition(|b| *b != 0).unwrap_or(0).div_ceil(2);
                let range = [0..bytes.len(), 0..middle, middle..bytes.len()][fate - 1].clone();
                if let Some(file) = files.get_mut(name) {
                    file[offset + range.start..offset + range.end].copy_from_slice(&bytes[range]);
                }
            }
        }
    }
}

impl Medium {
    /// Every medium that a power cut may leave.
    pub fn cuts(&self) -> Vec<Self> {
        let mut left = vec![self.durable.clone()];
        for pending in &self.pending {
            left = left
                .into_iter()
                .flat_map(|files| {
                    (0..pending.fates()).map(move |fate| {
                        let mut files = files.clone();
                        pending.land(&mut files, fate);
                        files
                    })
                })
                .collect();
        }
        left.into_iter().map(|durable| Self { durable, pending: vec![] }).collect()
    }

    /// What a thief copies: all that can be read.
    pub fn copied(&self) -> Self {
        Self { durable: self.view(), pending: vec![] }
    }

    fn view(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.durable.clone();
        self.pending.iter().for_each(|pending| pending.land(&mut files, 1));
        files
    }

    /// Makes durable what `which` says.
    fn flush(&mut self, which: impl Fn(&Pending) -> bool) {
        let (durable, pending) = (&mut self.durable, std::mem::take(&mut self.pending));
        for op in pending {
            if which(&op) { op.land(durable, 1) } else { self.pending.push(op) }
        }
    }
}

/// A medium in use by a process, which may die at any call.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<Live>>);

struct Live {
    medium: Medium,
    calls: usize,
    dies_at: Option<usize>,
    /// Whether syncs do what they say.
    honest: bool,
}

impl Disk {
    pub fn new(medium: Medium, dies_at: Option<usize>, honest: bool) -> Self {
        Self(Arc::new(Mutex::new(Live { medium, calls: 0, dies_at, honest })))
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.0.lock().expect("no thread panicked with it")
    }

    /// What is left, and how many calls there were.
    pub fn end(self) -> (Medium, usize) {
        let live = self.live();
        (live.medium.clone(), live.calls)
    }

    fn call(&self) -> io::Result<MutexGuard<'_, Live>> {
        let mut live = self.live();
        if live.dies_at == Some(live.calls) {
            return Err(io::Error::other("dead"));
        }
        live.calls += 1;
        Ok(live)
    }

    /// What `DirStorage::create` does at the start of a process.
    pub fn sync_names(&self) -> io::Result<()> {
        let mut live = self.call()?;
        if live.honest {
            live.medium.flush(|op| matches!(op, Pending::Rename { .. }));
        }
        Ok(())
    }
}

impl Storage for Disk {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.live().medium.view().remove(name))
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.call()?.medium.pending.push(Pending::Write { name: name.into(), offset, bytes: bytes.into() });
        Ok(())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let mut live = self.call()?;
        if live.honest {
            // Behind a name that is not durable, nothing is.
            let named = |op: &Pending| matches!(op, Pending::Rename { name: renamed, .. } if renamed == name);
            if !live.medium.pending.iter().any(named) {
                live.medium.flush(|op| matches!(op, Pending::Write { name: written, .. } if written == name));
            }
        }
        Ok(())
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.call()?.medium.pending.push(Pending::Rename { name: name.into(), bytes: bytes.into() });
        self.call()?.medium.flush(|op| matches!(op, Pending::Rename { .. }));
        Ok(())
    }
}

/// A holder's key store: file `key-ID` says which key of the pool it is.
pub struct Keys {
    pub disk: Disk,
    /// Keys made by different holders differ.
    pub maker: u8,
}

impl Keys {
    pub fn open(&self, id: &KeyId) -> Result<u8, Error> {
        let file = self.disk.read(&format!("key-{id}")).map_err(|e| Error::new(ErrorKind::Other, e))?;
        file.map(|bytes| bytes[0]).ok_or_else(|| Error::new(ErrorKind::NotFound, "no such key"))
    }
}

impl KeyStore for Keys {
    fn capabilities(&self) -> Result<Capabilities, Error> {
        let algorithms = [Algorithm::EcdsaP256].into_iter().collect();
        Ok(Capabilities { algorithms, hardware: false, place: heapless::String::new() })
    }

    fn generate(&self, id: &KeyId, _: Algorithm) -> Result<PublicKey, Error> {
        if self.open(id).is_ok() {
            return Err(Error::new(ErrorKind::Exists, "taken"));
        }
        let number: u8 = id.as_str().trim_start_matches("bound-").parse().expect("as `Memory::next_key_id` names them");
        assert!(number < 16, "as many as the pool has for a holder");
        let index = self.maker * 16 + number;
        self.disk.clone().replace(&format!("key-{id}"), &[index]).map_err(|e| Error::new(ErrorKind::Other, e))?;
        Ok(public_key(index))
    }

    fn public_key(&self, id: &KeyId) -> Result<PublicKey, Error> {
        self.open(id).map(public_key)
    }

    fn sign(&self, id: &KeyId, message: &[u8]) -> Result<Signature, Error> {
        self.open(id).map(|index| sign(index, message))
    }

    fn list(&self, _: &mut dyn FnMut(&KeyId)) -> Result<(), Error> {
        unreachable!("the steps of a join do not list keys")
    }

    fn delete(&self, _: &KeyId) -> Result<(), Error> {
        unreachable!("the steps of a join do not delete keys")
    }
}

/// A real key and what it has signed. The same message gets the same signature, so that states compare equal.
struct Pooled {
    key: PrivateKey,
    public: PublicKey,
    signed: HashMap<Vec<u8>, Signature>,
}

thread_local! {
    static POOL: RefCell<BTreeMap<u8, Pooled>> = const { RefCell::new(BTreeMap::new()) };
}

fn pooled<T>(index: u8, with: impl FnOnce(&mut Pooled) -> T) -> T {
    POOL.with_borrow_mut(|pool| {
        let key = pool.entry(index).or_insert_with(|| {
            let key = PrivateKey::generate(Algorithm::EcdsaP256).expect("a key");
            Pooled { public: key.public_key().expect("its public half"), key, signed: HashMap::new() }
        });
        with(key)
    })
}

/// The public half of a key of the pool.
pub fn public_key(index: u8) -> PublicKey {
    pooled(index, |key| key.public.clone())
}

/// A signature by a key of the pool.
pub fn sign(index: u8, message: &[u8]) -> Signature {
    pooled(index, |key| {
        let Pooled { key, signed, .. } = key;
        *signed.entry(message.to_vec()).or_insert_with(|| key.sign(message).expect("a signature"))
    })
}
