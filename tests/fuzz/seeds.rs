//! Makes the seeds that nobody can write by hand, by the code that ships: `cargo run -p boundkey-fuzz --example seeds`.

use std::path::Path;

use boundkey::auth::ca::Profile;
use boundkey::join::device::{CertificateInfo, KnownKey, Memory, RecoveryKey};
use boundkey::join::identity::{IdentitySubject, InstanceKind};
use boundkey::join::trust::pin_text;
use boundkey::join::{Id, Recoveries, RecoveryMode, Step, Thumbprint, base64url};
use boundkey::platform::pem;
use boundkey::platform::time::System;
use boundkey::state::{STATE_FILE, StateFile};
use boundkey_fuzz::certificate::{authority, signed, tlv};
use boundkey_fuzz::join::NOW;
use boundkey_fuzz::keys::{BOUND, IDENTITY, OTHER};
use boundkey_fuzz::state::Files;
use boundkey_hal::Algorithm;

fn main() {
    certificates();
    revocation_lists();
    identity();
    state();
    trust();
    #[cfg(feature = "tpm")]
    tss2();
}

/// Writes a seed: the way it is to be read, and the bytes.
fn seed(target: &str, name: &str, way: u8, bytes: &[u8]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(dir.join(name), [&[way], bytes].concat()).expect("written");
}

/// The first element inside a DER element: what is signed of a certificate or list.
fn first_inside(der: &[u8]) -> &[u8] {
    let content = |der: &[u8]| match der[1] {
        0x82 => (4, usize::from(u16::from_be_bytes([der[2], der[3]]))),
        0x81 => (3, usize::from(der[2])),
        short => (2, usize::from(short)),
    };
    let inside = &der[content(der).0..];
    let (start, length) = content(inside);
    &inside[..start + length]
}

fn trust() {
    let bundle = authority().newest_bundle().expect("a bundle");
    let pin = pin_text(&bundle.signer().pins()[0]);
    seed("trust", "file", 0, format!("{pin}\n{}\n", bundle.text()).as_bytes());
    seed("trust", "certificate", 1, authority().certificate());
    let payload = bundle.text().split('.').nth(1).expect("a payload");
    seed("trust", "bundle", 2, &base64url::decode(payload).expect("base64url"));
}

fn step() -> Step {
    Step { recovery: 1, generation: 3, instance: Id([7; 16]) }
}

fn certificates() {
    let subject = IdentitySubject {
        cluster: "c".into(),
        token: "t".into(),
        incarnation: Id([9; 16]),
        kind: InstanceKind::Bot,
        step: step(),
    };
    let output = Profile::Output {
        dns_names: vec!["t.example.com".into()],
        uris: vec!["urn:x:t".into()],
        ip_addresses: vec!["10.0.0.1".parse().expect("an address")],
    };
    for (name, profile, key) in [("identity", Profile::Identity(subject), &IDENTITY), ("output", output, &OTHER)] {
        let issued = authority().issue(&key.public, "t", &profile, (NOW, NOW), &System).expect("issued");
        seed("certificate", name, 0, &issued.bytes);
        seed("certificate", &format!("{name}-to-be-signed"), 1, first_inside(&issued.bytes));
    }
    seed("certificate", "ca", 0, authority().certificate());
    seed("certificate", "ca-to-be-signed", 1, first_inside(authority().certificate()));

    let algorithm = [tlv(6, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1]), tlv(6, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7])];
    let point = [&[0][..], BOUND.public.as_bytes()].concat();
    let info = tlv(0x30, &[tlv(0x30, &algorithm.concat()), tlv(3, &point)].concat());
    let request = tlv(0x30, &[tlv(2, &[0]), tlv(0x30, &[]), info, tlv(0xa0, &[])].concat());
    seed("certificate", "request-to-be-signed", 3, &request);
    seed("certificate", "request-by-another", 2, &signed(&request));
}

fn revocation_lists() {
    for (name, serials) in [("empty", vec![]), ("two", vec!["4a01".to_owned(), "7f00ff".into()])] {
        let list = authority().revocation_lists(0x0102_0304, &serials, NOW).expect("signed").remove(0).1;
        seed("crl", name, 0, &list);
        seed("crl", &format!("{name}-to-be-signed"), 1, first_inside(&list));
    }
}

fn identity() {
    let key = IDENTITY.private.as_pkcs8();
    let text = pem::private_key(key) + &pem::certificate(b"certificate") + &pem::certificate(authority().certificate());
    seed("pem", "identity", 0, text.as_bytes());
    seed("pem", "p256", 0, pem::private_key(key).as_bytes());
    seed("pem", "p256-der", 1, key);
    let ed25519 = [&[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20][..], &[7; 32]].concat();
    seed("pem", "ed25519-der", 1, &ed25519);
}

fn state() {
    let key = |id: &str, bound| KnownKey {
        id: id.into(),
        thumbprint: Thumbprint::of(&BOUND.public),
        algorithm: Algorithm::EcdsaP256.into(),
        bound,
    };
    let certificate = CertificateInfo { serial: "4a01".into(), not_before: NOW, not_after: NOW, fingerprint: [3; 32] };
    let whole = Memory {
        token: "t".into(),
        cluster: "c".into(),
        incarnation: Some(Id([9; 16])),
        step: Some(step()),
        join_state: Some("a.b.c".into()),
        attempt: Some(Id([1; 16])),
        keystore_pin: Some(vec![1, 2, 3]),
        keys: vec![key("bound-2", false), key("bound-1", true)],
        certificate: Some(certificate),
        recoveries: Some(Recoveries { count: 1, limit: 3, mode: RecoveryMode::Standard }),
        last_known_time: NOW,
        rollback_counter: Some(4),
        recovery_keys: vec![RecoveryKey { thumbprint: Thumbprint::of(&BOUND.public), request: Id([2; 16]) }],
    };
    for (name, memory) in [("new", Memory { token: "t".into(), ..Memory::default() }), ("joined", whole)] {
        let mut state = StateFile::open(Files::default()).expect("no file");
        state.store(&memory).expect("stored");
        state.store(&Memory { attempt: None, ..memory }).expect("stored");
        let file = &state.storage().0[STATE_FILE];
        seed("state", &format!("{name}-file"), 1, file);
        let body = |slot: &[u8]| slot[20..20 + usize::from(u16::from_le_bytes([slot[10], slot[11]]))].to_vec();
        let (first, second) = (body(file), body(&file[4096..]));
        let split = u64::try_from(first.len()).expect("short").to_le_bytes();
        let head = [&[0][..], &1_u64.to_le_bytes(), &2_u64.to_le_bytes(), &split].concat();
        seed("state", &format!("{name}-bodies"), 0, &[head, first, second].concat());
    }
}

#[cfg(feature = "tpm")]
fn tss2() {
    use boundkey_fuzz::tss2::with_public_area;
    // TPMT_PUBLIC of a P-256 signing key: type, name algorithm, attributes, no policy; no symmetric algorithm, ECDSA with SHA-256, the
    // curve, no KDF; the point.
    let attributes = 0x0004_0472_u32.to_be_bytes();
    let fields = [0x0010_u16, 0x0018, 0x000b, 0x0003, 0x0010].map(u16::to_be_bytes).concat();
    let point = BOUND.public.as_bytes();
    let area = [&[0, 0x23, 0, 0x0b][..], &attributes, &[0, 0], &fields, &[0, 32], &point[1..33], &[0, 32], &point[33..]].concat();
    let der = with_public_area(&area);
    let pem = pem_rfc7468::encode_string("TSS2 PRIVATE KEY", pem_rfc7468::LineEnding::LF, &der).expect("PEM");
    seed("tss2", "public-area", 2, &area);
    seed("tss2", "der", 1, &der);
    seed("tss2", "pem", 0, pem.as_bytes());
}
