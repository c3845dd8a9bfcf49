//! Names of mailboxes: which are taken, and in what form (RFC 9051 5.1).
//!
//! A name is UTF-8, its levels divided by `/`. The first level `INBOX` is the same in any case. What
//! would be trouble in a terminal, a file tree or another mail program is not a name.

/// Divides the levels of a name.
pub const SEPARATOR: char = '/';

/// Bytes of one level; what file systems and other servers take, so that a tree can be exported.
pub const LEVEL_BYTES_MAX: usize = 255;

/// Why a name is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NameFault {
    /// Nothing is left of it.
    #[error("a mailbox name cannot be empty")]
    Empty,
    /// The whole has more than 1024 bytes, or a level more than [`LEVEL_BYTES_MAX`].
    #[error("a mailbox name has at most 1024 bytes, and 255 between two slashes")]
    TooLong,
    /// A slash at the start or the end, or two together.
    #[error("a mailbox name has no empty level: a slash stands between two words")]
    EmptyLevel,
    /// A level `.` or `..`.
    #[error("'.' and '..' are not levels of a mailbox name")]
    Dots,
    /// A control character, NUL among them, or a line or paragraph separator.
    #[error("a mailbox name has no control characters")]
    Control,
    /// A mailbox cannot be renamed into itself.
    #[error("a mailbox cannot be moved below itself")]
    BelowItself,
    /// INBOX is always there and always called so.
    #[error("INBOX can neither be renamed nor removed")]
    Inbox,
}

/// The name as it is kept, if it is one. `INBOX` comes out in upper case.
pub fn canonical(name: &str) -> Result<String, NameFault> {
    if name.is_empty() {
        return Err(NameFault::Empty);
    }
    if name.len() > crate::format::info::MAILBOX_NAME_BYTES_MAX {
        return Err(NameFault::TooLong);
    }
    if name.contains(|c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')) {
        return Err(NameFault::Control);
    }
    for level in name.split(SEPARATOR) {
        match level {
            "" => return Err(NameFault::EmptyLevel),
            "." | ".." => return Err(NameFault::Dots),
            _ if level.len() > LEVEL_BYTES_MAX => return Err(NameFault::TooLong),
            _ => {}
        }
    }
    let (first, rest) = name.split_at(name.find(SEPARATOR).unwrap_or(name.len()));
    if first.eq_ignore_ascii_case("INBOX") {
        Ok(format!("INBOX{rest}"))
    } else {
        Ok(name.to_owned())
    }
}

/// As [`canonical`], for a name to be made: one slash at the end says that mailboxes below are
/// meant to follow, which needs no saying here (RFC 9051 6.3.4).
pub fn canonical_to_create(name: &str) -> Result<String, NameFault> {
    match name.strip_suffix(SEPARATOR) {
        Some("") => Err(NameFault::Empty),
        Some(name) => canonical(name),
        None => canonical(name),
    }
}

/// What follows `parent` and a slash in a name that lies below it.
pub(crate) fn below<'a>(name: &'a str, parent: &str) -> Option<&'a str> {
    name.strip_prefix(parent)?.strip_prefix(SEPARATOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_refused_for_their_reason() {
        let long = "x".repeat(300);
        let many = "ab/".repeat(400) + "c";
        let table = [
            ("", NameFault::Empty),
            (&long, NameFault::TooLong),
            (&many, NameFault::TooLong),
            ("/a", NameFault::EmptyLevel),
            ("a/", NameFault::EmptyLevel),
            ("a//b", NameFault::EmptyLevel),
            ("/", NameFault::EmptyLevel),
            ("..", NameFault::Dots),
            ("a/../b", NameFault::Dots),
            (".", NameFault::Dots),
            ("a\0b", NameFault::Control),
            ("a\nb", NameFault::Control),
            ("a\u{7f}", NameFault::Control),
            ("a\u{85}", NameFault::Control),
            ("a\u{2028}", NameFault::Control),
        ];
        for (name, fault) in table {
            assert_eq!(canonical(name), Err(fault), "{name:?}");
        }
        assert_eq!(canonical_to_create("/"), Err(NameFault::Empty));
        assert_eq!(canonical_to_create("a//"), Err(NameFault::EmptyLevel));
    }

    #[test]
    fn good_names_are_kept_as_they_are_but_for_inbox() {
        for name in [
            "Archive",
            "a/b/c",
            "100% *",
            "\u{dc}bung",
            "...",
            "#x",
            "x".repeat(255).as_str(),
        ] {
            assert_eq!(canonical(name).as_deref(), Ok(name));
        }
        assert_eq!(canonical("inbox").as_deref(), Ok("INBOX"));
        assert_eq!(canonical("InBox/a").as_deref(), Ok("INBOX/a"));
        assert_eq!(canonical("inboxes").as_deref(), Ok("inboxes"));
        assert_eq!(canonical_to_create("a/b/").as_deref(), Ok("a/b"));
        assert_eq!(below("a/b", "a"), Some("b"));
        assert_eq!(below("ab", "a"), None);
    }
}
