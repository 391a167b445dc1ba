//! A wall clock that a test sets while a program runs, and that nobody else sees.

use std::path::PathBuf;
use std::process::Command;

use boundkey::platform::time::{Clock as _, System};

use super::{TempDir, success, tool};

/// Seconds in a year, or nearly.
pub const YEAR: i64 = 365 * 24 * 3600;

/// The clock: a library that bends it, and the file that says how far.
pub struct WallClock {
    dir: TempDir,
}

impl WallClock {
    /// A clock that is right.
    pub fn new() -> Self {
        let clock = Self { dir: TempDir::new("clock") };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/wall_clock.c");
        success(
            Command::new(tool("cc", "gcc")).args(["-shared", "-fPIC", "-Wall", "-Werror", source, "-o"]).arg(clock.library()),
        );
        clock.jump_to(0);
        clock
    }

    /// A clock that is off by so many seconds.
    pub fn off_by(seconds: i64) -> Self {
        let clock = Self::new();
        clock.jump_to(seconds);
        clock
    }

    /// A clock that shows this time now, in seconds since 1970.
    pub fn showing(seconds: i64) -> Self {
        Self::off_by(seconds - i64::try_from(System.now().secs()).expect("this century"))
    }

    /// A clock that stands still: however slow the machine is, nothing expires.
    pub fn stopped() -> Self {
        let clock = Self::new();
        clock.set(&format!("={}", System.now().secs()));
        clock
    }

    /// From here on the clock is off by so many seconds.
    pub fn jump_to(&self, seconds: i64) {
        self.set(&seconds.to_string());
    }

    fn set(&self, to: &str) {
        // Renamed into place: who reads meanwhile reads the one or the other.
        let new = self.dir.join("new");
        std::fs::write(&new, to).expect("clock");
        std::fs::rename(&new, self.file()).expect("clock");
    }

    /// What a program that is to see this clock needs in its environment.
    pub fn env(&self) -> [(&'static str, PathBuf); 2] {
        [("LD_PRELOAD", self.library()), ("WALL_CLOCK", self.file())]
    }

    fn library(&self) -> PathBuf {
        self.dir.join("wall_clock.so")
    }

    fn file(&self) -> PathBuf {
        self.dir.join("offset")
    }
}
