//! What black-box tests stand on: a server, an operator and devices, each the real program in a directory of its own.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod company;
pub mod connect_proxy;
pub mod imposter;
pub mod namespace;
#[path = "../../hal/tests/support/port.rs"]
#[allow(clippy::duplicate_mod, reason = "some tests have the support of both crates")]
pub mod port;
pub mod proxy;
pub mod said;
pub mod strace;
pub mod walk;
pub mod wall_clock;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use port::Port;
use serde_json::Value;

/// Longest wait for anything a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A directory that goes with its test.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let unique = format!("boundkey-{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(unique);
            // Whatever the umask: the programs use no directory that others may write.
            match std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o755).create(&path) {
                // Left behind by a process of this number that was killed.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => return made.map(|()| Self(path)).expect("temporary directory"),
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("BOUNDKEY_KEEP").is_some() {
            eprintln!("kept {}", self.0.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// A process that ends with its test.
pub struct Running(pub Child);

impl Running {
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, signal).expect("signal");
    }

    pub fn wait(mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("wait") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the process did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The auth endpoint and its operator.
pub struct Server {
    pub dir: TempDir,
    pub ca_pin: String,
    pub addr: String,
    /// What its programs find in their environment.
    pub env: Vec<(&'static str, std::ffi::OsString)>,
    process: Option<Running>,
    /// Its own also while it does not run.
    _port: Port,
}

impl Server {
    /// A new cluster, running.
    pub fn start() -> Self {
        Self::with_names(&[])
    }

    pub fn with_names(names: &[&str]) -> Self {
        let mut server = Self::init(names);
        server.run();
        server
    }

    /// A new cluster, not running.
    pub fn init(names: &[&str]) -> Self {
        let mut server = Self::blank(Vec::new());
        let names: Vec<_> = names.iter().flat_map(|name| ["--name", name]).collect();
        let json: Value = serde_json::from_slice(&success(&mut server.init_command(&names)).stdout).expect("init prints JSON");
        json["ca_pin"].as_str().expect("ca_pin").clone_into(&mut server.ca_pin);
        server
    }

    /// A place for a cluster.
    pub fn blank(env: Vec<(&'static str, std::ffi::OsString)>) -> Self {
        let port = Port::any();
        let addr = format!("127.0.0.1:{}", port.number);
        Self { dir: TempDir::new("auth"), ca_pin: String::new(), addr, env, process: None, _port: port }
    }

    /// `boundkey-auth init` with these arguments too, ready to run.
    pub fn init_command(&self, more: &[&str]) -> Command {
        let mut init = Command::new(env!("CARGO_BIN_EXE_boundkey-auth"));
        init.args(["init", "--format", "json", "--cluster-name", "test.example", "--data-dir"]).arg(self.dir.join("data"));
        init.args(more).envs(self.env.iter().cloned());
        init
    }

    /// The cluster in data directory `data`, which is moved here; running.
    pub fn over(data: &Path) -> Self {
        let mut server = Self::blank(Vec::new());
        std::fs::rename(data, server.dir.join("data")).expect("a data directory");
        server.run();
        server
    }

    /// Runs the server, on the address it had before.
    pub fn run(&mut self) {
        let command = self.command();
        assert!(self.run_as(command), "the server ended: {}", self.log());
    }

    /// `boundkey-auth start` for this server, ready to run.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_boundkey-auth"));
        command.args(["start", "--log-level", "debug", "--listen", &self.addr, "--data-dir"]).arg(self.dir.join("data"));
        command.arg("--addr-file").arg(self.dir.join("addr")).envs(self.env.iter().cloned());
        command
    }

    /// Runs the server by this command; returns whether it came so far as to listen.
    pub fn run_as(&mut self, mut command: Command) -> bool {
        let addr_file = self.dir.join("addr");
        let _ = std::fs::remove_file(&addr_file);
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join("log")).expect("log");
        let mut process = Running(command.stderr(log).spawn().expect("boundkey-auth starts"));
        let mut ended = false;
        wait_for("the server's address", || {
            ended = process.0.try_wait().expect("wait").is_some();
            ended || addr_file.exists()
        });
        if ended {
            return false;
        }
        std::fs::read_to_string(&addr_file).expect("address").trim().clone_into(&mut self.addr);
        self.process = Some(process);
        true
    }

    /// Whether the server's process is there.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.0.try_wait().expect("wait").is_none())
    }

    pub fn process(&self) -> &Running {
        self.process.as_ref().expect("the server runs")
    }

    /// Ends the server as an operator would; returns how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        let process = self.process.take().expect("the server runs");
        process.signal(nix::sys::signal::Signal::SIGTERM);
        process.wait()
    }

    /// Pulls the server's plug.
    pub fn kill(&mut self) {
        self.process = None;
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// `boundkeyctl` with these arguments, ready to run.
    pub fn ctl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_boundkeyctl"));
        command.arg("--data-dir").arg(self.dir.join("data")).args(args);
        command
    }

    /// `boundkeyctl edit` with this editor, ready to run. What it keeps of a failed edit goes with the server.
    pub fn edit_command(&self, key: &str, editor: &str) -> Command {
        let mut command = self.ctl_command(&["edit", key]);
        command.env_remove("VISUAL").env("EDITOR", editor).env("TMPDIR", self.dir.path());
        command
    }

    /// Runs `boundkeyctl`, which must succeed.
    pub fn ctl(&self, args: &[&str]) -> String {
        String::from_utf8(success(&mut self.ctl_command(args)).stdout).expect("UTF-8")
    }

    /// Applies documents.
    pub fn create(&self, yaml: &str) {
        let output = run_with_input(&mut self.ctl_command(&["create", "-f", "-"]), yaml);
        assert!(output.status.success(), "create: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// One resource.
    pub fn get(&self, key: &str) -> Value {
        let json: Value = serde_json::from_str(&self.ctl(&["get", key, "--format", "json", "--with-secrets"])).expect("JSON");
        json[0].clone()
    }

    /// All audit events.
    pub fn audit(&self) -> Vec<Value> {
        let lines = self.ctl(&["audit", "--format", "json"]);
        lines.lines().map(|line| serde_json::from_str(line).expect("an event a line")).collect()
    }

    /// Names of the audit events of joins of a token, oldest first.
    pub fn events(&self, token: &str) -> Vec<String> {
        let of_joins = |e: &str| !e.starts_with("resource.") && e != "recoveries.low";
        let of_token = |e: &Value| e["token"] == token && e["event"].as_str().is_some_and(of_joins);
        let name = |e: Value| e["event"].as_str().expect("event").to_owned();
        self.audit().into_iter().filter(of_token).map(name).collect()
    }

    /// Whether the device holds the answer to the last join that the server told of: that it did comes before the answer.
    pub fn was_heard(&self, device: &Device) -> bool {
        let (told, held) = (self.status(&device.token), device.status());
        told["last_step"]["generation"] == held["generation"]
            && told["bound_bot_instance_id"] == held["instance_id"]
            && held["attempt_in_flight"] == false
    }

    /// A bot and a token of this name; `bound_keypair` is the spec's YAML, indented by four.
    pub fn token(&self, name: &str, bound_keypair: &str) {
        self.create(&format!(
            "kind: bot\nversion: v1\nmetadata: {{name: {name}}}\n---\nkind: token\nversion: v2\nmetadata: {{name: {name}}}\nspec:\n  \
             roles: [Bot]\n  bot_name: {name}\n  join_method: bound_keypair\n  bound_keypair:\n{bound_keypair}\n"
        ));
    }

    /// A token for hosts; `allowed_by` are roles that say what they may have, the rest is as for [`Self::token`].
    pub fn host_token(&self, name: &str, roles: &str, allowed_by: &str, bound_keypair: &str) {
        let host = if allowed_by.is_empty() { String::new() } else { format!("  host: {{roles: {allowed_by}}}\n") };
        self.create(&format!(
            "kind: token\nversion: v2\nmetadata: {{name: {name}}}\nspec:\n  roles: {roles}\n{host}  join_method: bound_keypair\n  \
             bound_keypair:\n{bound_keypair}\n"
        ));
    }

    /// A token with a secret and so many recoveries, and a device that knows both.
    pub fn device(&self, name: &str, limit: u32) -> Device {
        self.token(name, &format!("    recovery: {{limit: {limit}}}"));
        let secret = self.get(&format!("token/{name}"))["status"]["bound_keypair"]["registration_secret"].clone();
        Device::new(self, name, secret.as_str().expect("a registration secret"))
    }

    /// Head, in lower case, and body of a `GET` by a client that is not ours.
    pub fn http_get(&self, path: &str) -> (String, Vec<u8>) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let mut client = Command::new(tool("openssl", "openssl"));
        client.args(["s_client", "-quiet", "-ign_eof", "-no_ticket", "-connect", &self.addr]);
        let answer = run_with_input(&mut client, &request).stdout;
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head") + 4;
        (String::from_utf8_lossy(&answer[..end]).to_lowercase(), answer[end..].to_vec())
    }

    /// Status of a token's binding.
    pub fn status(&self, token: &str) -> Value {
        self.get(&format!("token/{token}"))["status"]["bound_keypair"].clone()
    }
}

/// A device: its directory, configuration and agent.
pub struct Device {
    pub dir: TempDir,
    pub token: String,
    /// What its programs find in their environment.
    pub env: Vec<(&'static str, std::ffi::OsString)>,
}

impl Device {
    /// A device that has not joined.
    pub fn new(server: &Server, token: &str, secret: &str) -> Self {
        let device = Self { dir: TempDir::new("device"), token: token.into(), env: Vec::new() };
        device.configure(server, &format!("  bound_keypair: {{registration_secret: {secret}}}"), "");
        device
    }

    /// Writes the configuration anew; `onboarding` is indented by two, `more` is top-level.
    pub fn configure(&self, server: &Server, onboarding: &str, more: &str) {
        self.configure_with(&server.addr, &server.ca_pin, onboarding, more);
    }

    pub fn configure_with(&self, addr: &str, pin: &str, onboarding: &str, more: &str) {
        let yaml = format!(
            "version: v1\nauth_server: {addr}\nca_pins: [\"{pin}\"]\nonboarding:\n  join_method: bound_keypair\n  token: {}\n\
             {onboarding}\nstorage: {{type: directory, path: {}}}\n{more}\n",
            self.token,
            self.storage().display()
        );
        std::fs::write(self.config(), yaml).expect("configuration");
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(self.config(), private).expect("mode");
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("boundkey.yaml")
    }

    pub fn storage(&self) -> PathBuf {
        self.dir.join("storage")
    }

    /// `boundkey` with this device's configuration, ready to run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = agent();
        command.args(args).arg("-c").arg(self.config()).env_remove("BOUNDKEY_LOG");
        // The way out of the machine that runs the tests is not the way to their servers.
        for name in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command.envs(self.env.iter().cloned());
        command
    }

    /// One join: exit code and what it said on stderr.
    pub fn try_join(&self) -> (i32, String) {
        let output = run(&mut self.command(&["start", "--oneshot"]));
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// One join, which must succeed.
    pub fn join(&self) {
        let (code, stderr) = self.try_join();
        assert_eq!(code, 0, "{stderr}");
    }

    /// What `boundkey status` says.
    pub fn status(&self) -> Value {
        serde_json::from_slice(&success(&mut self.command(&["status", "--format", "json"])).stdout).expect("JSON")
    }

    /// Loses the certificate, as if it had expired while the device was off.
    pub fn lose_certificate(&self) {
        std::fs::remove_file(self.storage().join("identity.pem")).expect("an identity");
    }

    /// The daemon, logging to a file.
    pub fn daemon(&self) -> Running {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join("log")).expect("log");
        Running(self.command(&["start"]).stderr(log).spawn().expect("boundkey starts"))
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// A copy of the whole storage, as a thief takes it.
    pub fn copy(&self) -> Self {
        let copy = Self { dir: TempDir::new("copy"), token: self.token.clone(), env: self.env.clone() };
        success(Command::new("cp").arg("-a").arg(self.storage()).arg(copy.storage()));
        let yaml = std::fs::read_to_string(self.config()).expect("configuration");
        let yaml = yaml.replace(&self.storage().display().to_string(), &copy.storage().display().to_string());
        std::fs::write(copy.config(), yaml).expect("configuration");
        copy
    }
}

/// The agent, ready to run. `BOUNDKEY_AGENT` names another program than the one just built: that of another architecture.
pub fn agent() -> Command {
    let own = option_env!("CARGO_BIN_EXE_boundkey").map(Into::into);
    Command::new(std::env::var_os("BOUNDKEY_AGENT").or(own).expect("built with feature agent"))
}

/// Copies a program that is to be run. Another process writes it: a child that another test forks meanwhile would hold a file of ours open
/// for writing, and the kernel refuses to run such a file.
pub fn copy_program(from: impl AsRef<std::ffi::OsStr>, to: &Path) {
    success(Command::new("cp").arg(from.as_ref()).arg(to));
}

/// Waits until `done`, checking often: how long it takes is the machine's matter.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Says that something was not tried, and why; also where the test passes, whose output is not shown.
pub fn not_tried(what: &str) {
    use std::io::Write as _;
    writeln!(std::io::stderr(), "NOT TRIED: {what}").expect("stderr");
}

/// Whether root runs the tests; if not, says what is not tried for that.
pub fn is_root(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        not_tried(&format!("{what}, which takes root's rights"));
    }
    root
}

/// A program that tests need, on the path.
pub fn tool(program: &str, package: &str) -> PathBuf {
    let found = path().into_iter().map(|dir| dir.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{program} is missing: install it with `apt-get install {package}`"))
}

/// Directories of programs, those with root's too: the path of another user does not lead there.
pub fn path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect()
}

/// `command` as the arguments of `wrapper`, which is to run it, with its environment.
pub fn wrapped(mut wrapper: Command, command: &Command) -> Command {
    wrapper.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapper.env(name, value),
            None => wrapper.env_remove(name),
        };
    }
    wrapper
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Runs a command, which must succeed.
pub fn success(command: &mut Command) -> Output {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    output
}

/// Runs a command with this standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Output {
    use std::io::Write as _;
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
    match child.stdin.take().expect("stdin").write_all(input.as_bytes()) {
        // It may refuse before it reads.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
        written => written.expect("input"),
    }
    let mut stderr = child.stderr.take().expect("stderr");
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        stderr.read_to_end(&mut text).map(|_| text)
    });
    let mut stdout = Vec::new();
    child.stdout.take().expect("stdout").read_to_end(&mut stdout).expect("stdout");
    let status = child.wait().expect("the command ends");
    Output { status, stdout, stderr: reader.join().expect("reader").expect("stderr") }
}
