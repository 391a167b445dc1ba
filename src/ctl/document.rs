//! Resources as people write them: YAML, one document each.
//!
//! Every document is read straight from the text, twice: first its kind, then the whole as that kind. So what is wrong with it is
//! told with its line in the file, and the name of the field.

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use yaml_serde::Deserializer;

use super::Failure;
use super::print::unprintable;
use boundkey_api::resource::{
    Bot, BotSpec, Kind, Lock, LockSpec, Metadata, Resource, Role, RoleSpec, Token, TokenSpec, TokenStatus,
};
use boundkey_platform::text;

/// What is read first of a document.
#[derive(Deserialize)]
#[serde(expecting = "a resource: kind, version, metadata and spec")]
struct Head {
    kind: Kind,
    version: String,
}

// The documents of the kinds. Written out, since flattening would lose the lines.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BotDocument {
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(rename = "version")]
    _version: IgnoredAny,
    metadata: Metadata,
    #[serde(default)]
    spec: BotSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LockDocument {
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(rename = "version")]
    _version: IgnoredAny,
    metadata: Metadata,
    spec: LockSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoleDocument {
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(rename = "version")]
    _version: IgnoredAny,
    metadata: Metadata,
    spec: RoleSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenDocument {
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(rename = "version")]
    _version: IgnoredAny,
    metadata: Metadata,
    spec: TokenSpec,
    #[serde(default)]
    status: TokenStatus,
}

/// Reads the documents of `text`, which stands in `file`. Empty documents are passed over.
pub fn read(file: &str, text: &str) -> Result<Vec<Resource>, Failure> {
    let mut resources = Vec::new();
    for (number, (head, body)) in Deserializer::from_str(text).zip(Deserializer::from_str(text)).enumerate() {
        let Some(Head { kind, version }) = parse::<Option<Head>>(file, head)? else { continue };
        if version != kind.version() {
            let what = format!("{file}: document {}: version {version:?} of {kind}", number + 1);
            return Err(Failure::usage(what, format!("this boundkeyctl knows {kind} of version {}", kind.version())));
        }
        let resource = match kind {
            Kind::Bot => {
                let BotDocument { metadata, spec, .. } = parse(file, body)?;
                Resource::Bot(Bot { metadata, spec })
            }
            Kind::BotInstance | Kind::Host => {
                let what = format!("{file}: document {}: a {kind} cannot be created", number + 1);
                return Err(Failure::usage(what, "instances are written by joins alone; leave the document out"));
            }
            Kind::Lock => {
                let LockDocument { metadata, spec, .. } = parse(file, body)?;
                Resource::Lock(Lock { metadata, spec })
            }
            Kind::Role => {
                let RoleDocument { metadata, spec, .. } = parse(file, body)?;
                Resource::Role(Role { metadata, spec })
            }
            Kind::Token => {
                let TokenDocument { metadata, spec, status, .. } = parse(file, body)?;
                Resource::Token(Token { metadata, spec, status })
            }
        };
        resource
            .validate()
            .map_err(|why| Failure::usage(format!("{file}: {why}"), "nothing was changed; mend it, and try again"))?;
        resources.push(resource);
    }
    if resources.is_empty() {
        return Err(Failure::usage(
            format!("{file}: no resource in it"),
            "write YAML documents of kind, version, metadata and spec",
        ));
    }
    Ok(resources)
}

/// Writes documents as [`read`] takes them.
pub fn write(resources: &[Resource]) -> Result<String, Failure> {
    let documents: Result<Vec<_>, _> = resources.iter().map(document).collect();
    Ok(documents?.join("---\n"))
}

/// Where a document holds what is not graphic, its text is in the form that JSON and YAML share: all strings in double quotes, with
/// escapes.
fn document(resource: &Resource) -> Result<String, Failure> {
    let yaml = yaml_serde::to_string(resource).map_err(|e| unprintable(&e))?;
    if yaml.chars().all(|c| text::is_graphic(c) || c == '\n') {
        return Ok(yaml);
    }
    let json = serde_json::to_string_pretty(resource).map_err(|e| unprintable(&e))?;
    Ok(text::yaml(&json) + "\n")
}

fn parse<T: DeserializeOwned>(file: &str, document: Deserializer<'_>) -> Result<T, Failure> {
    T::deserialize(document).map_err(|error| {
        let mut what = error.to_string();
        let mut place = file.to_owned();
        if let Some(location) = error.location() {
            // The place goes first, where editors look for it.
            let (line, column) = (location.line(), location.column());
            what = what.replace(&format!(" at line {line} column {column}"), "");
            place = format!("{file}:{line}:{column}");
        }
        Failure::usage(format!("{place}: {what}"), "nothing was changed; mend it, and try again")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use boundkey_api::resource::LockTarget;

    const TWO: &str = "kind: bot\nversion: v1\nmetadata: {name: gw}\n---\n# a comment\n---\nkind: token\nversion: v2\nmetadata:\n  name: gw-1\nspec:\n  roles: [Bot]\n  bot_name: gw\n  join_method: bound_keypair\n  bound_keypair:\n    recovery: {limit: 3}\n";

    fn error(text: &str) -> String {
        read("fleet.yaml", text).unwrap_err().what
    }

    #[test]
    fn reads_many_documents_and_passes_over_empty_ones() {
        let resources = read("fleet.yaml", TWO).unwrap();
        let ids: Vec<_> = resources.iter().map(|resource| resource.id().to_string()).collect();
        assert_eq!(ids, ["bot/gw", "token/gw-1"]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_in_the_whole_file() {
        for (find, replace, place, field) in [
            ("metadata: {name: gw}", "metadata: {name: gw}\nspecs: {}", "fleet.yaml:4:1", "`specs`"),
            ("  bot_name: gw", "  bot_nam: gw", "fleet.yaml:13:3", "`bot_nam`"),
            ("limit: 3", "limits: 3", "fleet.yaml:16:16", "`limits`"),
            ("limit: 3", "limit: three", "fleet.yaml:16:23", "limit"),
            ("kind: token", "kind: tokn", "fleet.yaml:7:7", "`tokn`"),
            ("  roles: [Bot]", "  roles: [Bot", "fleet.yaml:13:", "expected"),
            ("join_method: bound_keypair", "join_method: ec2", "fleet.yaml:14:16", "`ec2`"),
        ] {
            let error = error(&TWO.replace(find, replace));
            assert!(error.starts_with(place) && error.contains(field), "{error}");
            assert_eq!(error.matches(" at line ").count(), error.matches("while parsing").count(), "{error}");
        }
    }

    #[test]
    fn what_is_not_graphic_is_written_escaped_and_read_back() {
        let message = "a\u{1b}[2J \u{9b} \u{202e} \u{2028} \u{feff} \u{e0001} \u{7f} \\ \" ü \n\t.";
        let lock = |message: &str| {
            let target = LockTarget::Token("gw".into());
            let spec = LockSpec { target, message: message.into(), expires: None, automatic: false };
            Resource::Lock(Lock { metadata: Metadata::named("l"), spec })
        };
        let two = [lock("plain"), lock(message)];
        let text = write(&two).unwrap();
        assert!(text.starts_with("kind: lock\n"), "{text}");
        assert!(text.chars().all(|c| boundkey_platform::text::is_graphic(c) || c == '\n'), "{text}");
        assert_eq!(read("written", &text).unwrap(), two);
    }

    #[test]
    fn what_only_types_together_can_say_is_told_with_the_field() {
        assert!(error(&TWO.replace("[Bot]", "[Nobody]")).contains("fleet.yaml: token/gw-1: spec.roles"));
        assert!(error(&TWO.replace("v2", "v1")).contains("document 3: version \"v1\" of token"));
        assert!(error("---\n---\n").contains("no resource"));
        assert!(error("kind: bot_instance\nversion: v1\n").contains("cannot be created"));
    }
}
