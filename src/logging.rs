//! The programs' log: text or JSON on stderr, or the journal's own form where systemd reads stderr.
//!
//! | form | a record |
//! | --- | --- |
//! | text | `2026-01-31T12:00:00Z INFO joined`, further lines of a message indented |
//! | JSON | `{"time":"2026-01-31T12:00:00Z","level":"info","target":"boundkey::agent","message":"joined"}` |
//! | journal | `<6>joined` (sd-daemon(3)): the journal has a time and a level of its own |
//!
//! Messages may hold text that came from the network: what is not graphic is escaped, so that nobody else writes lines here, nor steers
//! the terminal that shows them.

use std::borrow::Cow;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::str::FromStr;

use log::{LevelFilter, Log, Metadata, Record};
use serde::Serialize;

use crate::text;
use crate::time::{Clock, Timestamp};

/// Variable with the level; a command line goes before it, and it before the configuration.
pub const LEVEL_VARIABLE: &str = "BOUNDKEY_LOG";

/// Libraries that report expected answers of their hardware as errors; real ones come back to us, and we report them.
const ALARMISTS: [&str; 2] = ["cryptoki", "tss_esapi"];

/// A word that is no format or level. `Display` is what is wrong and, on a second line, what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownWord {
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub advice: &'static str,
}

impl std::fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n{}", self.what, self.advice)
    }
}

impl std::error::Error for UnknownWord {}

/// How records are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people, and for the journal.
    #[default]
    Text,
}

impl FromStr for Format {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(UnknownWord { what: format!("{text:?} is not a log format"), advice: "write text or json" }),
        }
    }
}

/// The least important records that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(pub LevelFilter);

impl Default for Level {
    fn default() -> Self {
        Self(LevelFilter::Info)
    }
}

impl FromStr for Level {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        let unknown = |_| UnknownWord {
            what: format!("{text:?} is not a log level"),
            advice: "write error, warn, info, debug, trace or off",
        };
        text.parse().map(Self).map_err(unknown)
    }
}

impl Level {
    /// The level that counts: of the command line, else of `BOUNDKEY_LOG`, else of the configuration, else info.
    pub fn choose(
        command_line: Option<Self>,
        env: &dyn Fn(&str) -> Option<String>,
        configured: Option<Self>,
    ) -> Result<Self, UnknownWord> {
        if let Some(level) = command_line {
            return Ok(level);
        }
        match env(LEVEL_VARIABLE).filter(|text| !text.is_empty()) {
            Some(text) => {
                text.parse().map_err(|e: UnknownWord| UnknownWord { what: format!("{LEVEL_VARIABLE}: {}", e.what), ..e })
            }
            None => Ok(configured.unwrap_or_default()),
        }
    }
}

/// Sends the program's log to stderr from here on. The first call of a process counts.
pub fn install(format: Format, level: Level, env: &dyn Fn(&str) -> Option<String>, clock: Box<dyn Clock>) {
    let form = match format {
        Format::Json => Form::Json,
        Format::Text if env("JOURNAL_STREAM").is_some_and(|stream| is_stderr(&stream)) => Form::Journal,
        Format::Text => Form::Text,
    };
    if log::set_boxed_logger(Box::new(Stderr { form, level: level.0, clock })).is_ok() {
        log::set_max_level(level.0);
    }
}

/// Whether `stream`, DEVICE:INODE as in systemd.exec(5), is what stderr is. A child whose stderr was redirected inherits the
/// variable all the same.
fn is_stderr(stream: &str) -> bool {
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
    stderr.is_ok_and(|m| stream == format!("{}:{}", m.dev(), m.ino()))
}

struct Stderr {
    form: Form,
    level: LevelFilter,
    clock: Box<dyn Clock>,
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries speak of their insides: in a log for operators only their warnings count.
        let from = |name: &&str| metadata.target().starts_with(*name);
        let limit = match self.level {
            level if level >= LevelFilter::Debug || from(&"boundkey") => level,
            _ if ALARMISTS.iter().any(from) => LevelFilter::Off,
            level => level.min(LevelFilter::Warn),
        };
        metadata.level() <= limit
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = self.form.render(self.clock.now(), record);
            // In one write, so that lines of several programs on one stderr do not mix. A log nobody can read stops nothing.
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Journal,
    Json,
    Text,
}

impl Form {
    fn render(self, now: Timestamp, record: &Record<'_>) -> String {
        let message = record.args().as_str().map_or_else(|| Cow::Owned(record.args().to_string()), Cow::Borrowed);
        let mut line = String::with_capacity(message.len() + 64);
        match self {
            Self::Journal => {
                // Per sd-daemon(3) the prefix counts for its line only.
                for part in message.lines() {
                    line.push('<');
                    line.push(priority(record.level()));
                    line.push('>');
                    escape_into(&mut line, part);
                    line.push('\n');
                }
            }
            Self::Json => {
                let level = record.level().as_str().to_ascii_lowercase();
                let entry = Entry { time: now, level: &level, target: record.target(), message: &message };
                // Strings and a time always serialize.
                line = text::output(&serde_json::to_string(&entry).unwrap_or_default()).into_owned();
                line.push('\n');
            }
            Self::Text => {
                line.push_str(&Timestamp::from_secs(now.secs()).to_string());
                line.push(' ');
                line.push_str(record.level().as_str());
                for (i, part) in message.lines().enumerate() {
                    line.push_str(if i == 0 { " " } else { "\n  " });
                    escape_into(&mut line, part);
                }
                line.push('\n');
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

/// What a program says of its failure before it ends: what failed and, indented, what to do next. Escaped as records are, for it may
/// hold text that came from a file or the network as well.
pub fn failure(what: &impl std::fmt::Display, advice: &str) -> String {
    let (what, mut text) = (what.to_string(), "error: ".to_owned());
    for (i, part) in what.lines().chain(advice.lines()).enumerate() {
        text.push_str(if i == 0 { "" } else { "\n  " });
        escape_into(&mut text, part);
    }
    text
}

fn escape_into(line: &mut String, part: &str) {
    for c in part.chars() {
        if text::is_graphic(c) || c == '\t' { line.push(c) } else { line.extend(c.escape_unicode()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(form: Form, level: log::Level, message: &str) -> String {
        let now = Timestamp::from_millis(1_769_860_800_250);
        form.render(now, &Record::builder().level(level).target("boundkey::agent").args(format_args!("{message}")).build())
    }

    #[test]
    fn each_form_of_a_record() {
        let message = "cannot reach auth:3025\nsee that the network is up\u{1b}[2J";
        assert_eq!(
            render(Form::Text, log::Level::Warn, message),
            "2026-01-31T12:00:00Z WARN cannot reach auth:3025\n  see that the network is up\\u{1b}[2J\n"
        );
        assert_eq!(
            render(Form::Journal, log::Level::Error, message),
            "<3>cannot reach auth:3025\n<3>see that the network is up\\u{1b}[2J\n"
        );
        assert_eq!(
            render(Form::Json, log::Level::Info, "say \"hi\"\nnow"),
            "{\"time\":\"2026-01-31T12:00:00.250Z\",\"level\":\"info\",\"target\":\"boundkey::agent\",\
             \"message\":\"say \\\"hi\\\"\\nnow\"}\n"
        );
        assert!(render(Form::Json, log::Level::Info, "\u{9b}2J\u{2028}").contains("\"\\u009b2J\\u2028\""));
    }

    #[test]
    fn a_failure_writes_its_own_lines_only() {
        assert_eq!(failure(&"no \u{1b}[2J", "mend it"), "error: no \\u{1b}[2J\n  mend it");
        assert_eq!(failure(&"a:\nb\rc", "mend it"), "error: a:\n  b\\u{d}c\n  mend it");
        assert_eq!(failure(&"b\u{9b}2J \u{202e}c", "mend it"), "error: b\\u{9b}2J \\u{202e}c\n  mend it");
    }

    #[test]
    fn the_nearest_level_counts() {
        let level = |text: &str| Some(text.parse::<Level>().expect("level"));
        let unset = |_: &str| None;
        let debug = |name: &str| (name == LEVEL_VARIABLE).then(|| "debug".to_owned());
        assert_eq!(Level::choose(None, &unset, None), Ok(Level(LevelFilter::Info)));
        assert_eq!(Level::choose(None, &unset, level("warn")), Ok(Level(LevelFilter::Warn)));
        assert_eq!(Level::choose(None, &debug, level("warn")), Ok(Level(LevelFilter::Debug)));
        assert_eq!(Level::choose(level("off"), &debug, level("warn")), Ok(Level(LevelFilter::Off)));
        let error = Level::choose(None, &|_| Some("loud".into()), None).expect_err("no such level");
        assert_eq!(error.what, "BOUNDKEY_LOG: \"loud\" is not a log level");
    }

    #[test]
    fn libraries_are_heard_when_they_warn() {
        let enabled = |level, target: &str, of| {
            let log = Stderr { form: Form::Text, level, clock: Box::new(crate::time::System) };
            log.enabled(&Metadata::builder().level(of).target(target).build())
        };
        assert!(enabled(LevelFilter::Info, "boundkey::agent", log::Level::Info));
        assert!(!enabled(LevelFilter::Info, "ureq", log::Level::Info));
        assert!(enabled(LevelFilter::Info, "ureq", log::Level::Warn));
        assert!(!enabled(LevelFilter::Error, "ureq", log::Level::Warn));
        assert!(enabled(LevelFilter::Debug, "ureq", log::Level::Debug));
    }
}
