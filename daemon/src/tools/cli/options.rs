//! How `ringpost` is called.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Look into a Ringpost node: its state, its mailboxes, its files.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "ringpost",
    version,
    about = "Look into a Ringpost node: its state, its mailboxes, its files",
    arg_required_else_help = true
)]
pub struct Options {
    /// Which node and how to answer.
    #[command(flatten)]
    pub global: Global,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// The node's data directory; its socket is DIR/run/node. If no daemon runs there, mail is read from
    /// the files
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "to")]
    pub data: Option<PathBuf>,

    /// The node's address: a socket's path, unix:PATH or HOST:PORT
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub to: Option<PathBuf>,

    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// Give up after this long without an answer
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub timeout: u64,
}

/// The commands.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Show the node's state
    Status,
    /// List a user's mailboxes
    Folders {
        /// Canonical user name
        user: OsString,
    },
    /// List the messages of a mailbox, oldest first
    List {
        /// Canonical user name
        user: OsString,
        /// Mailbox
        #[arg(long, value_name = "NAME", default_value = "INBOX")]
        folder: OsString,
    },
    /// Write one message to standard output, byte for byte as it was received
    Show {
        /// Canonical user name
        user: OsString,
        /// The message's number, as in the list
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        uid: u32,
        /// Mailbox
        #[arg(long, value_name = "NAME", default_value = "INBOX")]
        folder: OsString,
    },
    /// Write a user's mail to standard output as an mbox file (mboxrd)
    Export {
        /// Canonical user name
        user: OsString,
        /// Only this mailbox; otherwise all, one behind the other
        #[arg(long, value_name = "NAME")]
        folder: Option<OsString>,
    },
    /// Bring mail along: an mbox file, a Maildir, or a tree of users; run again, it goes on
    Import(Import),
    /// Copy a node's whole data directory, or of it what is one user's, while the node serves or while it
    /// is stopped, and check the copy
    Backup {
        /// Where to; missing or empty
        directory: PathBuf,
        /// This user alone, by canonical name: nobody else's mail is in the copy
        #[arg(long, value_name = "USER")]
        user: Option<OsString>,
        /// How deep to check the copy
        #[arg(long, value_enum, value_name = "LEVEL", default_value_t = Depth::Checksums)]
        verify: Depth,
    },
    /// Make a node's data directory, missing or empty, out of a backup; with USER, put that user's mail
    /// that is missing back into a node that runs
    Restore {
        /// Canonical user name
        user: Option<OsString>,
        /// Put the mailboxes below this one instead of where they were
        #[arg(long, value_name = "NAME", requires = "user")]
        folder: Option<OsString>,
        /// As the mail was at this time, after the backup: 14:05, "2026-11-28 14:05" or with a zone,
        /// 2026-11-28T14:05:00Z. The node has to keep its log since the backup: see the key `archive_age`
        #[arg(long, value_name = "TIME", requires = "user")]
        at: Option<String>,
        /// The backup
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
        /// How deep to check what was restored
        #[arg(long, value_enum, value_name = "LEVEL", default_value_t = Depth::Checksums)]
        verify: Depth,
    },
    /// Check a data directory that no daemon uses; changes nothing
    Check {
        /// How deep to look
        #[arg(long, value_enum, default_value_t = Depth::Full)]
        level: Depth,
    },
    /// Repair a data directory that no daemon uses: serve what is whole, set aside and name what is not
    Repair {
        /// Say what would be done, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Say what the node's scrub found; with --now or a user, let it read everything again and wait
    Scrub {
        /// Begin a pass over all mail from the start
        #[arg(long)]
        now: bool,
        /// Only this user, before all others
        user: Option<OsString>,
    },
    /// Record what the threads of a running node do, or wait for: a flame graph and a table for each.
    /// Wants perf(1)
    Profile(Profile),
    /// Check a configuration file
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man {
        /// Made if it is missing
        directory: PathBuf,
    },
}

/// What is brought along, and where to.
#[derive(Args, Clone, Debug)]
pub struct Import {
    /// Canonical user name
    #[arg(required_unless_present = "tree", conflicts_with = "tree")]
    pub user: Option<OsString>,

    /// An mbox file, a Maildir, a directory of mbox files, or - for an mbox on standard input
    #[arg(default_value = "-", conflicts_with = "tree")]
    pub path: PathBuf,

    /// Mailbox for it; folders of a Maildir come below it, or beside INBOX
    #[arg(
        long,
        value_name = "NAME",
        default_value = "INBOX",
        conflicts_with = "tree"
    )]
    pub folder: OsString,

    /// What PATH is
    #[arg(long, value_enum, default_value_t = Format::Auto, conflicts_with = "tree")]
    pub format: Format,

    /// How lines that begin with "From " are quoted in mbox files
    #[arg(long, value_enum, default_value_t = MboxFlavour::Auto)]
    pub mbox_flavour: MboxFlavour,

    /// Every user of a tree: DIR/USER/Maildir, DIR/USER/mbox, DIR/USER.mbox and so on
    #[arg(long, value_name = "DIR")]
    pub tree: Option<PathBuf>,

    /// Read everything and report, and import nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// What is recorded, and where to.
#[derive(Args, Clone, Debug)]
pub struct Profile {
    /// Gets the pictures, the stacks and perf's own file
    #[arg(default_value = "ringpost-profile")]
    pub directory: PathBuf,

    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub seconds: u32,

    /// Samples a second and processor
    #[arg(long, default_value_t = 199, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    pub frequency: u32,

    /// Count the time that threads do not run, by what they wait for
    #[arg(long)]
    pub waits: bool,

    /// An earlier profile's directory: draw and tell what is other than there
    #[arg(long, value_name = "DIR")]
    pub diff: Option<PathBuf>,
}

/// What an import reads.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// A directory with cur or new in it is a Maildir, all else mbox
    Auto,
    /// mbox
    Mbox,
    /// Maildir, or Maildir++
    Maildir,
}

/// How an mbox is quoted.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum MboxFlavour {
    /// By evidence in the file; the report says which and why
    Auto,
    /// Every line of > and "From " got one more >
    Mboxrd,
    /// Only "From " got a >
    Mboxo,
    /// As mboxo, with lengths
    Mboxcl,
    /// Lengths and no quoting
    Mboxcl2,
}

/// How deep a check looks.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// Indexes, logs, names and lengths, not the messages
    Structure,
    /// Every checksum: reads all mail
    Checksums,
    /// Parses every mbox as well, and computes again what the index says of each message
    Full,
}

/// What can be done with a configuration.
#[derive(Subcommand, Clone, Debug)]
pub enum ConfigCommand {
    /// Read it as the daemon would, and say what is wrong with it
    Check {
        /// The file
        #[arg(default_value = "/etc/ringpost/ringpost.toml")]
        file: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn definition_holds() {
        Options::command().debug_assert();
    }

    #[test]
    fn one_node_at_a_time() {
        let parse = |words: &[&str]| Options::try_parse_from([&["ringpost"], words].concat());
        assert!(parse(&["--data", "d", "status"]).is_ok());
        assert!(parse(&["list", "bob", "--to", "127.0.0.1:1", "--json"]).is_ok());
        assert!(parse(&["--data", "d", "--to", "s", "status"]).is_err());
        assert!(parse(&["show", "bob", "0"]).is_err());
        assert!(parse(&[]).is_err());
    }
}
