//! Tokens that were named and do not exist: who looks for names leaves a trace, and no more of it than one event a minute.

use boundkey_api::event::{Event, EventKind};
use boundkey_platform::text;
use boundkey_platform::time::Timestamp;

/// Names told of, and addresses.
const EXAMPLES: usize = 5;

/// What was named since the last event.
#[derive(Debug, Default)]
pub(super) struct UnknownTokens {
    count: u64,
    names: Vec<String>,
    addresses: Vec<String>,
}

impl UnknownTokens {
    pub(super) fn note(&mut self, token: &str, address: &str) {
        self.count = self.count.saturating_add(1);
        add(&mut self.names, || text::excerpt(token));
        add(&mut self.addresses, || address.to_owned());
    }

    /// `None` where nothing was named.
    pub(super) fn event(&self, now: Timestamp) -> Option<Event> {
        (self.count > 0).then(|| {
            let event = Event { success: false, ..Event::new(now, EventKind::TokenUnknown) };
            event.with("count", self.count).with("names", self.names.clone()).with("remote_addrs", self.addresses.clone())
        })
    }
}

/// Adds an example, if there is room and it is another one.
fn add(examples: &mut Vec<String>, example: impl FnOnce() -> String) {
    if examples.len() < EXAMPLES {
        let example = example();
        if !examples.contains(&example) {
            examples.push(example);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_event_has_a_bounded_size_whatever_was_named() {
        let mut unknown = UnknownTokens::default();
        for number in 0..1000 {
            unknown.note("gw", "[2001:db8::1]:4711");
            unknown.note(&format!("{number}{}", "\u{1b}".repeat(60_000)), "[2001:db8::2]:4711");
        }
        let event = unknown.event(Timestamp::default()).unwrap();
        assert_eq!(event.more["count"], 2000);
        assert_eq!(event.more["names"].as_array().unwrap()[0], "\"gw\"");
        assert_eq!(event.more["remote_addrs"], serde_json::json!(["[2001:db8::1]:4711", "[2001:db8::2]:4711"]));
        assert!(event.document().unwrap().len() < 1200, "{}", event.document().unwrap());
    }
}
