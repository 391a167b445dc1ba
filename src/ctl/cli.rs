//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{EnumValueParser, PathBufValueParser};
use clap::{Arg, ArgAction, ArgGroup, Command, value_parser};

use super::print::Format;
use boundkey_api::VERSION;
use boundkey_api::resource::{Kind, ResourceId, check_name};
use boundkey_join::RecoveryCode;
use boundkey_platform::time::{Clock as _, System, Timestamp};

/// Where a packaged server keeps its data.
pub(super) const DATA_DIR: &str = "/var/lib/boundkey-auth";

/// `KIND` or `KIND/NAME`.
#[derive(Clone, Debug)]
pub(super) struct Selected {
    pub(super) kind: Kind,
    pub(super) name: Option<String>,
}

/// A length of time, such as `24h`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span(pub(super) Duration);

/// The command line of `boundkeyctl`.
pub fn command() -> Command {
    Command::new("boundkeyctl")
        .about("Operate boundkey: tokens, bots, roles, locks, and the audit log")
        .long_about(
            "Operate boundkey: tokens, bots, roles, locks, and the audit log.\n\n\
             Talks to boundkey-auth through the socket in its data directory, as root or as the user that the server runs as.",
        )
        .after_help(
            "Exit codes: 0 done; 1 refused or failed; 2 wrong usage or a document that cannot be read; 3 no server on the socket.\n\n\
             Resources: bot, bot_instance, host, lock, role, token.",
        )
        .version(VERSION)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            Arg::new("data-dir")
                .long("data-dir")
                .value_name("DIR")
                .env("BOUNDKEY_DATA_DIR")
                .value_parser(PathBufValueParser::new())
                .global(true)
                .help(format!("The server's data directory [default: {DATA_DIR}]")),
        )
        .arg(
            Arg::new("socket")
                .long("socket")
                .value_name("PATH")
                .env("BOUNDKEY_SOCKET")
                .value_parser(PathBufValueParser::new())
                .global(true)
                .help("The server's socket, where it is not in the data directory"),
        )
        .subcommands([ca(), create(), get(), edit(), rm(), reset(), rotate(), exempt(), lock(), audit()])
}

fn ca() -> Command {
    let format = Arg::new("format")
        .long("format")
        .value_name("FORMAT")
        .value_parser(["text", "json"])
        .default_value("text")
        .help("text for a person, json for scripts");
    let flag = |name: &'static str, help| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    let rotate = Command::new("rotate")
        .about("Replace the CA, one step at a time")
        .arg(
            Arg::new("to")
                .long("to")
                .value_name("PHASE")
                .value_parser(["announced", "active", "retired"])
                .help("announced: devices learn of the next CA; active: it signs; retired: the old one does not count any more"),
        )
        .arg(flag("cancel", "Withdraw the CA that is announced").conflicts_with("to"))
        .arg(flag("compromised", "With --to retired or --cancel: the keys of the CA that goes are in other hands, so nothing they signed counts"))
        .arg(flag("yes", "Go on though not all devices are ready for it"))
        .arg(format.clone())
        .after_help(
            "Without --to the next CA is made and announced. Each step can be taken back: --cancel after announced, --to announced after\n\
             active, --to active after retired. Make a backup after each: the keys of the next CA are in none before.\n\n\
             Examples:\n  \
             boundkeyctl ca rotate\n  \
             boundkeyctl ca rotate --to active\n  \
             boundkeyctl ca rotate --to retired",
        );
    let status = Command::new("status")
        .about("Show the CAs: phase, pin, end, and how many devices know each")
        .arg(format)
        .after_help("Example:\n  boundkeyctl ca status");
    Command::new("ca")
        .about("Show and replace the cluster's CA")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([rotate, status])
}

fn create() -> Command {
    Command::new("create")
        .about("Create or update resources from YAML documents: all of them, or none")
        .arg(
            Arg::new("file")
                .short('f')
                .long("file")
                .value_name("FILE")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("YAML documents, or - for standard input"),
        )
        .after_help(
            "A token keeps its status: binding, counters and registration secret. Only reset, or rm and create, undo a binding.\n\
             A token without public key or secret is given a registration secret: get token/NAME --with-secrets shows it.\n\n\
             Examples:\n  \
             boundkeyctl create -f fleet.yaml\n  \
             boundkeyctl get token --format yaml --with-secrets | boundkeyctl --data-dir OTHER create -f -",
        )
}

fn get() -> Command {
    Command::new("get")
        .about("Show resources")
        .arg(
            Arg::new("what")
                .value_name("KIND[/NAME]")
                .required(true)
                .value_parser(selected)
                .help("bot, bot_instance, host, lock, role or token; with /NAME, that one"),
        )
        .arg(Arg::new("with-secrets").long("with-secrets").action(ArgAction::SetTrue).help("Show registration secrets"))
        .arg(
            Arg::new("format")
                .long("format")
                .value_name("FORMAT")
                .value_parser(EnumValueParser::<Format>::new())
                .default_value("text")
                .help("text for a person, yaml as create takes it, json as an array"),
        )
        .after_help(
            "Examples:\n  \
             boundkeyctl get token\n  \
             boundkeyctl get token/gateway-0042\n  \
             boundkeyctl get token/gateway-0042 --with-secrets --format json",
        )
}

fn edit() -> Command {
    Command::new("edit").about("Edit a resource in $VISUAL, $EDITOR or vi").arg(named()).after_help(
        "Nothing is sent if nothing was changed. After a failure your text is kept, and its file named.\n\n\
             Example:\n  boundkeyctl edit token/gateway-0042",
    )
}

fn rm() -> Command {
    Command::new("rm").about("Delete a resource").arg(named()).after_help(
        "What was issued with a token, or for a bot, that is deleted goes on the revocation list (GET /v1/crl). Programs that do not\n\
         look at it take it to its end.\n\n\
         Examples:\n  boundkeyctl rm token/gateway-0042\n  boundkeyctl rm lock/9a7c1f0e-5b1d-4f38-8c53-1f4f0c2b7a11",
    )
}

fn reset() -> Command {
    Command::new("reset").about("Undo the binding of a token: its next join is a first join").arg(token()).after_help(
        "Key, counters and retired keys are forgotten, and there is a new registration secret unless one is fixed or the key is\n\
         preregistered. A device that still holds the old key cannot use it any more.\n\n\
         Example:\n  boundkeyctl reset token/gateway-0042",
    )
}

fn rotate() -> Command {
    let labels = Arg::new("selector")
        .long("selector")
        .value_name("KEY=VALUE")
        .value_parser(label)
        .value_delimiter(',')
        .action(ArgAction::Append)
        .help("Of bound tokens with these labels");
    Command::new("rotate")
        .about("Have devices make new keys, at their next join")
        .arg(token().required(false))
        .arg(Arg::new("all").long("all").action(ArgAction::SetTrue).help("Of all bound tokens"))
        .arg(labels)
        .group(ArgGroup::new("which").args(["token-name", "all", "selector"]).required(true))
        .after_help("Examples:\n  boundkeyctl rotate token/gateway-0042\n  boundkeyctl rotate --selector site=bern,line=2")
}

fn exempt() -> Command {
    Command::new("exempt")
        .about("Let a device come back by itself, past automatic locks, the recovery limit and a lost join state")
        .arg(token())
        .arg(
            Arg::new("recoveries")
                .long("recoveries")
                .value_name("N")
                .value_parser(value_parser!(u32).range(1..))
                .default_value("1")
                .help("Recoveries allowed by it"),
        )
        .arg(Arg::new("for").long("for").value_name("TIME").value_parser(span).default_value("24h").help("How long it stands unused"))
        .arg(
            Arg::new("key")
                .long("key")
                .value_name("CODE")
                .value_parser(|text: &str| text.parse::<RecoveryCode>())
                .conflicts_with("recoveries")
                .help("Only for the device with this key: the code that `boundkey recovery-code` prints there"),
        )
        .arg(Arg::new("reason").long("reason").value_name("TEXT").help("Why, for the audit log"))
        .arg(
            Arg::new("cancel")
                .long("cancel")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(["recoveries", "for", "key", "reason"])
                .help("Withdraw it"),
        )
        .after_help(
            "Lifts the token's automatic locks (not those of operators), orders a new key, and ends when used or out of time. The device\n\
             needs nothing: it is back at its next try. A copy of it would be let in as well, if it comes first.\n\n\
             Where there is a copy, have `boundkey recovery-code` run on the device, and give its code by --key: the token stays locked\n\
             until the device with that key comes, and every older copy is out for good. Blanks, hyphens and case do not matter.\n\n\
             Examples:\n  \
             boundkeyctl exempt token/gateway-0042 --key J3XC-NZN9-P5AP-D629\n  \
             boundkeyctl exempt token/gateway-0042 --reason 'board swapped by service'\n  \
             boundkeyctl exempt token/gateway-0042 --cancel",
        )
}

fn lock() -> Command {
    let target = |id: &'static str, help| Arg::new(id).long(id).value_name("NAME").value_parser(name).help(help);
    Command::new("lock")
        .about("Stop every join of a token, bot, bot instance or host")
        .arg(target("token", "The token to stop"))
        .arg(target("bot", "The bot to stop, with all its tokens"))
        .arg(target("instance", "The bot instance to stop; a recovery makes another, so prefer --token"))
        .arg(target("host", "The host to stop, by its id; a recovery makes another, so prefer --token"))
        .group(ArgGroup::new("target").args(["token", "bot", "instance", "host"]).required(true))
        .arg(Arg::new("message").long("message").value_name("TEXT").help("What the device is told"))
        .arg(
            Arg::new("expires")
                .long("expires")
                .value_name("TIME")
                .value_parser(span)
                .help("When it ends; else rm lock/ID ends it"),
        )
        .after_help("Example:\n  boundkeyctl lock --token gateway-0042 --message 'reported stolen' --expires 24h")
}

fn audit() -> Command {
    Command::new("audit")
        .about("Show the audit log")
        .arg(
            Arg::new("follow")
                .long("follow")
                .action(ArgAction::SetTrue)
                .help("Go on with events as they come; without --since, from now on"),
        )
        .arg(
            Arg::new("since")
                .long("since")
                .value_name("TIME")
                .value_parser(since)
                .help("Events of the last TIME, such as 1h, or since a time such as 2026-01-31T12:00:00Z"),
        )
        .arg(Arg::new("token").long("token").value_name("NAME").value_parser(name).help("Events of one token"))
        .arg(
            Arg::new("format")
                .long("format")
                .value_name("FORMAT")
                .value_parser(["text", "json"])
                .default_value("text")
                .help("text for a person, json as one object a line"),
        )
        .after_help("Examples:\n  boundkeyctl audit --since 1h --token gateway-0042\n  boundkeyctl audit --follow --format json")
}

fn named() -> Arg {
    let parse = |text: &str| text.parse::<ResourceId>();
    Arg::new("what").value_name("KIND/NAME").required(true).value_parser(parse).help("Which resource")
}

fn token() -> Arg {
    Arg::new("token-name").value_name("token/NAME").required(true).value_parser(token_name).help("Which token")
}

fn token_name(text: &str) -> Result<String, String> {
    match text.parse()? {
        ResourceId { kind: Kind::Token, name } => Ok(name),
        ResourceId { kind, .. } => Err(format!("it is a {kind}, and only a token can be meant here")),
    }
}

fn selected(text: &str) -> Result<Selected, String> {
    if text.contains('/') {
        let id: ResourceId = text.parse()?;
        return Ok(Selected { kind: id.kind, name: Some(id.name) });
    }
    Ok(Selected { kind: text.parse()?, name: None })
}

fn name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.into())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not of the form KEY=VALUE")?;
    Ok((key.into(), value.into()))
}

fn span(text: &str) -> Result<Span, String> {
    let span = humantime::parse_duration(text).map_err(|e| format!("{e}; give a time such as 90s, 24h or 7d"))?;
    if span < Duration::from_secs(1) { Err("give at least 1s".into()) } else { Ok(Span(span)) }
}

fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(span) = humantime::parse_duration(text) {
        return Ok(System.now().minus(span));
    }
    text.parse().map_err(|_| "give a time such as 1h or 2026-01-31T12:00:00Z".into())
}
