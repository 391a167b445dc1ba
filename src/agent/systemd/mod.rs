//! Running under systemd: the unit that `boundkey install systemd` makes, and what the daemon tells the service manager.

mod needs;
mod notify;
mod unit;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use boundkey_hal::durable;
use clap::builder::PathBufValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use nix::unistd::User;

use super::config::{Config, ConfigError, DEFAULT_PATH};
use super::error::AgentError;

pub use needs::{Gives, Needs};
pub use notify::Notifier;
pub use unit::{Installation, Unit};

/// Where an administrator's units are.
const UNIT_DIR: &str = "/etc/systemd/system";
const NAME: &str = "boundkey";
const UNIT_MODE: u32 = 0o644;
/// What is said of a unit without a user of its own.
const ROOT_IS_MORE: &str = "the service runs as root, without root's powers, but as the owner of root's files; for a user without rights: useradd \
                            --system --no-create-home --shell /usr/sbin/nologin boundkey, then this command again with --force; --user root \
                            keeps it so";

/// The command line of `install systemd`; `config` is the option that names the configuration.
pub fn command(config: Arg) -> Command {
    let path = |name: &'static str| {
        Arg::new(name).long(name).value_name(if name == "bin" { "FILE" } else { "DIR" }).value_parser(PathBufValueParser::new())
    };
    let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    Command::new("systemd")
        .about("Print a hardened unit for the configuration, or write it")
        .arg(config)
        .arg(flag("write").help("Write the unit file instead of printing it"))
        .arg(path("unit-dir").requires("write").help("Directory for the unit file [default: /etc/systemd/system]"))
        .arg(flag("force").requires("write").help("Replace a unit file that differs"))
        .arg(Arg::new("name").long("name").value_name("NAME").default_value(NAME).help("Name of the service"))
        .arg(path("bin").help("The program [default: this one]"))
        .arg(
            Arg::new("user")
                .long("user")
                .value_name("USER")
                .help("User to run as [default: boundkey where there is that user, else root without its powers]"),
        )
}

/// Runs `install systemd`; returns what goes to stdout.
pub fn install(matches: &ArgMatches, config: &Config) -> Result<String, AgentError> {
    let text = |name| matches.get_one::<String>(name).map(String::as_str);
    let path = |name| matches.get_one::<PathBuf>(name).map(PathBuf::as_path);
    let name = word("name", text("name").unwrap_or(NAME))?;
    let asked: Option<&str> = text("user").map(|user| word("user", user)).transpose()?;
    let user = if asked.is_some() { asked } else { own_user() };
    // Asked for by name, root is root.
    let user = user.filter(|user| *user != "root");
    let failed = |what: &str, e: io::Error| AgentError::Other(format!("{what}: {e}"));
    let program = match path("bin") {
        Some(path) => std::path::absolute(path),
        None => std::env::current_exe(),
    };
    let program = program.map_err(|e| failed("the program's path", e))?;
    let config_path = std::path::absolute(&config.path).map_err(|e| failed("the configuration's path", e))?;
    let (installation, needs) = (Installation::Configuration, &Needs::of(config));
    let unit = Unit { name, program: &program, config_path: &config_path, user, installation, needs }.text();
    if user.is_none() && asked.is_none() {
        log::warn!("{ROOT_IS_MORE}");
    }
    if !matches.get_flag("write") {
        return Ok(unit);
    }
    let file = path("unit-dir").unwrap_or(Path::new(UNIT_DIR)).join(format!("{name}.service"));
    let written = write(&file, &unit, matches.get_flag("force"))?;
    let done = match written {
        Written::New => "written",
        Written::Replaced => "replaced",
        Written::Same => "already there, and the same",
    };
    Ok(format!("{}: {done}\nnext: systemctl daemon-reload && systemctl enable --now {name}\n", file.display()))
}

/// The user that packages make for the agent, where there is one.
fn own_user() -> Option<&'static str> {
    matches!(User::from_name(NAME), Ok(Some(_))).then_some(NAME)
}

/// The unit that packages bring, such as Debian's: for any device, configured or not.
pub fn packaged() -> String {
    let (program, config_path) = (Path::new("/usr/bin/boundkey"), Path::new(DEFAULT_PATH));
    Unit { name: NAME, program, config_path, user: Some(NAME), installation: Installation::Package, needs: &Needs::of_package() }
        .text()
}

/// What came of writing a unit file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// There was none.
    New,
    /// There was another.
    Replaced,
    /// There was the same, and it was not touched.
    Same,
}

/// Writes `unit` to `file`. One that differs is somebody's work, and replaced only by `force`.
pub fn write(file: &Path, unit: &str, force: bool) -> Result<Written, ConfigError> {
    let failed = |e: io::Error| {
        let advice = match e.kind() {
            io::ErrorKind::NotFound => "create the directory, or name another by --unit-dir",
            io::ErrorKind::PermissionDenied => "run it as root, or name another directory by --unit-dir",
            _ => "name another directory by --unit-dir",
        };
        ConfigError::new(format!("{}: {e}", file.display()), advice)
    };
    let written = match fs::read(file) {
        Ok(content) if content == unit.as_bytes() => return Ok(Written::Same),
        Ok(_) if force => Written::Replaced,
        Ok(_) => {
            let what = format!("{} is there and differs", file.display());
            return Err(ConfigError::new(what, "compare it with what `boundkey install systemd` prints, then add --force"));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Written::New,
        Err(e) => return Err(failed(e)),
    };
    durable::replace(file, unit.as_bytes(), UNIT_MODE).map_err(failed)?;
    Ok(written)
}

/// A name that can stand in a unit file as it is.
fn word<'a>(option: &str, text: &'a str) -> Result<&'a str, ConfigError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') && text.len() <= 64 && text.chars().all(plain) {
        return Ok(text);
    }
    Err(ConfigError::new(format!("--{option} {text:?} is not a name"), "use letters, digits, full stops, - and _"))
}
