//! `boundkey-auth`: the command line, `init`, backups, and `start` from lock to drain.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use boundkey_hal::durable;
use clap::builder::PathBufValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::ca::{CaError, CurrentAuthority, Place};
use super::data_dir::{Cluster, DataDir, DataDirError};
use super::joins::Joins;
use super::operator::Operator;
use super::pace::Paces;
use super::revocation::RevocationList;
use super::rotation::{Rotation, RotationError};
use super::sealing::Sealing;
use super::store::{Form, Store};
use super::throttle::Throttle;
use super::upkeep::{self, Upkeep, UpkeepError};
use super::{descriptors, http, serve, tls};
use boundkey_api::VERSION;
use boundkey_api::resource::check_name;
use boundkey_join::server::challenge::SealingKey;
use boundkey_keystore::OPTIONS;
use boundkey_platform::logging::{self, Format, Level};
use boundkey_platform::refusal::Refusal;
use boundkey_platform::time::{Clock as _, System, build_time};

/// The command line.
pub fn command() -> Command {
    let data_dir = Arg::new("data-dir")
        .long("data-dir")
        .value_name("DIR")
        .env("BOUNDKEY_DATA_DIR")
        .value_parser(PathBufValueParser::new())
        .required(true)
        .help("Directory of keys and database");
    let init =
        Command::new("init")
            .about("Make a cluster: its keys, certificates and database")
            .arg(data_dir.clone())
            .arg(Arg::new("cluster-name").long("cluster-name").value_name("NAME").required(true).help("Name of the cluster"))
            .arg(Arg::new("name").long("name").value_name("HOST_OR_IP").action(ArgAction::Append).help(
                "Name or address under which devices reach the server; may be repeated [default: localhost, 127.0.0.1, ::1]",
            ))
            .arg(
                Arg::new("format")
                    .long("format")
                    .value_parser(["text", "json"])
                    .default_value("text")
                    .help("How to print what was made"),
            )
            .arg(
                Arg::new("ca-request")
                    .long("ca-request")
                    .value_name("FILE")
                    .value_parser(PathBufValueParser::new())
                    .conflicts_with("ca-chain")
                    .help("Make the keys alone, and write a request (PKCS#10) for the CA's certificate under another's root"),
            )
            .arg(
                Arg::new("ca-chain").long("ca-chain").value_name("FILE").value_parser(PathBufValueParser::new()).help(
                    "Go on with what came back for the request: its certificate, its issuer's, and so on to the root, in PEM",
                ),
            )
            .arg(
                Arg::new("ca-keystore")
                    .long("ca-keystore")
                    .value_name("TYPE")
                    .default_value("file")
                    .help("Where the cluster's keys are to be: file, tpm or pkcs11"),
            )
            .args(OPTIONS.map(|(name, help)| Arg::new(name).long(name).value_name("VALUE").help(help)))
            .after_help("PIN and auth value can also be in the environment of init and start: BOUNDKEY_PIN, BOUNDKEY_TPM_AUTH");
    let start = Command::new("start")
        .about("Serve devices over TLS, and operators on a Unix socket in the data directory")
        .arg(data_dir.clone())
        .arg(
            Arg::new("listen")
                .long("listen")
                .value_name("ADDR:PORT")
                .default_value("[::]:3025")
                .value_parser(value_parser!(SocketAddr))
                .help("Where to listen; port 0 picks a free one"),
        )
        .arg(
            Arg::new("addr-file")
                .long("addr-file")
                .value_name("FILE")
                .value_parser(PathBufValueParser::new())
                .help("Write the address listened on to this file, once the server is ready"),
        )
        .arg(
            Arg::new("log-format")
                .long("log-format")
                .value_parser(["text", "json"])
                .default_value("text")
                .help("Form of log lines"),
        )
        .arg(
            Arg::new("log-level")
                .long("log-level")
                .env("BOUNDKEY_LOG")
                .value_parser(["error", "warn", "info", "debug"])
                .default_value("info")
                .help("How much to log"),
        );
    let directory =
        |help| Arg::new("backup").value_name("BACKUP").required(true).value_parser(PathBufValueParser::new()).help(help);
    let backup = Command::new("backup")
        .about("Copy keys and database into a new directory; the server may be running")
        .arg(data_dir.clone())
        .arg(directory("New directory for the copy; guard it like the server"));
    let restore = Command::new("restore")
        .about("Put the database of a backup in place; the server must be stopped. Devices follow by themselves")
        .arg(data_dir.clone())
        .arg(directory("A directory that `boundkey-auth backup` made"));
    Command::new("boundkey-auth")
        .about("The auth endpoint of boundkey: trusts the keys of devices and issues short-lived certificates")
        .version(VERSION)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(init)
        .subcommand(start)
        .subcommand(backup)
        .subcommand(restore)
}

/// Runs the program; failures are on stderr, as what failed and what to do next.
pub fn main() -> ExitCode {
    let matches = command().get_matches();
    let done = match matches.subcommand() {
        Some(("init", matches)) => init(matches),
        Some(("start", matches)) => start(matches),
        Some(("backup", matches)) => backup(matches),
        Some(("restore", matches)) => restore(matches),
        _ => unreachable!("clap asks for a subcommand"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { what, advice, code }) => {
            logging::print(&logging::failure(&what, &advice));
            ExitCode::from(code)
        }
    }
}

/// What went wrong, what to do, and the exit code: 1, or 2 for wrong usage.
struct Failure {
    what: String,
    advice: String,
    code: u8,
}

impl From<DataDirError> for Failure {
    fn from(e: DataDirError) -> Self {
        Self { advice: e.advice().into(), what: e.to_string(), code: 1 }
    }
}

fn failure(what: impl Into<String>, advice: impl Into<String>) -> Failure {
    Failure { what: what.into(), advice: advice.into(), code: 1 }
}

fn data_dir(matches: &ArgMatches) -> Result<DataDir, Failure> {
    let dir = matches.get_one::<PathBuf>("data-dir").ok_or_else(|| failure("no data directory", "give --data-dir DIR"))?;
    Ok(DataDir::new(dir))
}

fn init(matches: &ArgMatches) -> Result<(), Failure> {
    let given = |name| matches.get_many::<String>(name).into_iter().flatten().cloned().collect::<Vec<_>>();
    let cluster = given("cluster-name").concat();
    check_name(&cluster).map_err(|why| Failure { code: 2, ..failure(why, "choose another --cluster-name") })?;
    let mut names = given("name");
    if names.is_empty() {
        names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    }
    let dir = data_dir(matches)?;
    let place = Place::new(&given("ca-keystore").concat(), &|name| matches.get_one::<String>(name).cloned());
    let place = place.map_err(|Refusal { what, advice }| Failure { code: 2, ..failure(what, advice) })?;
    place.quieten();
    let now = System.now();
    if now < build_time() {
        let advice = "set the clock, then run init again: it dates the CA certificate, which lasts for 20 years";
        return Err(failure(format!("the system clock says {now}, which is before this program was built"), advice));
    }
    if let Some(file) = matches.get_one::<PathBuf>("ca-request") {
        let request = dir.request_ca(&cluster, &place)?;
        let unwritable = |e| failure(format!("{}: {e}", file.display()), "choose another --ca-request file");
        durable::replace(file, request.as_bytes(), 0o644).map_err(unwritable)?;
        if given("format") == ["json"] {
            return say(&serde_json::json!({ "cluster": cluster, "ca_request": file }).to_string());
        }
        return say(&format!(
            "request written: {}\nhave it signed as a CA (CA:TRUE, keyCertSign, cRLSign), then run init again with --ca-chain FILE",
            file.display()
        ));
    }
    let chain = matches.get_one::<PathBuf>("ca-chain").map(|file| {
        std::fs::read(file)
            .map_err(|e| failure(format!("{}: {e}", file.display()), "give the file with the chain of certificates, in PEM"))
    });
    let chain = chain.transpose()?;
    let authority = match dir.init(&cluster, &names, &place, chain.as_deref(), &System, now) {
        // An `init` that was interrupted right before it told the pin: this is where to learn it.
        Err(e @ DataDirError::Exists(_)) => {
            let pin = dir.authority(&dir.cluster()?, now)?.pin().map_err(DataDirError::from)?;
            return Err(failure(format!("{e}; its CA pin is {pin}"), e.advice()));
        }
        Err(e @ DataDirError::Ca(CaError::Names(_))) => return Err(Failure { code: 2, ..e.into() }),
        made => made?,
    };
    let pin = authority.pin().map_err(DataDirError::from)?;
    let text = if given("format") == ["json"] {
        serde_json::json!({ "cluster": cluster, "server_names": names, "ca_pin": pin }).to_string()
    } else {
        format!(
            "cluster {cluster} made; the server is {}\nCA pin, for ca_pins in the configuration of devices:\n{pin}",
            names.join(", ")
        )
    };
    say(&text)
}

fn backup(matches: &ArgMatches) -> Result<(), Failure> {
    let to = backup_dir(matches)?;
    data_dir(matches)?.backup(to)?;
    say(&format!("backup made: {}", to.display()))
}

fn restore(matches: &ArgMatches) -> Result<(), Failure> {
    let replaced = data_dir(matches)?.restore(backup_dir(matches)?, &System)?;
    let kept = replaced.map_or_else(String::new, |path| format!("; the database that was there: {}", path.display()));
    say(&format!(
        "restored{kept}\nlocks made since the backup are lost: put locks on again before devices reach the server; start it with \
         --listen 127.0.0.1:0 for that"
    ))
}

fn backup_dir(matches: &ArgMatches) -> Result<&Path, Failure> {
    let dir = matches.get_one::<PathBuf>("backup").map(PathBuf::as_path);
    dir.ok_or_else(|| failure("no backup is named", "give its directory"))
}

fn say(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout(), "{text}").map_err(|e| failure(format!("stdout: {e}"), "it was done all the same"))
}

fn start(matches: &ArgMatches) -> Result<(), Failure> {
    let text = |name| matches.get_one::<String>(name).map_or("", String::as_str);
    let format = if text("log-format") == "json" { Format::Json } else { Format::Text };
    let level = text("log-level").parse::<Level>().map_err(|e| Failure { code: 2, ..failure(e.what, e.advice) })?;
    logging::install(format, level, &|name| std::env::var(name).ok(), Arc::new(System));
    let dir = data_dir(matches)?;
    let cluster = dir.cluster()?;
    cluster.keystore.quieten();
    let _lock = dir.lock()?;
    let runtime = tokio::runtime::Runtime::new().map_err(|e| failure(format!("runtime: {e}"), "free some memory and threads"))?;
    let listen = *matches.get_one::<SocketAddr>("listen").ok_or_else(|| failure("no address", "give --listen ADDR:PORT"))?;
    let addr_file = matches.get_one::<PathBuf>("addr-file").map(PathBuf::as_path);
    runtime.block_on(run(&dir, cluster, listen, addr_file))
}

async fn run(dir: &DataDir, cluster: Cluster, listen: SocketAddr, addr_file: Option<&Path>) -> Result<(), Failure> {
    let too_few = |e: descriptors::TooFew| failure(e.to_string(), "raise the limit: `ulimit -n`, or LimitNOFILE= in the unit");
    let connections = descriptors::connections().map_err(too_few)?;
    let authority = dir.authority(&cluster, System.now())?;
    authority.probe().map_err(|e| DataDirError::from(CaError::Key(e)))?;
    dir.write_authority(&authority)?;
    let store: Arc<dyn Store> = Arc::new(dir.store()?);
    let joins = Arc::new(Joins {
        cluster: cluster.name,
        server_names: cluster.server_names,
        authority: CurrentAuthority::new(authority),
        store: store.clone(),
        sealing: Sealing::new(SealingKey::new(&*dir.challenge_key()?)),
        clock: Arc::new(System),
        random: Arc::new(System),
        revocation: RevocationList::of(Form::X509),
        ssh_revocation: RevocationList::of(Form::SshHost),
        throttle: Throttle::default(),
        paces: Paces::default(),
    });
    let tls_failed = |e: rustls::Error| failure(format!("TLS: {e}"), "restore tls.pem and ca.json from a backup");
    let chain = joins.authority.now().tls_chain().map_err(DataDirError::from)?;
    let certificate = Arc::new(tls::CurrentCertificate::new(&dir.server()?, &chain).map_err(tls_failed)?);
    let tls_config = tls::config(certificate.clone()).map_err(tls_failed)?;
    let rotation = Arc::new(Rotation::new(dir.clone(), joins.clone(), certificate));
    let operator = Arc::new(Operator::new(store, Arc::new(System), Arc::new(System)).replacing(rotation.clone()));
    let upkeep = Upkeep::new(joins.clone(), rotation, operator.clone());
    upkeep.run().await.map_err(|e| match e {
        UpkeepError::Rotation(RotationError::DataDir(e)) => e.into(),
        UpkeepError::Rotation(RotationError::Tls(e)) => tls_failed(e),
        UpkeepError::Rotation(e @ RotationError::Refused(_)) => failure(e.to_string(), "report this"),
        UpkeepError::Store(e) => DataDirError::from(e).into(),
        UpkeepError::Died(e) => failure(e.to_string(), "report this"),
    })?;

    let (stop, stopped) = watch::channel(false);
    let until_stopped = || {
        let mut stopped = stopped.clone();
        async move {
            // An error means that the sender is gone: stop as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        }
    };
    // Before anyone is told that the server is ready: from then on an order to stop is heard.
    let no_signals = |e| failure(format!("signals: {e}"), "report this with the system's version");
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let busy = |e| failure(format!("{listen}: {e}"), "choose another --listen address, or stop what listens there");
    let listener = serve::listen(listen).map_err(busy)?;
    let address = listener.local_addr().map_err(busy)?;
    let socket = dir.socket();
    let operator_listener = bind_socket(&socket)?;
    let operators = tokio::spawn(http::local::serve(operator.clone(), operator_listener, until_stopped()));
    if let Some(file) = addr_file {
        let unwritable = |e| failure(format!("{}: {e}", file.display()), "choose another --addr-file");
        durable::replace(file, format!("{address}\n").as_bytes(), 0o644).map_err(unwritable)?;
    }
    log::info!(
        "cluster {} listens on {address}, at most {connections} connections; operators on {}",
        joins.cluster,
        socket.display()
    );

    let devices =
        tokio::spawn(serve::serve(listener, connections, tls_config, http::device::router(joins.clone()), until_stopped()));
    let mut every = tokio::time::interval(upkeep::INTERVAL);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = every.tick() => if let Err(e) = upkeep.run().await {
                log::error!("{e}");
            },
        }
    }
    log::info!("stopping");
    let _ = stop.send(true); // receivers that are gone have stopped already
    for task in [devices, operators] {
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => log::error!("{e}"),
            Err(e) => log::error!("{e}"),
        }
    }
    if let Err(e) = upkeep.finish().await {
        log::error!("{e}");
    }
    std::fs::remove_file(&socket).map_err(|e| failure(format!("{}: {e}", socket.display()), "remove it by hand"))
}

/// The operator's socket, its owner's alone. One left behind by a killed server is replaced: the directory's lock says that nobody uses it.
fn bind_socket(path: &Path) -> Result<UnixListener, Failure> {
    let unusable =
        |e| failure(format!("{}: {e}", path.display()), "choose a data directory on a local file system, with a shorter path");
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(unusable(e)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(unusable)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(durable::PRIVATE_FILE)).map_err(unusable)?;
    Ok(listener)
}
