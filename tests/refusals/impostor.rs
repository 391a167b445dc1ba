//! Others who pose as the auth endpoint: a device of the cluster with a certificate of the same CA, and a holder of the server's TLS key
//! who has not the key of the CA.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boundkey::join::device::MAX_KEYS;
use boundkey::platform::time::{Clock as _, System, Timestamp};
use boundkey::state::{DirStorage, StateFile};
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};

use super::peer::{auth_endpoint_usages, http, server_pem};
use super::support::connect_proxy::{ConnectProxy, Mood};
use super::support::imposter::Imposter;
use super::support::said::said;
use super::support::{Device, Server, run, run_with_input, success, tool};
use super::{expect, refused};

/// As operators write it into a configuration of OpenSSL.
const AUTH_ENDPOINT: &str = "1.2.840.113556.1.8000.2554.3298.31019.29964.17333.36085.13256552.7251085.1.1";
const ROLE: &str = "kind: role\nversion: v1\nmetadata: {name: wide}\nspec:\n  allow:\n    dns_names: [\"*.fleet.test\"]\n    \
                    ip_addresses: [0.0.0.0/0, \"::/0\"]\n    uris: [\"https://*.fleet.test/\"]\n    \
                    ssh_principals: [\"*.fleet.test\"]\n";

/// A server named auth.fleet.test, a proxy that is the way to it, and a device of the widest role.
struct Fleet {
    server: Server,
    proxy: ConnectProxy,
    attacker: Device,
}

impl Fleet {
    fn new() -> Self {
        let server = Server::with_names(&["auth.fleet.test", "10.0.0.1"]);
        let proxy = ConnectProxy::new(Mood::ConnectsTo(server.addr.clone()));
        server.create(ROLE);
        let attacker = Self::device(&server, &proxy, "attacker", "auth.fleet.test", 1);
        server.create("kind: bot\nversion: v1\nmetadata: {name: attacker}\nspec: {roles: [wide]}\n");
        Self { server, proxy, attacker }
    }

    /// A device that looks for its server at `name`, by way of the proxy.
    fn device(server: &Server, proxy: &ConnectProxy, token: &str, name: &str, limit: u32) -> Device {
        let mut device = server.device(token, limit);
        device.env.push(("HTTPS_PROXY", format!("http://{}", proxy.addr).into()));
        Self::configure(server, &device, name, "");
        device
    }

    fn configure(server: &Server, device: &Device, name: &str, more: &str) {
        let secret = server.status(&device.token)["registration_secret"].as_str().unwrap_or("used").to_owned();
        let onboarding = format!("  bound_keypair: {{registration_secret: {secret}}}");
        device.configure_with(&format!("{name}:3025"), &server.ca_pin, &onboarding, more);
    }

    /// Has the attacker ask for an output with these names.
    fn ask(&self, names: &str) -> std::path::PathBuf {
        let directory = self.attacker.dir.join("out");
        let output = format!("outputs:\n  - {names}\n    destination: {{type: directory, path: {}}}\n", directory.display());
        Self::configure(&self.server, &self.attacker, "auth.fleet.test", &output);
        directory
    }
}

/// Key, certificate and CA of an output, as a TLS server presents them.
fn output_pem(directory: &Path) -> String {
    ["tls.key", "tls.crt", "ca.crt"]
        .map(|name| std::fs::read_to_string(directory.join(name)).expect("a file of the output"))
        .concat()
}

/// Every file of a directory and its content.
fn content(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file() && path.file_name().is_some_and(|name| name != "status.json"))
        .map(|path| (path.display().to_string(), std::fs::read(&path).expect("a file")))
        .collect();
    files.sort();
    files
}

/// The certificate of an output was believed to be the server's, if it had the server's name. The attacker's is from before the server was
/// given that name, so that it has it by right.
#[test]
fn a_device_of_the_cluster_cannot_pose_as_the_server() {
    let mut fleet = Fleet::new();
    let output = fleet.ask("type: x509\n    dns_names: [new.fleet.test]\n    ip_addresses: [127.0.0.1]");
    fleet.attacker.join();
    assert!(fleet.server.stop().success());
    let file = fleet.server.dir.join("data/cluster.json");
    let cluster = std::fs::read_to_string(&file).expect("cluster.json");
    std::fs::write(&file, cluster.replace("\"10.0.0.1\"", "\"new.fleet.test\"")).expect("write");
    fleet.server.run();

    let victim = Fleet::device(&fleet.server, &fleet.proxy, "victim", "new.fleet.test", 1);
    victim.join();
    let fresh = Fleet::device(&fleet.server, &fleet.proxy, "fresh", "new.fleet.test", 1);
    let before = content(&victim.storage());
    let heard = Arc::new(AtomicUsize::new(0));
    let counter = heard.clone();
    let imposter = Imposter::with_tls(&output_pem(&output), move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        http("403 Forbidden", "text/plain", "what is there to say")
    });
    fleet.proxy.set(Mood::ConnectsTo(imposter.addr.clone()));
    for device in [&victim, &fresh] {
        expect(
            device,
            3,
            "not-auth-endpoint",
            "the certificate at new.fleet.test:3025 is not an auth endpoint's, but that of \"attacker\" under the same CA",
            "nothing was sent: a device may be posing as the server",
        );
    }
    assert_eq!(content(&victim.storage()), before, "nothing is stored");
    assert!(!fresh.storage().join("state").exists(), "no key is made, and no HMAC by its secret leaves");
    let doctor = run(&mut victim.command(&["doctor"]));
    let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(!doctor.status.success() && told.contains("is not an auth endpoint's"), "{told}");
    // The same with a CA file in place of pins, and by address without a proxy.
    let ca_file = format!("ca_file: {}", fleet.server.dir.join("data/ca.pem").display());
    let yaml = std::fs::read_to_string(victim.config()).expect("configuration");
    let pins = format!("ca_pins: [\"{}\"]", fleet.server.ca_pin);
    std::fs::write(victim.config(), yaml.replace(&pins, &ca_file).replace("new.fleet.test:3025", &imposter.addr)).expect("write");
    let mut direct = victim.command(&["start", "--oneshot"]);
    let refusal = said(&run(direct.env_remove("HTTPS_PROXY")));
    assert!(refusal.code == 3 && refusal.error.contains("is not an auth endpoint's"), "{refusal:?}");
    assert_eq!(heard.load(Ordering::Relaxed), 0, "nothing was told to the impostor");

    fleet.proxy.set(Mood::ConnectsTo(fleet.server.addr.clone()));
    std::fs::write(victim.config(), yaml).expect("write");
    victim.join();
    fresh.join();
    assert_eq!(fleet.server.events("victim"), ["join.first", "join.renewal"]);
}

/// A pattern that is written for the fleet covers the server all the same.
#[test]
fn no_output_names_the_server_whatever_a_role_allows() {
    let fleet = Fleet::new();
    for (names, told) in [
        ("dns_names: [auth.fleet.test]", "auth.fleet.test"),
        ("dns_names: [gw.fleet.test, Auth.Fleet.TEST]", "Auth.Fleet.TEST"),
        ("ip_addresses: [10.0.0.1]", "10.0.0.1"),
        ("uris: [\"https://auth.fleet.test/\"]", "https://auth.fleet.test/"),
        ("uris: [\"https://AUTH.fleet.test:443/\"]", "https://AUTH.fleet.test:443/"),
    ] {
        fleet.ask(&format!("type: x509\n    {names}"));
        expect(
            &fleet.attacker,
            1,
            "name-not-allowed",
            &format!("the server refused: {told} is a name of the auth endpoint itself, which is never issued to a device"),
            "a name of the server itself is never allowed",
        );
    }
    for names in [
        "dns_names: [\"*.fleet.test\"]",
        "dns_names: [auth.fleet.test.]",
        "dns_names: [\"10.1\"]",
        "ip_addresses: [\"::ffff:10.0.0.1\"]",
        "uris: [\"https://gw@auth.fleet.test/\"]",
    ] {
        fleet.ask(&format!("type: x509\n    {names}"));
        let (said, kind) = refused(&fleet.attacker);
        assert_eq!((said.code, &*kind), (1, "bad-request"), "{said:?}");
    }
    fleet.ask("type: x509\n    dns_names: [gw.fleet.test]\n    ip_addresses: [10.0.0.2]\n    uris: [\"https://gw.fleet.test/\"]");
    fleet.attacker.join();

    // Hosts too, in certificates of SSH.
    let host = Device::new(&fleet.server, "host", "x");
    fleet.server.host_token("host", "[Node]", "[wide]", "    recovery: {limit: 1}");
    let mut host = Device { env: fleet.attacker.env.clone(), ..host };
    host.token = "host".into();
    let ask = |principals: &str| {
        let directory = host.dir.join("out");
        let output = format!(
            "outputs:\n  - type: ssh_host\n    principals: {principals}\n    destination: {{type: directory, path: {}}}\n",
            directory.display()
        );
        Fleet::configure(&fleet.server, &host, "auth.fleet.test", &output);
    };
    for principal in ["auth.fleet.test", "AUTH.fleet.test"] {
        ask(&format!("[gw.fleet.test, {principal}]"));
        expect(&host, 1, "name-not-allowed", &format!("{principal} is a name of the auth endpoint itself"), "never allowed");
    }
    ask("[gw.fleet.test]");
    host.join();

    // An identity carries the name of its bot.
    let namesake = Fleet::device(&fleet.server, &fleet.proxy, "auth.fleet.test", "auth.fleet.test", 1);
    expect(&namesake, 1, "name-not-allowed", "auth.fleet.test is a name of the auth endpoint itself", "never allowed");
}

/// The time that a device takes for certain.
fn known_time(device: &Device) -> Timestamp {
    let state = StateFile::open(DirStorage::open(&device.storage())).expect("a state file");
    state.memory().last_known_time
}

/// A server that has the real one's TLS key, and says what it likes: the challenge names the key that the device proves, and asks for
/// another one each time.
fn liar(server: &Server, incarnation: &str, key: Arc<Mutex<String>>, made_up: Value) -> Imposter {
    let incarnation = incarnation.to_owned();
    Imposter::with_tls(&server_pem(server), move |request| {
        let now = System.now();
        let mut key = key.lock().expect("the key");
        let body: Value =
            request.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok()).unwrap_or_default();
        if request.starts_with("POST /v1/join/challenge ") {
            // Its clock is ten years ahead, so that the device would take nothing for valid any more.
            let time = now.plus(Duration::from_secs(10 * 365 * 86_400));
            let challenge = json!({
                "challenge": "x", "key": *key, "incarnation": incarnation, "rotate": true, "algorithms": ["EdDSA"],
                "expires": time.plus(Duration::from_secs(60)), "time": time,
            });
            return http("200 OK", "application/json", &challenge.to_string());
        }
        let payload = boundkey::join::base64url::decode(body["payload"].as_str().expect("a JWS")).expect("base64url");
        let join: Value = serde_json::from_slice(&payload).expect("a join request");
        let header =
            boundkey::join::base64url::decode(join["rotation"]["protected"].as_str().expect("a rotation")).expect("base64url");
        let header: Value = serde_json::from_slice(&header).expect("a header");
        let jwk: boundkey::join::Jwk = serde_json::from_value(header["jwk"].clone()).expect("the new key");
        let new = boundkey_hal::PublicKey::try_from(&jwk).expect("a key");
        *key = boundkey::join::Thumbprint::of(&new).to_string();
        let mut answer = made_up.clone();
        answer["key"] = json!(*key);
        answer["incarnation"] = json!(incarnation);
        answer["time"] = json!(now);
        http("200 OK", "application/json", &answer.to_string())
    })
}

/// The key of the TLS server is stolen, that of the CA is not: whatever is answered, nothing of it is stored, no key is given up, and the
/// real server finds the device as it left it. Ten such answers used to have the bound key deleted, and a made-up join state led the real
/// server to lock the device.
#[test]
fn made_up_answers_are_not_stored_and_cost_no_key() {
    let server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    let bound = device.status()["keystore"]["thumbprint"].as_str().expect("a thumbprint").to_owned();
    let incarnation = server.status("gw")["incarnation"].as_str().expect("an incarnation").to_owned();
    let identity = std::fs::read(device.storage().join("identity.pem")).expect("an identity");
    let own = CertificateDer::pem_slice_iter(&identity)
        .map(|der| boundkey::join::base64url::encode(der.expect("a certificate")))
        .collect::<Vec<String>>();
    let foreign = KeyPair::generate().expect("a key");
    let foreign = CertificateParams::default().self_signed(&foreign).expect("a certificate");
    let foreign = boundkey::join::base64url::encode(foreign.der());
    let made_up = |certificate: &str, bundle: Value| {
        json!({
            "kind": "renewal", "cluster": "test.example",
            "step": {"recovery": 1, "generation": 2, "instance": "00112233-4455-6677-8899-aabbccddeeff"},
            "join_state": "made.up.state", "recoveries": {"count": 1, "limit": 1, "mode": "standard"},
            "identity": {"certificate": certificate, "serial": "01", "not_before": System.now(), "not_after": System.now()},
            "outputs": [], "bundle": bundle, "warnings": [],
        })
    };
    let yaml = std::fs::read_to_string(device.config()).expect("configuration");
    let not_issued = "the trusted CA did not issue the identity certificate in its answer";
    for (answer, expected, error) in [
        (made_up(&own[0], Value::Null), "not-trusted", not_issued),
        (made_up(&foreign, Value::Null), "not-trusted", not_issued),
        (made_up(&own[0], json!([])), "not-trusted", not_issued),
        (made_up(&own[0], json!([foreign])), "trust-bundle", "the trust bundle cannot be used"),
    ] {
        let liar = liar(&server, &incarnation, Arc::new(Mutex::new(bound.clone())), answer);
        std::fs::write(device.config(), yaml.replace(&server.addr, &liar.addr)).expect("write");
        for _ in 0..3 {
            let (said, kind) = refused(&device);
            assert_eq!((said.code, &*kind), (3, expected), "{said:?}");
            assert!(said.error.contains(error), "{said:?}");
        }
    }
    assert_eq!(std::fs::read(device.storage().join("identity.pem")).expect("an identity"), identity);
    assert!(known_time(&device) <= System.now(), "the time that it told is not remembered");
    // Each challenge asks for another key, and none is given up for it.
    let liar = liar(&server, &incarnation, Arc::new(Mutex::new(bound.clone())), made_up(&own[0], Value::Null));
    std::fs::write(device.config(), yaml.replace(&server.addr, &liar.addr)).expect("write");
    let kinds: Vec<_> = (0..MAX_KEYS).map(|_| refused(&device).1).collect();
    assert!(kinds.iter().all(|kind| kind == "not-trusted" || kind == "too-many-keys"), "{kinds:?}");
    expect(
        &device,
        7,
        "too-many-keys",
        "no room for another one before the server has confirmed one of them",
        "let the device join",
    );
    let keys = content(&device.storage()).into_iter().filter(|(name, _)| name.contains("/key-")).collect::<Vec<_>>();
    assert_eq!(keys.len(), MAX_KEYS);
    assert!(keys.iter().any(|(name, _)| name.ends_with("/key-bound-1.pem")), "the bound key");
    std::fs::write(device.config(), yaml).expect("write");
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.renewal"]);
    assert_eq!(device.status()["keystore"]["thumbprint"], json!(bound));
}

/// Passes requests on to `server`, as a load balancer does that ends TLS.
fn passed_on(server: &str, request: &str) -> Vec<u8> {
    let request = request.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let mut client = Command::new(tool("openssl", "openssl"));
    client.args(["s_client", "-quiet", "-ign_eof", "-no_ticket", "-connect", server]);
    run_with_input(&mut client, &request).stdout
}

/// A certificate of its own is refused, also with the mark, and where its CA is trusted to begin with: trust goes from the cluster's CA to
/// the cluster's CA.
#[test]
fn a_load_balancer_cannot_end_tls() {
    let server = Server::start();
    let openssl = |script: &str| success(Command::new("sh").args(["-ec", script]).current_dir(server.dir.path()));
    openssl(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9 -subj /CN=Company -keyout company.key -out company.pem\n\
         openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout lb.key -subj /CN=lb -out lb.csr",
    );
    let device = server.device("gw", 1);
    let yaml = std::fs::read_to_string(device.config()).expect("configuration");
    let both = ["company.pem", "data/ca.pem"].map(|name| std::fs::read_to_string(server.dir.join(name)).expect("a CA")).concat();
    std::fs::write(server.dir.join("both.pem"), both).expect("write");
    let marked = format!("serverAuth, {AUTH_ENDPOINT}");
    for (usages, kind, error) in [
        ("serverAuth", "not-auth-endpoint", "is not an auth endpoint's, but that of \"lb\""),
        (&marked, "trust-bundle", "the server's own certificate does not hold under the trust bundle"),
    ] {
        openssl(&format!(
            "printf 'subjectAltName = IP:127.0.0.1\nextendedKeyUsage = {usages}\n' >lb.ext\n\
             openssl x509 -req -in lb.csr -CA company.pem -CAkey company.key -days 9 -sha256 -extfile lb.ext -out lb.pem"
        ));
        let read = |name: &str| std::fs::read_to_string(server.dir.join(name)).expect("a file");
        let addr = server.addr.clone();
        let identity = read("lb.key") + &read("lb.pem") + &read("company.pem");
        let balancer = Imposter::with_tls(&identity, move |request| passed_on(&addr, request));
        let trust = format!("ca_file: {}", server.dir.join("both.pem").display());
        let pins = format!("ca_pins: [\"{}\"]", server.ca_pin);
        std::fs::write(device.config(), yaml.replace(&pins, &trust).replace(&server.addr, &balancer.addr)).expect("write");
        expect(&device, 3, kind, error, "nothing was s");
    }
    std::fs::write(device.config(), yaml).expect("write");
    device.join();
    assert_eq!(server.events("gw"), ["join.first", "join.replay"], "the answer that was not taken counts as lost");
}

/// A server of an earlier build has a certificate without the mark: its next start replaces it.
#[test]
fn a_server_of_an_earlier_build_gets_a_certificate_that_devices_take() {
    let mut server = Server::start();
    let device = server.device("gw", 1);
    device.join();
    assert!(server.stop().success());
    let data = server.dir.join("data");
    let ca_key = std::fs::read_to_string(data.join("keys/key-ca-x509.pem")).expect("the CA's key");
    let ca_key = PrivatePkcs8KeyDer::from_pem_slice(ca_key.as_bytes()).expect("PKCS#8");
    let ca_key = KeyPair::from_pkcs8_der_and_sign_algo(&ca_key, &rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let mut ca = CertificateParams::default();
    ca.distinguished_name = rcgen::DistinguishedName::new();
    ca.distinguished_name.push(rcgen::DnType::CommonName, "test.example");
    let issuer = Issuer::new(ca, &ca_key);
    let key = KeyPair::generate().expect("a key");
    for marked in [false, true] {
        let mut params = CertificateParams::new(["localhost", "127.0.0.1", "::1"].map(str::to_owned)).expect("names");
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        if marked {
            params.extended_key_usages.clear();
            params.custom_extensions = vec![auth_endpoint_usages()];
        }
        params.not_before = System.now().minus(Duration::from_secs(60)).to_system().into();
        params.not_after = System.now().plus(Duration::from_secs(400 * 86_400)).to_system().into();
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        let pem =
            boundkey::platform::pem::private_key(&key.serialize_der()) + &boundkey::platform::pem::certificate(certificate.der());
        std::fs::write(data.join("tls.pem"), &pem).expect("write");
        server.run();
        device.join();
        assert!(server.stop().success());
        let kept = std::fs::read_to_string(data.join("tls.pem")).expect("tls.pem") == pem;
        assert_eq!(kept, marked);
    }
    assert_eq!(server.log().matches("renewed the TLS server's certificate").count(), 1);
}
