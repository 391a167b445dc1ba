//! `boundkey hsm`: what a technician does with PKCS#11 tokens before a device joins. Each step is safe to repeat.
//!
//! PINs come from files, the environment or systemd credentials, never from arguments: those end up in `ps` and histories.

#[cfg(feature = "pkcs11")]
mod item;
#[cfg(feature = "pkcs11")]
mod options;
#[cfg(feature = "pkcs11")]
mod steps;

use clap::{ArgMatches, Command};

use super::error::AgentError;

/// Name of the subcommand.
pub const NAME: &str = "hsm";

/// The command line below `hsm`.
#[cfg(feature = "pkcs11")]
pub fn command() -> Command {
    options::command()
}

/// One that takes anything, to say that this build has none of it.
#[cfg(not(feature = "pkcs11"))]
pub fn command() -> Command {
    use clap::{Arg, ArgAction};
    let rest =
        Arg::new("rest").action(ArgAction::Append).num_args(0..).trailing_var_arg(true).allow_hyphen_values(true).hide(true);
    Command::new(NAME).about("PKCS#11 tokens (not in this build)").arg(rest)
}

/// Runs it; returns what goes to stdout.
#[cfg(feature = "pkcs11")]
pub fn run(matches: &ArgMatches) -> Result<String, AgentError> {
    steps::run(matches)
}

/// Says that this build has none of it.
#[cfg(not(feature = "pkcs11"))]
pub fn run(_: &ArgMatches) -> Result<String, AgentError> {
    let what = "this boundkey is built without PKCS#11 support";
    Err(super::config::ConfigError::new(what, "install a boundkey built with the cargo feature `pkcs11`").into())
}
