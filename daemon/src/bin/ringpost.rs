//! `ringpost`: the operator's tool. What it does is in [`ringpost_daemon::tools::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ringpost_daemon::tools::cli::run(std::env::args_os()).into()
}
