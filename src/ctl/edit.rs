//! `edit`: a resource through the operator's own editor.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use boundkey_hal::dir::{Dir, Exposed};
use boundkey_hal::durable;

use super::client::{CallError, Client};
use super::{Failure, document, say};
use boundkey_api::call::{Applied, Entry, Get, Outcome, Replace};
use boundkey_api::resource::{Kind, Resource, ResourceId, TokenStatus};
use boundkey_join::{Id, ProblemType};
use boundkey_platform::time::System;

/// Times that an edit is sent again while devices change the status beside it.
const TRIES: u32 = 10;

pub(super) fn edit(client: &Client, id: &ResourceId) -> Result<(), Failure> {
    if matches!(id.kind, Kind::BotInstance | Kind::Host) {
        return Err(Failure::usage(format!("{id} cannot be edited"), "instances are written by joins alone"));
    }
    let read = read(client, id)?;
    let mut text = document::write(std::slice::from_ref(&read.resource))?;
    if id.kind == Kind::Token {
        text.insert_str(0, "# The status is what joins made of the token: it stays as it is, whatever is written here.\n");
    }
    let file = write_file(id, &text)?;
    let done = run_editor(&file).and_then(|()| send_edited(client, id, &read, &file));
    match done {
        Ok(()) => {
            let kept = |e| Failure::new(format!("{}: {e}", file.display()), "the edit was done; remove the file by hand");
            std::fs::remove_file(&file).map_err(kept)
        }
        Err(failure) => {
            let advice = format!("your text is kept in {0}; mend it, then boundkeyctl create -f {0}", file.display());
            Err(Failure { advice, ..failure })
        }
    }
}

fn send_edited(client: &Client, id: &ResourceId, read: &Entry, file: &Path) -> Result<(), Failure> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|e| Failure::new(format!("{name}: {e}"), ""))?;
    let mut resources = document::read(&name, &text)?;
    let resource = match (resources.pop(), resources.is_empty()) {
        (Some(resource), true) if resource.id() == *id => resource,
        _ => return Err(Failure::usage(format!("{name}: it has to be {id} and nothing else"), "")),
    };
    if wanted(&resource) == wanted(&read.resource) {
        return say(format_args!("{id} unchanged"));
    }
    match replace(client, id, resource, read)?.outcome {
        Outcome::Unchanged => say(format_args!("{id} unchanged")),
        Outcome::Created | Outcome::Updated => say(format_args!("{id} updated")),
    }
}

/// Sends `resource` in place of what was read. A join in between is no conflict: it changes the status alone.
fn replace(client: &Client, id: &ResourceId, resource: Resource, read: &Entry) -> Result<Applied, Failure> {
    let mut call = Replace { resource, revision: read.revision };
    for _ in 1..TRIES {
        match client.call(&call) {
            Err(CallError::Refused(problem)) if problem.kind == ProblemType::Conflict => {
                let current = self::read(client, id)?;
                if wanted(&current.resource) != wanted(&read.resource) {
                    return Err(client.failure(CallError::Refused(problem)));
                }
                call.revision = current.revision;
            }
            other => return other.map_err(|error| client.failure(error)),
        }
    }
    client.send(&call)
}

/// The part of a resource that is an operator's.
fn wanted(resource: &Resource) -> Resource {
    let mut resource = resource.clone();
    if let Resource::Token(token) = &mut resource {
        token.status = TokenStatus::default();
    }
    resource
}

/// Without secrets: the server puts those that stay hidden back in.
fn read(client: &Client, id: &ResourceId) -> Result<Entry, Failure> {
    client.send(&Get { id: id.clone(), with_secrets: false })
}

fn write_file(id: &ResourceId, text: &str) -> Result<PathBuf, Failure> {
    let random = Id::random(&System).map_err(|e| Failure::new(e.to_string(), "try again"))?;
    let path = std::env::temp_dir().join(format!("boundkeyctl-{}-{}-{random}.yaml", id.kind, id.name));
    let unwritable = |e: std::io::Error| {
        let advice = "TMPDIR may name another directory";
        let advice = Exposed::of(&e).map_or(advice.into(), |exposed| format!("{}; {advice}", exposed.advice()));
        Failure::new(format!("{}: {e}", path.display()), advice)
    };
    // What is applied is what the operator wrote: nobody else may put another file there while the editor is open.
    let (dir, name) = Dir::of_file(&path).map_err(unwritable)?;
    let mut file = dir.make_file(name, durable::PRIVATE_FILE).map_err(unwritable)?;
    file.write_all(text.as_bytes()).map_err(unwritable)?;
    Ok(path)
}

fn run_editor(file: &Path) -> Result<(), Failure> {
    let set = |name| std::env::var(name).ok().filter(|editor| !editor.is_empty());
    let editor = set("VISUAL").or_else(|| set("EDITOR")).unwrap_or_else(|| "vi".into());
    // By the shell, as others do: the variable may hold options.
    let status = Command::new("sh").args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(file).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::new(format!("the editor {editor:?} failed: {status}"), "")),
        Err(e) => Err(Failure::new(format!("the editor {editor:?} cannot be run: {e}"), "")),
    }
}
