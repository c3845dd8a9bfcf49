//! Flags and keywords of messages (RFC 9051 2.3.2), and how a request changes them.

use std::sync::Arc;

use crate::format::info::KEYWORD_BYTES_MAX;

/// Flags of a message.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Flags {
    /// Bits of `format::info::SEEN` and its neighbours; others are ignored.
    pub system: u32,
    /// Keywords by name. Case does not tell keywords apart; the first spelling is kept.
    pub keywords: Vec<Arc<str>>,
}

impl Flags {
    /// System flags alone.
    pub const fn system(system: u32) -> Self {
        Self {
            system,
            keywords: Vec::new(),
        }
    }
}

/// What `Store` does with the flags given (RFC 9051 6.4.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlagOp {
    /// Sets them (`+FLAGS`).
    Add,
    /// Takes them off (`-FLAGS`).
    Remove,
    /// These and no others (`FLAGS`).
    Replace,
}

/// Whether a word can be a keyword: an `atom` of RFC 9051 9, 1 to 255 bytes.
pub fn is_keyword(word: &str) -> bool {
    let atom = |byte: u8| byte.is_ascii_graphic() && !b"(){%*\"\\]".contains(&byte);
    (1..=KEYWORD_BYTES_MAX).contains(&word.len()) && word.bytes().all(atom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_are_atoms() {
        for good in ["$Forwarded", "junk", "a.b-c_d", "}["] {
            assert!(is_keyword(good), "{good}");
        }
        let long = "x".repeat(256);
        for bad in [
            "",
            "\\Seen",
            "two words",
            "a]",
            "100%",
            "\u{e4}",
            "a\0",
            &long,
        ] {
            assert!(!is_keyword(bad), "{bad}");
        }
    }
}
