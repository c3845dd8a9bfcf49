//! Who has an account, and under which name the store knows them.
//!
//! The one seam for the directory that comes later: [`Accounts::resolve`] is asked for every
//! recipient, answers at once, and is replaced as a whole at SIGHUP. Names follow mail.md 6.1: the
//! local part as given, then in ASCII lower case, then both without the detail.

use std::collections::BTreeSet;
use std::path::Path;

use ringpost_netproto::placement::NAME_BYTES_MAX;

use crate::config::{Accept, Config};

/// A file of users above this is refused: ten million addresses of a hundred bytes.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// The accounts of one moment; shared by the cores.
#[derive(Debug, Default)]
pub struct Accounts {
    accept: Accept,
    users: BTreeSet<Box<[u8]>>,
    default_domain: Vec<u8>,
    delimiter: Option<u8>,
}

/// A recipient that exists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    /// The canonical name: what hash, duplicates filter and files use.
    pub name: Vec<u8>,
    /// What followed the delimiter, if the account was found without it.
    pub detail: Option<Vec<u8>>,
}

/// A list of users that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("accounts.file {path}: {reason}")]
pub struct AccountsError {
    /// Which file.
    pub path: String,
    /// A sentence, with the line if one is at fault.
    pub reason: String,
}

impl Accounts {
    /// Reads what the configuration names.
    pub fn load(config: &Config) -> Result<Self, AccountsError> {
        let users = match &config.accounts.file {
            Some(path) => read_users(path).map_err(|reason| AccountsError {
                path: path.display().to_string(),
                reason,
            })?,
            None => BTreeSet::new(),
        };
        Ok(Self {
            accept: config.accounts.accept,
            users,
            default_domain: config.default_domain.clone().into_bytes(),
            delimiter: config.recipient_delimiter,
        })
    }

    /// Users of the list.
    pub fn users_count(&self) -> usize {
        self.users.len()
    }

    /// The account of an address in its parts: the local part without quotes, the domain if there
    /// is one. `None`: no such account.
    pub fn resolve(&self, local: &[u8], domain: Option<&[u8]>) -> Option<Account> {
        let domain = domain.unwrap_or(&self.default_domain).to_ascii_lowercase();
        let domain = domain.strip_suffix(b".").unwrap_or(&domain);
        let bare = self
            .delimiter
            .and_then(|delimiter| local.iter().position(|byte| *byte == delimiter))
            .filter(|at| *at > 0)
            .and_then(|at| Some((local.get(..at)?, local.get(at + 1..)?)));
        if self.accept == Accept::Any {
            let (user, detail) = bare.map_or((local, None), |(user, detail)| {
                (user, Some(detail.to_vec()))
            });
            let name = join(&user.to_ascii_lowercase(), domain);
            return valid(&name).then_some(Account { name, detail });
        }
        let found = |user: &[u8]| {
            let given = join(user, domain);
            let folded = join(&user.to_ascii_lowercase(), domain);
            [given, folded]
                .into_iter()
                .find(|name| self.users.contains(name.as_slice()))
        };
        if let Some(name) = found(local) {
            return Some(Account { name, detail: None });
        }
        let (user, detail) = bare?;
        found(user).map(|name| Account {
            name,
            detail: Some(detail.to_vec()),
        })
    }
}

fn join(local: &[u8], domain: &[u8]) -> Vec<u8> {
    if domain.is_empty() {
        return local.to_vec();
    }
    [local, b"@", domain].concat()
}

/// Whether the store takes a name.
fn valid(name: &[u8]) -> bool {
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with(b"@");
    fits && !name.iter().any(u8::is_ascii_control)
}

/// One canonical address a line.
fn read_users(path: &Path) -> Result<BTreeSet<Box<[u8]>>, String> {
    let length = std::fs::metadata(path)
        .map_err(|error| error.to_string())?
        .len();
    if length > FILE_BYTES_MAX {
        return Err(format!("{length} bytes are too many"));
    }
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    let mut users = BTreeSet::new();
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let (local, domain) = match line.iter().rposition(|byte| *byte == b'@') {
            Some(at) => line.split_at(at),
            None => (line, &b""[..]),
        };
        let name = [local, &domain.to_ascii_lowercase()].concat();
        if !valid(&name) || name.iter().any(u8::is_ascii_whitespace) {
            return Err(format!("line {}: not an address", number + 1));
        }
        users.insert(name.into_boxed_slice());
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(users: &[&str]) -> Accounts {
        Accounts {
            accept: Accept::Listed,
            users: users
                .iter()
                .map(|user| Box::from(user.as_bytes()))
                .collect(),
            default_domain: b"example.test".to_vec(),
            delimiter: Some(b'+'),
        }
    }

    fn resolve(accounts: &Accounts, local: &str, domain: Option<&str>) -> Option<(String, String)> {
        let account = accounts.resolve(local.as_bytes(), domain.map(str::as_bytes))?;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("ASCII");
        Some((text(account.name), text(account.detail.unwrap_or_default())))
    }

    #[test]
    fn a_name_is_found_as_mail_6_1_says() {
        let accounts = listed(&["bob@example.test", "Ann@b.test", "a+b@example.test", "carl"]);
        let cases = [
            ("bob", Some("example.test"), Some(("bob@example.test", ""))),
            ("bob", None, Some(("bob@example.test", ""))),
            ("BOB", Some("EXAMPLE.test."), Some(("bob@example.test", ""))),
            ("bob+Box", None, Some(("bob@example.test", "Box"))),
            ("bob+a+b", None, Some(("bob@example.test", "a+b"))),
            ("a+b", None, Some(("a+b@example.test", ""))),
            ("Ann", Some("b.test"), Some(("Ann@b.test", ""))),
            ("ann", Some("b.test"), None),
            ("bob", Some("b.test"), None),
            ("+x", None, None),
            ("", None, None),
            ("eve", None, None),
        ];
        for (local, domain, want) in cases {
            let got = resolve(&accounts, local, domain);
            let want = want.map(|(name, detail)| (name.to_owned(), detail.to_owned()));
            assert_eq!(got, want, "{local} {domain:?}");
        }
    }

    #[test]
    fn anybody_is_taken_under_a_name_that_the_store_takes() {
        let accounts = Accounts {
            accept: Accept::Any,
            ..listed(&[])
        };
        assert_eq!(
            resolve(&accounts, "Eve+x", Some("A.test")),
            Some(("eve@a.test".to_owned(), "x".to_owned()))
        );
        for local in ["", "a\0b", "a\nb", &"x".repeat(300)] {
            assert_eq!(resolve(&accounts, local, Some("a.test")), None);
        }
    }

    #[test]
    fn a_bad_line_of_the_list_is_named() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let path = dir.path().join("users");
        std::fs::write(&path, "# staff\n\nbob@Example.Test\n ann@example.test \n")
            .expect("written");
        let users = read_users(&path).expect("valid");
        assert!(users.contains(&b"bob@example.test"[..]) && users.len() == 2);
        std::fs::write(&path, "bob@example.test\ntwo words\n").expect("written");
        assert_eq!(read_users(&path), Err("line 2: not an address".to_owned()));
        assert!(read_users(&dir.path().join("none")).is_err());
    }
}
