//! Directories by handle: names lead nowhere but into the directory that was opened.
#![cfg(feature = "file")]

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;

use boundkey_hal::dir::{self, Access, Dir, Exposed};
use boundkey_hal::durable;

fn set_mode(path: &Path, bits: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).expect("mode");
}

fn is_exposed<T>(result: std::io::Result<T>) -> bool {
    result.is_err_and(|e| Exposed::of(&e).is_some() && e.kind() == ErrorKind::PermissionDenied)
}

#[test]
fn no_name_leads_through_a_link() {
    let temporary = tempfile::tempdir().expect("directory");
    let (root, elsewhere) = (temporary.path().join("dir"), temporary.path().join("elsewhere"));
    fs::create_dir(&elsewhere).expect("directory");
    fs::write(elsewhere.join("file"), "precious").expect("write");
    let dir = Dir::create(&root, Access::Private).expect("directory");
    symlink(elsewhere.join("file"), root.join("link")).expect("link");
    symlink(&elsewhere, root.join("sub")).expect("link");
    symlink(elsewhere.join("new"), root.join("dangling")).expect("link");
    for result in [dir.read("link", 10).map(drop), dir.write("link").map(drop), dir.write_or_make("link", 0o600).map(drop)] {
        assert_eq!(result.expect_err("a link").kind(), ErrorKind::Other);
    }
    assert_eq!(dir.make_file("dangling", 0o600).expect_err("a link").kind(), ErrorKind::AlreadyExists);
    assert!(dir.subdir("sub").is_err() && dir.make_subdir("sub", Access::Public).is_err());
    assert_eq!(dir.link_target("link").expect("a link"), Some(elsewhere.join("file")));
    assert_eq!(dir.link_target("none").expect("none"), None);
    let mut names = dir.names(false).expect("names");
    names.sort();
    assert_eq!((names, dir.names(true).expect("names")), (vec!["dangling".into(), "link".into(), "sub".into()], vec![]));
    // What is staged, replaced and removed is the link itself.
    symlink(elsewhere.join("file"), root.join("link.new")).expect("link");
    dir.replace("link", b"ours", 0o600).expect("replaced");
    assert_eq!(dir.read("link", 10).expect("read").expect("a file").content.as_slice(), b"ours");
    dir.remove("sub").expect("removed");
    assert_eq!(fs::read(elsewhere.join("file")).expect("file"), b"precious");
    assert_eq!(fs::read_dir(&elsewhere).expect("directory").count(), 1);
    // A pipe does not keep the reader waiting.
    let pipe = root.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    assert_eq!(dir.read("pipe", 10).map(drop).expect_err("a pipe").kind(), ErrorKind::Other);
    assert_eq!(dir.read("none", 10).expect("none").map(drop), None);
}

/// Whatever becomes of the path, what was opened stays what it was.
#[test]
fn a_directory_that_is_moved_away_is_still_the_one() {
    let temporary = tempfile::tempdir().expect("directory");
    let (path, aside) = (temporary.path().join("dir"), temporary.path().join("aside"));
    let dir = Dir::create(&path, Access::Private).expect("directory");
    fs::rename(&path, &aside).expect("rename");
    fs::create_dir(&path).expect("directory");
    dir.replace("file", b"ours", 0o600).expect("replaced");
    assert!(aside.join("file").exists() && !path.join("file").exists());
}

#[test]
fn modes_are_as_asked_for_whatever_the_umask() {
    let temporary = tempfile::tempdir().expect("directory");
    let dir = Dir::create(&temporary.path().join("a/b"), Access::Private).expect("directory");
    for path in ["a", "a/b"] {
        assert_eq!(fs::metadata(temporary.path().join(path)).expect("directory").mode() & 0o777, 0o700, "{path}");
    }
    dir.make_subdir("c", Access::Public).expect("directory");
    assert_eq!(fs::metadata(temporary.path().join("a/b/c")).expect("directory").mode() & 0o777, 0o755);
    assert!(dir.make_subdir("c", Access::Public).is_err(), "it is there");
    let mut file = dir.make_file("f", 0o600).expect("file");
    file.write_all(b"x").expect("write");
    dir::set_mode(&file, 0o640).expect("mode");
    assert_eq!(file.metadata().expect("file").mode() & 0o777, 0o640);
}

#[test]
fn what_others_may_write_is_read_and_not_written() {
    let temporary = tempfile::tempdir().expect("directory");
    let open = temporary.path().join("open");
    fs::create_dir(&open).expect("directory");
    fs::write(open.join("file"), "text").expect("write");
    set_mode(&open, 0o777);
    assert!(
        is_exposed(Dir::open(&open)) && is_exposed(Dir::of_file(&open.join("file"))) && is_exposed(Dir::check(&open.join("a/b")))
    );
    assert!(is_exposed(durable::replace(&open.join("file"), b"x", 0o600)) && is_exposed(durable::create_dir(&open.join("sub"))));
    assert_eq!(dir::read(&open.join("file"), 3).expect("read").content.as_slice(), b"tex");
    // But not through a link that they may have put there.
    symlink(temporary.path(), open.join("link")).expect("link");
    assert!(is_exposed(dir::read(&open.join("link/open/file"), 3).map(drop)));
    assert!(is_exposed(Dir::check_file(&open.join("file"))));
    // One file beside others in a directory as /tmp is, but nothing that is ours alone.
    set_mode(&open, 0o1777);
    durable::replace(&open.join("ours"), b"x", 0o600).expect("replaced");
    assert!(is_exposed(Dir::open(&open)));
    Dir::check_file(&open.join("ours")).expect("a file of ours");
    fs::set_permissions(open.join("ours"), fs::Permissions::from_mode(0o620)).expect("mode");
    assert!(is_exposed(Dir::check_file(&open.join("ours"))));
    Dir::create(&open.join("sub"), Access::Private).expect("a directory of ours");
    assert_eq!(Dir::open(&open.join("none")).expect_err("none").kind(), ErrorKind::NotFound);
    Dir::check(&open.join("sub/a/b")).expect("what is missing has no fault");
    assert_eq!(Dir::open(&open.join("ours/x")).expect_err("a file").kind(), ErrorKind::NotADirectory);
    if fs::metadata("/proc/self").expect("this process").uid() == 0 {
        chown(open.join("ours"), Some(4242), None).expect("owner");
        assert!(is_exposed(Dir::check_file(&open.join("ours"))));
        // A directory that another user made there belongs to that user.
        chown(open.join("sub"), Some(4242), None).expect("owner");
        assert!(is_exposed(Dir::open(&open.join("sub"))) && is_exposed(durable::replace(&open.join("sub/f"), b"x", 0o600)));
    }
}
