//! The outputs' directories.

use std::path::Path;

use nix::unistd::{AccessFlags, Group, User, access};

use super::Report;
use crate::agent::config::{Account, Config, Output};

pub fn check(report: &mut Report, config: &Config) {
    for output in &config.outputs {
        match examine(output) {
            Ok(()) => report.ok("output", format!("{} can be written", output.name)),
            Err((what, advice)) => report.fail("output", format!("{}: {what}", output.name), advice),
        }
    }
}

fn examine(output: &Output) -> Result<(), (String, &'static str)> {
    let destination = &output.destination;
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
