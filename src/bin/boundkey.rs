//! The device's program; see [`boundkey::agent`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    boundkey::agent::program::main()
}
