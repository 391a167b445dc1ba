//! The TLS server's certificate renews itself, while the server runs, a month before its end; and when the server's names changed.
#![cfg(all(feature = "agent", feature = "auth"))]

mod support;

use std::process::Command;

use support::wall_clock::WallClock;
use support::{Server, run, success, tool, wait_for};

/// Serial number of the certificate that the server presents, if the connection comes so far.
fn shown(server: &Server) -> Option<String> {
    let script = "openssl s_client -connect \"$0\" </dev/null 2>/dev/null | openssl x509 -noout -serial";
    let output = run(Command::new("sh").args(["-c", script, &server.addr]));
    output.status.success().then(|| String::from_utf8(output.stdout).expect("UTF-8"))
}

/// The same, where nothing may come between.
fn presented(server: &Server) -> String {
    shown(server).expect("a certificate")
}

/// The clock passes the sixtieth of the certificate's ninety days two seconds after the server started.
#[test]
fn renews_itself_in_time_and_devices_go_on() {
    tool("openssl", "openssl");
    let later = WallClock::off_by(61 * 24 * 3600);
    let mut server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let first = presented(&server);
    assert!(server.stop().success());
    // The program itself, not a wrapper that would outlive the test: faketime tells the library that does its work.
    let library = success(Command::new(tool("faketime", "faketime")).args(["-f", "+0", "printenv", "LD_PRELOAD"]));
    let mut late = server.command();
    late.env("LD_PRELOAD", String::from_utf8(library.stdout).expect("UTF-8").trim()).env("FAKETIME", "+59.9995d x20");
    assert!(server.run_as(late), "{}", server.log());
    // Its time limits are as much shorter: a connection that is slow is cut off.
    wait_for("another certificate", || shown(&server).is_some_and(|serial| serial != first));
    // Killed, it would leave files of faketime's behind.
    assert!(server.stop().success());
    assert!(server.log().contains("renewed the TLS server's certificate"), "{}", server.log());

    // Two months have passed for the server: the device's certificate ran out, and its one recovery is spent.
    server.env.extend(later.env().map(|(name, value)| (name, value.into())));
    server.run();
    assert_ne!(presented(&server), first);
    server.ctl(&["exempt", "token/gw"]);
    device.join();
}

/// A server that moved: its operator writes the new name into `cluster.json`.
#[test]
fn follows_the_names_of_the_cluster() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let first = presented(&server);
    assert!(server.stop().success());
    let file = server.dir.join("data/cluster.json");
    let cluster = std::fs::read_to_string(&file).unwrap();
    let renamed = cluster.replace("\"localhost\"", "\"auth.example.com\"");
    assert_ne!(cluster, renamed);
    std::fs::write(&file, renamed).unwrap();
    server.run();
    let second = presented(&server);
    assert_ne!(second, first);
    device.join();
    let local = server.addr.replace("127.0.0.1", "localhost");
    device.configure_with(&local, &server.ca_pin, "", "");
    assert_eq!(device.try_join().0, 3, "a name that was taken away");

    // The same names again: nothing to renew.
    assert!(server.stop().success());
    server.run();
    assert_eq!(presented(&server), second);
}
