//! The server's program; see [`boundkey::auth`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    boundkey::auth::program::main()
}
