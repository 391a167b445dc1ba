//! The operator's program against a real server: what it does to resources, what it prints, and how it fails.
//!
//! Bindings are brought in as the status of a token, as from a backup: no device takes part.
#![cfg(feature = "auth")]

#[path = "ctl/interventions.rs"]
mod interventions;
#[path = "ctl/listing.rs"]
mod listing;
#[path = "ctl/serving.rs"]
mod serving;
mod support;

use std::process::Output;

use serde_json::{Value, json};
use support::{Server, TempDir, run, run_with_input};

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
    assert_eq!([&event["token"], &event["bot"], &event["actor"]], ["one", "gw", &format!("local:{uid}")]);
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
    let fixed = token("fixed", "onboarding: {registration_secret: s3cret-s3cret-s3cret}", "");
    let known =
        token("known", &format!("onboarding: {{initial_public_key: {KEY}, registration_secret: ignored-ignored-ignored}}"), "");
    server.create(&(BOT.to_owned() + &token("plain", "", "") + &token("plain2", "", "") + &fixed + &known));

    let secret = |name| server.status(name)["registration_secret"].clone();
    let made = secret("plain").as_str().unwrap().to_owned();
    assert!(made.len() == 32 && made.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{made}");
    assert_ne!(secret("plain2"), made);
    assert_eq!(secret("fixed"), "s3cret-s3cret-s3cret");
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

    server.create(&token("waiting", "recovery: {limit: 2}, onboarding: {registration_secret: late-late-late-late}", ""));
    assert_eq!(server.status("waiting"), secret);
    // Preregistered, then not any more: something to join with is made, and only now.
    let known = format!("onboarding: {{initial_public_key: {KEY}}}");
    server.create(&token("known", &known, ""));
    server.create(&token("known", &(known + ", recovery: {limit: 2}"), ""));
    assert_eq!(server.status("known")["registration_secret"], Value::Null);
    server.create(&token("known", "", ""));
    assert_eq!(server.status("known")["registration_secret"].as_str().unwrap().len(), 32);
}

/// `{{token.name}}` stands in DNS names, in which `gw` and `GW` are one.
#[test]
fn names_that_differ_in_case_alone_are_refused() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("gw-1", "", "")));
    for (yaml, code, why) in [
        (token("GW-1", "", ""), 1, "token/GW-1 differs from token/gw-1 in upper and lower case alone"),
        (BOT.replace("gw", "Gw"), 1, "bot/Gw differs from bot/gw in upper and lower case alone"),
        (token("a", "", "") + &token("A", "", ""), 1, "token/a differs from another in this file in upper and lower case alone"),
        (token("..", "", ""), 2, "neither . nor .."),
    ] {
        let said = fails_in_two_lines(&apply(&server, &yaml), code);
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(names(&server, "token"), ["gw-1"]);
    server.create(&(token("gw-1", "recovery: {limit: 3}", "") + &token("gw-10", "", "")));
}

#[test]
fn roles_that_could_mean_nothing_or_too_much_are_refused() {
    let server = Server::start();
    let role = |spec: &str| format!("kind: role\nversion: v1\nmetadata: {{name: r}}\nspec: {{{spec}}}\n");
    for (spec, why) in [
        ("max_ttl: 0s", "less than a minute"),
        ("max_ttl: 100000y", "more than ten years"),
        ("allow: {uris: [\"https://u@h.example/\"]}", "user information"),
        ("allow: {uris: [\"*://h.example/\"]}", "scheme"),
        ("allow: {dns_names: [\"**.example\"]}", "two stars"),
        ("allow: {dns_names: [\"x.example.\"]}", "full stop"),
        ("allow: {ip_addresses: [10.1.2.3/16]}", "bits beyond its prefix"),
        ("allow: {ip_addresses: [\"::ffff:10.0.0.0/104\"]}", "form of IPv6"),
        ("allow: {ssh_principals: [\"gw-?\"]}", "neither a host name nor an address"),
    ] {
        let said = fails_in_two_lines(&apply(&server, &role(spec)), 2);
        assert!(said.contains(why), "{spec}: {said}");
    }
    server.create(&role("max_ttl: 3650d, allow: {uris: [\"https://*.h.example/{{bot.name}}/*\"]}"));
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
        "NAME         BOT  BOUND    RECOVERIES  MODE      LOCKED  EXPIRED  LAST JOIN  CERTIFICATE ENDS  AGENT  LABELS\n\
         a-long-name  gw   waiting  0/1         standard  no      no       -          -                 -      -\n\
         b            gw   yes      3/-         relaxed   yes     no       -          -                 -      -\n"
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
    server.create(&(BOT.to_owned() + &token("t", "onboarding: {registration_secret: s3cret-s3cret-s3cret}", "")));
    let hidden = server.ctl(&["get", "token/t", "--format", "yaml"]);
    server.create(&hidden.replace("limit: 1", "limit: 4"));
    let token = server.get("token/t");
    assert_eq!(token["spec"]["bound_keypair"]["recovery"]["limit"], 4);
    assert_eq!(token["spec"]["bound_keypair"]["onboarding"]["registration_secret"], "s3cret-s3cret-s3cret");
    assert_eq!(token["status"]["bound_keypair"]["registration_secret"], "s3cret-s3cret-s3cret");
    server.ctl(&["rm", "token/t"]);
    assert!(fails_in_two_lines(&apply(&server, &hidden), 1).contains("--with-secrets"));
}

fn files_of_edit(server: &Server) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(server.dir.path()).unwrap().map(|file| file.unwrap().path());
    files.filter(|file| file.file_name().unwrap().to_string_lossy().starts_with("boundkeyctl-")).collect()
}

#[test]
fn edit_changes_what_was_edited_and_nothing_else() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "onboarding: {registration_secret: s3cret-s3cret-s3cret}", "")));
    let told = server.audit().len();
    let run_edit =
        |editor: &str| String::from_utf8(support::success(&mut server.edit_command("token/t", editor)).stdout).unwrap();
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
    assert_eq!(token["spec"]["bound_keypair"]["onboarding"]["registration_secret"], "s3cret-s3cret-s3cret");
    assert!(files_of_edit(&server).is_empty());

    // VISUAL comes first; and what the editor is given is for nobody else to read.
    let mut command = server.edit_command("token/t", "false");
    command.env("VISUAL", "test \"$(stat -c %a \"$1\")\" = 600 && ! grep -q s3cret-s3cret-s3cret \"$1\" && true");
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
        let said = fails_in_two_lines(&run(&mut server.edit_command("token/t", editor)), code);
        let [file] = &files_of_edit(&server)[..] else { panic!("one file is kept") };
        assert!(said.contains(why) && said.contains(file.to_str().unwrap()), "{said}");
        std::fs::remove_file(file).unwrap();
    }
    // Not where others could put another text in place.
    let open = server.dir.join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let said = fails_in_two_lines(&run(server.edit_command("token/t", "false").env("TMPDIR", &open)), 1);
    assert!(said.contains("lets other users write") && said.contains("TMPDIR may name another directory"), "{said}");
    assert_eq!(std::fs::read_dir(&open).unwrap().count(), 0);
    let said = fails_in_two_lines(&run(&mut server.edit_command("token/none", "true")), 1);
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
    support::success(&mut server.edit_command("token/t", &other("reset token/t")));
    assert_eq!(server.get("token/t")["spec"]["bound_keypair"]["recovery"]["limit"], 5);
    assert_eq!(server.status("t")["recovery_count"], 0);

    let editor =
        other("rotate token/t").replace("limit: 1", "limit: 5").replace("'s/limit: 5/limit: 5/'", "'s/limit: 5/limit: 6/'");
    let said = fails_in_two_lines(&run(&mut server.edit_command("token/t", &editor)), 1);
    assert!(said.contains("changed meanwhile"), "{said}");
}
