//! Printing for scripts, and words that several commands share.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use super::Failure;
use crate::api::resource::Resource;
use crate::text;

/// How resources are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Text,
    Yaml,
}

impl ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Text, Self::Yaml, Self::Json]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::Json => "json",
            Self::Text => "text",
            Self::Yaml => "yaml",
        }))
    }
}

/// An array, also of one.
pub(super) fn json(resources: &[Resource]) -> Result<String, Failure> {
    let json = serde_json::to_string_pretty(resources).map_err(|e| unprintable(&e))?;
    Ok(text::output(&json).into_owned() + "\n")
}

pub(super) fn unprintable(error: &dyn std::error::Error) -> Failure {
    Failure::new(format!("cannot print what the server sent: {error}"), "use the boundkeyctl that came with the server")
}

/// `1 recovery`, `2 recoveries`.
pub(super) fn counted(count: u32, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
