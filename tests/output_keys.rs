//! Outputs whose keys are in the device's key store, as programs use them: mutual TLS between `openssl s_client` and `s_server`.
#![cfg(all(feature = "agent", feature = "auth", feature = "tpm", feature = "pkcs11"))]

#[path = "../hal/tests/support/mod.rs"]
mod hal_support;
mod support;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hal_support::abrmd::{self, Abrmd};
use hal_support::process;
use hal_support::softhsm::{self, SoftHsm};
use hal_support::swtpm::Swtpm;
use serde_json::Value;
use support::proxy::{Proxy, Way};
use support::{Device, Running, Server, TempDir, agent, success, tool};

/// Keys of the TPM sign there; hashes and ciphers, for which a TPM has no room, stay out of it.
const PROPERTIES: &str = "?provider=tpm2,tpm2.digest!=yes,tpm2.cipher!=yes";
const ROLE: &str = "kind: role\nversion: v1\nmetadata: {name: any}\nspec: {allow: {dns_names: [\"*.fleet.example\"]}}";

/// A key store with nothing in it.
enum Backend {
    Pkcs11(SoftHsm, #[expect(dead_code, reason = "goes with the test")] TempDir),
    /// With a resource manager: in a handshake `tpm2-openssl` holds more objects than a TPM, or the kernel's resource manager, has
    /// room for.
    Tpm(Abrmd, TempDir, #[expect(dead_code, reason = "goes with the test")] Swtpm),
}

impl Backend {
    fn pkcs11() -> Self {
        let dir = TempDir::new("softhsm");
        Self::Pkcs11(SoftHsm::new(dir.path()), dir)
    }

    fn tpm() -> Self {
        let (tpm, dir) = (Swtpm::start(), TempDir::new("abrmd"));
        Self::Tpm(Abrmd::start(&tpm, dir.path()), dir, tpm)
    }

    fn yaml(&self) -> String {
        match self {
            Self::Tpm(..) => format!("keystore: {{type: tpm, tcti: \"{}\"}}", abrmd::TCTI),
            Self::Pkcs11(hsm, _) => format!("keystore: {{type: pkcs11, uri: \"{}\"}}", hsm.uri()),
        }
    }

    fn environment(&self) -> Vec<(&'static str, std::ffi::OsString)> {
        match self {
            Self::Pkcs11(hsm, _) => hsm.environment(),
            Self::Tpm(_, dir, _) => abrmd::environment(dir.path()).into(),
        }
    }

    /// What the directory of an output has in place of a private key.
    fn key_file(&self) -> &'static str {
        if matches!(self, Self::Pkcs11(..)) { "tls.key.uri" } else { "tls.key" }
    }

    /// `openssl` with what it needs for keys of this store.
    fn openssl(&self, step: &str) -> Command {
        let mut openssl = Command::new(tool("openssl", "openssl"));
        openssl.arg(step);
        match self {
            Self::Tpm(..) => {
                openssl.args(["-provider", "default", "-provider", "tpm2", "-propquery", PROPERTIES]);
                openssl.env("TPM2OPENSSL_TCTI", abrmd::TCTI).env("TSS2_LOG", "all+none").envs(self.environment());
            }
            Self::Pkcs11(hsm, _) => {
                openssl.args(["-engine", "pkcs11", "-keyform", "engine"]).env("PKCS11_MODULE_PATH", softhsm::module());
                openssl.envs(hsm.environment());
            }
        }
        openssl
    }

    /// The key of the output in `dir`, as an argument of `openssl`.
    fn key(&self, dir: &Path) -> String {
        match self {
            Self::Tpm(..) => dir.join("tls.key").display().to_string(),
            Self::Pkcs11(..) => {
                // The engine takes a line feed for a part of the PIN.
                let pin = dir.with_extension("pin");
                std::fs::write(&pin, softhsm::PIN).expect("write");
                format!("{}?pin-source=file:{}", read(&dir.join("tls.key.uri")).trim(), pin.display())
            }
        }
    }

    /// Names of the keys of outputs in the store.
    fn keys(&self, device: &Device) -> Vec<String> {
        let mut names: Vec<String> = match self {
            Self::Tpm(..) => std::fs::read_dir(device.storage())
                .expect("storage")
                .filter_map(|e| Some(e.ok()?.file_name().to_str()?.strip_prefix("key-")?.strip_suffix(".tss2.pem")?.to_owned()))
                .collect(),
            Self::Pkcs11(hsm, _) => {
                let mut list = agent();
                list.args(["hsm", "keys", "--format", "json", "--uri", &hsm.uri()]).envs(self.environment());
                let keys: Value = serde_json::from_slice(&success(&mut list).stdout).expect("JSON");
                keys.as_array().expect("a list").iter().map(|k| k["name"].as_str().expect("a name").to_owned()).collect()
            }
        };
        names.retain(|name| name.starts_with("output-"));
        names.sort();
        names
    }

    fn delete(&self, device: &Device, key: &str) {
        match self {
            Self::Tpm(..) => std::fs::remove_file(device.storage().join(format!("key-{key}.tss2.pem"))).expect("remove"),
            Self::Pkcs11(hsm, _) => {
                let mut delete = agent();
                success(delete.args(["hsm", "delete-key", "--yes", "--uri", &hsm.uri(), key]).envs(self.environment()));
            }
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A device with a broker, whose key is a file, and a client, whose key is in the store.
struct Gateway<'a> {
    server: &'a Server,
    backend: &'a Backend,
    device: Device,
}

impl<'a> Gateway<'a> {
    fn new(server: &'a Server, backend: &'a Backend) -> Self {
        server.create(ROLE);
        let mut device = server.device("gw", 9);
        device.env = backend.environment();
        server.create("kind: bot\nversion: v1\nmetadata: {name: gw}\nspec: {roles: [any]}");
        let this = Self { server, backend, device };
        this.configure(&server.addr, &backend.yaml(), &["client"]);
        this
    }

    /// Outputs of these names have their keys in the store.
    fn configure(&self, addr: &str, keystore: &str, in_store: &[&str]) {
        let output = |(name, key): (&str, &str)| {
            let path = self.output(name);
            format!(
                "  - {{type: x509, destination: {{type: directory, path: {}}}, key: {key}, dns_names: [{name}.fleet.example]}}\n",
                path.display()
            )
        };
        let outputs: String = in_store.iter().map(|name| (*name, "keystore")).chain([("broker", "file")]).map(output).collect();
        let more = format!("{keystore}\noutputs:\n{outputs}");
        // Once it is used, it is gone.
        let secret = self.server.status("gw")["registration_secret"].as_str().unwrap_or("used").to_owned();
        let onboarding = format!("  bound_keypair: {{registration_secret: {secret}}}");
        self.device.configure_with(addr, &self.server.ca_pin, &onboarding, &more);
    }

    fn output(&self, name: &str) -> PathBuf {
        self.device.dir.join("out").join(name)
    }

    /// The public key in the certificate of `name`.
    fn certified(&self, name: &str) -> String {
        let mut openssl = Command::new(tool("openssl", "openssl"));
        openssl.args(["x509", "-noout", "-pubkey", "-in"]).arg(self.output(name).join("tls.crt"));
        String::from_utf8(success(&mut openssl).stdout).expect("UTF-8")
    }

    /// The client's request to the broker, which wants a certificate.
    fn request(&self, more: &[&str]) -> Output {
        let broker = Broker::start(&self.output("broker"));
        let client = self.output("client");
        let mut openssl = self.backend.openssl("s_client");
        openssl.args(["-connect", &broker.addr, "-verify_return_error", "-verify_hostname", "broker.fleet.example", "-CAfile"]);
        openssl.arg(client.join("ca.crt")).arg("-cert").arg(client.join("tls.crt")).args(["-ign_eof", "-tls1_3", "-key"]);
        openssl.arg(self.backend.key(&client)).args(more);
        self.get(&mut openssl)
    }

    /// Asks for the broker's page.
    fn get(&self, client: &mut Command) -> Output {
        let request = self.device.dir.join("request");
        std::fs::write(&request, "GET / HTTP/1.0\r\n\r\n").expect("write");
        client.stdin(std::fs::File::open(request).expect("open")).output().expect("openssl")
    }

    fn is_served_without_certificate(&self) -> bool {
        let broker = Broker::start(&self.output("broker"));
        let mut openssl = Command::new(tool("openssl", "openssl"));
        openssl.args(["s_client", "-connect", &broker.addr, "-ign_eof", "-tls1_3"]);
        let output = self.get(&mut openssl);
        String::from_utf8_lossy(&output.stdout).contains("HTTP/1.0 200 ok")
    }

    #[track_caller]
    fn assert_is_served(&self, more: &[&str]) {
        let output = self.request(more);
        let said = String::from_utf8_lossy(&output.stdout);
        let page = said.contains("HTTP/1.0 200 ok") && said.contains("Client certificate");
        assert!(page, "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A TLS server that asks for a certificate, and shows on a page whose it got.
struct Broker {
    addr: String,
    _process: Running,
}

impl Broker {
    fn start(dir: &Path) -> Self {
        let mut openssl = Command::new(tool("openssl", "openssl"));
        openssl.args(["s_server", "-accept", "127.0.0.1:0", "-www", "-Verify", "1", "-verify_return_error", "-CAfile"]);
        openssl.arg(dir.join("ca.crt")).arg("-cert").arg(dir.join("tls.crt")).arg("-key").arg(dir.join("tls.key"));
        let mut process = Running(openssl.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("openssl"));
        let lines = BufReader::new(process.0.stdout.take().expect("stdout")).lines();
        let addr = lines.map(|line| line.expect("a line")).find_map(|line| Some(line.strip_prefix("ACCEPT ")?.to_owned()));
        Self { addr: addr.expect("an address"), _process: process }
    }
}

/// Every key store, the same tests.
macro_rules! suite {
    ($($test:ident),* $(,)?) => {
        suite!(in pkcs11: $($test),*);
        suite!(in tpm: $($test),*);
    };
    (in $store:ident: $($test:ident),*) => {
        mod $store {
            use super::{Backend, Gateway, Server};
            $(#[test]
            fn $test() {
                let (server, backend) = (Server::start(), Backend::$store());
                super::$test(&mut Gateway::new(&server, &backend));
            })*
        }
    };
}

suite!(
    mutual_tls_with_a_key_that_renewals_keep,
    a_key_that_was_made_and_not_certified_is_taken_up,
    a_key_that_is_gone_is_made_anew,
    an_output_that_went_leaves_its_key,
    two_outputs_have_two_keys,
);

fn mutual_tls_with_a_key_that_renewals_keep(gateway: &mut Gateway<'_>) {
    gateway.device.join();
    let (client, key_file) = (gateway.output("client"), gateway.backend.key_file());
    let mut names: Vec<_> =
        std::fs::read_dir(&client).expect("output").map(|e| e.expect("entry").file_name().into_string().expect("name")).collect();
    names.retain(|name| !name.starts_with(".."));
    names.sort();
    assert_eq!(names, ["ca.crt", "tls.crt", key_file]);
    let content = read(&client.join(key_file));
    assert!(content.starts_with("pkcs11:") || content.starts_with("-----BEGIN TSS2 PRIVATE KEY-----"), "{content}");
    gateway.assert_is_served(&[]);
    let key = gateway.certified("client");
    let first = read(&client.join("tls.crt"));
    // A new boot: the directory is gone, the key is not.
    std::fs::remove_dir_all(&client).expect("remove");
    gateway.device.join();
    assert_ne!(read(&client.join("tls.crt")), first, "a new certificate");
    assert_eq!(gateway.certified("client"), key, "for the same key");
    assert_eq!(read(&client.join(key_file)), content);
    gateway.assert_is_served(&[]);
    assert_eq!(gateway.backend.keys(&gateway.device).len(), 1);
    assert!(!gateway.is_served_without_certificate(), "the broker asks for one");
}

/// The line is cut after the key was made, and before there is a certificate.
fn a_key_that_was_made_and_not_certified_is_taken_up(gateway: &mut Gateway<'_>) {
    let link = Proxy::to(&gateway.server.addr);
    gateway.configure(&link.addr, &gateway.backend.yaml(), &["client"]);
    // Enough for handshake and challenge; the request of the join is longer than what is left.
    link.cut_after(Way::Up, 3000);
    let (code, said) = gateway.device.try_join();
    assert!(link.is_broken() && code == 3, "{code}: {said}");
    let made = gateway.backend.keys(&gateway.device);
    assert!(made.len() == 1 && !gateway.output("client").exists(), "{made:?}");
    link.mend();
    gateway.device.join();
    assert_eq!(gateway.backend.keys(&gateway.device), made);
    gateway.assert_is_served(&[]);
}

fn a_key_that_is_gone_is_made_anew(gateway: &mut Gateway<'_>) {
    gateway.device.join();
    let (before, keys) = (gateway.certified("client"), gateway.backend.keys(&gateway.device));
    gateway.backend.delete(&gateway.device, &keys[0]);
    let (code, said) = gateway.device.try_join();
    assert!(code == 0 && said.contains(&format!("made key {}", keys[0])), "{code}: {said}");
    assert_ne!(gateway.certified("client"), before);
    assert_eq!(gateway.backend.keys(&gateway.device), keys);
    gateway.assert_is_served(&[]);
}

fn an_output_that_went_leaves_its_key(gateway: &mut Gateway<'_>) {
    gateway.device.join();
    let keys = gateway.backend.keys(&gateway.device);
    gateway.configure(&gateway.server.addr, &gateway.backend.yaml(), &[]);
    gateway.device.join();
    gateway.assert_is_served(&[]);
    assert_eq!(gateway.backend.keys(&gateway.device), keys, "the program may still run");
    let told = |device: &Device| String::from_utf8(success(&mut device.command(&["doctor"])).stdout).expect("UTF-8");
    let said = told(&gateway.device);
    assert!(said.contains(&format!("the key {} is of no output", keys[0])), "{said}");
    assert!(said.contains("remove /") || said.contains(&format!("boundkey hsm delete-key {} --yes", keys[0])), "{said}");
    gateway.configure(&gateway.server.addr, &gateway.backend.yaml(), &["client"]);
    assert!(!told(&gateway.device).contains("is of no output"));
}

fn two_outputs_have_two_keys(gateway: &mut Gateway<'_>) {
    gateway.configure(&gateway.server.addr, &gateway.backend.yaml(), &["client", "other"]);
    gateway.device.join();
    assert_ne!(gateway.certified("client"), gateway.certified("other"));
    let keys = gateway.backend.keys(&gateway.device);
    assert!(keys.len() == 2 && keys[0].starts_with("output-client-") && keys[1].starts_with("output-other-"), "{keys:?}");
    gateway.assert_is_served(&[]);
}

/// It must not keep the device from renewing its identity, and the other outputs with it.
#[test]
fn a_key_that_is_damaged_stops_its_output_alone() {
    let (server, backend) = (Server::start(), Backend::tpm());
    let gateway = Gateway::new(&server, &backend);
    gateway.device.join();
    let file = gateway.device.storage().join(format!("key-{}.tss2.pem", backend.keys(&gateway.device)[0]));
    let whole = read(&file);
    let before = ["client", "broker"].map(|name| read(&gateway.output(name).join("tls.crt")));
    std::fs::write(&file, &whole[..whole.len() / 2]).expect("write");
    let (code, said) = gateway.device.try_join();
    let (path, told) = (file.display().to_string(), said.split("error: ").nth(1).expect("an error"));
    assert!(code == 1 && told.starts_with(&format!("output {}: ", gateway.output("client").display())), "{code}: {said}");
    assert!(told.contains(&path) && told.lines().nth(1).is_some_and(|advice| advice.contains("delete that key")), "{said}");
    let after = ["client", "broker"].map(|name| read(&gateway.output(name).join("tls.crt")));
    assert!(after[0] == before[0] && after[1] != before[1], "the other one is renewed");
    assert_eq!(server.events("gw"), ["join.first", "join.renewal"]);
    assert_eq!(read(&file).len(), whole.len() / 2, "nothing was overwritten");
    gateway.assert_is_served(&[]);
    std::fs::remove_file(&file).expect("remove");
    gateway.device.join();
    gateway.assert_is_served(&[]);
}

/// The program needs the auth value too.
#[test]
fn a_key_with_an_auth_value() {
    let (server, backend) = (Server::start(), Backend::tpm());
    let gateway = Gateway::new(&server, &backend);
    let auth = gateway.device.dir.join("auth");
    std::fs::write(&auth, "open sesame\n").expect("write");
    let keystore = backend.yaml().replace('}', &format!(", auth_path: {}}}", auth.display()));
    gateway.configure(&server.addr, &keystore, &["client"]);
    gateway.device.join();
    let without = gateway.request(&["-pass", "pass:"]);
    assert!(!String::from_utf8_lossy(&without.stdout).contains("HTTP/1.0 200 ok"), "{without:?}");
    gateway.assert_is_served(&["-pass", &format!("file:{}", auth.display())]);
    let Backend::Tpm(manager, ..) = &backend else { unreachable!() };
    let lockout = process::run(manager.tool("tpm2_getcap").arg("properties-variable"));
    assert!(lockout.lines().any(|line| line.trim() == "TPM2_PT_LOCKOUT_COUNTER: 0x0"), "{lockout}");
}

/// The operator's way back from a cleared TPM brings the outputs back too.
#[test]
fn a_tpm_that_was_cleared() {
    let (server, backend) = (Server::start(), Backend::tpm());
    let gateway = Gateway::new(&server, &backend);
    gateway.device.join();
    let before = gateway.certified("client");
    let Backend::Tpm(manager, ..) = &backend else { unreachable!() };
    process::run(manager.tool("tpm2_clear").args(["-c", "p"]));
    let (code, said) = gateway.device.try_join();
    assert!(code == 7 && said.contains("TPM cleared"), "{code}: {said}");
    server.ctl(&["reset", "token/gw"]);
    success(&mut gateway.device.command(&["keypair", "create", "--overwrite"]));
    gateway.configure(&server.addr, &backend.yaml(), &["client"]);
    gateway.device.join();
    assert_ne!(gateway.certified("client"), before);
    gateway.assert_is_served(&[]);
}

/// Then nothing is left out: the join is tried again.
#[test]
fn a_store_that_is_not_there() {
    let (server, mut backend) = (Server::start(), Backend::tpm());
    let Backend::Tpm(manager, ..) = &mut backend else { unreachable!() };
    manager.stop();
    let gateway = Gateway::new(&server, &backend);
    let (code, said) = gateway.device.try_join();
    assert!(code == 7 && said.contains("is not reachable") && !gateway.output("broker").exists(), "{code}: {said}");
}
