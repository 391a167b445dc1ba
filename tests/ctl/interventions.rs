//! What an operator does to a device from the desk: rm, reset, rotate, exempt, lock.

use std::sync::Arc;
use std::time::Duration;

use boundkey::api::event::EventFilter;
use boundkey::api::resource::{Kind, Resource, ResourceId};
use boundkey::auth::operator::Operator;
use boundkey::auth::store::{Change, Commit, SqliteStore, Store};
use boundkey::join::{RecoveryCode, SshKey, Thumbprint};
use boundkey::platform::time::{Clock as _, System, Timestamp};
use serde_json::{Value, json};

use super::support::{Server, TempDir, run, run_with_input, success, wait_for};
use super::{BOT, INSTANCE, OTHER_KEY, bound, ctl_fails, events_after, fails, names, token};

#[test]
fn rm_deletes_and_tells() {
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "", "")));
    assert_eq!(server.ctl(&["rm", "token/t"]), "token/t deleted\n");
    assert_eq!(events_after(&server, 2), ["resource.deleted"]);
    assert!(ctl_fails(&server, &["rm", "token/t"], 1).contains("there is no token/t"));
    assert!(fails(&run(&mut server.ctl_command(&["rm", "token"])), 2).contains("KIND/NAME"));
}

/// What is made of nothing is refused; what is taken away from under others is told.
#[test]
fn rm_tells_who_still_names_what_is_gone() {
    let server = Server::start();
    let role = "kind: role\nversion: v1\nmetadata: {name: r}\nspec: {}\n---\n";
    let bot = "kind: bot\nversion: v1\nmetadata: {name: gw}\nspec: {roles: [r]}\n---\n";
    let host = "kind: token\nversion: v2\nmetadata: {name: host}\nspec: {roles: [Node], host: {roles: [r]}, join_method: bound_keypair, \
                bound_keypair: {}}\n---\n";
    server.create(&(role.to_owned() + bot + &token("t", "", "") + host));
    let warned = |key: &str| String::from_utf8(success(&mut server.ctl_command(&["rm", key])).stderr).unwrap();
    let said = warned("role/r");
    assert_eq!(said.lines().count(), 4, "{said}");
    for user in ["bot/gw", "token/host"] {
        assert!(said.contains(&format!("warning: {user} names role/r: ")) && said.contains(&format!("edit {user} ")), "{said}");
    }
    let said = warned("bot/gw");
    assert!(said.starts_with("warning: token/t names bot/gw: its joins are refused until there is one\n  "), "{said}");
    assert_eq!(warned("token/t"), "");
}

/// A lock that the server put on for two holders of one key outlived `rm` and `create` of its token, and nothing said so.
#[test]
fn locks_that_outlive_what_they_stop_are_told_of() {
    let server = Server::start();
    let documents = BOT.to_owned() + &token("t", "", &bound());
    server.create(&(documents.clone() + &automatic_lock("auto", "t")));
    server.ctl(&["lock", "--token", "t", "--expires", "1s"]);
    server.ctl(&["lock", "--bot", "gw"]);
    let all = || -> Vec<Value> { serde_json::from_str(&server.ctl(&["get", "lock", "--format", "json"])).unwrap() };
    let on_bot = all().into_iter().find(|lock| lock["spec"]["target"]["bot"] == "gw").expect("a lock on the bot");
    let on_bot = on_bot["metadata"]["name"].as_str().unwrap().to_owned();
    wait_for("the lock of a second to end", || {
        let ended =
            |lock: Value| lock["spec"]["expires"].as_str().is_none_or(|end| end.parse::<Timestamp>().unwrap() <= System.now());
        all().into_iter().all(ended)
    });
    let stderr = |args: &[&str]| String::from_utf8(success(&mut server.ctl_command(args)).stderr).unwrap();
    let said = stderr(&["rm", "token/t"]);
    assert_eq!(said, "warning: lock/auto stays, and stops another token/t\n  boundkeyctl rm lock/auto removes it\n");
    let said = stderr(&["rm", "bot/gw"]);
    assert_eq!(
        said,
        format!("warning: lock/{on_bot} stays, and stops another bot/gw\n  boundkeyctl rm lock/{on_bot} removes it\n")
    );

    let output = run_with_input(&mut server.ctl_command(&["create", "-f", "-"]), &documents);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    for (what, lock) in [("token/t", "auto"), ("bot/gw", &on_bot)] {
        let warning = format!(
            "warning: {what} is stopped by lock/{lock}, which was there before\n  boundkeyctl rm lock/{lock} removes it\n"
        );
        assert!(said.contains(&warning), "{said}");
    }
    assert_eq!(said.lines().count(), 4, "{said}");
    // An update is not told again.
    let output = run_with_input(&mut server.ctl_command(&["create", "-f", "-"]), &documents);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
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

    let output = success(&mut server.ctl_command(&["exempt", "token/t", "--recoveries", "2", "--for", "3h", "--reason", "swap"]));
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

/// A code is checked at the desk, and names the one device that can come back.
#[test]
fn an_exemption_by_code_is_for_one_key() {
    const CODE: &str = "J3XC-NZN9-P5AP-D629";
    let server = Server::start();
    server.create(&(BOT.to_owned() + &token("t", "", &bound())));
    for (typed, why) in [
        ("J3XC-NZN9-P5AP-D62", "it has 15 symbols"),
        ("J3XC-NZN9-P5AP-D62U", "no recovery code has 'U'"),
        ("3JXC-NZN9-P5AP-D629", "its check symbol does not fit"),
    ] {
        let output = run(&mut server.ctl_command(&["exempt", "token/t", "--key", typed]));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    }
    fails(&run(&mut server.ctl_command(&["exempt", "token/t", "--key", CODE, "--recoveries", "2"])), 2);
    fails(&run(&mut server.ctl_command(&["exempt", "token/t", "--key", CODE, "--cancel"])), 2);
    assert_eq!(server.status("t")["exemption"], Value::Null, "nothing was changed");
    // A device cannot rotate to a key that it has: the token would be locked for good.
    let bound: SshKey = server.status("t")["bound_public_key"].as_str().unwrap().parse().unwrap();
    let used = RecoveryCode::of(&Thumbprint::of(&bound.0)).to_string();
    assert!(ctl_fails(&server, &["exempt", "token/t", "--key", &used], 1).contains("was bound to token/t already"));
    assert_eq!((&server.status("t")["exemption"], names(&server, "lock").len()), (&Value::Null, 0), "nothing was changed");
    let said = server.ctl(&["exempt", "token/t", "--for", "1h", "--key", &CODE.to_lowercase().replace('-', " ")]);
    assert!(said.ends_with(&format!(": only the device with key {CODE} can come back\n")), "{said}");
    assert_eq!(server.status("t")["exemption"]["key"], CODE);
    assert!(server.ctl(&["get", "token/t"]).contains(&format!("only for the device with key {CODE}, until ")));
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
        let changes = vec![Change { id: token.id(), expected: None, to: Some(token) }];
        store.commit(Commit { changes, ..Commit::default() }).unwrap();
    }
    let operator = Operator::new(store.clone(), Arc::new(System), Arc::new(System));
    let now = Timestamp::from_secs(10);
    operator.end_exemptions(now).unwrap();
    operator.end_exemptions(now).unwrap();
    let events = store.events(&EventFilter::default()).unwrap().events;
    let told: Vec<_> = events.iter().map(|event| (event.event.name(), event.token.clone().unwrap(), event.time)).collect();
    assert_eq!(told, [("exemption.expired".into(), "ended".into(), now)]);
    let exempt = |name| match store.get(&ResourceId::new(Kind::Token, name)).unwrap().unwrap().resource {
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
