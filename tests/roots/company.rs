//! A cluster's CA under the root of a company.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::support::company::{AS_CA, Company};
use super::support::{Server, run, success};
use super::{bundle, ca, ca_refused, device_with_output, verifies};

#[test]
fn a_ca_may_stand_under_a_company_s_root() {
    let (company, mut server) = (Company::new(), Server::blank(Vec::new()));
    let request = server.dir.join("ca.csr");
    success(&mut server.init_command(&["--ca-request", &request.display().to_string()]));
    let chain = server.dir.join("chain.pem");
    std::fs::write(&chain, company.chain(&request)).expect("write");
    let made = success(&mut server.init_command(&["--ca-chain", &chain.display().to_string()])).stdout;
    let made: Value = serde_json::from_slice(&made).expect("JSON");
    assert_eq!(made["ca_pin"], company.pin());
    server.ca_pin = company.pin();
    server.run();
    let (one, two) = (device_with_output(&server, "one"), device_with_output(&server, "two"));
    for device in [&one, &two, &one] {
        device.join();
    }
    assert!(verifies(&one, &two) && verifies(&two, &one));
    assert_eq!(
        std::fs::read_to_string(one.dir.join("out/ca.crt")).expect("ca.crt"),
        std::fs::read_to_string(&chain).expect("a chain")
    );
    // From the first join on the cluster's own CA is trusted, and no other of the company's.
    assert_eq!(bundle(&one).roots().iter().map(|root| root.chain.len()).collect::<Vec<_>>(), [2]);
    assert_eq!(ca(&server, &["status"])["cas"][0]["root_pin"], company.pin());
    assert!(ca_refused(&server, &["rotate"]).contains("stands under another's root"));
    assert_eq!(server.events("one"), ["join.first", "join.renewal"]);
}

#[test]
fn a_chain_that_devices_would_not_take_is_refused_and_nothing_is_written() {
    let (company, other, server) = (Company::new(), Company::new(), Server::blank(Vec::new()));
    let chain = server.dir.join("chain.pem");
    let init = |text: &str| {
        std::fs::write(&chain, text).expect("write");
        run(&mut server.init_command(&["--ca-chain", &chain.display().to_string()]))
    };
    let early = init("nothing");
    assert!(String::from_utf8_lossy(&early.stderr).contains("no request for it was made here"));
    assert!(!server.dir.join("data").exists());
    let request = server.dir.join("ca.csr");
    let ask = ["--ca-request", &request.display().to_string()].map(str::to_owned);
    success(&mut server.init_command(&ask.each_ref().map(String::as_str)));
    let strange = Server::blank(Vec::new());
    let strange_request = strange.dir.join("ca.csr");
    success(&mut strange.init_command(&["--ca-request", &strange_request.display().to_string()]));
    let root = std::fs::read_to_string(company.root()).expect("the root");
    let rsa = Company::with_key(&["rsa:2048"]);
    let with = |extensions: &str, days: &str| company.issue(&request, extensions, days) + &root;
    let good = company.chain(&request);
    let cases = [
        (String::new(), "it holds no certificate in PEM"),
        (company.issue(&request, AS_CA, "9"), "it holds one certificate"),
        (with(&AS_CA.replace("CA:TRUE,pathlen:0", "CA:FALSE"), "9"), "certificate 1: it is not that of a CA"),
        (with(&AS_CA.replace("keyCertSign,", ""), "9"), "certificate 1: its key usage lacks keyCertSign"),
        (with(&AS_CA.replace(",cRLSign", ""), "9"), "certificate 1: its key usage lacks cRLSign"),
        (with(&format!("{AS_CA}extendedKeyUsage=serverAuth\n"), "9"), "certificate 1: it has an extended key usage"),
        (with(&format!("{AS_CA}nameConstraints=critical,permitted;DNS:example.com\n"), "9"), "does not hold under its root"),
        (with(AS_CA, "0"), "certificate 1: it has ended"),
        (company.chain(&strange_request), "is not for the key that the request was for"),
        (
            company.issue(&request, AS_CA, "9") + &std::fs::read_to_string(other.root()).expect("another root"),
            "certificate 1 is not signed by the key of certificate 2",
        ),
        (rsa.chain(&request), "certificate 1 is not signed by the key of certificate 2 with ECDSA on P-256"),
        (format!("{root}{good}"), "its first certificate is not for the key"),
        (good.replace("MII", "MIJ"), "cannot be read"),
        (format!("{good}{root}{root}{root}"), "it holds 5 certificates"),
    ];
    let before = files(&server.dir.join("data"));
    for (text, why) in cases {
        let output = init(&text);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(why) && said.contains("nothing was written"), "{why}: {said}");
        assert!(files(&server.dir.join("data")) == before, "{why}: something was written");
    }
    assert!(init(&good).status.success());
}

/// Names and content of all files in a data directory.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push((path.clone(), std::fs::read(&path).expect("content")));
        }
    }
    all.sort();
    all
}
