//! The operator's program; see [`boundkey::ctl`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    boundkey::ctl::main()
}
