//! The documents against the programs: every setting is in `docs/configuration.md`, and the examples of README, reference and
//! runbook work.
#![cfg(all(feature = "agent", feature = "auth"))]

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use boundkey::agent::config::{Config, ConfigError};
use support::{Server, TempDir, run_with_input};

const PIN: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const REFERENCE: &str = "docs/configuration.md";

fn document(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect(name)
}

/// The YAML examples of a document.
fn examples(document: &str) -> Vec<&str> {
    document.split("```yaml\n").skip(1).map(|rest| rest.split_once("```").expect("an end").0).collect()
}

fn minimal() -> String {
    format!("version: v1\nauth_server: auth.example.com\nca_pins: [\"{PIN}\"]\nonboarding: {{token: gateway-0042}}\n")
}

fn load(text: &str) -> Result<Config, ConfigError> {
    let dir = TempDir::new("reference");
    let path = dir.join("boundkey.yaml");
    std::fs::write(&path, text).expect("write");
    Config::load(&path, &|_| None)
}

/// The names in backticks of what an error expects.
fn expected(error: &str) -> Vec<&str> {
    let names: Vec<_> = error.split_once("expected").expect(error).1.split('`').skip(1).step_by(2).collect();
    assert!(!names.is_empty(), "{error}");
    names
}

#[track_caller]
fn all_in_reference(names: &[&str], place: &str) {
    let text = document(REFERENCE);
    for name in names {
        let forms = [format!("`{name}`"), format!(".{name}`"), format!(".{name}.")];
        assert!(forms.iter().any(|form| text.contains(form)), "{REFERENCE} has no {name} of {place}");
    }
}

#[test]
fn every_setting_of_the_agent_is_in_the_reference() {
    let onboarding = |fields: &str| minimal().replace("{token: gateway-0042}", fields);
    let output = |fields: &str| format!("{}outputs:\n  - {{type: x509, {fields}}}\n", minimal());
    let more = |line: &str| format!("{}{line}\n", minimal());
    for (place, text) in [
        ("the top", more("nonsense: 1")),
        ("onboarding", onboarding("{token: a, nonsense: 1}")),
        ("bound_keypair", onboarding("{token: a, bound_keypair: {nonsense: 1}}")),
        ("keystore", more("keystore: {type: file, nonsense: 1}")),
        ("storage", more("storage: {type: directory, path: /x, nonsense: 1}")),
        ("log", more("log: {nonsense: 1}")),
        ("outputs", output("nonsense: 1")),
        ("destination", output("destination: {type: directory, path: /x, nonsense: 1}")),
        ("reload", output("destination: {type: directory, path: /x}, reload: {nonsense: 1}")),
    ] {
        let error = load(&text).expect_err(place);
        assert!(error.to_string().contains("unknown field `nonsense`"), "{place}: {error}");
        all_in_reference(&expected(error.advice()), place);
    }
}

#[test]
fn every_field_of_a_resource_is_in_the_reference() {
    let server = Server::start();
    let token = |spec: &str| format!("kind: token\nversion: v2\nmetadata: {{name: a}}\nspec: {{{spec}}}\n");
    let keypair =
        |fields: &str| token(&format!("roles: [Bot], bot_name: a, join_method: bound_keypair, bound_keypair: {{{fields}}}"));
    let other = |kind: &str, version: &str, spec: &str| {
        format!("kind: {kind}\nversion: {version}\nmetadata: {{name: a}}\nspec: {{{spec}}}\n")
    };
    for (place, text) in [
        ("a document", "kind: bot\nversion: v1\nmetadata: {name: a}\nnonsense: 1\n".to_owned()),
        ("metadata", "kind: bot\nversion: v1\nmetadata: {name: a, nonsense: 1}\n".to_owned()),
        ("a role", other("role", "v1", "nonsense: 1")),
        ("allow", other("role", "v1", "allow: {nonsense: 1}")),
        ("a bot", other("bot", "v1", "nonsense: 1")),
        ("a token", token("nonsense: 1")),
        ("host", token("roles: [Node], host: {nonsense: 1}")),
        ("bound_keypair", keypair("nonsense: 1")),
        ("onboarding", keypair("onboarding: {nonsense: 1}")),
        ("recovery", keypair("recovery: {nonsense: 1}")),
        ("a lock", other("lock", "v2", "nonsense: 1")),
        ("target", other("lock", "v2", "target: {nonsense: 1}")),
    ] {
        let said = run_with_input(&mut server.ctl_command(&["create", "-f", "-"]), &text);
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("unknown field `nonsense`"), "{place}: {said}");
        all_in_reference(&expected(said.lines().next().expect("a line")), place);
    }
}

/// Names of variables that stand as text in the programs, but for what the build hands over.
fn variables(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).expect("src") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            variables(&path, found);
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("UTF-8");
        let named = text.split('"').filter(|word| word.starts_with("BOUNDKEY_") && *word != "BOUNDKEY_BUILD_EPOCH");
        found.extend(named.filter(|word| word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')).map(str::to_owned));
    }
}

#[test]
fn every_variable_is_in_the_reference() {
    let mut found = BTreeSet::new();
    variables(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() >= 9, "{found:?}");
    all_in_reference(&found.iter().map(String::as_str).collect::<Vec<_>>(), "the environment");
}

#[test]
fn the_examples_work() {
    for name in ["README.md", REFERENCE, "docs/operations.md"] {
        let server = Server::start();
        let text = document(name).replace("sha256:...", PIN);
        let (mut configurations, mut resources) = (0, 0);
        for example in examples(&text) {
            if example.starts_with("kind: ") {
                server.create(example);
                resources += 1;
                continue;
            }
            let whole = if example.starts_with("version: ") { example.to_owned() } else { format!("{}{example}", minimal()) };
            load(&whole).unwrap_or_else(|e| panic!("{name}: {e}\n{whole}"));
            configurations += 1;
        }
        assert!(configurations > 0 && resources > 0, "{name}: {configurations} configurations, {resources} with resources");
    }
}
