//! The bounded run of all fuzz targets, on any compiler: the corpus as it stands, then mutations of it. The same inputs at every run.
//!
//! An input whose outcome is told in words that were not heard before joins the pool that is mutated: refusals say what failed, so they
//! tell ways through the code apart. What counts as a finding: a panic, and more memory than [`MEMORY`] for one input.
//!
//! `BOUNDKEY_FUZZ_RUNS=n` runs n times as many mutations, `BOUNDKEY_FUZZ_SEED=n` others. A finding is written to
//! `tests/fuzz/artifacts/TARGET/`; the next run tries what is there first.

#[path = "bounded/memory.rs"]
mod memory;
#[path = "bounded/mutate.rs"]
mod mutate;

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use boundkey_fuzz as targets;
use mutate::Mutator;

/// Most memory that one input may take at any moment, in bytes. Inputs are at most [`MAX_INPUT`] long.
const MEMORY: usize = 4 << 20;
const MAX_INPUT: usize = 16 << 10;
/// Most inputs in the pool whose outcomes begin alike: what is told may repeat the input.
const ALIKE: usize = 16;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

type Run = fn(&[u8]) -> String;

/// What a run came to.
struct Found {
    runs: usize,
    /// Inputs in the pool: so many outcomes were told apart.
    pool: usize,
    /// Inputs that were accepted.
    accepted: usize,
    /// Whether a seed is among them.
    good_seeds: bool,
    /// The most memory that one input took.
    memory: usize,
    /// What was found, and the input.
    finding: Option<(String, Vec<u8>)>,
}

/// Runs `mutations` mutations of `corpus`; stops at the first finding.
fn fuzz(run: Run, corpus: Vec<Vec<u8>>, mutations: usize) -> Found {
    let mut found = Found { runs: 0, pool: 0, accepted: 0, good_seeds: false, memory: 0, finding: None };
    let (mut heard, mut prefixes) = (HashSet::new(), HashMap::<String, usize>::new());
    let (mut pool, mut good) = (Vec::new(), Vec::new());
    let mut mutator = Mutator::new(number("BOUNDKEY_FUZZ_SEED", 1), &corpus);
    let mut seeds = corpus.into_iter();
    while found.runs < mutations {
        let seed = seeds.next();
        let (input, keep) = match seed {
            Some(seed) => (seed, true),
            // Most of what is far from being accepted is refused for one reason: it is tried less often.
            None => (mutator.mutate(if found.runs.is_multiple_of(3) { &pool } else { &good }, MAX_INPUT), false),
        };
        found.runs += 1;
        let before = memory::restart();
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&input)));
        let taken = memory::peak_since(before);
        found.memory = found.memory.max(taken);
        let told = match outcome {
            Ok(told) if taken <= MEMORY => told,
            Ok(_) => {
                found.finding = Some((format!("takes {taken} bytes of memory, more than {MEMORY}"), input));
                break;
            }
            Err(panic) => {
                found.finding = Some((format!("panics: {}", words(&*panic)), input));
                break;
            }
        };
        let accepted = told.starts_with("ok");
        found.accepted += usize::from(accepted);
        found.good_seeds |= accepted && keep;
        let gist = gist(&told);
        let alike = prefixes.entry(gist.chars().take(20).collect()).or_default();
        if keep || (*alike < ALIKE && heard.insert(gist)) {
            *alike += 1;
            if accepted || keep {
                good.push(input.clone());
            }
            pool.push(input);
        }
    }
    found.pool = pool.len();
    found
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// An outcome without what merely repeats the input: quoted parts and numbers.
fn gist(told: &str) -> String {
    let mut gist = String::new();
    let mut quote = None;
    for c in told.chars().take(400) {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None if c.is_ascii_digit() => {}
            None => gist.push(c),
        }
    }
    gist
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{variable}: {e}")))
}

fn home(of: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of).join(target)
}

/// The files of a directory, by name; none where there is no directory.
fn files(dir: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(dir) else { return vec![] };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(path).expect("a file")).collect()
}

/// Fuzzes one target with what its corpus has, `mutations` times.
fn holds(target: &str, run: Run, mutations: usize) {
    let corpus = files(&home("corpus", target));
    let all = files(&home("artifacts", target)).into_iter().chain(corpus).collect();
    let times = usize::try_from(number("BOUNDKEY_FUZZ_RUNS", 1)).expect("a number of runs");
    let found = fuzz(run, all, mutations * times);
    println!(
        "{target}: {} runs, {} outcomes, {} accepted, at most {} KiB of memory",
        found.runs,
        found.pool,
        found.accepted,
        found.memory >> 10
    );
    let Some((what, input)) = found.finding else {
        assert!(found.good_seeds, "{target}: no seed is accepted: the corpus is out of date");
        return;
    };
    let dir = home("artifacts", target);
    let hash = ring::digest::digest(&ring::digest::SHA256, &input);
    let name = hash.as_ref()[..8].iter().fold(String::new(), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    });
    std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(dir.join(&name), &input)).expect("the finding is written");
    panic!("{target}: {what}\n  the input is tests/fuzz/artifacts/{target}/{name}: {:?}", String::from_utf8_lossy(&input));
}

macro_rules! bounded {
    ($($(#[$when:meta])? $target:ident: $mutations:literal,)+) => {$(
        $(#[$when])?
        #[test]
        fn $target() {
            holds(stringify!($target), targets::$target::run, $mutations);
        }
    )+};
}

bounded! {
    answer: 20_000,
    certificate: 20_000,
    code: 20_000,
    config: 20_000,
    crl: 20_000,
    join: 20_000,
    jws: 20_000,
    names: 20_000,
    pem: 20_000,
    resources: 20_000,
    state: 20_000,
    trust: 20_000,
    #[cfg(feature = "tpm")] tss2: 20_000,
    #[cfg(feature = "pkcs11")] uri: 20_000,
}

/// The run is worth something: bugs of the kinds that readers have are found, within as many runs as a target gets.
mod planted {
    use super::*;

    /// Runs a target with a bug planted behind it; what is found must be that bug.
    fn is_found(target: &str, run: Run, what: &str) {
        let found = fuzz(run, files(&home("corpus", target)), 20_000);
        let (finding, _) = found.finding.unwrap_or_else(|| panic!("{target}: not found in {} runs", found.runs));
        assert!(finding.contains(what), "{target}: {finding}");
        println!("{target}: found after {} runs: {finding}", found.runs);
    }

    #[test]
    fn a_length_that_is_believed() {
        is_found(
            "crl",
            |data| {
                // DER whose short length is taken for what follows.
                if let Some((_, [tag @ 0x30, length @ 0..=0x7f, rest @ ..])) = data.split_first() {
                    let content = &rest[..usize::from(*length)];
                    return format!("{tag} {}", content.is_empty());
                }
                targets::crl::run(data)
            },
            "out of range",
        );
    }

    #[test]
    fn memory_for_the_asking() {
        is_found(
            "state",
            |data| {
                let told = targets::state::run(data);
                let length = data.get(1..5).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
                // A part of it: not every machine lends 4 GiB.
                drop(Vec::<u8>::with_capacity((length >> 6) as usize));
                told
            },
            "bytes of memory",
        );
    }

    #[test]
    fn a_sum_past_the_end() {
        is_found(
            "join",
            |data| {
                let told = targets::join::run(data);
                let value: serde_json::Value = serde_json::from_slice(data).unwrap_or_default();
                // Only of a request that was verified: bytes alone would not get there.
                if let Some(ttl) = value["request"]["payload"]["ttl"].as_u64().filter(|_| told.starts_with("ok")) {
                    let _ = 1_800_000_000_u64 * ttl;
                }
                told
            },
            "overflow",
        );
    }
}
