//! Lists longer than a page, and what the server says of a resource beside its document.

use serde_json::{Value, json};

use super::support::Server;
use super::{BOT, apply, bound, token};

#[test]
fn a_list_longer_than_a_page_is_whole_and_in_order_in_every_format() {
    let server = Server::start();
    let count = 1_003;
    let many: String = (0..count).map(|n| token(&format!("t{n:04}"), "", "")).collect();
    server.create(&(BOT.to_owned() + &many));
    let names: Vec<_> = (0..count).map(|n| format!("t{n:04}")).collect();

    let table = server.ctl(&["get", "token"]);
    let shown: Vec<_> = table.lines().skip(1).map(|row| row.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(shown, names);
    let json: Value = serde_json::from_str(&server.ctl(&["get", "token", "--format", "json"])).unwrap();
    let shown: Vec<_> = json.as_array().unwrap().iter().map(|token| token["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(shown, names);
    let again = apply(&server, &server.ctl(&["get", "token", "--format", "yaml"]));
    let unchanged = names.iter().fold(String::new(), |text, name| text + "token/" + name + " unchanged\n");
    assert_eq!(String::from_utf8_lossy(&again.stdout), unchanged);
}

#[test]
fn the_server_says_what_follows_from_a_token_and_table_and_json_agree() {
    let server = Server::start();
    let device = server.device("gw", 2);
    let view = |what: &str| server.get(what)["view"].clone();
    let waiting = view("token/gw");
    assert_eq!((&waiting["bound"], &waiting["locked"], &waiting["expired"]), (&json!("waiting"), &json!(false), &json!(false)));
    assert_eq!(
        (&waiting["last_join"], &waiting["agent_version"], &waiting["instance"]),
        (&json!(null), &json!(null), &json!(null))
    );

    device.join();
    server.ctl(&["lock", "--token", "gw", "--message", "lost in the field"]);
    let bound = view("token/gw");
    assert_eq!(
        (&bound["bound"], &bound["locked"], &bound["locks"][0]["message"]),
        (&json!("yes"), &json!(true), &json!("lost in the field"))
    );
    let recoveries = json!({"used": 1, "limit": 2, "remaining": 1, "low": true, "mode": "standard"});
    assert_eq!(bound["recoveries"], recoveries);
    let id = bound["instance"]["name"].as_str().unwrap();
    let instance = server.get(&format!("bot_instance/{id}"));
    for member in ["last_join", "certificate_ends", "agent_version", "hostname", "locked"] {
        assert_eq!(instance["view"][member], bound[member], "{member}");
    }
    assert_eq!(bound["last_join"], instance["status"]["authentications"][0]["time"]);
    assert_eq!(bound["certificate_ends"], device.status()["certificate"]["not_after"]);
    assert_eq!(bound["agent_version"], env!("CARGO_PKG_VERSION"));

    let table = server.ctl(&["get", "token"]);
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    let text = |member: &str| bound[member].as_str().unwrap();
    let expected = [
        "gw",
        "gw",
        "yes",
        "1/2",
        "standard",
        "yes",
        "no",
        text("last_join"),
        text("certificate_ends"),
        text("agent_version"),
        "-",
    ];
    assert_eq!(row, expected);
    let full = server.ctl(&["get", "token/gw"]);
    for member in ["last_join", "certificate_ends", "agent_version", "hostname"] {
        assert!(full.contains(text(member)), "{member}: {full}");
    }
}

#[test]
fn locks_on_the_bot_count_for_its_tokens_and_instances_and_ended_ones_for_nobody() {
    let server = Server::start();
    server.create(
        &(BOT.to_owned()
            + &token("expired", "", &bound())
                .replace("{name: expired}", "{name: expired, labels: {site: north}, expires: 2026-01-01T00:00:00Z}")),
    );
    let locked = |what: &str| server.get(what)["view"]["locked"].clone();
    assert_eq!((locked("bot/gw"), locked("token/expired")), (json!(false), json!(false)));
    server.create("kind: lock\nversion: v2\nmetadata: {name: over}\nspec: {target: {bot: gw}, expires: 2026-01-01T00:00:00Z}\n");
    assert_eq!((locked("bot/gw"), locked("token/expired")), (json!(false), json!(false)));
    assert_eq!(server.get("lock/over")["view"]["in_force"], json!(false));
    server.ctl(&["lock", "--bot", "gw"]);
    assert_eq!((locked("bot/gw"), locked("token/expired")), (json!(true), json!(true)));

    assert_eq!(server.get("token/expired")["view"]["expired"], json!(true));
    let table = server.ctl(&["get", "token"]);
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[5..], ["yes", "yes", "-", "-", "-", "site=north"]);
}
