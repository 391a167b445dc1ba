//! Finding the one token that is meant, and logging in to it without ever burning its last try.

use core::fmt;
use std::string::{String, ToString as _};
use std::sync::{Mutex, PoisonError};
use std::vec::Vec;

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error as Cause, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};

use super::module::{Again, Failure, failed};
use super::{PinSource, TokenMatch};
use crate::{Error, ErrorKind};

/// A token that was found.
pub(super) struct Token {
    pub(super) slot: Slot,
    pub(super) info: TokenInfo,
    /// Whether the module calls the slot a hardware device.
    pub(super) hardware: bool,
}

impl Token {
    /// Everything that names it.
    pub(super) fn name(&self) -> TokenMatch {
        let some = |text: &str| Some(text.to_string()).filter(|t| !t.is_empty());
        TokenMatch {
            label: some(self.info.label()),
            serial: some(self.info.serial_number()),
            manufacturer: some(self.info.manufacturer_id()),
            model: some(self.info.model()),
        }
    }

    fn matches(&self, wanted: &TokenMatch) -> bool {
        let same = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w == is);
        same(&wanted.label, self.info.label())
            && same(&wanted.serial, self.info.serial_number())
            && same(&wanted.manufacturer, self.info.manufacturer_id())
            && same(&wanted.model, self.info.model())
    }
}

/// All tokens of a module. One that cannot be read now (just removed, or with a date that makes no sense) is left out.
pub(super) fn all(library: &Pkcs11) -> Result<Vec<Token>, Failure> {
    let slots = library.get_slots_with_token().map_err(|e| failed("list the tokens", &e))?;
    let read = |slot| {
        let info = library.get_token_info(slot).ok()?;
        let hardware = library.get_slot_info(slot).is_ok_and(|slot| slot.hardware_slot());
        Some(Token { slot, info, hardware })
    };
    Ok(slots.into_iter().filter_map(read).collect())
}

/// The one initialised token that matches, or an error.
pub(super) fn find(library: &Pkcs11, wanted: &TokenMatch) -> Result<Token, Failure> {
    let all = all(library)?;
    let present = all.iter().filter(|t| t.info.token_initialized()).count();
    let mut matching = all.into_iter().filter(|t| t.info.token_initialized() && t.matches(wanted));
    match (matching.next(), matching.count()) {
        (Some(token), 0) => Ok(token),
        // It may be there again once the module has looked anew.
        (None, _) => Err(Failure {
            error: Error::new(
                ErrorKind::Unreachable,
                format_args!("no token is {wanted} (tokens there: {present}): is it plugged in?"),
            ),
            again: Again::Patiently,
        }),
        (Some(_), more) => {
            let n = more + 1;
            let advice = "add serial=NUMBER to the URI";
            Err(Error::new(ErrorKind::Other, format_args!("{n} tokens are {wanted}, and it must be one: {advice}")).into())
        }
    }
}

/// Opens a session, and logs in where the token wants that. Closing the session logs out.
pub(super) fn open(library: &Pkcs11, token: &Token, pin: Option<&PinSource>, access: Access) -> Result<Session, Failure> {
    let name = Label(token);
    let session = match access {
        Access::Read => library.open_ro_session(token.slot),
        Access::Write => library.open_rw_session(token.slot),
    };
    let session = session.map_err(|e| failed(format_args!("open a session with {name}"), &e))?;
    if token.info.login_required() {
        let missing = || Error::new(ErrorKind::Denied, format_args!("{name} wants a PIN and none is configured: set pin_path"));
        log_in(&session, token, UserType::User, pin.ok_or_else(missing)?)?;
    }
    Ok(session)
}

/// What a session may do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Read objects and sign.
    Read,
    /// Make and destroy objects too.
    Write,
}

/// PINs that a token refused in the life of this process, each with the token's serial number and whose PIN it is.
static REFUSED: Mutex<Vec<Refused>> = Mutex::new(Vec::new());

#[derive(PartialEq, Eq)]
struct Refused {
    serial: String,
    label: String,
    officer: bool,
    pin: [u8; 32],
}

/// Logs in, unless a wrong PIN would be the last, or this one is known to be wrong: a daemon asks again and again, and not every
/// token says when the last try is near.
pub(super) fn log_in(session: &Session, token: &Token, user: UserType, pin: &PinSource) -> Result<(), Failure> {
    let (info, name) = (&token.info, Label(token));
    let (who, locked, last, unset) = match user {
        UserType::So => ("security officer's PIN", info.so_pin_locked(), info.so_pin_final_try(), false),
        _ => ("PIN", info.user_pin_locked(), info.user_pin_final_try(), !info.user_pin_initialized()),
    };
    if locked {
        return Err(Error::new(ErrorKind::Locked, format_args!("{name}: the {who} is locked after too many wrong ones")).into());
    }
    if last {
        let advice = "log in by hand with the right one, which sets the count back, or have it reset";
        return Err(Error::new(
            ErrorKind::Locked,
            format_args!("{name}: one more wrong {who} locks it, so none is tried: {advice}"),
        )
        .into());
    }
    if unset {
        return Err(Error::new(ErrorKind::Denied, format_args!("{name} has no user PIN yet: initialise the token")).into());
    }
    let pin = pin.read()?;
    let this = Refused {
        serial: info.serial_number().into(),
        label: info.label().into(),
        officer: matches!(user, UserType::So),
        pin: pin.print,
    };
    let mut refused = REFUSED.lock().unwrap_or_else(PoisonError::into_inner);
    if refused.contains(&this) {
        let advice = "correct it; if it was changed on the token instead, start anew";
        let what = format_args!("{name}: the {who} is wrong, so it is not tried again: {advice}");
        return Err(Error::new(ErrorKind::Denied, what).into());
    }
    match session.login(user, Some(&pin.secret)) {
        // A login is the process's: another part of it may have logged in.
        Ok(()) | Err(Cause::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(e) => {
            if matches!(e, Cause::Pkcs11(RvError::PinIncorrect, _)) {
                refused.push(this);
            }
            Err(failed(format_args!("log in to {name}"), &e))
        }
    }
}

/// A token as messages name it.
pub(super) struct Label<'a>(pub(super) &'a Token);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "token {}", self.0.info.label().escape_debug())
    }
}
