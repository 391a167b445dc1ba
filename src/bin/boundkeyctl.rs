//! The operator's program; see [`boundkey_ctl`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    boundkey_ctl::main()
}
