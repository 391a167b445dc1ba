//! Refusals as the agent tells them.

use std::process::Output;

/// A refusal as a person reads it.
#[derive(Debug)]
pub struct Said {
    /// Exit code.
    pub code: i32,
    /// What failed.
    pub error: String,
    /// What to do next.
    pub advice: String,
}

/// Reads a refusal: the last two lines are what failed and what to do next.
pub fn said(output: &Output) -> Said {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.stdout.is_empty(), "a refusal prints no result");
    let lines: Vec<_> = text.lines().collect();
    let [.., error, advice] = lines[..] else { panic!("two lines at least: {text:?}") };
    let error = error.strip_prefix("error: ").unwrap_or_else(|| panic!("what failed: {text}"));
    let advice = advice.strip_prefix("  ").unwrap_or_else(|| panic!("what to do next: {text}"));
    for line in [error, advice] {
        assert!(!line.ends_with('.') && !line.starts_with(char::is_whitespace), "{line:?}");
    }
    println!("{}: {error}\n     {advice}", output.status);
    Said { code: output.status.code().unwrap_or(-1), error: error.into(), advice: advice.into() }
}

/// Checks a refusal before which nothing could be written down.
pub fn expect_unwritten(output: &Output, code: i32, error: &str, advice: &str) {
    let said = said(output);
    assert_eq!(said.code, code, "{said:?}");
    assert!(said.error.contains(error) && said.advice.contains(advice), "{said:?}");
}
