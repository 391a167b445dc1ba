//! Other users of the device: directories of theirs in which the agent, as root, is told to work.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::support::{Device, Running, Server, agent, copy_program, is_root, not_tried, run, tool, wrapped};

const NOBODY: u32 = 65534;

/// A directory of another user.
fn theirs(path: &Path) {
    theirs_of(path, NOBODY);
}

fn theirs_of(path: &Path, user: u32) {
    fs::create_dir(path).expect("directory");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("mode");
    chown(path, Some(user), Some(user)).expect("owner");
}

/// What another user runs, until it is dropped.
fn attacker(script: &str, arguments: &[&Path]) -> Running {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).args(arguments).uid(NOBODY).gid(NOBODY).stderr(Stdio::null());
    Running(shell.spawn().expect("sh"))
}

fn with_output(server: &Server, path: &Path, more: &str) -> Device {
    let device = server.device("gw", 1);
    server.create(
        "kind: role\nversion: v1\nmetadata: {name: r}\nspec: {}\n---\nkind: bot\nversion: v1\nmetadata: {name: gw}\nspec: {roles: [r]}\n",
    );
    let secret = server.status("gw")["registration_secret"].as_str().expect("a secret").to_owned();
    let outputs = format!(
        "outputs:\n  - type: x509\n    name: mqtt\n    destination: {{type: directory, path: {}}}\n{more}",
        path.display()
    );
    device.configure(server, &format!("  bound_keypair: {{registration_secret: {secret}}}"), &outputs);
    device
}

/// All that root has there, as it was.
fn precious(path: &Path) -> impl Fn() + use<> {
    fs::create_dir(path).expect("directory");
    let names: Vec<_> = (0..10).map(|n| path.join(format!("file-{n}"))).collect();
    for name in &names {
        fs::write(name, "precious").expect("write");
        fs::set_permissions(name, fs::Permissions::from_mode(0o600)).expect("mode");
    }
    let path = path.to_path_buf();
    move || {
        for name in &names {
            assert_eq!(
                (fs::read(name).expect("still there"), fs::metadata(name).expect("file").mode() & 0o777),
                (b"precious".to_vec(), 0o600)
            );
        }
        assert_eq!(fs::read_dir(&path).expect("directory").count(), names.len(), "nothing was added");
    }
}

/// The agent deleted all files of a directory of root's, three times of three: the owner of the output's directory put a link to it in
/// place of an old set while the agent went through the sets.
#[test]
fn the_owner_of_an_outputs_directory_leads_the_agent_nowhere() {
    let server = Server::start();
    if !is_root("directories of another user") {
        return;
    }
    let base = super::support::TempDir::new("others");
    let untouched = precious(&base.join("precious"));
    let out = base.join("out");
    theirs(&out);
    let device = with_output(&server, &out, "");
    let flipping = attacker(
        "cd \"$1\"; while :; do for n in 1 2 3 4 5 6 7 8 9; do
            mkdir ..set-$n; touch ..set-$n/tls.key; mv ..set-$n aside; ln -s \"$2\" ..set-$n; rm ..set-$n; rm -r aside
         done; done",
        &[&out, &base.join("precious")],
    );
    for _ in 0..10 {
        let (code, said) = device.try_join();
        let expected =
            format!("output mqtt: not written: {} (owner {NOBODY}, group {NOBODY}, mode 0755) belongs to user", out.display());
        assert!(code == 1 && said.contains(&expected) && said.contains("(chown)"), "{code}: {said}");
        assert!(!out.join("tls.key").exists());
    }
    untouched();
    assert_eq!(device.status()["last_error"]["type"], "output");
    let doctor = String::from_utf8(run(&mut device.command(&["doctor"])).stdout).expect("text");
    assert!(doctor.contains("fail  output") && doctor.contains("who may replace what is in it"), "{doctor}");
    // What it is told to do, it does: the device had its identity all the while.
    assert_eq!(server.events("gw").iter().filter(|event| *event == "join.renewal").count(), 9);
    drop(flipping);
    chown(&out, Some(0), Some(0)).expect("owner");
    device.join();
    assert!(out.join("tls.key").exists());
}

/// The directory that is to hold the output's belongs to another user, who puts a link in its place and takes it away again, all
/// the while.
#[test]
fn the_owner_of_a_directory_on_the_way_leads_the_agent_nowhere() {
    let server = Server::start();
    if !is_root("directories of another user") {
        return;
    }
    let base = super::support::TempDir::new("others");
    let untouched = precious(&base.join("precious"));
    let home = base.join("home");
    theirs(&home);
    let device = with_output(&server, &home.join("certs/mqtt"), "");
    let _flipping = attacker(
        "cd \"$1\"; while :; do mkdir -p certs/mqtt; mv certs aside; ln -s \"$2\" certs; rm certs; ln -s ../precious certs; rm certs; rm -r aside; done",
        &[&home, &base.join("precious")],
    );
    for _ in 0..10 {
        let (code, said) = device.try_join();
        assert!(code == 1 && said.contains(&format!("{} (owner {NOBODY}", home.display())), "{code}: {said}");
    }
    untouched();
}

/// Root runs the agent on the storage of the agent's own user, as a technician may: `lock`, `state.new` and `status.new` are links then.
#[test]
fn a_storage_directory_of_another_user_is_read_and_not_written() {
    let server = Server::start();
    if !is_root("directories of another user") {
        return;
    }
    let base = super::support::TempDir::new("others");
    let device = server.device("gw", 1);
    device.join();
    let untouched = precious(&base.join("precious"));
    let storage = device.storage();
    let precious = base.join("precious/file-0");
    for name in ["status.json", "lock"] {
        fs::remove_file(storage.join(name)).expect("remove");
    }
    symlink(base.join("precious/made"), storage.join("lock")).expect("link");
    for name in ["state.new", "status.new", "status.json", "identity.pem.new"] {
        symlink(&precious, storage.join(name)).expect("link");
    }
    let owned = Command::new("chown").args(["-hR", &NOBODY.to_string()]).arg(&storage).status().expect("chown");
    assert!(owned.success());
    let (code, said) = device.try_join();
    assert!(code == 8 && said.contains(&format!("{} (owner {NOBODY}", storage.display())), "{code}: {said}");
    assert!(said.contains("run boundkey as user 65534 (runuser -u NAME -- ...)"), "{said}");
    let create = run(&mut device.command(&["keypair", "create", "--overwrite"]));
    assert_eq!(create.status.code(), Some(8), "{create:?}");
    untouched();
    // To look is for root as before.
    assert_eq!(device.status()["token"], "gw");
    let doctor = String::from_utf8(run(&mut device.command(&["doctor"])).stdout).expect("text");
    assert!(doctor.contains("fail  storage") && doctor.contains("runuser"), "{doctor}");
    untouched();
    // Its owner, as the agent, can, after taking the links away.
    for name in ["lock", "status.json"] {
        fs::remove_file(storage.join(name)).expect("remove");
    }
    for path in [device.dir.path(), &device.config(), &storage] {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("owner");
    }
    let mut command = agent();
    let joined = run(command.args(["start", "--oneshot", "-c"]).arg(device.config()).uid(NOBODY).gid(NOBODY));
    assert!(joined.status.success(), "{joined:?}");
    untouched();
}

/// Another user wrote the process id of a process of root's into a PID file of that user.
#[test]
fn a_pid_file_of_another_user_ends_no_process_of_roots() {
    let server = Server::start();
    if !is_root("a PID file of another user") {
        return;
    }
    let base = super::support::TempDir::new("others");
    let run_dir = base.join("run");
    theirs(&run_dir);
    let mut victim = Running(Command::new("sleep").arg("600").spawn().expect("sleep"));
    let pid_file = run_dir.join("pid");
    fs::write(&pid_file, victim.0.id().to_string()).expect("write");
    chown(&pid_file, Some(NOBODY), Some(NOBODY)).expect("owner");
    let device =
        with_output(&server, &base.join("out"), &format!("    reload: {{pid_file: {}, signal: TERM}}\n", pid_file.display()));
    let (code, said) = device.try_join();
    assert!(code == 1 && said.contains("which that user may not signal"), "{code}: {said}");
    assert!(victim.0.try_wait().expect("a child").is_none(), "it lives");
    assert!(base.join("out/tls.key").exists());
    chown(&pid_file, Some(0), Some(0)).expect("owner");
    device.join();
    assert!(!victim.wait().success(), "root's word is good for any process");
}

/// Who may write the configuration says which commands root runs.
#[test]
fn a_configuration_that_others_may_write_is_not_used() {
    let server = Server::start();
    let device = server.device("gw", 1);
    fs::set_permissions(device.config(), fs::Permissions::from_mode(0o602)).expect("mode");
    let (code, said) = device.try_join();
    let expected = format!("the configuration {} is not used", device.config().display());
    assert!(code == 2 && said.contains(&expected) && said.contains("run chmod go-w"), "{code}: {said}");
    let doctor = String::from_utf8(run(&mut device.command(&["doctor"])).stdout).expect("text");
    assert!(doctor.contains("fail  config") && doctor.contains("lets other users write"), "{doctor}");
    fs::set_permissions(device.config(), fs::Permissions::from_mode(0o600)).expect("mode");
    if is_root("a configuration of another user") {
        chown(device.config(), Some(NOBODY), None).expect("owner");
        let (code, said) = device.try_join();
        assert!(code == 2 && said.contains("belongs to user 65534, who may replace it"), "{code}: {said}");
        chown(device.config(), Some(0), None).expect("owner");
    }
    #[cfg(feature = "pkcs11")]
    {
        let module = device.dir.join("module.so");
        fs::write(&module, "").expect("write");
        fs::set_permissions(&module, fs::Permissions::from_mode(0o666)).expect("mode");
        let yaml = fs::read_to_string(device.config()).expect("configuration");
        let with = format!("{yaml}keystore: {{type: pkcs11, module: {}, token: x}}\n", module.display());
        fs::write(device.config(), with).expect("configuration");
        let (code, said) = device.try_join();
        assert!(code == 2 && said.contains(&format!("the PKCS#11 module {} is not used", module.display())), "{code}: {said}");
        fs::write(device.config(), yaml).expect("configuration");
    }
    device.join();
}

/// A program that another user may replace is a way to run anything as the agent's user. The outputs are installed all the same.
#[test]
fn a_reload_program_that_others_may_write_is_not_run() {
    let server = Server::start();
    let base = super::support::TempDir::new("others");
    let (bin, ran) = (base.join("bin"), base.join("ran"));
    let program = bin.join("reload-it");
    fs::create_dir(&bin).expect("directory");
    fs::write(&program, format!("#!/bin/sh\necho run >> '{}'\n", ran.display())).expect("write");
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
    mode(&program, 0o755);
    mode(&bin, 0o755);
    let out = base.join("out");
    let by = |program: &str| format!("    reload: {{command: [{program}]}}\n");
    let mut device = with_output(&server, &out, &by(&program.display().to_string()));
    let runs = || fs::read_to_string(&ran).map_or(0, |runs| runs.lines().count());
    let refused = |device: &Device, exposed: &Path, why: &str, advice: &str| {
        let _ = fs::remove_file(out.join("tls.crt"));
        let (code, said) = device.try_join();
        let expected = format!("failed: it is not run: {} (owner ", exposed.display());
        assert!(code == 1 && said.contains(&expected) && said.contains(why), "{code}: {said}");
        assert!(said.contains(&format!("{advice} {}", exposed.display())), "{said}");
        assert_eq!(runs(), 0, "it did not run");
        assert!(out.join("tls.crt").exists(), "the output is installed");
        assert_eq!(device.status()["last_error"]["type"], "reload");
        let doctor = String::from_utf8(run(&mut device.command(&["doctor"])).stdout).expect("text");
        assert!(doctor.contains("fail  output") && doctor.contains("reload.command is not run"), "{doctor}");
    };
    // Where all may make entries, a hard link puts any program of root's under the name: sticky or not.
    for (exposed, bits) in [(&program, 0o775), (&program, 0o757), (&bin, 0o775), (&bin, 0o1777)] {
        mode(exposed, bits);
        refused(&device, exposed, "lets other users write", "run chmod go-w");
        mode(exposed, 0o755);
    }
    // By its name, which is looked for in PATH.
    let yaml = fs::read_to_string(device.config()).expect("configuration");
    fs::write(device.config(), yaml.replace(&by(&program.display().to_string()), &by("reload-it"))).expect("configuration");
    let path = std::env::var_os("PATH").expect("a path");
    let with_bin = [bin.clone()].into_iter().chain(std::env::split_paths(&path));
    device.env.push(("PATH", std::env::join_paths(with_bin).expect("a path")));
    mode(&program, 0o775);
    refused(&device, &program, "lets other users write", "run chmod go-w");
    mode(&program, 0o755);
    if is_root("a program of another user") {
        for theirs in [&program, &bin] {
            chown(theirs, Some(NOBODY), None).expect("owner");
            refused(&device, theirs, "belongs to user 65534", "run chown root");
            chown(theirs, Some(0), None).expect("owner");
        }
    }
    device.join();
    assert_eq!(runs(), 1, "it runs once only root and boundkey's user may write it");
    let doctor = String::from_utf8(run(&mut device.command(&["doctor"])).stdout).expect("text");
    assert!(!doctor.contains("reload.command"), "{doctor}");
}

/// In a user namespace that has the host's root, the number 65534 stands for every other user of the host; in one without it, for the
/// host's root too, who owns `/`.
#[test]
fn in_a_namespace_of_users_unmapped_ones_are_root_only_where_root_is_unmapped() {
    let server = Server::start();
    if !is_root("a namespace of users") {
        return;
    }
    let base = super::support::TempDir::new("others");
    let theirs = base.join("theirs");
    theirs_of(&theirs, 4242);
    let device = with_output(&server, &theirs, "");
    let unshare = |map: &[&str]| {
        let mut unshare = Command::new(tool("unshare", "util-linux"));
        unshare.arg("--user").args(map);
        unshare
    };
    let start = || device.command(&["start", "--oneshot"]);
    let joined = run(&mut wrapped(unshare(&["--map-root-user"]), &start()));
    let said = String::from_utf8_lossy(&joined.stderr).into_owned();
    let expected = format!("output mqtt: not written: {} (owner 65534", theirs.display());
    assert!(joined.status.code() == Some(1) && said.contains(&expected), "{said}");
    assert!(!theirs.join("tls.key").exists());

    // User 4242, shown as 1000 in a namespace of its own, where root is a number like any other.
    let programs = super::support::TempDir::new("program");
    for path in [programs.path(), base.path(), device.dir.path()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("mode");
    }
    let owned = Command::new("chown").args(["-hR", "4242:4242"]).arg(device.dir.path()).arg(programs.path()).status();
    assert!(owned.expect("chown").success());
    let program = programs.join("boundkey");
    copy_program(start().get_program(), &program);
    let mut start = Command::new(&program);
    start.args(["start", "--oneshot", "-c"]).arg(device.config());
    let mut command = wrapped(unshare(&["--map-user=1000", "--map-group=1000"]), &start);
    let joined = run(command.uid(4242).gid(4242));
    let said = String::from_utf8_lossy(&joined.stderr).into_owned();
    if said.contains("unshare failed") {
        return not_tried("a user that is not root may not have namespaces");
    }
    assert!(joined.status.success(), "{said}");
    assert!(theirs.join("tls.key").exists());
}
