//! The server's program; see [`boundkey_auth`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    boundkey_auth::program::main()
}
