//! The operator's program against a real server: what it does to resources, what it prints, and how it fails.
//!
//! Bindings are brought in as the status of a token, as from a backup: no device takes part.
#![cfg(feature = "auth")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use boundkey::auth::audit::EventFilter;
use boundkey::auth::operator::Operator;
use boundkey::auth::resource::{Key, Kind, Resource};
use boundkey::auth::store::{Change, Commit, SqliteStore, Store};
use boundkey::time::{System, Timestamp};
use serde_json::{Value, json};
use support::{Running, Server, TempDir, run, run_with_input};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICCR5NZ5RUoYrmfIQYDouzebPHX/kUQDiB3Ir/q/kdIk";
const OTHER_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOejyL8NIuecReX3c+zgGJ30eQUTyaBwvKNjFekYMtUi";
const INSTANCE: &str = "00112233-4455-6677-8899-aabbccddeeff";
const BOT: &str = "kind: bot\nversion: v1\nmetadata: {name: gw}\n---\n";

/// A token of bot `gw`; `spec` is `spec.bound_keypair` in one line, `more` what follows at the top.
fn token(name: &str, spec: &str, more: &str) -> String {
    format!(
        "kind: token\nversion: v2\nmetadata: {{name: {name}}}\nspec:\n  roles: [Bot]\n  bot_name: gw\n  \
         join_method: bound_keypair\n  bound_keypair: {{{spec}}}\n{more}\n---\n"
    )
}

/// The status of a token in use.
fn bound() -> String {
    format!(
        "status:\n  bound_keypair:\n    bound_public_key: {KEY}\n    bound_bot_instance_id: {INSTANCE}\n    recovery_count: 3\n    \
         last_recovered_at: 2026-01-01T00:00:00Z\n    retired_keys: []\n    \
         last_step: {{generation: 7, issued_at_ms: 5, attempt: {INSTANCE}, not_after: 2026-01-01T01:00:00Z}}"
    )
}

fn apply(server: &Server, yaml: &str) -> Output {
    run_with_input(&mut server.ctl_command(&["create", "-f", "-"]), yaml)
}

/// Runs a command that must fail with `code`; returns what it said.
fn fails(output: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "a failure prints no result");
    said
}

/// The same, of one of our own messages: what failed, and what to do on a second line.
fn fails_in_two_lines(output: &Output, code: i32) -> String {
    let said = fails(output, code);
    let lines: Vec<_> = said.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("error: ") && lines[1].starts_with("  "), "{said}");
    assert!(!lines.iter().any(|line| line.ends_with('.')), "{said}");
    said
}

fn ctl_fails(server: &Server, args: &[&str], code: i32) -> String {
    fails_in_two_lines(&run(&mut server.ctl_command(args)), code)
}

fn names(server: &Server, kind: &str) -> Vec<String> {
    let all: Value = serde_json::from_str(&server.ctl(&["get", kind, "--format", "json"])).unwrap();
    all.as_array().unwrap().iter().map(|r| r["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// Events after the first `skip`, by name.
fn events_after(server: &Server, skip: usize) -> Vec<String> {
    server.audit().iter().skip(skip).map(|event| event["event"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn create_does_all_or_nothing_and_tells_the_log() {
    let server = Server::start();
    let role = "kind: role\nversion: v1\nmetadata: {name: r}\nspec: {}\n---\n";
    let bot = "kind: bot\nversion: v1\nmetadata: {name: gw}\nspec: {roles: [r]}\n---\n";
    // A token names a bot that names a role: nobody has to put them in order.
    let set = token("one", "", "") + bot + role;
    let said =
        fails_in_two_lines(&apply(&server, &(set.clone() + &token("two", "", "").replace("bot_name: gw", "bot_name: x"))), 1);
    assert!(said.contains("token/two: there is no bot/x"), "{said}");
    let said = fails_in_two_lines(&apply(&server, &(token("one", "", "") + bot)), 1);
    assert!(said.contains("bot/gw: there is no role/r"), "{said}");
    let said = fails_in_two_lines(&apply(&server, &(set.clone() + role)), 1);
    assert!(said.contains("role/r stands there twice"), "{said}");
    assert_eq!([names(&server, "token"), names(&server, "bot"), names(&server, "role")], [[""; 0]; 3]);
    assert_eq!(server.audit(), [json!(null); 0]);

    let done = apply(&server, &set);
    assert_eq!(String::from_utf8_lossy(&done.stdout), "token/one created\nbot/gw created\nrole/r created\n");
    assert_eq!(events_after(&server, 0), ["resource.created"; 3]);
    let event = &server.audit()[0];
    let uid = nix::unistd::geteuid();
    assert_eq!([&event["token"], &event["bot"], &event["remote_addr"]], ["one", "gw", &format!("uid {uid}")]);
    assert_eq!((&event["success"], &event["resource"]), (&json!(true), &json!("token/one")));

    let again = apply(&server, &set);
    assert_eq!(String::from_utf8_lossy(&again.stdout), "token/one unchanged\nbot/gw unchanged\nrole/r unchanged\n");
    assert_eq!(server.audit().len(), 3, "nothing changed, nothing is told");
    let changed = apply(&server, &set.replace("{roles: [r]}", "{roles: []}"));
    assert_eq!(String::from_utf8_lossy(&changed.stdout), "token/one unchanged\nbot/gw updated\nrole/r unchanged\n");
    assert_eq!(events_after(&server, 3), ["resource.updated"]);
}

#[test]
fn c062_c065_tokens_that_do_not_fit_together_are_refused() {
    let server = Server::start();
    server.create(BOT);
    let good = token("t", "", "");
    for (find, replace, names) in [
        ("  bot_name: gw\n", "", "spec.bot_name is required"),
        ("roles: [Bot]", "roles: [Nobody]", "spec.roles"),
        ("roles: [Bot]", "roles: []", "spec.roles is empty"),
        ("roles: [Bot]", "roles: [Bot, Node]", "Bot stands alone"),
        ("roles: [Bot]", "roles: [Node]", "spec.bot_name goes with role Bot only"),
        ("roles: [Bot]\n  bot_name: gw", "roles: [App, Node, App]", "App twice"),
        ("roles: [Bot]", "host: {roles: [r]}\n  roles: [Bot]", "spec.host does not go with role Bot"),
        ("  bound_keypair: {}\n", "", "missing field `bound_keypair`"),
        ("name: t}", "name: 'a b'}", "not a name"),
    ] {
        let said = fails_in_two_lines(&apply(&server, &good.replace(find, replace)), 2);
        assert!(said.contains(names) && said.contains("standard input"), "{said}");
    }
    assert_eq!(names(&server, "token"), [""; 0]);
}

#[test]
fn c063_c067_c068_c069_what_a_new_token_gets() {
    let server = Server::start();
    let fixed = token("fixed", "onboarding: {registration_secret: s3cret}", "");
    let known = token("known", &format!("onboarding: {{initial_public_key: {KEY}, registration_secret: ignored}}"), "");
    server.create(&(BOT.to_owned() + &token("plain", "", "") + &token("plain2", "", "") + &fixed + &known));

    let secret = |name| server.status(name)["registration_secret"].clone();
    let made = secret("plain").as_str().unwrap().to_owned();
    assert!(made.len() == 32 && made.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{made}");
    assert_ne!(secret("plain2"), made);
    assert_eq!(secret("fixed"), "s3cret");
    let known = server.status("known");
    assert_eq!((&known["registration_secret"], &known["bound_public_key"]), (&Value::Null, &Value::Null));
    assert_eq!(known["recovery_count"], 0);
    let recovery = &server.get("token/known")["spec"]["bound_keypair"]["recovery"];
    assert_eq!(*recovery, json!({"limit": 1, "mode": "standard"}));
    let incarnations = ["plain", "plain2", "fixed", "known"].map(|name| server.status(name)["incarnation"].to_string());
    assert!(incarnations.iter().all(|id| id.len() == 38 && incarnations.iter().filter(|other| *other == id).count() == 1));
}

#[test]
fn c070_a_status_that_comes_with_a_new_token_is_kept() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "onboarding: {registration_secret: fixed}", &bound())));
    let status = server.status("t");
    assert_eq!((&status["bound_public_key"], &status["recovery_count"]), (&json!(KEY), &json!(3)));
    assert_eq!(status["last_step"]["generation"], 7);
    assert_eq!(status["registration_secret"], Value::Null, "a bound token needs none");

    // Out of one server and into another, whole.
    let backup = server.ctl(&["get", "token", "--format", "yaml", "--with-secrets"]);
    let other = Server::start();
    other.create(&(BOT.to_owned() + &backup));
    assert_eq!(other.status("t"), status);
}

#[test]
fn c071_c077_no_update_takes_a_binding_away() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "", &bound()) + &token("waiting", "", "")));
    let (before, secret) = (server.status("t"), server.status("waiting"));
    let stranger = bound().replace(KEY, OTHER_KEY).replace("recovery_count: 3", "recovery_count: 0");
    server.create(&token("t", "recovery: {limit: 5, mode: relaxed}", &stranger));
    assert_eq!(server.status("t"), before);
    let spec = server.get("token/t")["spec"]["bound_keypair"]["recovery"].clone();
    assert_eq!(spec, json!({"limit": 5, "mode": "relaxed"}));

    server.create(&token("waiting", "recovery: {limit: 2}, onboarding: {registration_secret: late}", ""));
    assert_eq!(server.status("waiting"), secret);
    // Preregistered, then not any more: something to join with is made, and only now.
    let known = format!("onboarding: {{initial_public_key: {KEY}}}");
    server.create(&token("known", &known, ""));
    server.create(&token("known", &(known + ", recovery: {limit: 2}"), ""));
    assert_eq!(server.status("known")["registration_secret"], Value::Null);
    server.create(&token("known", "", ""));
    assert_eq!(server.status("known")["registration_secret"].as_str().unwrap().len(), 32);
}

#[test]
fn instances_are_not_for_operators_to_make() {
    let server = Server::start();
    let instance = "kind: bot_instance\nversion: v1\nmetadata: {name: i}\nspec: {bot_name: gw, token: t}\n";
    assert!(fails_in_two_lines(&apply(&server, instance), 2).contains("bot_instance cannot be created"));
    ctl_fails(&server, &["edit", "bot_instance/i"], 2);
}

#[test]
fn bad_documents_name_file_line_and_field() {
    let server = Server::start();
    let dir = TempDir::new("ctl");
    let file = dir.join("fleet.yaml");
    std::fs::write(&file, BOT.to_owned() + &token("t", "recovery: {limitt: 2}", "")).unwrap();
    let said = ctl_fails(&server, &["create", "-f", file.to_str().unwrap()], 2);
    assert!(said.contains(&format!("{}:12:30: ", file.display())) && said.contains("`limitt`"), "{said}");
    assert!(ctl_fails(&server, &["create", "-f", "/nonexistent.yaml"], 2).contains("/nonexistent.yaml"));
    assert!(fails_in_two_lines(&apply(&server, ""), 2).contains("no resource"));
    assert_eq!(server.audit(), [json!(null); 0]);
}

#[test]
fn get_prints_for_people_and_for_programs() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("a-long-name", "", "") + &token("b", "recovery: {mode: relaxed}", &bound())));
    server.ctl(&["lock", "--token", "b", "--message", "lost in the field"]);
    let table = server.ctl(&["get", "token"]);
    assert_eq!(
        table,
        "NAME         BOT  BOUND    RECOVERIES  MODE      LOCKED\n\
         a-long-name  gw   waiting  0/1         standard  no\n\
         b            gw   yes      3/-         relaxed   yes\n"
    );
    let full = server.ctl(&["get", "token/b"]);
    for part in [KEY, "3 used, no limit (mode relaxed)", "generation 7", "locked by", "lost in the field"] {
        assert!(full.contains(part), "{part} in {full}");
    }

    let secret = server.status("a-long-name")["registration_secret"].as_str().unwrap().to_owned();
    for format in ["text", "yaml", "json"] {
        let shown = |more: &[&str]| server.ctl(&[&["get", "token/a-long-name", "--format", format], more].concat());
        assert!(!shown(&[]).contains(&secret) && shown(&["--with-secrets"]).contains(&secret), "{format}");
    }
    let json: Value = serde_json::from_str(&server.ctl(&["get", "tokens", "--format", "json"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
    assert_eq!((&json[0]["kind"], &json[0]["version"]), (&json!("token"), &json!("v2")));
    assert_eq!(server.ctl(&["get", "role", "--format", "json"]), "[]\n");
    assert!(ctl_fails(&server, &["get", "token/none"], 1).contains("there is no token/none"));
    assert!(fails(&run(&mut server.ctl_command(&["get", "device"])), 2).contains("unknown kind"));

    // What is printed is what is read.
    for kind in ["token", "bot", "lock"] {
        let yaml = server.ctl(&["get", kind, "--format", "yaml"]);
        let again = apply(&server, &yaml);
        let said = String::from_utf8_lossy(&again.stdout).into_owned();
        assert!(!said.is_empty() && said.lines().all(|line| line.ends_with(" unchanged")), "{said}");
    }
}

#[test]
fn a_hidden_secret_never_becomes_the_secret() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "onboarding: {registration_secret: s3cret}", "")));
    let hidden = server.ctl(&["get", "token/t", "--format", "yaml"]);
    server.create(&hidden.replace("limit: 1", "limit: 4"));
    let token = server.get("token/t");
    assert_eq!(token["spec"]["bound_keypair"]["recovery"]["limit"], 4);
    assert_eq!(token["spec"]["bound_keypair"]["onboarding"]["registration_secret"], "s3cret");
    assert_eq!(token["status"]["bound_keypair"]["registration_secret"], "s3cret");
    server.ctl(&["rm", "token/t"]);
    assert!(fails_in_two_lines(&apply(&server, &hidden), 1).contains("--with-secrets"));
}

fn edit(server: &Server, key: &str, editor: &str) -> Command {
    let mut command = server.ctl_command(&["edit", key]);
    command.env_remove("VISUAL").env("EDITOR", editor).env("TMPDIR", server.dir.path());
    command
}

fn files_of_edit(server: &Server) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(server.dir.path()).unwrap().map(|file| file.unwrap().path());
    files.filter(|file| file.file_name().unwrap().to_string_lossy().starts_with("boundkeyctl-")).collect()
}

#[test]
fn edit_changes_what_was_edited_and_nothing_else() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "onboarding: {registration_secret: s3cret}", "")));
    let told = server.audit().len();
    let run_edit = |editor: &str| String::from_utf8(support::success(&mut edit(&server, "token/t", editor)).stdout).unwrap();
    assert_eq!(run_edit("true"), "token/t unchanged\n");
    assert_eq!(
        run_edit("sed -i 's/recovery_count: 0/recovery_count: 9/'"),
        "token/t unchanged\n",
        "the status is not an operator's"
    );
    assert_eq!(server.audit().len(), told);
    assert_eq!(run_edit("sed -i 's/limit: 1/limit: 5/'"), "token/t updated\n");
    let token = server.get("token/t");
    assert_eq!(token["spec"]["bound_keypair"]["recovery"]["limit"], 5);
    assert_eq!(token["spec"]["bound_keypair"]["onboarding"]["registration_secret"], "s3cret");
    assert!(files_of_edit(&server).is_empty());

    // VISUAL comes first; and what the editor is given is for nobody else to read.
    let mut command = edit(&server, "token/t", "false");
    command.env("VISUAL", "test \"$(stat -c %a \"$1\")\" = 600 && ! grep -q s3cret \"$1\" && true");
    support::success(&mut command);
}

#[test]
fn edit_keeps_the_text_of_what_failed() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "", "")));
    for (editor, code, why) in [
        ("sed -i 's/limit/limitt/'", 2, "`limitt`"),
        ("sed -i 's/name: t/name: u/'", 2, "token/t and nothing else"),
        ("sed -i 's/bot_name: gw/bot_name: x/'", 1, "there is no bot/x"),
        ("false", 1, "the editor"),
    ] {
        let said = fails_in_two_lines(&run(&mut edit(&server, "token/t", editor)), code);
        let [file] = &files_of_edit(&server)[..] else { panic!("one file is kept") };
        assert!(said.contains(why) && said.contains(file.to_str().unwrap()), "{said}");
        std::fs::remove_file(file).unwrap();
    }
    let said = fails_in_two_lines(&run(&mut edit(&server, "token/none", "true")), 1);
    assert!(said.contains("there is no token/none"), "{said}");
}

#[test]
fn edit_conflicts_with_operators_but_not_with_joins() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "", &bound())));
    let other = |args: &str| {
        let ctl = env!("CARGO_BIN_EXE_boundkeyctl");
        format!("{ctl} --data-dir {} {args} >/dev/null && sed -i 's/limit: 1/limit: 5/'", server.dir.join("data").display())
    };
    // A reset stands in for a join: both write the status alone.
    support::success(&mut edit(&server, "token/t", &other("reset token/t")));
    assert_eq!(server.get("token/t")["spec"]["bound_keypair"]["recovery"]["limit"], 5);
    assert_eq!(server.status("t")["recovery_count"], 0);

    let editor =
        other("rotate token/t").replace("limit: 1", "limit: 5").replace("'s/limit: 5/limit: 5/'", "'s/limit: 5/limit: 6/'");
    let said = fails_in_two_lines(&run(&mut edit(&server, "token/t", &editor)), 1);
    assert!(said.contains("changed meanwhile"), "{said}");
}

#[test]
fn rm_deletes_and_tells() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "", "")));
    assert_eq!(server.ctl(&["rm", "token/t"]), "token/t deleted\n");
    assert_eq!(events_after(&server, 2), ["resource.deleted"]);
    assert!(ctl_fails(&server, &["rm", "token/t"], 1).contains("there is no token/t"));
    assert!(fails(&run(&mut server.ctl_command(&["rm", "token"])), 2).contains("KIND/NAME"));
}

#[test]
fn reset_begins_a_new_life() {
    let server = Server::start();
    let fixed = token("fixed", "onboarding: {registration_secret: s3cret}", &bound());
    let known = token("known", &format!("onboarding: {{initial_public_key: {OTHER_KEY}}}"), &bound());
    server.create(&(BOT.to_owned() + &token("t", "recovery: {limit: 4}", &bound()) + &fixed + &known));
    let before = server.status("t");
    assert_eq!(server.ctl(&["reset", "token/t"]), "token/t reset: the next join is a first join\n");
    let after = server.status("t");
    assert_ne!(after["incarnation"], before["incarnation"]);
    assert_eq!(after["registration_secret"].as_str().unwrap().len(), 32);
    let left: Vec<_> = after.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(left, ["incarnation", "recovery_count", "registration_secret"]);
    assert_eq!(after["recovery_count"], 0);
    assert_eq!(server.get("token/t")["spec"]["bound_keypair"]["recovery"]["limit"], 4);
    let last = server.audit().pop().unwrap();
    assert_eq!((&last["event"], &last["token"], &last["reason"]), (&json!("resource.updated"), &json!("t"), &json!("reset")));

    server.ctl(&["reset", "token/fixed"]);
    server.ctl(&["reset", "token/known"]);
    assert_eq!(server.status("fixed")["registration_secret"], "s3cret");
    assert_eq!(server.status("known")["registration_secret"], Value::Null);

    server.ctl(&["lock", "--token", "t"]);
    let output = run(&mut server.ctl_command(&["reset", "token/t"]));
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("still stopped by lock/"));
    ctl_fails(&server, &["reset", "token/none"], 1);
}

#[test]
fn c139_rotate_orders_new_keys() {
    let server = Server::start();
    let labelled = |name: &str, site: &str| {
        let labels = format!("metadata: {{name: {name}, labels: {{site: {site}, line: x}}}}");
        token(name, "", &bound()).replace(&format!("metadata: {{name: {name}}}"), &labels)
    };
    server.create(
        &(BOT.to_owned() + &labelled("a", "bern") + &labelled("b", "thun") + &token("c", "", &bound()) + &token("new", "", "")),
    );
    let due = |server: &Server| {
        let due = |name: &&str| !server.get(&format!("token/{name}"))["spec"]["bound_keypair"]["rotate_after"].is_null();
        ["a", "b", "c", "new"].into_iter().filter(due).collect::<Vec<_>>()
    };
    server.ctl(&["rotate", "token/c"]);
    assert_eq!(due(&server), ["c"]);
    server.ctl(&["rotate", "--selector", "site=bern,line=x"]);
    assert_eq!(due(&server), ["a", "c"]);
    let none = run(&mut server.ctl_command(&["rotate", "--selector", "site=basel"]));
    assert!(none.status.success() && String::from_utf8_lossy(&none.stderr).contains("no bound token"));
    let all = server.ctl(&["rotate", "--all"]);
    assert_eq!(all.lines().count(), 3, "a token without a key has nothing to rotate: {all}");
    assert_eq!(due(&server), ["a", "b", "c"]);
    assert!(server.ctl(&["get", "token/a"]).contains("a new key at the next join"));
    let last = server.audit().pop().unwrap();
    assert_eq!((&last["token"], &last["reason"]), (&json!("c"), &json!("rotation ordered")));

    assert!(fails(&run(&mut server.ctl_command(&["rotate", "bot/gw"])), 2).contains("it is a bot"));
    fails(&run(&mut server.ctl_command(&["rotate"])), 2);
    fails(&run(&mut server.ctl_command(&["rotate", "--all", "token/a"])), 2);
}

fn automatic_lock(id: &str, token: &str) -> String {
    format!(
        "kind: lock\nversion: v2\nmetadata: {{name: {id}}}\nspec: {{target: {{token: {token}}}, message: two holders, automatic: true}}\n---\n"
    )
}

#[test]
fn an_exemption_lifts_automatic_locks_in_one_audited_step() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "", &bound()) + &token("u", "", &bound())));
    server.create(&(automatic_lock("l1", "t") + &automatic_lock("l2", "t") + &automatic_lock("other", "u")));
    server.ctl(&["lock", "--bot", "gw", "--message", "by hand"]);
    let told = server.audit().len();

    let output =
        support::success(&mut server.ctl_command(&["exempt", "token/t", "--recoveries", "2", "--for", "3h", "--reason", "swap"]));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("lock/l1 deleted\nlock/l2 deleted\n") && stdout.contains("2 recoveries"), "{stdout}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("still stopped by lock/"));
    assert_eq!(events_after(&server, told), ["lock.removed", "lock.removed", "exemption.granted"]);
    assert_eq!(names(&server, "lock").iter().filter(|name| name.starts_with('l') || *name == "other").count(), 1);
    let exemption = server.status("t")["exemption"].clone();
    assert_eq!(
        [&exemption["recoveries"], &exemption["waive_join_state"], &exemption["reason"]],
        [&json!(2), &json!(true), &json!("swap")]
    );
    let granted = server.audit().pop().unwrap();
    assert_eq!((&granted["reason"], &granted["expires"]), (&json!("swap"), &exemption["expires"]));
    let ends: Timestamp = exemption["expires"].as_str().unwrap().parse().unwrap();
    let granted: Timestamp = granted["time"].as_str().unwrap().parse().unwrap();
    assert_eq!(ends.since(granted), Duration::from_secs(3 * 3600));
    assert!(server.ctl(&["get", "token/t"]).contains("2 recoveries, one join without matching join state, until "));

    // Updates leave it alone; only its own end and --cancel end it.
    server.create(&token("t", "recovery: {limit: 9}", ""));
    assert_eq!(server.status("t")["exemption"], exemption);
    server.ctl(&["exempt", "token/t", "--cancel"]);
    assert_eq!(server.status("t")["exemption"], Value::Null);
    assert_eq!(server.audit().pop().unwrap()["event"], "exemption.cancelled");
    assert!(ctl_fails(&server, &["exempt", "token/t", "--cancel"], 1).contains("has no exemption"));
    ctl_fails(&server, &["exempt", "token/none"], 1);
    fails(&run(&mut server.ctl_command(&["exempt", "token/t", "--recoveries", "0"])), 2);
    fails(&run(&mut server.ctl_command(&["exempt", "token/t", "--cancel", "--for", "1h"])), 2);
}

#[test]
fn an_unused_exemption_ends_by_itself() {
    let dir = TempDir::new("ctl");
    let store: Arc<dyn Store> = Arc::new(SqliteStore::create(&dir.join("db")).unwrap());
    for (name, ends) in [("ended", 10), ("pending", 11)] {
        let ends = Timestamp::from_secs(ends);
        let token: Resource = serde_json::from_value(json!({
            "kind": "token", "version": "v2", "metadata": {"name": name},
            "spec": {"roles": ["Bot"], "bot_name": "gw", "join_method": "bound_keypair", "bound_keypair": {}},
            "status": {"bound_keypair": {"exemption": {"recoveries": 1, "waive_join_state": true, "expires": ends}}},
        }))
        .unwrap();
        let changes = vec![Change { key: token.key(), expected: None, to: Some(token) }];
        store.commit(Commit { changes, ..Commit::default() }).unwrap();
    }
    let operator = Operator::new(store.clone(), Arc::new(System), Arc::new(System));
    let now = Timestamp::from_secs(10);
    operator.end_exemptions(now).unwrap();
    operator.end_exemptions(now).unwrap();
    let events = store.events(&EventFilter::default()).unwrap();
    let told: Vec<_> = events.iter().map(|(_, event)| (event.event.name(), event.token.clone().unwrap(), event.time)).collect();
    assert_eq!(told, [("exemption.expired".into(), "ended".into(), now)]);
    let exempt = |name| match store.get(&Key::new(Kind::Token, name)).unwrap().unwrap().resource {
        Resource::Token(token) => token.status.bound_keypair.exemption.is_some(),
        _ => unreachable!(),
    };
    assert_eq!([exempt("ended"), exempt("pending")], [false, true]);
}

#[test]
fn locks_are_put_on_what_exists_and_taken_off() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "", "")));
    let told = server.audit().len();
    let made = server.ctl(&["lock", "--token", "t", "--message", "stolen", "--expires", "2h"]);
    let id = made.strip_prefix("lock/").and_then(|made| made.strip_suffix(" created\n")).unwrap();
    let lock = server.get(&format!("lock/{id}"));
    assert_eq!((&lock["spec"]["target"], &lock["spec"]["automatic"]), (&json!({"token": "t"}), &json!(false)));
    assert!(lock["spec"]["expires"].is_string());
    server.ctl(&["lock", "--bot", "gw"]);
    let table = server.ctl(&["get", "lock"]);
    assert!(table.contains("token/t  operator") && table.contains("bot/gw   operator  never"), "{table}");
    assert_eq!(server.ctl(&["rm", &format!("lock/{id}")]), format!("lock/{id} deleted\n"));
    assert_eq!(events_after(&server, told), ["lock.created", "lock.created", "lock.removed"]);
    let created = &server.audit()[told];
    assert_eq!([&created["token"], &created["reason"], &created["lock"]], ["t", "stolen", id]);

    assert!(ctl_fails(&server, &["lock", "--token", "mistyped"], 1).contains("there is no token/mistyped"));
    assert!(ctl_fails(&server, &["lock", "--instance", INSTANCE], 1).contains("there is no bot_instance/"));
    fails(&run(&mut server.ctl_command(&["lock", "--token", "t", "--bot", "gw"])), 2);
    fails(&run(&mut server.ctl_command(&["lock"])), 2);
}

#[test]
fn audit_shows_what_is_asked_for_in_pages_too_long_for_one_answer() {
    let server = Server::start();
    let many: String = (0..1100).map(|n| BOT.replace("gw", &format!("gw{n}"))).collect();
    server.create(&many);
    server.create(&(BOT.to_owned() + &token("t", "", "")));
    assert_eq!(server.audit().len(), 1102);
    let lines = server.ctl(&["audit", "--token", "t"]);
    assert!(lines.lines().count() == 1 && lines.contains("resource.created    token=t bot=gw from=uid"), "{lines}");
    assert_eq!(server.ctl(&["audit", "--since", "1h"]).lines().count(), 1102);
    assert_eq!(server.ctl(&["audit", "--since", "2100-01-01T00:00:00Z"]), "");
    fails(&run(&mut server.ctl_command(&["audit", "--since", "yesterday"])), 2);
}

/// `audit --follow` with its lines.
fn follow(server: &Server, args: &[&str]) -> (Running, impl Iterator<Item = Value> + use<>) {
    let mut command = server.ctl_command(&[&["audit", "--follow", "--format", "json"], args].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (Running(child), lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()))
}

#[test]
fn audit_follows_events_as_they_come() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "", "")));
    let (_process, mut lines) = follow(&server, &["--since", "1h", "--token", "t"]);
    assert_eq!(lines.next().unwrap()["event"], "resource.created");
    server.ctl(&["lock", "--bot", "gw"]);
    server.ctl(&["lock", "--token", "t"]);
    assert_eq!(lines.next().unwrap()["event"], "lock.created");
    server.ctl(&["rm", "token/t"]);
    assert_eq!(lines.next().unwrap()["event"], "resource.deleted");
}

#[test]
fn a_follower_does_not_hold_up_the_servers_end() {
    let mut server = Server::start();
    server.create(BOT);
    let (process, mut lines) = follow(&server, &["--since", "1h"]);
    assert!(lines.next().is_some());
    let asked = std::time::Instant::now();
    assert!(server.stop().success());
    assert!(asked.elapsed() < Duration::from_secs(5), "the wait of a follower ends with the server");
    assert!(lines.next().is_none());
    assert_eq!(process.wait().code(), Some(3));
}

#[test]
fn operators_at_the_same_time_all_get_their_way() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "", &bound())));
    let told = server.audit().len();
    let others: Vec<_> = (0..12)
        .map(|n| {
            let args: &[&str] = if n % 2 == 0 { &["rotate", "token/t"] } else { &["exempt", "token/t"] };
            server.ctl_command(args).stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut other in others {
        assert!(other.wait().unwrap().success());
    }
    assert_eq!(server.audit().len(), told + 12);
}

#[test]
fn no_server_is_an_exit_code_of_its_own() {
    let dir = TempDir::new("ctl");
    let ctl = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_boundkeyctl"));
        command.args(args).env_remove("BOUNDKEY_DATA_DIR").env_remove("BOUNDKEY_SOCKET");
        command
    };
    let data = dir.path().to_str().unwrap();
    let said = fails_in_two_lines(&run(&mut ctl(&["get", "token", "--data-dir", data])), 3);
    assert!(said.contains("is boundkey-auth running") && said.contains(&format!("{data}/operator.sock")), "{said}");
    // A socket that nobody listens on any more.
    drop(std::os::unix::net::UnixListener::bind(dir.join("operator.sock")).unwrap());
    fails_in_two_lines(&run(&mut ctl(&["--data-dir", data, "get", "token"])), 3);
    assert!(fails(&run(&mut ctl(&["get", "token"])), 3).contains("/var/lib/boundkey-auth/operator.sock"));

    let server = Server::start();
    let served = server.dir.join("data");
    let socket = served.join("operator.sock");
    let succeeds = |command: &mut Command| assert!(run(command).status.success(), "{command:?}");
    succeeds(ctl(&["get", "token"]).env("BOUNDKEY_DATA_DIR", &served));
    succeeds(ctl(&["get", "token"]).env("BOUNDKEY_SOCKET", &socket).env("BOUNDKEY_DATA_DIR", data));
    succeeds(ctl(&["get", "token", "--socket"]).arg(&socket).env("BOUNDKEY_DATA_DIR", data));
    succeeds(ctl(&["get", "token", "--data-dir"]).arg(&served).env("BOUNDKEY_SOCKET", "/nowhere"));
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let server = Server::start();
    let many: String = (0..500).map(|n| BOT.replace("gw", &format!("gw{n}"))).collect();
    server.create(&many);
    let mut child =
        server.ctl_command(&["get", "bot", "--format", "json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &[][..]));
}

/// Needs root, to be somebody else. The file modes are opened first: the check behind them is what is tested.
#[test]
fn only_root_and_the_servers_own_user_are_let_in() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let server = Server::start();
    let socket = server.dir.join("data").join("operator.sock");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    for (path, mode) in [(server.dir.path(), 0o755), (&server.dir.join("data"), 0o755), (&socket, 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let program = server.dir.join("boundkeyctl");
    std::fs::copy(env!("CARGO_BIN_EXE_boundkeyctl"), &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["get", "token", "--socket"]).arg(&socket).uid(65534).gid(65534);
    let said = fails_in_two_lines(&run(&mut command), 1);
    assert!(said.contains("uid 65534 is neither root nor the user"), "{said}");
}
