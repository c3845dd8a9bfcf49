//! `count`: does a given amount of one kind of work, for callgrind.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command line program")]

use std::process::ExitCode;

use clap::Parser;
use ringpost_fuzz::count::{CASES, Case};

/// Does work whose instructions are to be counted; `ringpost-perf counters` runs it under valgrind.
#[derive(Parser)]
#[command(name = "count")]
struct Arguments {
    /// Which work; all are listed without this.
    #[arg(value_parser = case)]
    case: Option<&'static Case>,
    /// How much of it.
    #[arg(default_value_t = 1)]
    amount: u64,
    /// Only what is not counted.
    #[arg(long)]
    before: bool,
}

fn case(name: &str) -> Result<&'static Case, String> {
    let found = CASES.iter().find(|case| case.name == name);
    found.ok_or_else(|| "no such work; without arguments all are listed".to_owned())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.case {
        Some(case) if arguments.before => case.run_before(arguments.amount),
        Some(case) => case.run(arguments.amount),
        None => {
            for case in CASES {
                println!("{}\t{}", case.name, case.unit);
            }
        }
    }
    ExitCode::SUCCESS
}
