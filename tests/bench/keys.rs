//! What a key store's operations take, through the same interface as the agent's.
//!
//! `boundkey-keys --keystore TYPE --dir DIR --rounds N` and the options of `boundkey keypair create` for that type. Prints one JSON
//! object: for each operation its median time, and the processor's time in this process, in seconds.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use boundkey::keystore::{self, Keystore, KeystoreOptions};
use boundkey_hal::{Algorithm, Error, KeyId};
use nix::time::{ClockId, clock_gettime};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let options: HashMap<_, _> =
        arguments.chunks_exact(2).map(|pair| (pair[0].trim_start_matches("--"), pair[1].clone())).collect();
    let option = |name: &str| options.get(name).cloned();
    let required = |name: &str| option(name).ok_or_else(|| format!("--{name} is missing"));
    let keystore =
        KeystoreOptions::named(&required("keystore")?, &option).and_then(Keystore::try_from).map_err(|e| e.to_string())?;
    let (dir, rounds) = (required("dir")?, required("rounds")?.parse::<u32>()?);
    let store = keystore::open(&keystore, Path::new(&dir), None)?;
    let ids = (0..rounds).map(|n| format!("bench-{n}").parse()).collect::<Result<Vec<KeyId>, _>>().map_err(|e| e.0)?;
    // Modules and files are read from disk; a storage key is made where there is none.
    let first: KeyId = "bench".parse().map_err(|e: boundkey_hal::InvalidKey| e.0)?;
    store.generate(&first, Algorithm::EcdsaP256)?;
    let generate = sample(&ids, |id| store.generate(id, Algorithm::EcdsaP256).map(drop))?;
    let open = sample(&ids, |id| store.public_key(id).map(drop))?;
    let sign = sample(&ids, |id| store.sign(id, b"a challenge").map(drop))?;
    for id in ids.iter().chain([&first]) {
        store.delete(id)?;
    }
    println!("{{\"generate\":{generate},\"open\":{open},\"sign\":{sign}}}");
    Ok(())
}

/// Medians of an operation on each key, as JSON.
fn sample(ids: &[KeyId], mut operation: impl FnMut(&KeyId) -> Result<(), Error>) -> Result<String, Failure> {
    let (mut times, mut processor) = (Vec::new(), Vec::new());
    for id in ids {
        let (start, worked) = (Instant::now(), processor_time()?);
        operation(id)?;
        processor.push(processor_time()?.saturating_sub(worked));
        times.push(start.elapsed());
    }
    Ok(format!("{{\"time\":{:.6},\"cpu\":{:.6}}}", median(times), median(processor)))
}

fn processor_time() -> Result<Duration, Failure> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

fn median(mut samples: Vec<Duration>) -> f64 {
    samples.sort();
    samples.get(samples.len() / 2).map_or(0.0, Duration::as_secs_f64)
}
