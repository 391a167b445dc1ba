//! `audit`: the log, page by page, and on as it grows.

use clap::ArgMatches;

use super::client::Client;
use super::{Failure, print};
use boundkey_api::call::Audit;
use boundkey_api::event::{Event, EventFilter};
use boundkey_platform::text;
use boundkey_platform::time::{Clock as _, System, Timestamp};

/// How long the server may wait for an event, in seconds.
const WAIT: u64 = 20;

pub(super) fn audit(client: &Client, matches: &ArgMatches) -> Result<(), Failure> {
    let follow = matches.get_flag("follow");
    let json = matches.get_one::<String>("format").is_some_and(|format| format == "json");
    let since = matches.get_one::<Timestamp>("since").copied().or_else(|| follow.then(|| System.now()));
    let mut filter = EventFilter { since, token: matches.get_one("token").cloned(), ..EventFilter::default() };
    loop {
        let wait = if follow { WAIT } else { 0 };
        let page = client.send(&Audit { filter: filter.clone(), wait })?;
        let mut text = String::new();
        for event in page.events {
            text += &if json { json_line(&event)? } else { text_line(&event) };
            text.push('\n');
        }
        print(&text)?;
        if !page.more && !follow {
            return Ok(());
        }
        filter.after = Some(page.cursor);
    }
}

fn json_line(event: &Event) -> Result<String, Failure> {
    let unprintable = |e| Failure::new(format!("cannot print an event: {e}"), "use the boundkeyctl that came with the server");
    Ok(text::output(&serde_json::to_string(event).map_err(unprintable)?).into_owned())
}

/// `TIME EVENT name=value ...: reason`.
fn text_line(event: &Event) -> String {
    let named = [
        ("token", &event.token),
        ("bot", &event.bot),
        ("instance", &event.instance_id),
        ("host", &event.host_id),
        ("by", &event.actor.as_ref().map(ToString::to_string)),
        ("from", &event.remote_addr),
    ];
    let named = named.into_iter().filter_map(|(name, value)| Some(format!(" {name}={}", value.as_ref()?)));
    let more = event.more.iter().map(|(name, value)| match value {
        serde_json::Value::String(text) if text.chars().all(|c| c.is_ascii_graphic()) => format!(" {name}={text}"),
        other => format!(" {name}={other}"),
    });
    let reason = event.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
    let line = format!("{}  {:<19}{}{reason}", event.time, event.event.name(), named.chain(more).collect::<String>());
    text::line(&line).into_owned()
}
