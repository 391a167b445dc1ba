//! The forms of a record, each a logger of simplelog's.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use log::{LevelFilter, Log, Metadata, Record};
use serde::Serialize;
use simplelog::{Config, SharedLogger};

use super::escape_into;
use super::stderr::Stderr;
use crate::text;
use crate::time::{Clock, Timestamp};

/// Libraries that report expected answers of their hardware as errors; real ones come back to us, and we report them.
const NOISY_LIBRARIES: [&str; 2] = ["cryptoki", "tss_esapi"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Journal,
    Json,
    Text,
}

/// Records in one form, on stderr.
pub(super) struct Lines {
    form: Form,
    level: LevelFilter,
    clock: Arc<dyn Clock>,
    /// simplelog's `WriteLogger` would link the formatting of times, 100 kB of a device's flash, for what is switched off.
    out: Mutex<Stderr>,
}

impl Lines {
    pub(super) fn new(form: Form, level: LevelFilter, clock: Arc<dyn Clock>) -> Self {
        let notice_clock = Arc::clone(&clock);
        let notice = move |dropped| {
            let lines = if dropped == 1 { "line was" } else { "lines were" };
            let message = format!("{dropped} log {lines} dropped: what reads stderr did not take them");
            let metadata = Metadata::builder().level(log::Level::Warn).target(module_path!()).build();
            form.render(notice_clock.now(), &metadata, &message) + "\n"
        };
        Self { form, level, clock, out: Mutex::new(Stderr::for_log(Box::new(notice))) }
    }
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_heard(self.level, metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let message = record.args().as_str().map_or_else(|| Cow::Owned(record.args().to_string()), Cow::Borrowed);
            let lines = self.form.render(self.clock.now(), record.metadata(), &message) + "\n";
            // In one write, so that lines of several programs on one stderr do not mix. A thread that panicked in it left nothing half done
            // that matters.
            self.out.lock().unwrap_or_else(PoisonError::into_inner).write_lines(&lines);
        }
    }

    /// Each record was written when it came.
    fn flush(&self) {}
}

impl SharedLogger for Lines {
    fn level(&self) -> LevelFilter {
        self.level
    }

    fn config(&self) -> Option<&Config> {
        None
    }

    fn as_log(self: Box<Self>) -> Box<dyn Log> {
        self
    }
}

/// Libraries speak of their insides: in a log for operators only their warnings count.
fn is_heard(level: LevelFilter, metadata: &Metadata<'_>) -> bool {
    let from = |name: &&str| metadata.target().starts_with(*name);
    let limit = match level {
        level if level >= LevelFilter::Debug || from(&"boundkey") => level,
        _ if NOISY_LIBRARIES.iter().any(from) => LevelFilter::Off,
        level => level.min(LevelFilter::Warn),
    };
    metadata.level() <= limit
}

impl Form {
    /// The lines of a record, without the last line feed. What is not graphic in `message` is escaped.
    fn render(self, now: Timestamp, metadata: &Metadata<'_>, message: &str) -> String {
        let mut line = String::with_capacity(message.len() + 64);
        match self {
            Self::Journal => {
                // Per sd-daemon(3) the prefix counts for its line only.
                for (i, part) in message.lines().enumerate() {
                    line.push_str(if i == 0 { "<" } else { "\n<" });
                    line.push(priority(metadata.level()));
                    line.push('>');
                    escape_into(&mut line, part);
                }
            }
            Self::Json => {
                let level = metadata.level().as_str().to_ascii_lowercase();
                let entry = Entry { time: now, level: &level, target: metadata.target(), message };
                // Strings and a time always serialize.
                line = text::output(&serde_json::to_string(&entry).unwrap_or_default()).into_owned();
            }
            Self::Text => {
                line.push_str(&Timestamp::from_secs(now.secs()).to_string());
                line.push(' ');
                line.push_str(metadata.level().as_str());
                for (i, part) in message.lines().enumerate() {
                    line.push_str(if i == 0 { " " } else { "\n  " });
                    escape_into(&mut line, part);
                }
            }
        }
        line
    }
}

#[derive(Serialize)]
struct Entry<'a> {
    time: Timestamp,
    level: &'a str,
    target: &'a str,
    message: &'a str,
}

/// The priority of syslog(3).
fn priority(level: log::Level) -> char {
    match level {
        log::Level::Error => '3',
        log::Level::Warn => '4',
        log::Level::Info => '6',
        log::Level::Debug | log::Level::Trace => '7',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(form: Form, level: log::Level, message: &str) -> String {
        let metadata = Metadata::builder().level(level).target("boundkey::agent").build();
        form.render(Timestamp::from_millis(1_769_860_800_250), &metadata, message)
    }

    #[test]
    fn each_form_of_a_record() {
        let message = "cannot reach auth:3025\nsee that the network is up\u{1b}[2J";
        assert_eq!(
            render(Form::Text, log::Level::Warn, message),
            "2026-01-31T12:00:00Z WARN cannot reach auth:3025\n  see that the network is up\\u{1b}[2J"
        );
        assert_eq!(
            render(Form::Journal, log::Level::Error, message),
            "<3>cannot reach auth:3025\n<3>see that the network is up\\u{1b}[2J"
        );
        assert_eq!(
            render(Form::Json, log::Level::Info, "say \"hi\"\nnow"),
            "{\"time\":\"2026-01-31T12:00:00.250Z\",\"level\":\"info\",\"target\":\"boundkey::agent\",\
             \"message\":\"say \\\"hi\\\"\\nnow\"}"
        );
        assert!(render(Form::Json, log::Level::Info, "\u{9b}2J\u{2028}").contains("\"\\u009b2J\\u2028\""));
    }

    #[test]
    fn libraries_are_heard_when_they_warn() {
        let heard = |level, target: &str, of| is_heard(level, &Metadata::builder().level(of).target(target).build());
        assert!(heard(LevelFilter::Info, "boundkey::agent", log::Level::Info));
        assert!(!heard(LevelFilter::Info, "ureq", log::Level::Info));
        assert!(heard(LevelFilter::Info, "ureq", log::Level::Warn));
        assert!(!heard(LevelFilter::Error, "ureq", log::Level::Warn));
        assert!(heard(LevelFilter::Debug, "ureq", log::Level::Debug));
        assert!(!heard(LevelFilter::Warn, "cryptoki", log::Level::Error));
    }
}
