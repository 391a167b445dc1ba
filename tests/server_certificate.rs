//! The TLS server's certificate renews itself, while the server runs, a month before its end; and when the server's names changed.
#![cfg(all(feature = "agent", feature = "auth"))]

mod support;

use std::process::Command;

use support::{Server, success, tool, wait_for};

/// Serial number of the certificate that the server presents.
fn presented(server: &Server) -> String {
    let script = "openssl s_client -connect \"$0\" </dev/null 2>/dev/null | openssl x509 -noout -serial";
    let output = success(Command::new("sh").args(["-c", script, &server.addr]));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The clock passes the sixtieth of the certificate's ninety days a second after the server started.
#[test]
fn renews_itself_in_time_and_devices_go_on() {
    tool("openssl", "openssl");
    let mut server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let first = presented(&server);
    assert!(server.stop().success());
    // The program itself, not a wrapper that would outlive the test: faketime tells the library that does its work.
    let library = success(Command::new(tool("faketime", "faketime")).args(["-f", "+0", "printenv", "LD_PRELOAD"]));
    let mut late = server.command();
    late.env("LD_PRELOAD", String::from_utf8(library.stdout).expect("UTF-8").trim()).env("FAKETIME", "+59.999d x60");
    assert!(server.run_as(late), "{}", server.log());
    wait_for("another certificate", || presented(&server) != first);
    assert!(server.log().contains("renewed the TLS server's certificate"), "{}", server.log());
    // Two months have passed for the server: the device's certificate ran out, and its one recovery is spent.
    server.ctl(&["exempt", "token/gw"]);
    device.join();
    // Killed, it would leave files of faketime's behind.
    assert!(server.stop().success());
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
