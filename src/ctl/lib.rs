//! The operator's program `boundkeyctl`: reads what a person wrote, calls the server on its Unix socket, prints what came of it.
//!
//! What goes where: results to stdout, the rest to stderr. Exit codes: 0 done; 1 refused, or failed otherwise; 2 wrong usage, or a
//! document that cannot be read; 3 no server on the socket.
#![forbid(unsafe_code)]

mod audit;
mod ca;
mod cli;
mod client;
pub mod document;
mod edit;
mod get;
mod print;
mod table;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ArgMatches;
use clap::parser::ValueSource;

pub use cli::command;

use boundkey_api::SOCKET;
use boundkey_api::call::{Apply, CancelExemption, Delete, Deleted, Exempt, Outcome, PutLock, Reset, Rotate};
use boundkey_api::resource::{Kind, LockTarget, ResourceId};
use boundkey_platform::logging;
use boundkey_platform::text;
use cli::Span;
use client::Client;

/// What failed, what to do next, and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// What failed.
    pub what: String,
    /// What to do next.
    pub advice: String,
    /// The exit code.
    pub code: u8,
}

impl Failure {
    fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what: what.into(), advice: advice.into(), code: 1 }
    }

    fn usage(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { code: 2, ..Self::new(what, advice) }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    match run(&command().get_matches()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { what, advice, code }) => {
            if !what.is_empty() {
                logging::print(&logging::failure(&what, &advice));
            }
            ExitCode::from(code)
        }
    }
}

fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let Some((name, matches)) = matches.subcommand() else {
        return Err(Failure::usage("no command given", "boundkeyctl --help lists them"));
    };
    let client = Client::new(socket(matches))?;
    match name {
        "audit" => audit::audit(&client, matches),
        "ca" => ca::ca(&client, matches),
        "create" => create(&client, matches),
        "edit" => edit::edit(&client, resource_id(matches)?),
        "exempt" => exempt(&client, matches),
        "get" => get::get(&client, matches),
        "lock" => lock(&client, matches),
        "reset" => reset(&client, matches),
        "rm" => rm(&client, matches),
        "rotate" => rotate(&client, matches),
        _ => Err(Failure::usage(format!("no command {name}"), "boundkeyctl --help lists them")),
    }
}

/// What was given on the command line comes before what is in the environment, and the socket before the directory.
fn socket(matches: &ArgMatches) -> PathBuf {
    let typed = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
    let path = |id| matches.get_one::<PathBuf>(id).map(PathBuf::as_path);
    let directory = path("data-dir").unwrap_or(Path::new(cli::DATA_DIR));
    match path("socket") {
        Some(socket) if typed("socket") || !typed("data-dir") => socket.into(),
        _ => directory.join(SOCKET),
    }
}

fn create(client: &Client, matches: &ArgMatches) -> Result<(), Failure> {
    let file = matches.get_one::<PathBuf>("file").map_or(Path::new("-"), PathBuf::as_path);
    let unreadable =
        |e| Failure::usage(format!("{}: {e}", file.display()), "give a file of YAML documents, or - for standard input");
    let (name, text) = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(unreadable)?;
        ("standard input".into(), text)
    } else {
        (file.display().to_string(), std::fs::read_to_string(file).map_err(unreadable)?)
    };
    let resources = document::read(&name, &text)?;
    for applied in client.send(&Apply { resources })? {
        let outcome = match applied.outcome {
            Outcome::Created => "created",
            Outcome::Unchanged => "unchanged",
            Outcome::Updated => "updated",
        };
        say(format_args!("{} {outcome}", applied.id))?;
        for lock in &applied.locks {
            logging::print(&format!(
                "warning: {} is stopped by {lock}, which was there before\n  boundkeyctl rm {lock} removes it",
                applied.id
            ));
        }
    }
    Ok(())
}

fn exempt(client: &Client, matches: &ArgMatches) -> Result<(), Failure> {
    let token = token(matches)?;
    if matches.get_flag("cancel") {
        client.send(&CancelExemption { token: token.clone() })?;
        return say(format_args!("exemption of token/{token} cancelled"));
    }
    let call = Exempt {
        token: token.clone(),
        recoveries: matches.get_one("recoveries").copied().unwrap_or(1),
        seconds: matches.get_one("for").map_or(86_400, |span: &Span| span.0.as_secs()),
        key: matches.get_one("key").cloned(),
        reason: matches.get_one("reason").cloned(),
    };
    let done = client.send(&call)?;
    for lock in &done.lifted {
        say(format_args!("{lock} deleted"))?;
    }
    let expires = done.exemption.expires;
    if let Some(code) = &done.exemption.key {
        say(format_args!("token/{token} exempt until {expires}: only the device with key {code} can come back"))?;
    } else {
        let recoveries = print::counted(done.exemption.recoveries, "recovery", "recoveries");
        say(format_args!("token/{token} exempt until {expires}: {recoveries}, one join without matching join state"))?;
    }
    warn_of_locks(&token, &done.remaining);
    Ok(())
}

fn lock(client: &Client, matches: &ArgMatches) -> Result<(), Failure> {
    let given = |id| matches.get_one::<String>(id).cloned();
    let target = given("token").map(LockTarget::Token).or_else(|| given("bot").map(LockTarget::Bot));
    let target = target.or_else(|| given("instance").map(LockTarget::BotInstance));
    let Some(target) = target.or_else(|| given("host").map(LockTarget::Host)) else {
        return Err(Failure::usage("nothing to lock", "give one of --token, --bot, --instance, --host"));
    };
    let call = PutLock {
        target,
        message: given("message").unwrap_or_default(),
        seconds: matches.get_one("expires").map(|span: &Span| span.0.as_secs()),
    };
    say(format_args!("{} created", client.send(&call)?))
}

fn reset(client: &Client, matches: &ArgMatches) -> Result<(), Failure> {
    let token = token(matches)?;
    let unbound = client.send(&Reset { token: token.clone() })?;
    say(format_args!("token/{token} reset: the next join is a first join"))?;
    warn_of_locks(&token, &unbound.locks);
    Ok(())
}

fn rm(client: &Client, matches: &ArgMatches) -> Result<(), Failure> {
    let Deleted { id: gone, locks, named_by } = client.send(&Delete { id: resource_id(matches)?.clone() })?;
    say(format_args!("{gone} deleted"))?;
    for lock in &locks {
        logging::print(&format!("warning: {lock} stays, and stops another {gone}\n  boundkeyctl rm {lock} removes it"));
    }
    let then = match gone.kind {
        Kind::Bot => "its joins are refused until there is one",
        _ => "what this role alone allowed is refused until there is one",
    };
    for user in &named_by {
        logging::print(&format!(
            "warning: {user} names {gone}: {then}\n  boundkeyctl create -f makes it anew; boundkeyctl edit {user} names another"
        ));
    }
    Ok(())
}

fn rotate(client: &Client, matches: &ArgMatches) -> Result<(), Failure> {
    let which = if matches.get_flag("all") {
        Rotate::All
    } else if let Some(labels) = matches.get_many::<(String, String)>("selector") {
        Rotate::Selector(labels.cloned().collect())
    } else {
        Rotate::Token(token(matches)?)
    };
    let rotated = client.send(&which)?;
    if rotated.is_empty() {
        logging::print("note: no bound token is selected, so nothing was changed");
    }
    rotated.iter().try_for_each(|id| say(format_args!("{id}: a new key at the next join")))
}

fn warn_of_locks(token: &str, locks: &[ResourceId]) {
    for lock in locks {
        logging::print(&format!("warning: token/{token} is still stopped by {lock}\n  boundkeyctl rm {lock} removes it"));
    }
}

fn resource_id(matches: &ArgMatches) -> Result<&ResourceId, Failure> {
    matches.get_one::<ResourceId>("what").ok_or_else(|| Failure::usage("no resource named", "give KIND/NAME"))
}

/// The name in `token/NAME`.
fn token(matches: &ArgMatches) -> Result<String, Failure> {
    let name = matches.get_one::<String>("token-name").cloned();
    name.ok_or_else(|| Failure::usage("no token named", "give token/NAME"))
}

/// One line of result.
fn say(line: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    print(&format!("{line}\n"))
}

/// Results go here. A reader that has gone, such as `head`, has what it wanted: the program ends in silence.
fn print(text: &str) -> Result<(), Failure> {
    let (mut out, text) = (std::io::stdout().lock(), text::output(text));
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| {
        if e.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure { what: String::new(), advice: String::new(), code: 0 };
        }
        Failure::new(format!("standard output: {e}"), "the command was done all the same")
    })
}
