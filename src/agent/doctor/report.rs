//! What was found, for a person or a script.

use std::fmt::Write as _;

use serde::Serialize;

use boundkey_platform::text::line;

/// How a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It keeps the device from joining.
    Fail,
    /// Well.
    Ok,
    /// Works, but not for ever, or not in every case.
    Warn,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    outcome: Outcome,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// Findings, in the order in which a join would meet them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report(Vec<Finding>);

impl Report {
    /// The part `check` is well.
    pub fn ok(&mut self, check: &'static str, message: impl Into<String>) {
        self.0.push(Finding { check, outcome: Outcome::Ok, message: message.into(), advice: None });
    }

    /// The part `check` needs attention.
    pub fn warn(&mut self, check: &'static str, message: impl Into<String>, advice: impl Into<String>) {
        self.0.push(Finding { check, outcome: Outcome::Warn, message: message.into(), advice: Some(advice.into()) });
    }

    /// The part `check` keeps the device from joining.
    pub fn fail(&mut self, check: &'static str, message: impl Into<String>, advice: impl Into<String>) {
        self.0.push(Finding { check, outcome: Outcome::Fail, message: message.into(), advice: Some(advice.into()) });
    }

    /// How many findings there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether anything keeps the device from joining.
    pub fn has_failed(&self) -> bool {
        self.0.iter().any(|finding| finding.outcome == Outcome::Fail)
    }

    /// One finding a line, with how to mend it on the next.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for Finding { check, outcome, message, advice } in &self.0 {
            let outcome = match outcome {
                Outcome::Fail => "fail",
                Outcome::Ok => "ok",
                Outcome::Warn => "warn",
            };
            let _ = writeln!(text, "{outcome:<6}{check:<12}{}", line(message)); // writing to a String cannot fail
            if let Some(advice) = advice {
                let _ = writeln!(text, "{:18}{}", "", line(advice));
            }
        }
        text
    }

    /// The same as one JSON object.
    pub fn json(&self) -> String {
        format!("{}\n", serde_json::json!({ "ok": !self.has_failed(), "checks": self.0 }))
    }
}
