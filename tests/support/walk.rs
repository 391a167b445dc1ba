//! Joins of one kind, one fault after another: whatever the fault, the device joins again with no help, and no recovery is spent on
//! anything but a certificate that is truly gone.

use std::path::Path;

use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde_json::json;

use super::{Device, Server};

/// Faults that one device meets: two steps for each, and one before, which is the burst that the pace of a token allows.
const FAULTS_EACH: usize = 4;

/// What the join is that meets a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    First,
    Renewal,
    Recovery,
    Rotation,
}

/// A device and what it has been through.
pub struct Tried<'a> {
    pub server: &'a Server,
    pub device: Device,
    /// Certificates that were truly lost.
    pub lost: u64,
    /// Rotations ordered.
    pub rotations: u64,
    /// Recovery sequence and generation when it was whole last.
    pub last: (u64, u64),
    faults: usize,
}

impl<'a> Tried<'a> {
    /// Device `n` of those that [`make_tokens`] made tokens for; it reaches the server at `addr`.
    pub fn new(server: &'a Server, n: usize, addr: &str) -> Self {
        let device = Device::new(server, &format!("t{n}"), "unused");
        let outputs = format!(
            "outputs:\n  - type: x509\n    destination: {{type: directory, path: {}}}\n",
            device.dir.join("out").display()
        );
        device.configure_with(addr, &server.ca_pin, "  bound_keypair: {registration_secret: a-secret-of-tests}", &outputs);
        Self::whole(server, device)
    }

    /// A device that has lost nothing.
    pub fn whole(server: &'a Server, device: Device) -> Self {
        Self { server, device, lost: 0, rotations: 0, last: (0, 0), faults: 0 }
    }

    /// Joins with no help after `fault`, and checks that the fault cost nothing.
    pub fn comes_back(&mut self, fault: &str) {
        let (code, said) = self.device.try_join();
        assert_eq!(code, 0, "after {fault}: {said}\n{}", self.server.log());
        let status = self.device.status();
        let step = (status["recovery"]["count"].as_u64().unwrap(), status["generation"].as_u64().unwrap());
        assert!(step >= self.last, "after {fault}: step {step:?} follows {:?}", self.last);
        assert_eq!(step.0, 1 + self.lost, "after {fault}: recoveries");
        assert_eq!(status["attempt_in_flight"], false);
        self.last = step;
    }

    /// Checks that server, device and audit log tell one story; returns how many lost answers were given again.
    pub fn agrees(&self) -> usize {
        let (token, status) = (self.server.status(&self.device.token), self.device.status());
        assert_eq!(token["recovery_count"], 1 + self.lost);
        assert_eq!(token["last_step"]["generation"], status["generation"]);
        assert_eq!(token["bound_bot_instance_id"], status["instance_id"]);
        let events: Vec<_> = self.server.audit().into_iter().filter(|e| e["token"] == self.device.token.as_str()).collect();
        let count = |name: &str| events.iter().filter(|e| e["event"] == name).count();
        assert_eq!((count("join.first"), count("join.recovery") as u64), (1, self.lost));
        // A challenge from before a start of the server is refused, and the device asks for another.
        let refused = events.iter().filter(|e| e["event"] == "join.refused" && e["problem"] != "challenge-expired").count();
        assert_eq!((refused, count("lock.created"), count("join.rolled_forward")), (0, 0, 0), "{events:#?}");
        assert_eq!(count("key.rotated") as u64, self.rotations);
        let recovered = events.iter().rposition(|e| e["event"] == "join.recovery" || e["event"] == "join.first").unwrap();
        let renewed = events[recovered..].iter().filter(|e| e["event"] == "join.renewal").count();
        assert_eq!(json!(renewed + 1), status["generation"], "each renewal counts once");
        assert_outputs_fit(&self.device.dir.join("out/..current"), true);
        count("join.replay")
    }
}

/// Tokens `t0`, `t1` ... with secret `a-secret-of-tests`, of one bot with a role.
pub fn make_tokens(server: &Server, count: usize) {
    let token = |n| {
        format!(
            "---\nkind: token\nversion: v2\nmetadata: {{name: t{n}}}\nspec:\n  roles: [Bot]\n  bot_name: b\n  join_method: bound_keypair\n  \
             bound_keypair: {{onboarding: {{registration_secret: a-secret-of-tests}}, recovery: {{limit: 1000}}}}\n"
        )
    };
    let role = "kind: role\nversion: v1\nmetadata: {name: r}\nspec: {}\n---\nkind: bot\nversion: v1\nmetadata: {name: b}\nspec: {roles: [r]}\n";
    server.create(&(role.to_owned() + &(0..count).map(token).collect::<String>()));
}

/// The current set of an output is whole and belongs together, or there is none yet.
pub fn assert_outputs_fit(set: &Path, required: bool) {
    if !required && !set.exists() {
        return;
    }
    let key = PrivateKeyDer::from_pem_file(set.join("tls.key")).expect("a key");
    let certificate = CertificateDer::from_pem_file(set.join("tls.crt")).expect("a certificate");
    CertificateDer::from_pem_file(set.join("ca.crt")).expect("a bundle");
    CertifiedKey::new(vec![certificate], any_supported_type(&key).unwrap()).keys_match().expect("key and certificate fit");
}

/// Joins of one kind, one fault after another.
pub struct Walk<'a> {
    server: &'a Server,
    addr: &'a str,
    kind: Kind,
    made: usize,
    faults: usize,
    replays: usize,
    pub tried: Option<Tried<'a>>,
}

impl<'a> Walk<'a> {
    /// `addr` is where devices find the server.
    pub fn new(server: &'a Server, addr: &'a str, kind: Kind) -> Self {
        make_tokens(server, 200);
        Self { server, addr, kind, made: 0, faults: 0, replays: 0, tried: None }
    }

    /// A device that is about to make a join of this kind.
    pub fn ready(&mut self) -> &mut Tried<'a> {
        let most = if self.kind == Kind::First { 1 } else { FAULTS_EACH };
        if self.tried.as_ref().is_some_and(|tried| tried.faults >= most) {
            self.finish();
        }
        let tried = self.tried.get_or_insert_with(|| {
            let mut tried = Tried::new(self.server, self.made, self.addr);
            self.made += 1;
            if self.kind != Kind::First {
                tried.comes_back("nothing");
            }
            tried
        });
        match self.kind {
            Kind::First | Kind::Renewal => {}
            Kind::Recovery => {
                tried.device.lose_certificate();
                tried.lost += 1;
            }
            Kind::Rotation => {
                self.server.ctl(&["rotate", &format!("token/{}", tried.device.token)]);
                tried.rotations += 1;
            }
        }
        tried
    }

    /// The device joins after a fault.
    pub fn goes_on(&mut self, fault: &str) {
        self.faults += 1;
        let tried = self.tried.as_mut().expect("a device");
        tried.faults += 1;
        assert_outputs_fit(&tried.device.dir.join("out/..current"), false);
        tried.comes_back(fault);
    }

    pub fn finish(&mut self) {
        if let Some(tried) = self.tried.take() {
            self.replays += tried.agrees();
        }
    }

    /// Checks the end of all: nobody was locked out, and some of the faults did lose answers.
    pub fn end(mut self, least: usize) {
        self.finish();
        assert_eq!(self.server.ctl(&["get", "lock", "--format", "json"]).trim(), "[]", "nobody is locked");
        assert!(self.faults >= least && self.replays > 0, "{} faults, {} replays", self.faults, self.replays);
        println!("{:?}: {} faults, {} answers given again", self.kind, self.faults, self.replays);
    }
}
