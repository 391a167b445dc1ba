//! The steps themselves.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use boundkey_hal::pkcs11::{Pkcs11Store, TokenSummary, init_token, tokens};
use boundkey_hal::{Algorithm, ErrorKind, KeyId, KeyStore as _};
use clap::ArgMatches;

use super::item::{Deleted, Item, PinState, Token, TokenState};
use super::options;
use crate::config::ConfigError;
use crate::doctor::hardware;
use crate::error::AgentError;
use boundkey_join::SshKey;

/// Runs a step; returns what goes to stdout.
pub(super) fn run(matches: &ArgMatches) -> Result<String, AgentError> {
    let Some((step, matches)) = matches.subcommand() else {
        return Err(ConfigError::new("no subcommand", "see `boundkey hsm --help`").into());
    };
    let found = match step {
        "modules" => hardware::modules().into_iter().map(|module| Item::Module { module, error: None }).collect(),
        "tokens" => list_tokens(matches)?,
        "keys" => list_keys(matches)?,
        "init-token" => vec![initialise(matches)?],
        "create-key" => vec![create(matches)?],
        _ => vec![delete(matches)?],
    };
    if matches.get_one::<String>("format").is_some_and(|format| format == "json") {
        let json = serde_json::to_string(&found).map_err(|e| AgentError::Other(format!("cannot print what was found: {e}")))?;
        return Ok(json + "\n");
    }
    Ok(found.iter().map(Item::text).collect())
}

fn list_tokens(matches: &ArgMatches) -> Result<Vec<Item>, AgentError> {
    if let Some(module) = matches.get_one::<String>("module").map(PathBuf::from) {
        return Ok(tokens(&module)?.iter().map(|token| describe(token, &module)).collect());
    }
    let mut found = Vec::new();
    for module in hardware::modules() {
        match tokens(&module) {
            Ok(tokens) => found.extend(tokens.iter().map(|token| describe(token, &module))),
            Err(e) => found.push(Item::Module { module, error: Some(e.to_string()) }),
        }
    }
    Ok(found)
}

fn describe(token: &TokenSummary, module: &Path) -> Item {
    let pin = match token {
        _ if token.user_pin_locked => PinState::Locked,
        _ if token.user_pin_final_try => PinState::FinalTry,
        _ if token.user_pin_count_low => PinState::CountLow,
        _ if token.user_pin_set => PinState::Set,
        _ if token.login_required => PinState::NotSet,
        _ => PinState::NoneNeeded,
    };
    Item::Token(Token {
        uri: token.initialized.then(|| with_module(&token.uri, module)),
        module: module.to_owned(),
        label: token.label.clone(),
        serial: token.serial.clone(),
        manufacturer: token.manufacturer.clone(),
        model: token.model.clone(),
        state: if token.initialized { TokenState::Ready } else { TokenState::Blank },
        pin: token.initialized.then_some(pin),
        hardware: token.hardware,
        write_protected: token.write_protected,
    })
}

fn list_keys(matches: &ArgMatches) -> Result<Vec<Item>, AgentError> {
    let config = options::token(matches)?;
    let module = config.module.clone();
    let store = Pkcs11Store::new(config)?;
    let mut ids = Vec::new();
    store.list(&mut |id| ids.push(id.clone()))?;
    ids.iter().map(|id| key(&store, id, &module)).collect()
}

fn key(store: &Pkcs11Store, id: &KeyId, module: &Path) -> Result<Item, AgentError> {
    let name = id.as_str().to_owned();
    match store.public_key(id) {
        Ok(public) => Ok(Item::Key {
            uri: with_module(store.reference(id)?.as_str(), module),
            name,
            public_key: SshKey(public).to_string(),
        }),
        // One that is damaged is listed all the same: it is what the technician looks for.
        Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Other) => {
            Ok(Item::DamagedKey { name, error: e.to_string() })
        }
        Err(e) => Err(e.into()),
    }
}

fn initialise(matches: &ArgMatches) -> Result<Item, AgentError> {
    let missing = || AgentError::from(ConfigError::new("no module or label", "give --module and --label"));
    let module = matches.get_one::<PathBuf>("module").ok_or_else(missing)?;
    let label = matches.get_one::<String>("label").ok_or_else(missing)?;
    match init_token(module, label, &options::so_pin(matches)?, &options::user_pin(matches)?) {
        Ok(token) => Ok(describe(&token, module)),
        Err(e) if e.kind() == ErrorKind::Exists => {
            log::warn!("{e}");
            let all = tokens(module)?;
            let there = all.iter().find(|token| token.initialized && token.label == *label);
            there.map(|token| describe(token, module)).ok_or_else(|| e.into())
        }
        Err(e) => Err(e.into()),
    }
}

fn create(matches: &ArgMatches) -> Result<Item, AgentError> {
    let (id, store, module) = target(matches)?;
    let algorithm = match matches.get_one::<String>("algorithm").map(String::as_str) {
        Some("ed25519") => Algorithm::Ed25519,
        _ => Algorithm::EcdsaP256,
    };
    match store.generate(&id, algorithm) {
        Err(e) if e.kind() == ErrorKind::Exists => log::warn!("{e}"),
        made => drop(made?),
    }
    key(&store, &id, &module)
}

fn delete(matches: &ArgMatches) -> Result<Item, AgentError> {
    let (id, store, _) = target(matches)?;
    match store.delete(&id) {
        Err(e) if e.kind() == ErrorKind::NotFound => log::warn!("{e}: nothing to delete"),
        done => done?,
    }
    Ok(Item::DeletedKey { name: id.as_str().to_owned(), state: Deleted::Deleted })
}

/// The key and the token that a step is about.
fn target(matches: &ArgMatches) -> Result<(KeyId, Pkcs11Store, PathBuf), AgentError> {
    let name = matches.get_one::<String>("name").map(String::as_str).unwrap_or_default();
    let id = name.parse().map_err(|e| ConfigError::new(format!("{name:?}: {e}"), "give another name"))?;
    let config = options::token(matches)?;
    let module = config.module.clone();
    Ok((id, Pkcs11Store::new(config)?, module))
}

/// The URI with the module in it (RFC 7512 section 2.3), as the agent's configuration takes it for a token.
fn with_module(uri: &str, module: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let mut whole = format!("{uri}?module-path=");
    for byte in module.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(byte) {
            whole.push(char::from(*byte));
        } else {
            let _ = write!(whole, "%{byte:02X}"); // writing to a String cannot fail
        }
    }
    whole
}
