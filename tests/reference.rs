//! The documents against the programs: every setting is in `docs/configuration.md`, what scripts read is in `docs/scripting.md`, and
//! the examples of quickstart, reference and runbook work.
#![cfg(all(feature = "agent", feature = "auth"))]

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use boundkey::agent::config::{Config, ConfigError};
use serde_json::Value;
use support::{Server, TempDir, run, run_with_input, success};

const PIN: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const REFERENCE: &str = "docs/configuration.md";
const SCRIPTING: &str = "docs/scripting.md";

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
    all_in(REFERENCE, names, place);
}

#[track_caller]
fn all_in(name: &str, words: &[&str], place: &str) {
    let text = document(name);
    for word in words {
        let forms = [format!("`{word}`"), format!(".{word}`"), format!(".{word}.")];
        assert!(forms.iter().any(|form| text.contains(form)), "{name} has no {word} of {place}");
    }
}

/// Names of all members, those of members too.
fn members(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Array(all) => all.iter().for_each(|value| members(value, found)),
        Value::Object(all) => all.iter().for_each(|(name, value)| {
            found.insert(name.clone());
            members(value, found);
        }),
        _ => {}
    }
}

#[track_caller]
fn members_are_told(json: &[u8], place: &str) {
    let mut found = BTreeSet::new();
    for value in serde_json::Deserializer::from_slice(json).into_iter() {
        members(&value.expect("JSON"), &mut found);
    }
    assert!(!found.is_empty(), "{place} printed nothing");
    all_in(SCRIPTING, &found.iter().map(String::as_str).collect::<Vec<_>>(), place);
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
    for name in ["docs/quickstart.md", REFERENCE, "docs/operations.md"] {
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

#[test]
fn what_scripts_read_is_told() {
    let server = Server::start();
    let device = server.device("gw", 2);
    let status = |place| members_are_told(&success(&mut device.command(&["status", "--format", "json"])).stdout, place);
    status("the status of a new device");
    server.ctl(&["lock", "--token", "gw"]);
    assert_eq!(device.try_join().0, 4);
    status("the status of a locked device");
    let locks: Value = serde_json::from_str(&server.ctl(&["get", "lock", "--format", "json"])).expect("JSON");
    server.ctl(&["rm", &format!("lock/{}", locks[0]["metadata"]["name"].as_str().expect("an id"))]);
    device.join();
    server.ctl(&["rotate", "token/gw"]);
    device.lose_certificate();
    device.join();
    device.lose_certificate();
    assert_eq!(device.try_join().0, 5);
    server.ctl(&["exempt", "token/gw"]);
    device.join();
    status("the status of a device that joined");
    server.ctl(&["exempt", "token/gw"]);
    server.ctl(&["lock", "--token", "gw"]);
    for kind in ["bot", "bot_instance", "lock", "token"] {
        let shown: Value = serde_json::from_str(&server.ctl(&["get", kind, "--format", "json"])).expect("JSON");
        members_are_told(shown[0]["view"].to_string().as_bytes(), &format!("the view of a {kind}"));
    }
    members_are_told(&run(&mut device.command(&["doctor", "--format", "json"])).stdout, "doctor");
    members_are_told(&success(&mut device.command(&["keypair", "create", "--format", "json"])).stdout, "keypair create");
    members_are_told(server.ctl(&["audit", "--format", "json"]).as_bytes(), "the audit log");
}

/// The words stand in the code alone; not all of them can be brought about here.
#[test]
fn every_event_and_every_type_of_error_is_told() {
    let audit = document("src/api/event.rs");
    let events: Vec<_> = audit.split("rename = \"").skip(1).map(|rest| rest.split('"').next().expect("a name")).collect();
    assert!(events.len() >= 17, "{events:?}");
    all_in(SCRIPTING, &events, "the audit log");
    let error = document("src/agent/error.rs");
    let kinds = error.split_once("pub fn kind").expect("kind").1.split_once("pub fn advice").expect("its end").0;
    let mut words: Vec<_> = kinds.split('"').skip(1).step_by(2).collect();
    assert!(words.len() >= 14, "{words:?}");
    words.extend(["keystore", "reload", "storage"]);
    all_in(SCRIPTING, &words, "last_error.type");
}

/// The agent that the tests start is the agent that ships: nothing of the server is linked into it.
#[test]
fn the_agent_has_no_code_of_the_server() {
    let has_sqlite = |program: &str| std::fs::read(program).expect(program).windows(8).any(|name| name == b"sqlite3_");
    assert!(has_sqlite(env!("CARGO_BIN_EXE_boundkey-auth")));
    assert!(!has_sqlite(env!("CARGO_BIN_EXE_boundkey")));
}
