//! Flash that fails: each call on the storage directory, with each error that file systems give.

use std::path::PathBuf;

use super::support::said::said;
use super::support::strace::{count_calls_on, failing_at};
use super::support::walk::{Kind, Walk};
use super::support::{Device, Server, run};

/// The calls by which the agent reads and writes its storage.
const CALLS: [&str; 11] =
    ["fdatasync", "flock", "fsync", "ftruncate", "mkdirat", "openat", "pwrite64", "read", "renameat", "unlinkat", "write"];

/// What a file system says, what the agent is to say of it, and the calls that may come to it.
const ERRORS: [(&str, &str, &[&str]); 4] = [
    ("EIO", "Input/output error", &CALLS),
    ("ENOSPC", "No space left on device", &["fdatasync", "fsync", "mkdirat", "openat", "pwrite64", "renameat", "write"]),
    ("EDQUOT", "Disk quota exceeded", &["fdatasync", "fsync", "pwrite64", "write"]),
    ("EROFS", "Read-only file system", &["mkdirat", "openat", "renameat", "unlinkat"]),
];

/// The storage directory, and all that stands in it or comes to.
fn storage_of(device: &Device) -> Vec<PathBuf> {
    let mut names = vec!["lock".to_owned(), "status.json".to_owned(), "status.new".to_owned()];
    let there = std::fs::read_dir(device.storage()).into_iter().flatten().flatten();
    let there = there.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect::<Vec<_>>();
    let key_number = |name: &String| name.strip_prefix("key-bound-")?.strip_suffix(".pem")?.parse::<u32>().ok();
    let keys = there.iter().filter_map(key_number).collect::<Vec<_>>();
    let next = keys.iter().max().map_or(1, |last| last + 1);
    let key_files = keys.into_iter().chain([next]).map(|n| format!("key-bound-{n}.pem"));
    let replaced = ["state", "trust", "identity.pem", "recovery-code.request", "recovery-code.failed"]
        .map(str::to_owned)
        .into_iter()
        .chain(key_files);
    names.extend(replaced.flat_map(|name| [format!("{name}.new"), name]));
    for name in there {
        assert!(names.contains(&name), "{name} is looked at");
    }
    std::iter::once(device.storage()).chain(names.iter().map(|name| device.storage().join(name))).collect()
}

/// Fails each call of a join on its storage, one after another.
fn fail_the_flash(kind: Kind, errors: &[(&str, &str, &[&str])]) {
    let server = Server::start();
    let mut walk = Walk::new(&server, &server.addr, kind);
    let start = |walk: &Walk<'_>| walk.tried.as_ref().expect("a device").device.command(&["start", "--oneshot"]);
    let paths = |walk: &Walk<'_>| storage_of(&walk.tried.as_ref().expect("a device").device);
    walk.ready();
    let counts = count_calls_on(&start(&walk), &CALLS, &paths(&walk));
    walk.goes_on("nothing");
    for must in ["fsync", "openat", "renameat"] {
        assert!(counts.contains_key(must), "{counts:?}");
    }
    let (mut told, mut harmless) = (0, 0);
    for (error, words, calls) in errors {
        for (call, count) in counts.iter().filter(|(call, _)| calls.contains(&call.as_str())) {
            for nth in 1..=*count {
                walk.ready();
                let output = run(&mut failing_at(&start(&walk), call, nth, error, &paths(&walk)));
                if output.status.success() {
                    // Of what nothing depends on: the report for `boundkey status`, a file left over.
                    harmless += 1;
                    println!("{error} at {call} {nth} of {count} did no harm");
                } else {
                    let said = said(&output);
                    assert_eq!(said.code, 8, "{error} at {call} {nth}: {said:?}");
                    assert!(said.error.contains(words), "{error} at {call} {nth}: {said:?}");
                    told += 1;
                }
                walk.goes_on(&format!("{error} at {call} {nth} of {count}"));
            }
        }
    }
    println!("{kind:?}: {told} faults told, {harmless} harmless");
    // Nothing depends on the report for `boundkey status`, on a file left over, and on the older slot of the state; each of the
    // first two costs a walk of five calls to the directory.
    assert!(told > 3 * harmless, "{told} faults told, {harmless} harmless");
    walk.end(20);
}

#[test]
fn a_first_join_survives_errors_of_the_flash() {
    fail_the_flash(Kind::First, &ERRORS);
}

#[test]
fn a_renewal_survives_errors_of_the_flash() {
    fail_the_flash(Kind::Renewal, &ERRORS);
}

#[test]
fn a_rotation_survives_errors_of_the_flash() {
    fail_the_flash(Kind::Rotation, &ERRORS[..1]);
}
