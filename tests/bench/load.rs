//! Joins as fast as the server answers: many devices in one process, each with its own token, connection by connection.
//!
//! `boundkey-load --server ADDR --ca-pin PIN --secret SECRET [--devices 32] [--seconds 10]`: tokens `load-0`, `load-1` ... must
//! exist, with SECRET as registration secret. Prints one JSON object.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use boundkey::agent::clock::DeviceClock;
use boundkey::agent::tls::{Roots, Trust};
use boundkey::agent::transport::{Https, Transport as _};
use boundkey::join::device::request::{Identity, Parts};
use boundkey::join::device::{KnownKey, Memory, Start};
use boundkey::join::message::{CHALLENGE_PATH, Heartbeat, JOIN_PATH};
use boundkey::join::{Id, Thumbprint, base64url};
use boundkey::time::{System, Timestamp};
use boundkey_hal::file::{FileStore, PrivateKey};
use boundkey_hal::{Algorithm, KeyStore as _};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let options: HashMap<_, _> = arguments.chunks_exact(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let option = |name: &str| options.get(name).copied().ok_or_else(|| format!("{name} is missing"));
    let (server, secret) = (option("--server")?, option("--secret")?);
    let pin = hex(option("--ca-pin")?.trim_start_matches("sha256:"))?;
    let devices: usize = option("--devices").unwrap_or("32").parse()?;
    let seconds: u64 = option("--seconds").unwrap_or("10").parse()?;
    let (joins, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (elapsed, failure) = std::thread::scope(|scope| {
        let (joins, stop) = (&joins, &stop);
        let threads: Vec<_> = (0..devices)
            .map(|n| scope.spawn(move || join_until_stopped(&format!("load-{n}"), server, pin, secret, joins, stop)))
            .collect();
        // First joins make keys and are slower: they are not counted.
        while joins.load(Ordering::Relaxed) < devices as u64 && !threads.iter().any(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(10));
        }
        joins.store(0, Ordering::Relaxed);
        let start = Instant::now();
        std::thread::sleep(Duration::from_secs(seconds));
        let counted = (joins.load(Ordering::Relaxed), start.elapsed());
        stop.store(true, Ordering::Relaxed);
        let failure = threads.into_iter().find_map(|thread| thread.join().ok()?.err());
        (counted, failure)
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    let (count, time) = elapsed;
    let count = u32::try_from(count)?;
    let (seconds, per_second) = (time.as_secs_f64(), f64::from(count) / time.as_secs_f64());
    println!(r#"{{"joins":{count},"seconds":{seconds:.3},"devices":{devices},"per_second":{per_second:.1}}}"#);
    Ok(())
}

/// One device: joins again and again, each time on a new connection, as a device does that wakes up for it.
fn join_until_stopped(
    token: &str,
    server: &str,
    pin: [u8; 32],
    secret: &str,
    joins: &AtomicU64,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let dir = std::env::temp_dir().join(format!("boundkey-load-{}-{token}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let mut keys = FileStore::new(&dir);
    let public = keys.generate(&"bound-1".parse()?, Algorithm::Ed25519)?;
    let mut memory = Memory::default().for_token(token);
    let thumbprint = Thumbprint::of(&public);
    memory.add_key(KnownKey { id: "bound-1".into(), thumbprint, algorithm: Algorithm::Ed25519.into(), bound: false });
    let clock = Arc::new(DeviceClock::new(Arc::new(System), Timestamp::default()));
    let mut identity: Option<(Vec<u8>, PrivateKey)> = None;
    let mut bundle = None;
    let run = || -> Result<(), Failure> {
        while !stop.load(Ordering::Relaxed) {
            let mut https = Https::new(server, Trust::new(Roots::Pins(vec![pin]), clock.clone()))?;
            let request = serde_json::to_vec(&Start::new(&memory, token).request())?;
            let challenge = serde_json::from_slice(&https.post(CHALLENGE_PATH, &request)?)?;
            memory.attempt = Some(Id::random(&System)?);
            let key = boundkey::agent::outputs::FreshKey::generate()?;
            let held = memory.clone();
            let challenged = Start::new(&held, token).challenged(challenge).map_err(|e| format!("{e:?}"))?;
            let sign = |message: &[u8]| match &identity {
                Some((_, key)) => key.sign(message),
                None => Err(boundkey_hal::Error::new(boundkey_hal::ErrorKind::NotFound, "no identity")),
            };
            let parts = Parts {
                url: &https.url(JOIN_PATH),
                attempt: held.attempt.ok_or("no attempt")?,
                csr: base64url::encode(&key.csr),
                ttl: None,
                outputs: vec![],
                bundle,
                heartbeat: Heartbeat::default(),
                secret: Some(secret),
                identity: identity.as_ref().map(|(certificate, _)| Identity { certificate, sign: &sign }),
            };
            let prepared = challenged.prepare(&mut keys, parts)?;
            let answer = https.post(JOIN_PATH, &serde_json::to_vec(prepared.request())?)?;
            let issued = prepared.answered(serde_json::from_slice(&answer)?)?;
            if let Some(text) = issued.answer.bundle.as_ref().and_then(|bundles| bundles.last()) {
                bundle = Some(boundkey::join::TrustBundle::open(text)?.sequence());
            }
            memory = issued.memory;
            identity = Some((issued.certificate, PrivateKey::from_pem(&boundkey::pem::private_key(&key.pkcs8))?));
            joins.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let mut run = run;
    let done = run();
    std::fs::remove_dir_all(&dir)?;
    done
}

fn hex(text: &str) -> Result<[u8; 32], Failure> {
    let bytes = (0..text.len()).step_by(2).map(|at| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()));
    let bytes: Vec<u8> = bytes.collect::<Option<_>>().ok_or("a CA pin is sha256: and 64 hexadecimal digits")?;
    bytes.try_into().map_err(|_| "a CA pin is sha256: and 64 hexadecimal digits".into())
}
