//! `ringpost-deliver`: the MDA shim. What it does is in [`ringpost_daemon::tools::deliver`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ringpost_daemon::tools::deliver::run(std::env::args_os()).into()
}
