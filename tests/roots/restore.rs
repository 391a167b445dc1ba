//! What a restored backup does to the CAs.

use std::path::Path;

use super::support::{Server, success};
use super::{bundle, ca, phases};

/// A restore brings back tokens and locks as they were. The trust bundles of the devices and the keys that go with them stay as they are.
#[test]
fn a_restored_database_takes_no_step_back() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let auth = |command: &str, server: &Server, backup: &Path| {
        let mut auth = std::process::Command::new(env!("CARGO_BIN_EXE_boundkey-auth"));
        success(auth.arg(command).arg("--data-dir").arg(server.dir.join("data")).arg(backup));
    };
    let (before, after) = (server.dir.join("before"), server.dir.join("after"));
    auth("backup", &server, &before);
    ca(&server, &["rotate"]);
    ca(&server, &["rotate", "--to", "active", "--yes"]);
    device.join();
    ca(&server, &["rotate", "--to", "retired", "--yes"]);
    device.join();
    let (stood, held) = (phases(&server), bundle(&device).sequence());
    auth("backup", &server, &after);
    server.stop();
    auth("restore", &server, &before);
    server.run();
    assert_eq!(phases(&server), stood);
    device.join();
    assert_eq!(bundle(&device).sequence(), held);
    assert!(server.events("gw").iter().any(|event| event == "join.rolled_forward"), "{:?}", server.events("gw"));
    // Where all is lost, a backup from after the steps is the whole server.
    server.stop();
    std::fs::remove_dir_all(server.dir.join("data")).expect("remove");
    success(std::process::Command::new("cp").arg("-a").arg(&after).arg(server.dir.join("data")));
    server.run();
    assert_eq!(phases(&server), stood);
    device.join();
    assert_eq!(bundle(&device).sequence(), held);
}
