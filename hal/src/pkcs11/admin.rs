//! What a technician does once per token: see which there are, and prepare one.

use std::path::Path;
use std::string::String;
use std::vec::Vec;

use cryptoki::context::Pkcs11;
use cryptoki::session::UserType;

use super::module::{self, Failure, failed};
use super::token::{self, Token};
use super::{PinSource, TokenMatch};
use crate::{Error, ErrorKind};

/// A token as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSummary {
    /// What was given at its initialisation.
    pub label: String,
    /// Serial number.
    pub serial: String,
    /// Manufacturer.
    pub manufacturer: String,
    /// Model.
    pub model: String,
    /// Whether the module calls it a hardware device.
    pub hardware: bool,
    /// Whether it is ready for keys, but for its user PIN.
    pub initialized: bool,
    /// Whether using keys needs a PIN.
    pub login_required: bool,
    /// Whether a user PIN is set.
    pub user_pin_set: bool,
    /// Whether a wrong user PIN was given since the last right one. Not every token tells.
    pub user_pin_count_low: bool,
    /// Whether one more wrong user PIN locks it. Not every token tells.
    pub user_pin_final_try: bool,
    /// Whether the user PIN is locked. Not every token tells.
    pub user_pin_locked: bool,
    /// Whether nothing can be written to it.
    pub write_protected: bool,
    /// The URI (RFC 7512) that names it; without a module path.
    pub uri: String,
}

impl From<&Token> for TokenSummary {
    fn from(token: &Token) -> Self {
        let info = &token.info;
        Self {
            label: info.label().into(),
            serial: info.serial_number().into(),
            manufacturer: info.manufacturer_id().into(),
            model: info.model().into(),
            hardware: token.hardware,
            initialized: info.token_initialized(),
            login_required: info.login_required(),
            user_pin_set: info.user_pin_initialized(),
            user_pin_count_low: info.user_pin_count_low(),
            user_pin_final_try: info.user_pin_final_try(),
            user_pin_locked: info.user_pin_locked(),
            write_protected: info.write_protected(),
            uri: std::format!("pkcs11:{}", token.name()),
        }
    }
}

/// The tokens of the module at `module`, blank ones included.
pub fn tokens(module: &Path) -> Result<Vec<TokenSummary>, Error> {
    module::run(module, &|library| Ok(token::all(library)?.iter().map(TokenSummary::from).collect()))
}

/// Makes the one blank token of the module at `module` ready for keys: label, security officer's PIN, user PIN.
///
/// Safe to repeat: a token that is ready is [`ErrorKind::Exists`] and left alone, and one whose initialisation was cut
/// short before its user PIN was set is completed.
pub fn init_token(module: &Path, label: &str, so_pin: &PinSource, user_pin: &PinSource) -> Result<TokenSummary, Error> {
    if label.is_empty() || label.len() > 32 || !label.bytes().all(|b| (b' '..=b'~').contains(&b)) || label.ends_with(' ') {
        return Err(Error::new(ErrorKind::Other, "a token label has 1 to 32 ASCII characters, the last not a space"));
    }
    module::run(module, &|library| {
        if !token::all(library)?.iter().any(|t| t.info.token_initialized() && t.info.label() == label) {
            let blank = blank(library)?;
            library
                .init_token(blank.slot, &so_pin.read()?.secret, label)
                .map_err(|e| failed(format_args!("initialise token {label}"), &e).last())?;
        }
        // Found again by its label: its slot can have changed.
        let wanted = TokenMatch::label(label);
        let token = token::find(library, &wanted)?;
        if token.info.user_pin_initialized() {
            let why = "is initialised already; it was left alone";
            return Err(Error::new(ErrorKind::Exists, format_args!("token {label} {why}")).into());
        }
        set_user_pin(library, &token, so_pin, user_pin).map_err(Failure::last)?;
        Ok(TokenSummary::from(&token::find(library, &wanted)?))
    })
}

fn blank(library: &Pkcs11) -> Result<Token, Failure> {
    let mut blank = token::all(library)?.into_iter().filter(|t| !t.info.token_initialized());
    match (blank.next(), blank.count()) {
        (Some(token), 0) => Ok(token),
        (None, _) => Err(Error::new(ErrorKind::Unreachable, "there is no blank token: is it plugged in?").into()),
        (Some(_), more) => {
            let n = more + 1;
            Err(Error::new(ErrorKind::Other, format_args!("{n} tokens are blank, and it must be one: unplug the others")).into())
        }
    }
}

fn set_user_pin(library: &Pkcs11, token: &Token, so_pin: &PinSource, user_pin: &PinSource) -> Result<(), Failure> {
    let user_pin = user_pin.read()?;
    let session = library.open_rw_session(token.slot).map_err(|e| failed("open a session", &e))?;
    token::log_in(&session, token, UserType::So, so_pin)?;
    let (shortest, longest) = (token.info.min_pin_length(), token.info.max_pin_length());
    let setting = std::format!("set the user PIN, which has {shortest} to {longest} bytes");
    session.init_pin(&user_pin.secret).map_err(|e| failed(setting, &e))
}
