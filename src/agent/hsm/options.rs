//! The command line, and what its options mean.

use std::path::PathBuf;

use boundkey_hal::pkcs11::{Config, PinSource};
use clap::builder::PathBufValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::{ConfigError, Keystore, KeystoreOptions};
use crate::error::AgentError;
use boundkey_keystore::PIN_VARIABLE;

/// Variable with the security officer's PIN.
const SO_PIN_VARIABLE: &str = "BOUNDKEY_SO_PIN";

pub(super) fn command() -> Command {
    let format =
        Arg::new("format").long("format").value_parser(["text", "json"]).default_value("text").help("Form of the output");
    let text = |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("VALUE").help(help);
    let module = Arg::new("module").long("module").value_name("PATH").help("The PKCS#11 module");
    let pin = [text("pin-path", "File with the user PIN"), text("pin-credential", "systemd credential with the user PIN")];
    let so_pin = [
        text("so-pin-path", "File with the security officer's PIN"),
        text("so-pin-credential", "systemd credential with the security officer's PIN"),
    ];
    let token = [
        text("uri", "URI of the token, with module-path"),
        module.clone().help("Without --uri: the PKCS#11 module"),
        text("token", "Without --uri: label of the token"),
        text("serial", "Without --uri: serial number of the token"),
    ];
    let name = Arg::new("name").value_name("NAME").required(true).help("Name of the key: a-z, 0-9 and -");
    let step = |name: &'static str, about: &'static str| Command::new(name).about(about).arg(format.clone());
    let algorithm = Arg::new("algorithm").long("algorithm").value_parser(["ed25519", "p256"]).help("Algorithm [default: p256]");
    let yes = Arg::new("yes").long("yes").action(ArgAction::SetTrue).required(true).help("Yes, destroy it for good");
    Command::new(super::NAME)
        .about("Look at PKCS#11 tokens, and prepare them")
        .subcommand_required(true)
        .after_help("PINs can also be in the environment: BOUNDKEY_PIN, BOUNDKEY_SO_PIN")
        .subcommand(step("modules", "List the PKCS#11 modules of this system"))
        .subcommand(step("tokens", "List tokens as URIs").arg(module.clone().help("Of this module only")))
        .subcommand(step("keys", "List boundkey's keys on a token as URIs").args(token.clone()).args(pin.clone()))
        .subcommand(
            step("init-token", "Make the one blank token ready: label and PINs")
                .arg(module.required(true).value_parser(PathBufValueParser::new()))
                .arg(text("label", "Label of the token").required(true))
                .args(so_pin)
                .args(pin.clone()),
        )
        .subcommand(step("create-key", "Make a key").args(token.clone()).args(pin.clone()).arg(algorithm).arg(name.clone()))
        .subcommand(step("delete-key", "Destroy a key").args(token).args(pin).arg(yes).arg(name))
}

/// The token that the options name, with its PIN.
pub(super) fn token(matches: &ArgMatches) -> Result<Config, AgentError> {
    // The steps have those options only that go with a token.
    let given = |name: &str| matches.try_get_one::<String>(name).ok().flatten().cloned();
    let options = KeystoreOptions::named("pkcs11", &given).map_err(ConfigError::from)?;
    match Keystore::try_from(options).map_err(ConfigError::from)?.with_environment(&|name| std::env::var(name).ok()) {
        Keystore::Pkcs11(config) => Ok(config),
        other => {
            Err(ConfigError::new(format!("{} is not a PKCS#11 token", other.kind()), "give --uri, or --module and --token")
                .into())
        }
    }
}

/// Where the user PIN is.
pub(super) fn user_pin(matches: &ArgMatches) -> Result<PinSource, AgentError> {
    source(matches, "pin-path", "pin-credential", PIN_VARIABLE, "user PIN")
}

/// Where the security officer's PIN is.
pub(super) fn so_pin(matches: &ArgMatches) -> Result<PinSource, AgentError> {
    source(matches, "so-pin-path", "so-pin-credential", SO_PIN_VARIABLE, "security officer's PIN")
}

fn source(
    matches: &ArgMatches,
    path: &str,
    credential: &str,
    variable: &'static str,
    whose: &str,
) -> Result<PinSource, AgentError> {
    let given = |name| matches.get_one::<String>(name).cloned();
    let file = given(path).map(|path| PinSource::File(PathBuf::from(path)));
    let found = file.or_else(|| given(credential).map(PinSource::Credential)).or_else(|| from_environment(variable));
    let missing = || ConfigError::new(format!("no {whose}"), format!("give --{path}, --{credential} or {variable}"));
    Ok(found.ok_or_else(missing)?)
}

fn from_environment(variable: &str) -> Option<PinSource> {
    // An empty variable is how a unit file unsets one.
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(|_| PinSource::Environment(variable.into()))
}
