//! Reading the audit log: page by page, each found by an index.
//!
//! Events are numbered as they are written, by one writer at a time, so a snapshot that has one has all before it. Their times need
//! not rise: clocks are set, and differ. Column `latest` is the greatest time up to and with an event; it does rise, and so an index
//! finds the first event of some time.

use rusqlite::{OptionalExtension as _, Transaction, params};

use super::read::column;
use crate::store::StoreError;
use boundkey_api::event::{Cursor, Event, EventFilter, EventPage};
use boundkey_platform::time::Timestamp;

/// Most events that are looked through for one page. After a clock was ahead, all those written since have to be.
pub(super) const MAX_EXAMINED: usize = 10_000;

pub(super) const FIRST_SINCE: &str = "SELECT number FROM event WHERE latest >= ? ORDER BY latest, number LIMIT 1";
pub(super) const AFTER: &str = "SELECT number, time, document FROM event WHERE number > ? ORDER BY number";
pub(super) const AFTER_OF_TOKEN: &str =
    "SELECT number, time, document FROM event WHERE token = ?2 AND number > ?1 ORDER BY number";
pub(super) const TIME_OF: &str = "SELECT time FROM event WHERE number = ?";
pub(super) const LAST: &str = "SELECT number, time FROM event WHERE number = (SELECT max(number) FROM event)";
pub(super) const LAST_UNTIL: &str = "SELECT max(time) FROM event WHERE time <= ?";

/// The event before a place in the log: its number, and its time in milliseconds since 1970. 0 and 0 is the begin.
#[derive(Clone, Copy, Default)]
struct Place {
    number: u64,
    time: u64,
}

pub(super) fn events(snapshot: &Transaction<'_>, filter: &EventFilter) -> Result<EventPage, StoreError> {
    let since = filter.since.unwrap_or_default().millis();
    let mut place = match &filter.after {
        Some(cursor) => {
            let place = Place::read(cursor).ok_or(StoreError::UnknownCursor)?;
            if !place.is_known(snapshot)? {
                return Err(StoreError::UnknownCursor);
            }
            place
        }
        None => Place::default(),
    };
    let mut first = place.number;
    if filter.after.is_none() && since > 0 {
        let mut query = snapshot.prepare_cached(FIRST_SINCE)?;
        match query.query_row([since], |row| row.get::<_, u64>(0)).optional()? {
            Some(number) => first = number.saturating_sub(1),
            None => return end(snapshot, Vec::new()),
        }
    }
    let limit = filter.limit.map_or(usize::MAX, |limit| limit.max(1) as usize);
    let mut query = snapshot.prepare_cached(if filter.token.is_some() { AFTER_OF_TOKEN } else { AFTER })?;
    let mut rows = match &filter.token {
        Some(token) => query.query(params![first, token])?,
        None => query.query([first])?,
    };
    let (mut events, mut bytes, mut examined) = (Vec::new(), 0, 0);
    while let Some(row) = rows.next()? {
        if events.len() == limit || examined == MAX_EXAMINED {
            return Ok(EventPage { events, cursor: place.cursor(), more: true });
        }
        examined += 1;
        let next = Place { number: column(row, 0)?, time: column(row, 1)? };
        if next.time >= since {
            let document: String = column(row, 2)?;
            bytes += document.len();
            if !events.is_empty() && filter.max_bytes.is_some_and(|most| bytes > most) {
                return Ok(EventPage { events, cursor: place.cursor(), more: true });
            }
            let damaged = |e| StoreError::Failed(format!("event {} is damaged: {e}", next.number));
            events.push(serde_json::from_str::<Event>(&document).map_err(damaged)?);
        }
        place = next;
    }
    end(snapshot, events)
}

/// The page after which there is nothing: the next one begins at the end of the log.
fn end(snapshot: &Transaction<'_>, events: Vec<Event>) -> Result<EventPage, StoreError> {
    let mut query = snapshot.prepare_cached(LAST)?;
    let last = query.query_row([], |row| Ok(Place { number: row.get(0)?, time: row.get(1)? })).optional()?;
    let place = match last {
        Some(place) => place,
        // Swept clean: numbers go on from the greatest one ever given.
        None => Place { number: last_number(snapshot)?, time: 0 },
    };
    Ok(EventPage { events, cursor: place.cursor(), more: false })
}

/// The greatest number that an event was ever given.
fn last_number(snapshot: &Transaction<'_>) -> Result<u64, StoreError> {
    let mut query = snapshot.prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'event'")?;
    Ok(query.query_row([], |row| row.get(0)).optional()?.unwrap_or(0))
}

pub(super) fn last_event_until(snapshot: &Transaction<'_>, time: Timestamp) -> Result<Option<Timestamp>, StoreError> {
    let mut query = snapshot.prepare_cached(LAST_UNTIL)?;
    Ok(query.query_row([time.millis()], |row| row.get::<_, Option<u64>>(0))?.map(Timestamp::from_millis))
}

impl Place {
    fn cursor(self) -> Cursor {
        Cursor(format!("{:x}-{:x}", self.number, self.time))
    }

    fn read(cursor: &Cursor) -> Option<Self> {
        let (number, time) = cursor.0.split_once('-')?;
        let read = |hex: &str| u64::from_str_radix(hex, 16).ok().filter(|number| i64::try_from(*number).is_ok());
        Some(Self { number: read(number)?, time: read(time)? })
    }

    /// Whether the event is one of this log, or was until it was swept away. A log from a backup gives the same numbers to others.
    fn is_known(self, snapshot: &Transaction<'_>) -> Result<bool, StoreError> {
        let mut query = snapshot.prepare_cached(TIME_OF)?;
        let time: Option<u64> = query.query_row([self.number], |row| row.get(0)).optional()?;
        match time {
            Some(time) => Ok(time == self.time),
            None => Ok(self.number <= last_number(snapshot)?),
        }
    }
}
