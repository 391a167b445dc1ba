//! `boundkey`: the command line. Results go to stdout, the rest to stderr; errors are what failed and what to do next.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use boundkey_hal::Algorithm;
use clap::builder::PathBufValueParser;
use clap::error::ErrorKind as UsageKind;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::config::{Config, ConfigError, Keystore, KeystoreOptions};
use super::error::AgentError;
use super::keypair::{self, Place};
use super::{doctor, hsm, recovery_code, run, status, systemd};
use boundkey_keystore as keystore;
use boundkey_platform::logging::{self, Format, Level};
use boundkey_platform::text;
use boundkey_platform::time::{Clock, Random, System};

/// Where the configuration is, if nothing else is said.
const CONFIG: &str = "/etc/boundkey.yaml";

/// The command line.
pub fn command() -> Command {
    let config = Arg::new("config")
        .short('c')
        .long("config")
        .value_name("FILE")
        .env("BOUNDKEY_CONFIG")
        .value_parser(PathBufValueParser::new())
        .help("Configuration [default: /etc/boundkey.yaml]");
    let format =
        Arg::new("format").long("format").value_parser(["text", "json"]).default_value("text").help("Form of the output");
    let level = Arg::new("log-level").long("log-level").value_name("LEVEL").help("error, warn, info, debug, trace or off");
    let flag = |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    let start = Command::new("start")
        .about("Join, then renew until told to end")
        .arg(config.clone())
        .arg(flag("oneshot", "Join once and exit"))
        .arg(level.clone())
        .after_help(
            "SIGUSR1 or SIGHUP renews at once; SIGTERM or SIGINT ends.\n\n\
             Exit codes of --oneshot: 0 done, 1 other, 2 usage or configuration, 3 auth endpoint unreachable or not trusted, \
             4 locked, 5 no recoveries left, 6 registration refused, 7 key store, 8 storage\n\n\
             Where other hosts join with the same token at the same time, it waits its turn for up to 5 minutes.",
        );
    let status = Command::new("status")
        .about("Show token, certificate, recoveries, key and last error")
        .arg(config.clone())
        .arg(format.clone());
    let doctor = Command::new("doctor")
        .about("Look at all that a join needs, and say how to mend what is not well")
        .arg(config.clone())
        .arg(format.clone())
        .after_help("Exit code 0 if nothing failed, else 1");
    let recovery_code = Command::new("recovery-code")
        .about("Make a new key, and print the code by which an operator lets in this device and no copy of it")
        .arg(config.clone())
        .arg(format.clone())
        .after_help(
            "For a device whose key or storage was copied. Read the code to an operator, who types:\n  \
             boundkeyctl exempt token/NAME --key CODE\n\n\
             The device goes on trying, and is let in with its new key. The code names a key and is no secret.",
        );
    let create = Command::new("create")
        .about("Make the device's key, or show the one it has, with a token document to register it")
        .arg(config.clone())
        .arg(
            Arg::new("storage")
                .long("storage")
                .value_name("DIR")
                .value_parser(PathBufValueParser::new())
                .conflicts_with("config")
                .help("Storage directory, where there is no configuration yet"),
        )
        .arg(flag("overwrite", "Make a new key also where there is one"))
        .arg(
            Arg::new("algorithm")
                .long("algorithm")
                .value_parser(["ed25519", "p256"])
                .help("Algorithm [default: the key store's choice]"),
        )
        .arg(flag("static", "Make a key for hosts without writable storage").conflicts_with("storage"))
        .arg(
            Arg::new("static-key-path")
                .long("static-key-path")
                .value_name("FILE")
                .requires("static")
                .value_parser(PathBufValueParser::new())
                .help("File for the static key; without, it is printed"),
        )
        .arg(format);
    let option = |name: &'static str, value| Arg::new(name).long(name).requires("storage").value_name(value);
    let create = create
        .arg(option("keystore", "TYPE").help("With --storage: file, tpm or pkcs11 [default: file]"))
        .args(keystore::OPTIONS.map(|(name, help)| option(name, "VALUE").help(help)));
    let keypair = Command::new("keypair").about("The device's key").subcommand_required(true).subcommand(create);
    let install = Command::new("install")
        .about("Set the agent up on this system")
        .subcommand_required(true)
        .subcommand(systemd::command(config));
    Command::new("boundkey")
        .about("Device identity in a key of the device: joins with it, and keeps its certificates fresh")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(start)
        .subcommand(status)
        .subcommand(doctor)
        .subcommand(keypair)
        .subcommand(recovery_code)
        .subcommand(hsm::command())
        .subcommand(install)
}

/// Runs the program.
pub fn main() -> ExitCode {
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(e) => {
            let code = if matches!(e.kind(), UsageKind::DisplayHelp | UsageKind::DisplayVersion) { 0 } else { 2 };
            let _ = e.print(); // nowhere left to say that saying failed
            return ExitCode::from(code);
        }
    };
    match dispatch(&matches) {
        Ok((text, code)) => match std::io::stdout().write_all(text::output(&text).as_bytes()) {
            Ok(()) => ExitCode::from(code),
            Err(_) => ExitCode::from(1),
        },
        Err(e) => {
            logging::print(&logging::failure(&e, &e.advice()));
            ExitCode::from(e.exit_code())
        }
    }
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Runs a subcommand; returns what goes to stdout, and the exit code.
fn dispatch(matches: &ArgMatches) -> Result<(String, u8), AgentError> {
    let text = match matches.subcommand() {
        Some(("start", matches)) => start(matches),
        Some(("status", matches)) => {
            let config = load(matches, None)?;
            status::show(&config, Arc::new(System), is_json(matches))
        }
        Some(("doctor", matches)) => return examine(matches),
        Some(("keypair", matches)) => match matches.subcommand() {
            Some((_, matches)) => create_keypair(matches),
            None => Err(usage("no subcommand", "see `boundkey keypair --help`")),
        },
        Some(("recovery-code", matches)) => recovery_code::create(&load(matches, None)?, &System, is_json(matches)),
        Some((hsm::NAME, matches)) => {
            keystore::quieten();
            log_plainly()?;
            hsm::run(matches)
        }
        Some(("install", matches)) => match matches.subcommand() {
            Some((_, matches)) => systemd::install(matches, &load(matches, None)?),
            None => Err(usage("no subcommand", "see `boundkey install --help`")),
        },
        _ => Err(usage("no subcommand", "see `boundkey --help`")),
    };
    Ok((text?, 0))
}

fn usage(what: impl Into<String>, advice: impl Into<String>) -> AgentError {
    ConfigError::new(what, advice).into()
}

fn start(matches: &ArgMatches) -> Result<String, AgentError> {
    let level = matches.get_one::<String>("log-level").map(|text| text.parse::<Level>()).transpose();
    let config = load(matches, level.map_err(|e| usage(e.what, e.advice))?)?;
    config.check_writers()?;
    let (clock, random): (Arc<dyn Clock>, Arc<dyn Random>) = (Arc::new(System), Arc::new(System));
    if matches.get_flag("oneshot") {
        run::oneshot(&config, &clock, &random)?;
    } else {
        for warning in config.daemon_warnings() {
            log::warn!("{warning}; {}", warning.advice());
        }
        run::daemon(&config, &clock, &random)?;
    }
    Ok(String::new())
}

/// Reads the configuration, and logs from here on as it says.
fn load(matches: &ArgMatches, level: Option<Level>) -> Result<Config, AgentError> {
    let config = read_quietly(matches)?;
    let level = Level::choose(level, &env, config.log.level).map_err(|e| usage(e.what, e.advice))?;
    logging::install(config.log.format, level, &env, Arc::new(System));
    for warning in &config.warnings {
        log::warn!("{warning}; {}", warning.advice());
    }
    Ok(config)
}

/// Reads the configuration; libraries of its key store are quiet from here on.
fn read_quietly(matches: &ArgMatches) -> Result<Config, ConfigError> {
    let path = matches.get_one::<PathBuf>("config").map_or(Path::new(CONFIG), PathBuf::as_path);
    let config = Config::load(path, &env)?;
    if config.keystore != Keystore::File {
        keystore::quieten();
    }
    Ok(config)
}

/// Findings go to stdout, good and bad ones: what cannot be read is one too.
fn examine(matches: &ArgMatches) -> Result<(String, u8), AgentError> {
    let report = match read_quietly(matches) {
        Ok(config) => {
            log_plainly()?;
            doctor::examine(&config, &(Arc::new(System) as Arc<dyn Clock>))
        }
        Err(e) => doctor::without_configuration(&e),
    };
    let text = if is_json(matches) { report.json() } else { report.text() };
    Ok((text, u8::from(report.has_failed())))
}

fn create_keypair(matches: &ArgMatches) -> Result<String, AgentError> {
    let path = |name| matches.get_one::<PathBuf>(name).cloned();
    let mut token = None;
    let place = if matches.get_flag("static") {
        log_plainly()?;
        Place::Static(path("static-key-path"))
    } else if let Some(storage) = path("storage") {
        let keystore = keystore_of(matches)?;
        if keystore != Keystore::File {
            keystore::quieten();
        }
        log_plainly()?;
        Place::Device { storage, keystore }
    } else if path("config").is_some() || Path::new(CONFIG).exists() {
        let config = load(matches, None)?;
        token = Some(config.onboarding.token.read()?);
        Place::Device { storage: config.storage, keystore: config.keystore }
    } else {
        return Err(usage("neither a configuration nor a storage directory", "give -c FILE, --storage DIR or --static"));
    };
    let algorithm = matches.get_one::<String>("algorithm").map(|name| match name.as_str() {
        "p256" => Algorithm::EcdsaP256,
        _ => Algorithm::Ed25519,
    });
    let mut text = keypair::create(&keypair::Request {
        place,
        overwrite: matches.get_flag("overwrite"),
        algorithm,
        token,
        json: is_json(matches),
    })?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

fn keystore_of(matches: &ArgMatches) -> Result<Keystore, AgentError> {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let kind = text("keystore").unwrap_or_else(|| "file".into());
    let options = KeystoreOptions::named(&kind, &text).map_err(ConfigError::from)?;
    Ok(Keystore::try_from(options).map_err(ConfigError::from)?.with_environment(&env))
}

/// Logs as text, where no configuration says otherwise.
fn log_plainly() -> Result<(), AgentError> {
    let level = Level::choose(None, &env, None).map_err(|e| usage(e.what, e.advice))?;
    logging::install(Format::Text, level, &env, Arc::new(System));
    Ok(())
}

fn is_json(matches: &ArgMatches) -> bool {
    matches.get_one::<String>("format").is_some_and(|format| format == "json")
}
