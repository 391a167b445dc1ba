//! The device's program; see [`boundkey_agent`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    boundkey_agent::program::main()
}
