//! `get`: one resource, or all of a kind page by page.

use clap::ArgMatches;

use super::cli::Selected;
use super::client::Client;
use super::print::{Format, JsonList};
use super::{Failure, document, table};
use boundkey_api::call::{Entry, Get, List};
use boundkey_api::resource::ResourceId;

pub(super) fn get(client: &Client, matches: &ArgMatches) -> Result<(), Failure> {
    let Some(Selected { kind, name }) = matches.get_one::<Selected>("what") else {
        return Err(Failure::usage("nothing to get", "give KIND or KIND/NAME"));
    };
    let with_secrets = matches.get_flag("with-secrets");
    let format = matches.get_one::<Format>("format").copied().unwrap_or(Format::Text);
    match name {
        Some(name) => one(client, &Get { id: ResourceId::new(*kind, name), with_secrets }, format),
        None => all(client, List { kind: *kind, after: None, with_secrets }, format),
    }
}

fn one(client: &Client, call: &Get, format: Format) -> Result<(), Failure> {
    let entry = client.send(call)?;
    match format {
        Format::Json => {
            let mut list = JsonList::default();
            super::print(&(list.page(&[entry])? + list.end()))
        }
        Format::Text => super::print(&table::one(&entry)?),
        Format::Yaml => super::print(&document::write(&[entry.resource])?),
    }
}

fn all(client: &Client, call: List, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => {
            let mut list = JsonList::default();
            each_page(client, call, |page| super::print(&list.page(&page)?))?;
            super::print(list.end())
        }
        Format::Text => {
            // Columns are as wide as their widest cell, which may be on the last page.
            let (kind, mut rows) = (call.kind, Vec::new());
            each_page(client, call, |page| {
                for entry in &page {
                    rows.push(table::row(entry)?);
                }
                Ok(())
            })?;
            super::print(&table::table(table::header(kind), rows))
        }
        Format::Yaml => {
            let mut is_first = true;
            each_page(client, call, |page| {
                let resources: Vec<_> = page.into_iter().map(|entry| entry.resource).collect();
                let documents = document::write(&resources)?;
                let separator = if is_first || resources.is_empty() { "" } else { "---\n" };
                is_first &= resources.is_empty();
                super::print(&format!("{separator}{documents}"))
            })
        }
    }
}

/// Reads page after page, and has `show` print each.
fn each_page(client: &Client, mut call: List, mut show: impl FnMut(Vec<Entry>) -> Result<(), Failure>) -> Result<(), Failure> {
    loop {
        let listing = client.send(&call)?;
        show(listing.entries)?;
        if listing.next.is_none() {
            return Ok(());
        }
        call.after = listing.next;
    }
}
