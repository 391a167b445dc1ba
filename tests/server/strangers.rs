//! What a stranger can make the server keep, and what of it a terminal is shown.

use super::*;

use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use boundkey::platform::text::is_graphic;
use support::proxy::{Proxy, Way};
use support::{Device, Running};

/// A join by a stranger with `token`, for the server at `url`. It is signed by nobody.
fn join(server: &Server, token: &str, url: &str) -> Answer {
    join_with(server, token, url, &Value::Null)
}

fn join_with(server: &Server, token: &str, url: &str, binding: &Value) -> Answer {
    let challenge: Value =
        serde_json::from_str(&ask(server, "POST", "/v1/join/challenge", &json!({ "token": token }).to_string()).body).unwrap();
    let text = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let key = json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
    let header = json!({ "alg": "EdDSA", "jwk": key, "nonce": challenge["challenge"], "url": url });
    let heartbeat = json!({ "version": "", "hostname": "", "architecture": "", "keystore": "" });
    let attempt = "00112233-4455-6677-8899-aabbccddeeff";
    let request = json!({
        "token": token, "attempt": attempt, "csr": "", "heartbeat": heartbeat, "external_account_binding": binding,
    });
    let jws = json!({ "protected": text(header), "payload": text(request), "signature": "AA" });
    ask(server, "POST", "/v1/join", &jws.to_string())
}

/// A first join by a secret, as [`join`]: which one, nobody can tell.
fn register(server: &Server, token: &str) -> Answer {
    join_with(server, token, "https://127.0.0.1/v1/join", &json!({ "protected": "", "payload": "", "signature": "" }))
}

fn size_of_events(server: &Server) -> u64 {
    let database = rusqlite::Connection::open(server.dir.join("data/boundkey.db")).unwrap();
    database.query_row("SELECT coalesce(sum(length(document)), 0) FROM event", [], |row| row.get(0)).unwrap()
}

/// 60 requests with a URL of 34,000 control characters added 14.3 MB to the audit log.
#[test]
fn a_stranger_who_knows_a_token_adds_little_to_the_audit_log() {
    let server = Server::start();
    server.token("gw", "    recovery: {limit: 1}");
    let before = size_of_events(&server);
    for control in ["\u{1}", "\u{202e}", "\""] {
        let url = format!("https://127.0.0.1/{}", control.repeat(4_000));
        for _ in 0..50 {
            let refused = join(&server, "gw", &url);
            assert_eq!(refused.problem()["type"], "urn:boundkey:problem:bad-request", "{}", refused.body);
            assert!(refused.body.len() < 1000, "{}", refused.body);
        }
    }
    let added = size_of_events(&server) - before;
    assert!((10_000..40_000).contains(&added), "{added} bytes");
    let refusals = server.audit().into_iter().filter(|event| event["event"] == "join.refused").count();
    assert!((20..150).contains(&refusals), "{refusals}");
    for format in ["json", "text"] {
        let shown = server.ctl(&["audit", "--format", format]);
        assert!(shown.chars().all(|c| is_graphic(c) || c == '\n'), "{shown}");
    }
}

#[test]
fn tokens_that_are_not_there_are_counted() {
    let mut server = Server::start();
    server.token("gw", "    recovery: {limit: 1}");
    for number in 0..20 {
        let name = format!("guess-{number}\u{9b}{}", "x".repeat(5_000));
        assert_eq!(ask(&server, "POST", "/v1/join/challenge", &json!({ "token": name }).to_string()).status, 404);
        assert_eq!(join(&server, &name, "https://127.0.0.1/v1/join").status, 404);
    }
    assert_eq!(ask(&server, "POST", "/v1/join/challenge", &json!({ "token": "gw" }).to_string()).status, 200);
    // They are told of once a minute, and as the server ends.
    assert!(server.stop().success());
    server.run();
    let told: Vec<_> = server.audit().into_iter().filter(|event| event["event"] == "token.unknown").collect();
    let [event] = &told[..] else { panic!("{told:?}") };
    // Each name was in a challenge call, in that of the join, and in the join.
    assert_eq!((&event["count"], &event["success"], &event["remote_addrs"]), (&json!(60), &json!(false), &json!(["127.0.0.1"])));
    let names = event["names"].as_array().unwrap();
    assert_eq!(names.len(), 5);
    assert!(names[0].as_str().unwrap().starts_with("\"guess-0\\u009bxxx"), "{event}");
    assert!(event.to_string().len() < 1000, "{event}");
}

/// A text that somebody wrote reaches the terminals of others: none of it acts on them, and scripts read what was written.
#[test]
fn what_is_not_graphic_reaches_no_terminal() {
    let message = "a\u{1b}[2J \u{9b}2J \u{202e}b \u{2028} \u{e0001} ü\n.";
    let server = Server::start();
    server.token("gw", "    recovery: {limit: 1}");
    server.ctl(&["lock", "--token", "gw", "--message", message]);
    let graphic = |text: &str| text.chars().all(|c| is_graphic(c) || c == '\n');
    for what in [&["get", "lock"][..], &["get", "token/gw"], &["audit"]] {
        for format in ["text", "json", "yaml"] {
            if what == ["audit"] && format == "yaml" {
                continue;
            }
            let shown = server.ctl(&[what, &["--format", format]].concat());
            assert!(graphic(&shown), "{shown}");
            assert!(what == ["get", "token/gw"] || shown.contains("\\u202eb") && shown.contains('ü'), "{shown}");
        }
    }
    let locks: Value = serde_json::from_str(&server.ctl(&["get", "lock", "--format", "json"])).unwrap();
    assert_eq!(locks[0]["spec"]["message"], message);
    let yaml = server.ctl(&["get", "lock", "--format", "yaml"]);
    server.ctl(&["rm", &format!("lock/{}", locks[0]["metadata"]["name"].as_str().unwrap())]);
    server.create(&yaml);
    let again: Value = serde_json::from_str(&server.ctl(&["get", "lock", "--format", "json"])).unwrap();
    assert_eq!(again, locks);
    let long = fails(&run(&mut server.ctl_command(&["lock", "--token", "gw", "--message", &"x".repeat(1025)])), 1);
    assert!(long.contains("spec.message is longer than 1024 bytes"), "{long}");
    let long = fails(&run(&mut server.ctl_command(&["exempt", "token/gw", "--reason", &"x".repeat(1025)])), 1);
    assert!(long.contains("the reason is longer than 1024 bytes"), "{long}");
}

/// All steps are written down. How much that is at full pace, one step in five seconds for a whole day, stands in the threat model. The
/// database is given the rows that such a day leaves, each like that of a real renewal.
#[test]
fn a_token_at_full_pace_grows_the_audit_log_by_a_stated_size() {
    const STEPS_A_DAY: i64 = 86_400 / 5;
    let mut server = Server::start();
    let device = server.device("gateway-0042", 1);
    device.join();
    device.join();
    server.stop();
    let database = rusqlite::Connection::open(server.dir.join("data/boundkey.db")).unwrap();
    let size =
        || database.query_row("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size", [], |row| row.get(0));
    let before: i64 = size().unwrap();
    let added = database.execute(
        "INSERT INTO event (number, time, token, document, latest)
         WITH RECURSIVE step (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM step WHERE n < ?1)
         SELECT number + n, time + 5000 * n, token, document, latest + 5000 * n FROM step,
             (SELECT * FROM event WHERE json_extract(document, '$.event') = 'join.renewal' ORDER BY number DESC LIMIT 1)",
        [STEPS_A_DAY],
    );
    assert_eq!(added.unwrap(), usize::try_from(STEPS_A_DAY).unwrap());
    let bytes = size().unwrap() - before;
    println!("{STEPS_A_DAY} steps: {bytes} bytes, {} each", bytes / STEPS_A_DAY);
    assert!((8_000_000..10_000_000).contains(&bytes), "{bytes} bytes a day");
}

/// What the server says goes into the device's log, status and error: in one line, and of a bounded length.
#[test]
fn what_a_device_is_told_writes_no_line_of_its_own() {
    let server = Server::start();
    let device = server.device("gw", 1);
    server.ctl(&["lock", "--token", "gw", "--message", "a\n<3>b \u{9b}2J \u{202e}c"]);
    let (code, said) = device.try_join();
    assert_eq!(code, 4);
    assert!(said.contains("locked: a\\u000a<3>b \\u009b2J \\u202ec") && !said.contains("\n<3>b"), "{said}");
    for format in ["text", "json"] {
        let shown = success(&mut device.command(&["status", "--format", format])).stdout;
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.contains("u202ec") && shown.chars().all(|c| is_graphic(c) || c == '\n'), "{shown}");
        assert!(!shown.contains("\n<3>b"), "{shown}");
    }
}

/// A secret of 4 digits fell in half a second.
#[test]
fn registrations_that_fail_have_to_pause_and_the_device_gets_in() {
    let server = Server::start();
    let device = server.device("gw", 1);
    let stranger = Device::new(&server, "gw", "a-secret-of-tests");
    for _ in 0..3 {
        assert_ne!(
            register(&server, "gw").problem()["type"],
            "urn:boundkey:problem:registration-paused",
            "no secret was looked at"
        );
        assert_eq!(stranger.try_join().0, 6);
    }
    for _ in 0..100 {
        let paused = register(&server, "gw");
        if paused.status != 429 {
            continue; // a pause of 2 s may be over by now
        }
        assert_eq!(paused.problem()["type"], "urn:boundkey:problem:registration-paused");
        let wait = paused
            .head
            .to_ascii_lowercase()
            .split("retry-after: ")
            .nth(1)
            .and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        assert!(wait.is_some_and(|seconds: u64| (1..=60).contains(&seconds)), "{}", paused.head);
    }
    let told = server.audit();
    let paused: Vec<_> = told.iter().filter(|event| event["problem"] == "registration-paused").collect();
    assert!(paused.len() > 10 && paused.iter().all(|event| event["token"] == "gw"), "{paused:?}");
    // It is at the same address, so it waits as long as the stranger has to.
    assert_eq!(device.try_join().0, 0);
    assert_eq!(server.events("gw").last().expect("an event"), "join.first");
    assert_ne!(register(&server, "gw").status, 429, "a token that is bound takes no secret");
}

/// A locked token, and one whose challenge is stale, answer otherwise to the right secret than to a wrong one. Both tell what a guess was
/// worth, so both count as one.
#[test]
fn answers_that_tell_of_a_secret_count_as_tries() {
    let server = Server::start();
    let paused = |token: &str| {
        server.audit().iter().filter(|event| event["token"] == token && event["problem"] == "registration-paused").count()
    };
    let refused = |token: &str, problem: &str| {
        server.audit().iter().filter(|event| event["token"] == token && event["problem"] == problem).count()
    };
    let device = server.device("locked", 1);
    server.ctl(&["lock", "--token", "locked"]);
    for tries in 1..=3 {
        assert_eq!(device.try_join().0, 4);
        assert_eq!((refused("locked", "locked"), paused("locked")), (tries, 0));
    }
    assert_eq!(device.try_join().0, 4, "after its pause");
    assert!(paused("locked") > 0);

    // The token changes between the challenge and each request: every join finds its challenge stale.
    let device = server.device("stale", 1);
    let proxy = Proxy::to(&server.addr);
    let secret = server.status("stale")["registration_secret"].as_str().expect("a secret").to_owned();
    device.configure_with(&proxy.addr, &server.ca_pin, &format!("  bound_keypair: {{registration_secret: {secret}}}"), "");
    let changes = AtomicU64::new(0);
    let data = server.dir.join("data");
    proxy.before_each(Way::Up, move || {
        let change = changes.fetch_add(1, Ordering::Relaxed);
        let yaml = format!(
            "kind: token\nversion: v2\nmetadata: {{name: stale, labels: {{change: c{change}}}}}\nspec:\n  roles: [Bot]\n  \
             bot_name: stale\n  join_method: bound_keypair\n  bound_keypair: {{recovery: {{limit: 1}}}}\n"
        );
        let mut create = Command::new(env!("CARGO_BIN_EXE_boundkeyctl"));
        let done = support::run_with_input(create.arg("--data-dir").arg(&data).args(["create", "-f", "-"]), &yaml);
        assert!(done.status.success(), "{done:?}");
    });
    let joining = Running(device.command(&["start", "--oneshot"]).stderr(Stdio::null()).spawn().expect("boundkey"));
    support::wait_for("a pause", || paused("stale") > 0);
    drop(joining);
    assert!(server.events("stale").iter().all(|event| event == "join.refused"), "{:?}", server.events("stale"));
}

#[test]
fn a_secret_that_can_be_guessed_is_refused_where_it_is_chosen() {
    let server = Server::start();
    let token = |secret: &str, status: &str| {
        format!(
            "kind: bot\nversion: v1\nmetadata: {{name: gw}}\n---\nkind: token\nversion: v2\nmetadata: {{name: gw}}\nspec:\n  roles: [Bot]\n  \
             bot_name: gw\n  join_method: bound_keypair\n  bound_keypair:\n    onboarding: {{registration_secret: {secret}}}\n{status}"
        )
    };
    let apply = |yaml: &str| support::run_with_input(&mut server.ctl_command(&["create", "-f", "-"]), yaml);
    let said = fails(&apply(&token("\"1234\"", "")), 1);
    assert!(said.contains("has 4 characters and can be guessed: give it 16 or more, or leave it out"), "{said}");
    // One that is there from before goes on to work, and is warned of.
    let stored = "status: {bound_keypair: {registration_secret: \"1234\"}}\n";
    server.create(&token("\"1234\"", stored));
    server.create(&token("\"1234\"", "").replace("name: gw}", "name: gw, labels: {site: one}}"));
    fails(&apply(&token("\"12345\"", "")), 1);
    let device = Device::new(&server, "gw", "\"1234\"");
    device.join();
    assert!(server.log().contains("token/gw was registered by a secret of less than 16 characters"), "{}", server.log());
    server.ctl(&["reset", "token/gw"]);
    assert!(server.log().contains("token/gw: its registration secret of less than 16 characters can be guessed"));
    server.create(&token("a-secret-of-tests", ""));
}
