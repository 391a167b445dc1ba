//! `boundkey hsm`: a technician prepares a token, and a device joins with it.
#![cfg(all(feature = "agent", feature = "auth"))]

#[path = "../hal/tests/support/mod.rs"]
#[cfg(feature = "pkcs11")]
mod hal_support;
mod support;

use std::process::{Command, Output};

fn hsm(args: &[&str]) -> Command {
    let mut command = support::agent();
    command.arg("hsm").args(args).env_remove("BOUNDKEY_PIN").env_remove("BOUNDKEY_SO_PIN").env_remove("BOUNDKEY_LOG");
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[cfg(not(feature = "pkcs11"))]
#[test]
fn a_build_without_it_says_so() {
    let output = support::run(&mut hsm(&["create-key", "--uri", "pkcs11:token=edge", "key-1"]));
    let said = stderr(&output);
    assert!(
        output.status.code() == Some(2) && said.starts_with("error: this boundkey is built without PKCS#11 support\n  install"),
        "{said}"
    );
}

#[cfg(feature = "pkcs11")]
mod with_tokens {
    use serde_json::{Value, json};

    use super::hal_support::process;
    use super::hal_support::softhsm::{self, PIN, SO_PIN, SoftHsm};
    use super::support::{Device, Server, TempDir, run, success};
    use super::{Command, hsm, stderr};

    /// What a step prints as JSON.
    fn json(command: &mut Command) -> Value {
        serde_json::from_slice(&success(command.args(["--format", "json"])).stdout).expect("JSON")
    }

    /// A store without tokens, and steps on it.
    struct Bench(SoftHsm, TempDir);

    impl Bench {
        fn new() -> Self {
            let dir = TempDir::new("hsm");
            std::fs::write(dir.join("so-pin"), SO_PIN).expect("PIN file");
            Self(SoftHsm::blank(dir.path()), dir)
        }

        fn step(&self, args: &[&str]) -> Command {
            let mut command = hsm(args);
            // Modules make themselves stores and caches there.
            command.envs(self.0.environment()).env("HOME", self.1.path());
            command
        }

        fn initialise(&self, label: &str) -> Command {
            let (module, so_pin, pin) = (softhsm::module(), self.1.join("so-pin"), self.0.pin_file());
            let mut command = self.step(&["init-token", "--label", label]);
            command.arg("--module").arg(module).arg("--so-pin-path").arg(so_pin).arg("--pin-path").arg(pin);
            command
        }
    }

    /// From a blank token to a device that joined with it, each step twice.
    #[test]
    fn a_token_is_prepared_and_used() {
        let bench = Bench::new();
        let module = softhsm::module().display().to_string();
        let listed = json(&mut bench.step(&["modules"]));
        assert!(
            listed
                .as_array()
                .expect("a list")
                .iter()
                .any(|m| m["module"].as_str().is_some_and(|m| m.ends_with("libsofthsm2.so")))
        );
        let blank = json(bench.step(&["tokens"]).args(["--module", &module]));
        assert_eq!((&blank[0]["state"], &blank[0]["uri"]), (&json!("blank"), &Value::Null));

        let made = json(&mut bench.initialise("edge"));
        let uri = made[0]["uri"].as_str().expect("a URI").to_owned();
        assert!(uri.starts_with("pkcs11:token=edge;serial=") && uri.ends_with(&format!("?module-path={module}")), "{uri}");
        let again = success(bench.initialise("edge").args(["--format", "json"]));
        assert!(stderr(&again).contains("is initialised already; it was left alone"), "{}", stderr(&again));
        assert_eq!(serde_json::from_slice::<Value>(&again.stdout).expect("JSON"), made);
        let tokens = json(&mut bench.step(&["tokens"]));
        assert!(
            tokens.as_array().expect("a list").iter().any(|token| token["uri"] == json!(uri) && token["pin"] == json!("set"))
        );

        let pin = bench.0.pin_file().display().to_string();
        let on_it = ["--uri", &uri, "--pin-path", &pin];
        assert_eq!(json(bench.step(&["keys"]).args(on_it)), json!([]));
        let create = || json(bench.step(&["create-key", "spare"]).args(on_it));
        let key = create();
        assert_eq!(create(), key, "the second time it is left as it is");
        let key_uri = key[0]["uri"].as_str().expect("a URI");
        assert!(key_uri.contains(";object=boundkey-spare;id=") && key_uri.contains(";type=private?module-path="), "{key_uri}");
        assert!(key[0]["public_key"].as_str().expect("a key").starts_with("ecdsa-sha2-nistp256 "));
        let ed25519 = json(bench.step(&["create-key", "spare-2", "--algorithm", "ed25519"]).args(on_it));
        assert!(ed25519[0]["public_key"].as_str().expect("a key").starts_with("ssh-ed25519 "));
        // Others understand the URIs.
        let seen = process::run(bench.0.command("p11tool", "gnutls-bin").args([
            "--provider",
            &module,
            "--login",
            "--set-pin",
            PIN,
            "--list-all",
            key_uri.split('?').next().expect("a path"),
        ]));
        assert!(seen.contains("Label: boundkey-spare"), "{seen}");

        let keys = json(bench.step(&["keys"]).env("BOUNDKEY_PIN", PIN).args(["--uri", &uri]));
        assert_eq!(keys.as_array().expect("a list").len(), 2);
        let unsure = run(bench.step(&["delete-key", "spare"]).args(on_it));
        assert!(unsure.status.code() == Some(2) && stderr(&unsure).contains("--yes"), "{}", stderr(&unsure));
        for said in ["", "nothing to delete"] {
            let output = success(bench.step(&["delete-key", "--yes", "spare"]).args(on_it));
            assert!(stderr(&output).contains(said), "{}", stderr(&output));
        }
        let text = success(bench.step(&["keys"]).args(on_it)).stdout;
        let text = String::from_utf8(text).expect("UTF-8");
        assert!(text.starts_with("pkcs11:") && text.contains("    name: spare-2\n") && !text.contains("spare\n"), "{text}");

        // The token's URI is what the configuration takes; the PIN may be in the environment.
        let server = Server::start();
        let mut device = Device::new(&server, "gw", "unused");
        device.env = bench.0.environment();
        device.env.push(("BOUNDKEY_PIN", PIN.into()));
        server.token("gw", "    recovery: {limit: 1}");
        let secret = server.status("gw")["registration_secret"].clone();
        let onboarding = format!("  bound_keypair: {{registration_secret: {}}}", secret.as_str().expect("a secret"));
        device.configure(&server, &onboarding, &format!("keystore: {{type: pkcs11, uri: \"{uri}\"}}"));
        device.join();
        assert_eq!(json(bench.step(&["keys"]).args(on_it))[0]["name"], json!("bound-1"));
    }

    #[test]
    fn what_goes_wrong_is_said() {
        let bench = Bench::new();
        let module = softhsm::module().display().to_string();
        let said = |command: &mut Command, code: i32, what: &str| {
            let output = run(command);
            let said = stderr(&output);
            assert!(output.status.code() == Some(code) && said.contains(what), "{code} {what:?}: {said}");
            assert!(code == 2 || said.trim_end().lines().count() >= 2, "no advice: {said}");
        };
        said(bench.step(&["tokens", "--module", "/nowhere.so"]).args([""; 0]), 7, "there is no PKCS#11 module /nowhere.so");
        success(&mut bench.initialise("edge"));
        let uri = format!("pkcs11:token=edge?module-path={module}");
        said(&mut bench.step(&["keys", "--uri", &uri]), 7, "wants a PIN and none is configured");
        said(bench.step(&["keys", "--uri", &uri]).env("BOUNDKEY_PIN", "wrong"), 7, "the PIN is wrong");
        said(&mut bench.step(&["keys", "--uri", "pkcs11:token=edge?pin-value=1234"]), 2, "holds a PIN (pin-value)");
        said(&mut bench.step(&["keys", "--uri", &uri, "--pin", "1234"]), 2, "unexpected argument");
        said(bench.step(&["create-key", "Not_A_Name", "--uri", &uri]).env("BOUNDKEY_PIN", PIN), 2, "a key name has");
        said(&mut bench.step(&["init-token", "--module", &module, "--label", "edge"]), 2, "no security officer's PIN");
    }
}
