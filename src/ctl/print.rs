//! Printing for scripts, and words that several commands share.

use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde::Serialize;

use super::Failure;
use boundkey_api::call::Entry;
use boundkey_api::resource::Resource;
use boundkey_api::view::View;

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

/// An array of documents, written page by page.
#[derive(Default)]
pub(super) struct JsonList {
    has_begun: bool,
}

/// A resource as JSON has it, with what the server says of it.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    resource: &'a Resource,
    #[serde(skip_serializing_if = "Option::is_none")]
    view: Option<&'a View>,
}

impl JsonList {
    /// The text of a page.
    pub(super) fn page(&mut self, entries: &[Entry]) -> Result<String, Failure> {
        let mut text = String::new();
        for Entry { resource, view, .. } in entries {
            let document = Document { resource, view: view.as_ref() };
            let json = serde_json::to_string_pretty(&document).map_err(|e| unprintable(&e))?;
            text += if self.has_begun { ",\n  " } else { "[\n  " };
            // The strings of JSON have no line feeds of their own: only lines of the document are indented.
            text += &json.replace('\n', "\n  ");
            self.has_begun = true;
        }
        Ok(text)
    }

    /// The text after the last page.
    pub(super) fn end(&self) -> &'static str {
        if self.has_begun { "\n]\n" } else { "[]\n" }
    }
}

pub(super) fn unprintable(error: &dyn std::error::Error) -> Failure {
    Failure::new(format!("cannot print what the server sent: {error}"), "use the boundkeyctl that came with the server")
}

/// `1 recovery`, `2 recoveries`.
pub(super) fn counted(count: u32, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
