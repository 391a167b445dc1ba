//! Loading, initialising and restarting a PKCS#11 module, and what its errors mean.
//!
//! A module is state of the whole process: it is loaded and initialised once, stays loaded (some break when unloaded),
//! and is used by one thread at a time, so that a login, which is the process's too, always belongs to one call.

use core::fmt;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11};
use cryptoki::error::{Error as Cause, RvError};

use crate::{Error, ErrorKind};

static MODULES: Mutex<BTreeMap<PathBuf, Arc<Mutex<Module>>>> = Mutex::new(BTreeMap::new());

/// Milliseconds before each fresh start. SoftHSM2, for one, hides a token for the moment in which another process logs in to it.
const PAUSES_MS: [u64; 4] = [0, 20, 80, 240];

const LONGEST_WAIT_MS: u64 = 2000;
const POLL_MS: u64 = 2;

/// An error, and whether to restart the module and do all of it once more.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) again: Again,
}

/// Whether a fresh start of the module can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// No: it would fail the same way, cost a try of the PIN, or do something twice.
    Never,
    /// Perhaps: a token was pulled out and put back, its daemon restarted, a session lost.
    Once,
    /// Perhaps, after a while. Only for what comes before a login, so that no PIN is tried again and again.
    Patiently,
}

/// Errors of our own finding are final: a second look would find the same.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, again: Again::Never }
    }
}

impl Failure {
    /// The failure after something was changed, or may have been: doing it again would change it twice.
    pub(super) fn last(mut self) -> Self {
        self.again = Again::Never;
        self
    }
}

/// Runs `op` on the module at `path`, and again on the restarted module where its failure says that this may help.
pub(super) fn run<T>(path: &Path, op: &dyn Fn(&Pkcs11) -> Result<T, Failure>) -> Result<T, Error> {
    let shared = shared(path)?;
    let mut module = lock(&shared);
    let _turn = turn(&module.path);
    let mut pauses = PAUSES_MS.into_iter().map(Duration::from_millis);
    let mut started_anew = false;
    loop {
        let failure = match module.started().and_then(|library| op(&library)) {
            Ok(answer) => return Ok(answer),
            Err(failure) if failure.again == Again::Never => return Err(failure.error),
            Err(failure) => failure,
        };
        // Also where we give up: the next call then starts from nothing.
        module.stop();
        if failure.again == Again::Once && started_anew {
            return Err(failure.error);
        }
        started_anew |= failure.again == Again::Once;
        match pauses.next() {
            Some(pause) => std::thread::sleep(pause),
            None => return Err(failure.error),
        }
    }
}

/// Waits until no other process of ours uses the module, and keeps the others out until the file is dropped.
///
/// SoftHSM2 rewrites its token in place at every login; a process that reads it in that moment sees a broken one. The lock is
/// a courtesy: programs that do not know it, or do not let go of it, only cost us the wait.
fn turn(module: &Path) -> Option<File> {
    let file = File::open(module).ok()?;
    for _ in 0..LONGEST_WAIT_MS / POLL_MS {
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(POLL_MS)),
            Err(TryLockError::Error(_)) => return None,
        }
    }
    None
}

/// The one entry for the module at `path`, whatever link it is named by.
fn shared(path: &Path) -> Result<Arc<Mutex<Module>>, Error> {
    let path = std::fs::canonicalize(path).map_err(|e| {
        let name = path.display();
        match e.kind() {
            io::ErrorKind::NotFound => {
                unreachable(format_args!("there is no PKCS#11 module {name}: install it, or correct the path"))
            }
            _ => unreachable(format_args!("the PKCS#11 module {name} cannot be read: {e}")),
        }
    })?;
    let new = || Arc::new(Mutex::new(Module { path: path.clone(), library: None, started: false, ours: false }));
    Ok(lock(&MODULES).entry(path.clone()).or_insert_with(new).clone())
}

/// A panic elsewhere leaves no state that the next start would not put right.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Module {
    path: PathBuf,
    library: Option<Pkcs11>,
    started: bool,
    /// Whether we initialised it. What another part of the process initialised is not ours to stop.
    ours: bool,
}

impl Module {
    /// The module, loaded and initialised.
    fn started(&mut self) -> Result<Pkcs11, Failure> {
        let library = match &self.library {
            Some(library) => library.clone(),
            None => self.library.insert(load(&self.path)?).clone(),
        };
        if !self.started {
            match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
                Ok(()) => self.ours = true,
                Err(Cause::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
                Err(e) => {
                    let (name, answer) = (self.path.display(), Answer(&e));
                    let hint = "is its configuration right, and its device or daemon there?";
                    return Err(unreachable(format_args!("the PKCS#11 module {name} does not start ({answer}): {hint}")).into());
                }
            }
            self.started = true;
        }
        Ok(library)
    }

    fn stop(&mut self) {
        if let Some(library) = self.library.clone().filter(|_| self.ours) {
            // A module that cannot stop cleanly is started again all the same; if it cannot start, that is reported.
            let _ = library.finalize();
            self.started = false;
        }
    }
}

fn load(path: &Path) -> Result<Pkcs11, Error> {
    let name = path.display();
    Pkcs11::new(path).map_err(|e| match e {
        Cause::MissingSymbol(symbol) => {
            unreachable(format_args!("{name} is a library but no PKCS#11 module (it has no {symbol})"))
        }
        Cause::LibraryLoading(why) => unreachable(format_args!("{name} is not a library that can be loaded here: {why}")),
        other => unreachable(format_args!("the PKCS#11 module {name} does not say what it offers ({})", Answer(&other))),
    })
}

fn unreachable(why: fmt::Arguments<'_>) -> Error {
    Error::new(ErrorKind::Unreachable, why)
}

/// What the failure `cause` means, met while `doing` something with a token: "sign with token edge".
pub(super) fn failed(doing: impl fmt::Display, cause: &Cause) -> Failure {
    let (kind, again) = match cause {
        Cause::Pkcs11(code, function) => meaning(*code, *function),
        _ => (ErrorKind::Other, Again::Never),
    };
    let advice = match cause {
        Cause::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange, _) => {
            ": the PIN is wrong; it is not tried again by itself"
        }
        Cause::Pkcs11(RvError::PinLocked, _) => {
            ": the PIN is locked after too many wrong ones; the security officer can reset it"
        }
        Cause::Pkcs11(RvError::PinExpired, _) => ": the PIN has expired; set a new one",
        Cause::Pkcs11(RvError::UserPinNotInitialized, _) => ": the token has no user PIN yet; initialise the token",
        _ => "",
    };
    Failure { error: Error::new(kind, format_args!("cannot {doing} ({}){advice}", Answer(cause))), again }
}

/// Every failure but those about a PIN, or that can only repeat themselves, is worth a second go on a fresh start.
fn meaning(code: RvError, function: Function) -> (ErrorKind, Again) {
    match code {
        RvError::PinIncorrect
        | RvError::PinInvalid
        | RvError::PinLenRange
        | RvError::PinExpired
        | RvError::ActionProhibited
        | RvError::TokenWriteProtected
        | RvError::KeyFunctionNotPermitted => (ErrorKind::Denied, Again::Never),
        RvError::PinLocked => (ErrorKind::Locked, Again::Never),
        // The token just said that it has a PIN, and no try was spent.
        RvError::UserPinNotInitialized => (ErrorKind::Denied, Again::Once),
        RvError::MechanismInvalid
        | RvError::MechanismParamInvalid
        | RvError::CurveNotSupported
        | RvError::FunctionNotSupported
        | RvError::DomainParamsInvalid
        | RvError::TemplateInconsistent
        | RvError::AttributeValueInvalid
        | RvError::AttributeTypeInvalid => (ErrorKind::Unsupported, Again::Never),
        RvError::SessionCount | RvError::DeviceMemory | RvError::HostMemory => (ErrorKind::Busy, Again::Once),
        RvError::GeneralError
        | RvError::DeviceError
        | RvError::DeviceRemoved
        | RvError::TokenNotPresent
        | RvError::TokenNotRecognized
        | RvError::SlotIdInvalid
        | RvError::SessionClosed
        | RvError::SessionHandleInvalid
        | RvError::CryptokiNotInitialized => (ErrorKind::Unreachable, Again::Once),
        // A login that failed for no stated reason may have cost a try.
        _ if matches!(function, Function::Login) => (ErrorKind::Other, Again::Never),
        _ => (ErrorKind::Other, Again::Once),
    }
}

/// What a module answered, in few words: the codes' own texts are paragraphs.
pub(super) struct Answer<'a>(pub(super) &'a Cause);

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Cause::Pkcs11(code, function) => write!(f, "C_{function:?}: {code:?}"),
            other => write!(f, "{other}"),
        }
    }
}
