//! The outputs' directories, and the programs that are to be told of them.

use std::path::Path;

use boundkey_hal::dir::{Dir, Exposed};
use nix::unistd::{AccessFlags, Group, User, access};

use super::Report;
use crate::config::{Account, Config, Destination, Output, Reload};
use crate::outputs::command;

pub fn check(report: &mut Report, config: &Config) {
    for output in &config.outputs {
        match examine(output) {
            Ok(()) => report.ok("output", format!("{} can be written", output.name)),
            Err((what, advice)) => report.fail("output", format!("{}: {what}", output.name), advice),
        }
        if let Some(Reload::Command { program, .. }) = &output.reload {
            check_program(report, &output.name, program);
        }
    }
}

fn check_program(report: &mut Report, output: &str, program: &str) {
    let located = command::locate(program);
    if let Err(e) = &located
        && let Some(exposed) = Exposed::of(e)
    {
        report.fail("output", format!("{output}: reload.command is not run: {exposed}"), command::advice(exposed));
    } else if !located.is_ok_and(|path| command::is_executable(&path)) {
        let advice = "install it, or correct reload.command; a name is looked for in PATH, which a unit may set otherwise";
        report.warn("output", format!("{output}: there is no program {program} to reload by"), advice);
    }
}

fn examine(output: &Output) -> Result<(), (String, String)> {
    let destination = &output.destination;
    if let Err(e) = Dir::check(&destination.path)
        && let Some(exposed) = Exposed::of(&e)
    {
        return Err((exposed.to_string(), exposed.advice()));
    }
    writable(destination).map_err(|(what, advice)| (what, advice.to_owned()))
}

fn writable(destination: &Destination) -> Result<(), (String, &'static str)> {
    // What is missing is made, in the first parent that is there.
    let existing = destination.path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let place = existing.display();
    if !existing.is_dir() {
        return Err((format!("{place} is not a directory"), "remove it, or correct destination.path"));
    }
    if let Err(e) = access(existing, AccessFlags::W_OK | AccessFlags::X_OK) {
        return Err((
            format!("{place}: {}", e.desc()),
            "let the user that boundkey runs as write there, or correct destination.path",
        ));
    }
    let known = |account: &Option<Account>, find: &dyn Fn(&str) -> bool| match account {
        Some(Account::Name(name)) if !find(name) => {
            Err((format!("there is no user or group {name}"), "create it, or correct destination"))
        }
        _ => Ok(()),
    };
    known(&destination.owner, &|name| matches!(User::from_name(name), Ok(Some(_))))?;
    known(&destination.group, &|name| matches!(Group::from_name(name), Ok(Some(_))))
}
