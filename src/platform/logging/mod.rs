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
//!
//! What reads the log never stops a program: a line that is not taken in time is dropped, and the next one that is taken comes after
//! a warning with the count.

mod lines;
mod stderr;

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::str::FromStr;
use std::sync::{Arc, Once};

use log::LevelFilter;
use simplelog::CombinedLogger;

pub use stderr::print;

use crate::text;
use crate::time::Clock;
use lines::{Form, Lines};

/// Variable with the level; a command line goes before it, and it before the configuration.
pub const LEVEL_VARIABLE: &str = "BOUNDKEY_LOG";

crate::from_text!(Format, Level);

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
pub fn install(format: Format, level: Level, env: &dyn Fn(&str) -> Option<String>, clock: Arc<dyn Clock>) {
    static INSTALLED: Once = Once::new();
    let form = match format {
        Format::Json => Form::Json,
        Format::Text if env("JOURNAL_STREAM").is_some_and(|stream| is_stderr(&stream)) => Form::Journal,
        Format::Text => Form::Text,
    };
    // The one error says that there is a logger already, and only a test could have set another.
    INSTALLED.call_once(|| drop(CombinedLogger::init(vec![Box::new(Lines::new(form, level.0, clock))])));
}

/// Whether `stream`, DEVICE:INODE as in systemd.exec(5), is what stderr is. A child whose stderr was redirected inherits the
/// variable all the same.
fn is_stderr(stream: &str) -> bool {
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
    stderr.is_ok_and(|m| stream == format!("{}:{}", m.dev(), m.ino()))
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
}
