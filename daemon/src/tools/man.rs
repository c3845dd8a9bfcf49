//! The manual pages: options from the programs' own definitions, the rest from text beside this
//! file, so that neither can forget what the other says.

use std::io;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_mangen::Man;

use crate::config::{KEYS, Reload};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Pages that are text alone. The options of `ringpostd` are the daemon's; a test holds them
/// against `ringpostd --help`.
const TEXTS: [(&str, &str); 2] = [
    ("ringpost-mbox.5", include_str!("man/ringpost-mbox.5")),
    ("ringpostd.8", include_str!("man/ringpostd.8")),
];

/// One page of a program.
struct Program {
    command: clap::Command,
    section: &'static str,
    rest: &'static str,
}

fn programs() -> [Program; 2] {
    [
        Program {
            command: super::cli::Options::command(),
            section: "1",
            rest: include_str!("man/ringpost.roff"),
        },
        Program {
            command: super::deliver::Options::command(),
            section: "1",
            rest: include_str!("man/ringpost-deliver.roff"),
        },
    ]
}

/// Writes every page into `directory`, which is made if it is missing. Returns their paths.
pub fn write_pages(directory: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(directory)?;
    let mut written = Vec::new();
    for (name, page) in pages()? {
        let path = directory.join(name);
        std::fs::write(&path, page)?;
        written.push(path);
    }
    Ok(written)
}

/// ringpost.toml(5): every key, from the table that the daemon reads it with.
fn configuration_page() -> String {
    let mut page = include_str!("man/ringpost.toml.5").replace("@VERSION@", VERSION);
    let mut keys = String::new();
    for key in KEYS {
        let (name, default) = (escape(key.name), escape(key.default));
        let default = if default.is_empty() {
            "none".to_owned()
        } else {
            default
        };
        let doc = escape(key.doc).replace('`', "");
        let reload = match key.reload {
            Reload::Live => "",
            Reload::Restart => " Needs a restart.",
        };
        keys.extend([
            ".TP\n.BR ",
            &name,
            " \" (default: ",
            &default,
            ")\"\n",
            &doc,
            reload,
            "\n",
        ]);
    }
    page = page.replace("@KEYS@\n", &keys);
    page
}

/// File name and roff text of every page.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut pages = Vec::new();
    for program in programs() {
        let name = format!("{}.{}", program.command.get_name(), program.section);
        pages.push((name, program.render()?));
    }
    for (name, text) in TEXTS {
        pages.push((
            name.to_owned(),
            text.replace("@VERSION@", VERSION).into_bytes(),
        ));
    }
    pages.push((
        "ringpost.toml.5".to_owned(),
        configuration_page().into_bytes(),
    ));
    Ok(pages)
}

impl Program {
    fn render(self) -> io::Result<Vec<u8>> {
        let has_commands = self.command.get_subcommands().any(|sub| !sub.is_hide_set());
        let mut command = self.command.disable_help_subcommand(true);
        command.build();
        let commands = command.clone();
        let man = Man::new(command)
            .section(self.section)
            .source(format!("Ringpost {VERSION}"))
            .manual("Ringpost");
        let mut page = Vec::new();
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        page.extend_from_slice(synopsis(&commands).as_bytes());
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
        if has_commands {
            page.extend_from_slice(b".SH COMMANDS\n");
            render_commands(&commands, &mut page);
        }
        page.extend_from_slice(self.rest.as_bytes());
        Ok(page)
    }
}

/// As `--help` begins.
fn synopsis(command: &clap::Command) -> String {
    let usage = usage(command);
    let (name, rest) = usage.split_once(' ').unwrap_or((&usage, ""));
    format!(".SH SYNOPSIS\n.B {}\n{}\n", escape(name), escape(rest))
}

/// The line behind `Usage:`.
fn usage(command: &clap::Command) -> String {
    let usage = command.clone().render_usage().to_string();
    usage.trim_start_matches("Usage: ").trim().to_owned()
}

/// The commands on the program's own page, instead of one page for each.
fn render_commands(command: &clap::Command, page: &mut Vec<u8>) {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        if sub.has_subcommands() {
            render_commands(sub, page);
            continue;
        }
        let mut usage = usage(sub).replace(" [OPTIONS]", "");
        for option in sub.get_arguments() {
            if let (Some(long), Some([value]), false) = (
                option.get_long(),
                option.get_value_names(),
                option.is_global_set(),
            ) {
                usage = format!("{usage} [--{long} {value}]");
            }
        }
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        let text = format!(".TP\n.B {}\n{}.\n", escape(&usage), escape(&about));
        page.extend_from_slice(text.as_bytes());
    }
}

/// Plain text inside a line of roff.
fn escape(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_a_name_and_its_exit_codes() {
        for (name, page) in pages().unwrap() {
            let text = String::from_utf8(page).unwrap();
            assert!(text.is_ascii(), "{name}");
            assert!(text.contains(".SH NAME"), "{name}");
            assert!(
                !text.contains("@KEYS@") && !text.contains("@VERSION@"),
                "{name}"
            );
            if !name.ends_with('5') {
                assert!(
                    text.contains(".SH \"EXIT STATUS\"") || text.contains(".SH EXIT STATUS"),
                    "{name}"
                );
                assert!(text.contains(".SH EXAMPLES"), "{name}");
            }
        }
    }

    #[test]
    fn pages_land_in_the_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let written = write_pages(&scratch.path().join("man")).unwrap();
        assert_eq!(written.len(), pages().unwrap().len());
        assert!(written.iter().all(|path| path.is_file()));
    }
}
