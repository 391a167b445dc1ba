//! Loading, initialising and restarting a PKCS#11 module, and what its errors mean.
//!
//! A module is state of the whole process: it is loaded and initialised once, stays loaded (some break when unloaded),
//! and is used by one thread at a time, so that a login, which is the process's too, always belongs to one call.

use core::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11};
use cryptoki::error::{Error as Cause, RvError};

use crate::{Error, ErrorKind};

static MODULES: Mutex<Vec<Arc<Mutex<Module>>>> = Mutex::new(Vec::new());

/// An error, and whether to restart the module and do all of it once more.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) again: bool,
}

/// Errors of our own finding are final: a second look would find the same.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, again: false }
    }
}

impl Failure {
    /// The failure after something was changed, or may have been: doing it again would change it twice.
    pub(super) fn last(mut self) -> Self {
        self.again = false;
        self
    }
}

/// Runs `op` on the module at `path`. If it fails for another reason than a PIN, it is run once more on the restarted
/// module: a token may have been pulled out and put back, its daemon restarted, a session lost.
pub(super) fn run<T>(path: &Path, op: &dyn Fn(&Pkcs11) -> Result<T, Failure>) -> Result<T, Error> {
    let shared = shared(path)?;
    let mut module = lock(&shared);
    match module.started().and_then(|library| op(&library)) {
        Err(failure) if failure.again => module.stop(),
        answer => return answer.map_err(|failure| failure.error),
    }
    let answer = module.started().and_then(|library| op(&library));
    if answer.as_ref().is_err_and(|failure| failure.again) {
        // The next call finds it stopped, and starts from nothing.
        module.stop();
    }
    answer.map_err(|failure| failure.error)
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
    let mut modules = lock(&MODULES);
    if let Some(known) = modules.iter().find(|m| lock(m).path == path) {
        return Ok(known.clone());
    }
    let module = Arc::new(Mutex::new(Module { path, library: None, started: false, ours: false }));
    modules.push(module.clone());
    Ok(module)
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
        _ => (ErrorKind::Other, false),
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
fn meaning(code: RvError, function: Function) -> (ErrorKind, bool) {
    match code {
        RvError::PinIncorrect
        | RvError::PinInvalid
        | RvError::PinLenRange
        | RvError::PinExpired
        | RvError::UserPinNotInitialized
        | RvError::ActionProhibited
        | RvError::TokenWriteProtected
        | RvError::KeyFunctionNotPermitted => (ErrorKind::Denied, false),
        RvError::PinLocked => (ErrorKind::Locked, false),
        RvError::MechanismInvalid
        | RvError::MechanismParamInvalid
        | RvError::CurveNotSupported
        | RvError::FunctionNotSupported
        | RvError::DomainParamsInvalid
        | RvError::TemplateInconsistent
        | RvError::AttributeValueInvalid
        | RvError::AttributeTypeInvalid => (ErrorKind::Unsupported, false),
        RvError::SessionCount | RvError::DeviceMemory | RvError::HostMemory => (ErrorKind::Busy, true),
        RvError::GeneralError
        | RvError::DeviceError
        | RvError::DeviceRemoved
        | RvError::TokenNotPresent
        | RvError::TokenNotRecognized
        | RvError::SlotIdInvalid
        | RvError::SessionClosed
        | RvError::SessionHandleInvalid
        | RvError::CryptokiNotInitialized => (ErrorKind::Unreachable, true),
        // A login that failed for no stated reason may have cost a try: not again.
        _ => (ErrorKind::Other, !matches!(function, Function::Login)),
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
