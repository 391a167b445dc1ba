//! What packages bring besides the programs: `cargo run --example boundkey-dist -- all DIR` writes man pages (`DIR/man/PROGRAM`),
//! shell completions (`DIR/completions/SHELL`) and the agent's unit, all from the programs' own definitions; `-- unit` prints the unit.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

use boundkey::{agent, auth, ctl};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// Files of the agent, for its man page: what they are called, and what they are.
const FILES: [(&str, &str); 3] = [
    (agent::config::DEFAULT_PATH, "The configuration. The service does not start before there is one"),
    (agent::config::DEFAULT_STORAGE, "Keys and state, which are the device's identity"),
    ("/run/boundkey", "Where outputs belong: certificates and keys for other programs"),
];

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["all", dir] => all(Path::new(dir)),
        ["unit"] => io::stdout().write_all(agent::systemd::packaged().as_bytes()),
        _ => Err(io::Error::other("usage: boundkey-dist all DIR | unit")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(1)
        }
    }
}

fn all(dir: &Path) -> io::Result<()> {
    for command in [agent::program::command(), auth::program::command(), ctl::command()] {
        let name = command.get_name().to_owned();
        // `COMMAND help SUBCOMMAND` says what the page of the subcommand says.
        let mut built = command.clone().disable_help_subcommand(true);
        built.build();
        let man = dir.join("man").join(&name);
        fs::create_dir_all(&man)?;
        pages(&built, None, &man)?;
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            let place = dir.join("completions").join(shell.to_string());
            fs::create_dir_all(&place)?;
            clap_complete::generate_to(shell, &mut command.clone(), &name, place)?;
        }
    }
    fs::write(dir.join("boundkey.service"), agent::systemd::packaged())
}

/// The page of `command`, and those of its subcommands.
fn pages(command: &Command, parent: Option<&str>, dir: &Path) -> io::Result<()> {
    let page = Man::new(command.clone()).source(concat!("boundkey ", env!("CARGO_PKG_VERSION"))).manual("boundkey").date("");
    let (file, mut text) = (page.get_filename(), Vec::new());
    page.render(&mut text)?;
    let mut text = String::from_utf8(text).map_err(io::Error::other)?.replace("\n.SH EXTRA\n", "\n.SH NOTES\n");
    let name = file.strip_suffix(".1").unwrap_or(&file);
    if name == "boundkey" {
        text.push_str(".SH FILES\n");
        for (path, what) in FILES {
            text.extend([".TP\n\\fI", path, "\\fR\n", what, "\n"]);
        }
    }
    if let Some(parent) = parent {
        text.extend([".SH \"SEE ALSO\"\n\\fB", &parent.replace('-', "\\-"), "\\fR(1)\n"]);
    }
    fs::write(dir.join(&file), text)?;
    command.get_subcommands().filter(|sub| !sub.is_hide_set()).try_for_each(|sub| pages(sub, Some(name), dir))
}
