//! What the steps print: types, of which JSON and text are two renderings.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// One thing that a step found, made or destroyed.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Item {
    /// A key that cannot be read.
    DamagedKey {
        /// Its name.
        name: String,
        /// Why.
        error: String,
    },
    /// A key that is not there any more.
    DeletedKey {
        /// Its name.
        name: String,
        /// What became of it.
        state: Deleted,
    },
    /// A key on a token.
    Key {
        /// Its PKCS#11 URI (RFC 7512), with the module.
        uri: String,
        /// Its name.
        name: String,
        /// As in `authorized_keys`.
        public_key: String,
    },
    /// A PKCS#11 module.
    Module {
        /// Its file.
        #[serde(serialize_with = "display")]
        module: PathBuf,
        /// Why its tokens cannot be listed.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A token.
    Token(Token),
}

/// What became of a key.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Deleted {
    /// It is destroyed, or was not there.
    Deleted,
}

/// A PKCS#11 token.
#[derive(Debug, Serialize)]
pub(super) struct Token {
    /// Its PKCS#11 URI (RFC 7512), with the module; a blank one has none.
    pub(super) uri: Option<String>,
    /// The module that it was found through.
    #[serde(serialize_with = "display")]
    pub(super) module: PathBuf,
    /// Its label.
    pub(super) label: String,
    /// Its serial number.
    pub(super) serial: String,
    /// Who made it.
    pub(super) manufacturer: String,
    /// Its model.
    pub(super) model: String,
    /// Whether it can be used.
    pub(super) state: TokenState,
    /// How its user PIN stands; a blank one has none.
    pub(super) pin: Option<PinState>,
    /// Whether it says that it is a device of its own.
    pub(super) hardware: bool,
    /// Whether nothing can be written to it.
    pub(super) write_protected: bool,
}

/// Whether a token can be used.
#[derive(Clone, Copy, Debug)]
pub(super) enum TokenState {
    /// It is not initialised.
    Blank,
    /// It is initialised.
    Ready,
}

impl TokenState {
    fn name(self) -> &'static str {
        match self {
            Self::Blank => "blank",
            Self::Ready => "ready",
        }
    }
}

/// How the user PIN of a token stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum PinState {
    /// A wrong one was given (`CKF_USER_PIN_COUNT_LOW`).
    CountLow,
    /// One more wrong one locks it (`CKF_USER_PIN_FINAL_TRY`).
    FinalTry,
    /// It is locked (`CKF_USER_PIN_LOCKED`).
    Locked,
    /// The token needs none.
    NoneNeeded,
    /// None was set yet.
    NotSet,
    /// It is set.
    Set,
}

impl PinState {
    fn name(self) -> &'static str {
        match self {
            Self::CountLow => "a wrong one was given",
            Self::FinalTry => "one more wrong one locks it",
            Self::Locked => "locked",
            Self::NoneNeeded => "none needed",
            Self::NotSet => "not set: finish with init-token",
            Self::Set => "set",
        }
    }
}

impl Serialize for PinState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Serialize for TokenState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A path as it is shown: one that is not UTF-8 must not keep the rest from being listed.
fn display<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl Item {
    /// For a person: what names it best, and its other properties below.
    pub(super) fn text(&self) -> String {
        match self {
            Self::DamagedKey { name, error } => lines(name, &[("error", error)]),
            Self::DeletedKey { name, state: Deleted::Deleted } => lines(name, &[("state", "deleted")]),
            Self::Key { uri, name, public_key } => lines(uri, &[("name", name), ("public_key", public_key)]),
            Self::Module { module, error } => {
                let error = error.as_deref().map(|error| ("error", error));
                lines(&module.display().to_string(), error.as_slice())
            }
            Self::Token(token) => token.text(),
        }
    }
}

impl Token {
    fn text(&self) -> String {
        let module = self.module.display().to_string();
        let (title, below) = match &self.uri {
            Some(uri) => (uri, Some(("module", module.as_str()))),
            None => (&module, None),
        };
        let pin = self.pin.map(|pin| ("pin", pin.name()));
        let properties = [
            ("label", self.label.as_str()),
            ("serial", &self.serial),
            ("manufacturer", &self.manufacturer),
            ("model", &self.model),
            ("state", self.state.name()),
            ("hardware", if self.hardware { "true" } else { "false" }),
            ("write_protected", if self.write_protected { "true" } else { "false" }),
        ];
        lines(title, &below.into_iter().chain(properties).chain(pin).collect::<Vec<_>>())
    }
}

fn lines(title: &str, properties: &[(&str, &str)]) -> String {
    let mut text = format!("{title}\n");
    for (name, value) in properties {
        let _ = writeln!(text, "    {name}: {value}"); // writing to a String cannot fail
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    /// Building the JSON panicked at such a name.
    #[test]
    fn a_module_whose_name_is_not_utf_8_is_listed() {
        let module = PathBuf::from(std::ffi::OsString::from_vec(b"/lib/p11-\xff.so".to_vec()));
        let item = Item::Module { module, error: Some("it cannot be loaded".into()) };
        assert_eq!(item.text(), "/lib/p11-\u{fffd}.so\n    error: it cannot be loaded\n");
        let json = serde_json::to_value([item]).unwrap();
        assert_eq!(json, serde_json::json!([{ "module": "/lib/p11-\u{fffd}.so", "error": "it cannot be loaded" }]));
    }
}
