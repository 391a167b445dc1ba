//! Directories that other users may write: the agent, which may do more than they, does nothing there for them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use boundkey::agent::config::Output;
use boundkey::platform::pem;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, SerialNumber};

use super::{Ca, is_root, mode, output, pair_matches, sets};

/// A user and a group that are nobody's.
const OTHER: u32 = 4242;

fn make(path: &Path, owner: u32, bits: u32) {
    fs::create_dir(path).expect("directory");
    chown(path, Some(owner), Some(owner)).expect("owner");
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).expect("mode");
}

/// What an install into a directory is refused with.
fn refused(path: &Path) -> String {
    let ca = Ca::new();
    let error = ca.fresh(&output(path)).install(&ca.bundle(), &[]).expect_err("refused");
    assert!(!path.join("..set-1").exists() && !path.join("tls.key").exists(), "nothing was written");
    format!("{error}\n{}", error.advice())
}

#[test]
fn a_directory_that_others_may_write_is_refused_by_name_owner_and_mode() {
    let dir = tempfile::tempdir().expect("directory");
    let root = nix::unistd::geteuid().as_raw();
    for bits in [0o775, 0o757, 0o777, 0o1777, 0o2775] {
        let path = dir.path().join(format!("mode-{bits:o}"));
        fs::create_dir(&path).expect("directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(bits)).expect("mode");
        let said = refused(&path);
        let named = format!("{} (owner {root}, ", path.display());
        assert!(said.contains(&named) && said.contains(&format!("mode {bits:04o}) lets other users write")), "{said}");
        assert!(said.contains(&format!("run chmod go-w {}", path.display())), "{said}");
        if bits & 0o1000 == 0 {
            let below = path.join("mqtt");
            assert!(refused(&below).contains(&named), "nor is what is in it");
            assert!(!below.exists());
        }
    }
    if !is_root("directories of another user") {
        return;
    }
    let theirs = dir.path().join("theirs");
    make(&theirs, OTHER, 0o755);
    for path in [theirs.clone(), theirs.join("mqtt")] {
        let said = refused(&path);
        assert!(said.contains(&format!("{} (owner {OTHER}, group {OTHER}, mode 0755)", theirs.display())), "{said}");
        assert!(said.contains("belongs to user 4242, who may replace what is in it") && said.contains("(chown)"), "{said}");
        assert!(said.contains("by `owner` or `group`"), "{said}");
    }
    // A link that somebody put into a directory which all may write, and the directory that it leads to.
    let shared = dir.path().join("shared");
    make(&shared, 0, 0o1777);
    make(&dir.path().join("private"), 0, 0o700);
    symlink(dir.path().join("private"), shared.join("link")).expect("link");
    nix::unistd::fchownat(
        nix::fcntl::AT_FDCWD,
        &shared.join("link"),
        Some(OTHER.into()),
        None,
        nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .expect("owner");
    assert!(refused(&shared.join("link")).contains("belongs to user 4242"));
    assert_eq!(fs::read_dir(dir.path().join("private")).expect("directory").count(), 0);
}

#[test]
fn a_directory_of_ours_in_a_sticky_one_and_links_of_ours_are_used() {
    let dir = tempfile::tempdir().expect("directory");
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).expect("directory");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).expect("mode");
    fs::create_dir(dir.path().join("real")).expect("directory");
    symlink("../real/./", shared.join("link")).expect("link");
    symlink(shared.join("link"), dir.path().join("chain")).expect("link");
    for path in [shared.join("mqtt"), shared.join("link/mqtt"), dir.path().join("chain"), dir.path().join("real/../real/dots")] {
        Ca::new().install(&output(&path));
        assert!(pair_matches(&path).expect("files"), "{}", path.display());
    }
    symlink("loop", dir.path().join("loop")).expect("link");
    assert!(refused(&dir.path().join("loop/mqtt")).contains("Too many levels of symbolic links"));
}

/// As root, the agent deleted all files of a directory of root's: a link to it was put in place of an old set, in between. Here the one
/// who puts it there has the agent's own rights, so that nothing but the way in which the agent goes about is in between.
#[test]
fn a_link_put_in_place_of_a_set_in_between_leads_nowhere() {
    let dir = tempfile::tempdir().expect("directory");
    let precious = dir.path().join("precious");
    fs::create_dir(&precious).expect("directory");
    let names: Vec<_> = (0..20).map(|n| precious.join(format!("file-{n}"))).collect();
    for name in &names {
        fs::write(name, "precious").expect("write");
    }
    let path = dir.path().join("mqtt");
    let (ca, output) = (Ca::new(), output(&path));
    ca.install(&output);
    let (done, flips) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut installs, mut failures) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 0;
            while !done.load(Ordering::Relaxed) {
                let current = fs::read_link(path.join("..current")).ok();
                let number = current.and_then(|t| t.to_str()?.strip_prefix("..set-")?.parse::<u64>().ok()).unwrap_or(last);
                last = number;
                for number in number.saturating_sub(1)..=number + 1 {
                    let (set, aside) = (path.join(format!("..set-{number}")), path.join("aside"));
                    if fs::rename(&set, &aside).is_ok() && symlink(&precious, &set).is_ok() {
                        flips.fetch_add(1, Ordering::Relaxed);
                        std::thread::yield_now();
                        let _ = fs::remove_file(&set);
                    }
                    let _ = fs::rename(&aside, &set);
                    let _ = fs::remove_dir_all(&aside);
                }
            }
        });
        while installs < 300 || flips.load(Ordering::Relaxed) < 300 {
            // What it meets with is another's doing: that it fails is right, and that it does what it was not told is not.
            failures += u32::from(ca.fresh(&output).install(&ca.bundle(), &[]).is_err());
            installs += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
    for name in &names {
        assert_eq!(fs::read(name).expect("still there"), b"precious");
    }
    let found = fs::read_dir(&precious).expect("directory").count();
    assert_eq!(found, names.len(), "nothing was written there either");
    println!("{installs} installs, {failures} of them failed, {} links put in place", flips.into_inner());
}

fn list(ca: &Ca) -> Vec<u8> {
    let params = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2027, 1, 1),
        crl_number: SerialNumber::from(7),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(&ca.0).expect("a list").der().to_vec()
}

/// The list that stands there goes on where no new one came. A file of root's, mode 0600, was copied into one that all may read: it had
/// been given the list's name.
#[test]
fn what_stands_in_place_of_the_revocation_list_goes_on_only_if_it_is_one() {
    let dir = tempfile::tempdir().expect("directory");
    let (ca, path) = (Ca::new(), dir.path().join("mqtt"));
    let output = Output { crl: true, ..output(&path) };
    let install = |lists: &[&[u8]]| ca.fresh(&output).install(&ca.bundle(), lists).expect("install");
    let der = list(&ca);
    install(&[&der]);
    install(&[]);
    assert_eq!(fs::read_to_string(path.join("ca.crl")).expect("list"), pem::revocation_list(&der), "it goes on");

    let secret = dir.path().join("secret");
    fs::write(&secret, "secret").expect("write");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("mode");
    let foreign = pem::revocation_list(&list(&Ca::new()));
    let plants: [&dyn Fn(&Path); 5] = [
        &|name| symlink(&secret, name).expect("link"),
        &|name| fs::hard_link(&secret, name).expect("link"),
        &|name| fs::write(name, "no list").expect("write"),
        &|name| fs::write(name, &foreign).expect("write"),
        &|name| nix::unistd::mkfifo(name, nix::sys::stat::Mode::from_bits_truncate(0o644)).expect("pipe"),
    ];
    for plant in plants {
        install(&[&der]);
        let name = path.join("..current/ca.crl");
        fs::remove_file(&name).expect("remove");
        plant(&name);
        install(&[]);
        assert!(fs::symlink_metadata(path.join("..current/ca.crl")).is_err(), "it does not go on");
        assert!(pair_matches(&path).expect("files"), "and keeps nothing else from going on");
    }
    assert_eq!((fs::read_to_string(&secret).expect("secret"), mode(secret)), ("secret".into(), 0o600));
    // Nor from a set that is a link, or that `..current` leads to elsewhere.
    for target in ["..set-x", "/etc", "../elsewhere", "..set-99/../../x"] {
        fs::remove_file(path.join("..current")).expect("remove");
        symlink(target, path.join("..current")).expect("link");
        let error = ca.fresh(&output).install(&ca.bundle(), &[]).expect_err("not ours");
        assert!(error.to_string().ends_with("..current is not boundkey's and is not overwritten"), "{error}");
    }
}

/// A group reads an output by its directory, where the agent may not give files away.
#[test]
fn the_group_of_a_set_group_id_directory_is_kept() {
    if !is_root("a directory of another group") {
        return;
    }
    let dir = tempfile::tempdir().expect("directory");
    let parent = dir.path().join("etc");
    make(&parent, 0, 0o755);
    chown(&parent, Some(0), Some(OTHER)).expect("group");
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o2755)).expect("mode");
    let path = parent.join("deep/mqtt");
    let (ca, output) = (Ca::new(), output(&path));
    ca.install(&output);
    ca.install(&output);
    for made in [parent.join("deep"), path.clone(), path.join("..set-2")] {
        let found = fs::metadata(&made).expect("directory");
        assert_eq!((found.gid(), found.mode() & 0o7777), (OTHER, 0o2755), "{}", made.display());
    }
    for (name, bits) in [("tls.key", 0o640), ("tls.crt", 0o644)] {
        let found = fs::metadata(path.join(name)).expect("file");
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (0, OTHER, bits), "{name}");
    }
    assert_eq!(sets(&path), ["..current", "..set-1", "..set-2"]);
}
