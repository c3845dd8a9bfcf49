//! Recipient addresses as they stand in an envelope (mail.md 6.1): which forms there are, and why a
//! text is none of them. Domains come out in lower case without a trailing dot, quoted local parts
//! without their quotes. Who exists, and where a detail begins, is for
//! [`accounts`](crate::accounts) to say.

use std::fmt;

use ringpost_netproto::placement::NAME_BYTES_MAX;

/// A domain's label has at most this many bytes (RFC 1035 2.3.4).
const LABEL_BYTES_MAX: usize = 63;

/// An address of one recipient.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    local: Vec<u8>,
    domain: Option<Vec<u8>>,
}

/// Why a text is no address. Nothing of it may be stored or looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Nothing there, or nothing in front of the `@`.
    #[error("the recipient is empty")]
    Empty,
    /// Longer than any account's name.
    #[error("the address is longer than {NAME_BYTES_MAX} bytes")]
    TooLong,
    /// A byte above 0x7F; SMTPUTF8 is not offered.
    #[error("the address has a byte that is not ASCII")]
    EightBit,
    /// NUL, CR, LF, tab or another control character.
    #[error("the address has a control character")]
    Control,
    /// `@relay:user@domain` (RFC 5321 4.1.1.3 lets us refuse it).
    #[error("source routes are not supported")]
    SourceRoute,
    /// Two dots in a row, or one at an end, outside of quotes.
    #[error("a dot stands first, last or twice in the local part")]
    Dots,
    /// A quote that does not enclose the whole local part.
    #[error("the quotes do not match")]
    Quotes,
    /// A character that needs quotes.
    #[error("the local part has a character that must be quoted")]
    Local,
    /// Not a host name and not an address in brackets.
    #[error("the domain is not valid")]
    Domain,
}

impl Address {
    /// Reads an address without its angle brackets: `user`, `user@domain`, `"quoted"@domain`,
    /// `user@[1.2.3.4]`.
    pub fn parse(text: &[u8]) -> Result<Self, AddressError> {
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        if text.iter().any(u8::is_ascii_control) {
            return Err(AddressError::Control);
        }
        if !text.is_ascii() {
            return Err(AddressError::EightBit);
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
        if text.starts_with(b"@") && text.contains(&b':') {
            return Err(AddressError::SourceRoute);
        }
        let (local, rest) = if text.starts_with(b"\"") {
            quoted(text)?
        } else {
            dot_atom(text)?
        };
        let domain = match rest.split_first() {
            None => None,
            Some((b'@', domain)) => Some(canonical_domain(domain)?),
            Some(_) if text.starts_with(b"\"") => return Err(AddressError::Quotes),
            Some(_) => return Err(AddressError::Local),
        };
        Ok(Self { local, domain })
    }

    /// The part in front of the `@`, without quotes; not empty. Case as it came.
    pub fn local(&self) -> &[u8] {
        &self.local
    }

    /// In ASCII lower case; `None` stands for the default domain.
    pub fn domain(&self) -> Option<&[u8]> {
        self.domain.as_deref()
    }
}

impl fmt::Display for Address {
    /// As it may stand in an envelope again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = String::from_utf8_lossy(&self.local);
        if dot_atom(&self.local).is_ok_and(|(_, rest)| rest.is_empty()) {
            f.write_str(&local)?;
        } else {
            let escaped = local.replace('\\', "\\\\").replace('"', "\\\"");
            write!(f, "\"{escaped}\"")?;
        }
        match &self.domain {
            Some(domain) => write!(f, "@{}", String::from_utf8_lossy(domain)),
            None => Ok(()),
        }
    }
}

/// RFC 5322 3.2.3.
fn is_atext(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte)
}

/// A local part without quotes, and what stands behind it.
fn dot_atom(text: &[u8]) -> Result<(Vec<u8>, &[u8]), AddressError> {
    let len = text
        .iter()
        .position(|byte| !is_atext(*byte) && *byte != b'.')
        .unwrap_or(text.len());
    let (local, rest) = text.split_at(len);
    if local.is_empty() {
        return Err(match rest.first() {
            Some(b'@') | None => AddressError::Empty,
            Some(_) => AddressError::Local,
        });
    }
    if local.split(|byte| *byte == b'.').any(<[u8]>::is_empty) {
        return Err(AddressError::Dots);
    }
    Ok((local.to_vec(), rest))
}

/// A quoted local part without its quotes, and what stands behind it (RFC 5321 4.1.2).
fn quoted(text: &[u8]) -> Result<(Vec<u8>, &[u8]), AddressError> {
    let mut local = Vec::with_capacity(text.len());
    let mut rest = text.get(1..).unwrap_or_default();
    loop {
        rest = match rest {
            [] | [b'\\'] => return Err(AddressError::Quotes),
            [b'"', behind @ ..] if local.is_empty() => {
                debug_assert!(behind.len() < text.len());
                return Err(AddressError::Empty);
            }
            [b'"', behind @ ..] => return Ok((local, behind)),
            [b'\\', byte, behind @ ..] | [byte, behind @ ..] => {
                local.push(*byte);
                behind
            }
        };
    }
}

/// A domain as it is looked up.
fn canonical_domain(domain: &[u8]) -> Result<Vec<u8>, AddressError> {
    let literal = domain
        .strip_prefix(b"[")
        .and_then(|rest| rest.strip_suffix(b"]"));
    let valid = match literal {
        Some(inner) => {
            !inner.is_empty()
                && inner
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || b":.-".contains(byte))
        }
        None => domain
            .strip_suffix(b".")
            .unwrap_or(domain)
            .split(|byte| *byte == b'.')
            .all(is_label),
    };
    if !valid {
        return Err(AddressError::Domain);
    }
    let domain = domain.to_ascii_lowercase();
    Ok(domain.strip_suffix(b".").map_or(domain.clone(), Vec::from))
}

/// Letters, digits, hyphens; underscores occur, though they are no host names.
fn is_label(label: &[u8]) -> bool {
    (1..=LABEL_BYTES_MAX).contains(&label.len())
        && label
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms_are_read() {
        for (text, local, domain) in [
            ("bob", "bob", None),
            ("Bob+Box@Example.TEST.", "Bob+Box", Some("example.test")),
            ("\"a b\\\"@c\"@d", "a b\"@c", Some("d")),
            ("\"plain\"@d", "plain", Some("d")),
            ("\"..\"", "..", None),
            ("u@[1.2.3.4]", "u", Some("[1.2.3.4]")),
            ("u@[IPv6:FE80::1]", "u", Some("[ipv6:fe80::1]")),
            ("o'brien/x=y%z@a-b.c_d", "o'brien/x=y%z", Some("a-b.c_d")),
            ("a.b@c", "a.b", Some("c")),
        ] {
            let address = Address::parse(text.as_bytes()).expect(text);
            assert_eq!(address.local(), local.as_bytes(), "{text}");
            assert_eq!(address.domain(), domain.map(str::as_bytes), "{text}");
            let again = Address::parse(address.to_string().as_bytes());
            assert_eq!(again, Ok(address), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_says_why() {
        use AddressError::{
            Control, Domain, Dots, EightBit, Empty, Local, Quotes, SourceRoute, TooLong,
        };
        let long = [b'a'; 300];
        let long_label = [&b"u@"[..], &[b'a'; 64]].concat();
        for (text, why) in [
            (&b""[..], Empty),
            (b"@", Empty),
            (b"@d", Empty),
            (b"\"\"@d", Empty),
            (&long, TooLong),
            (b"b\xc3\xb6b@d", EightBit),
            (b"bob@d\xff", EightBit),
            (b"a\0b@d", Control),
            (b"a\r\nRCPT TO:<x>@d", Control),
            (b"a\tb", Control),
            (b"@a,@b:u@c", SourceRoute),
            (b"../../etc/passwd@d", Dots),
            (b".a@d", Dots),
            (b"a.@d", Dots),
            (b"a..b", Dots),
            (b"\"a@d", Quotes),
            (b"\"a\\", Quotes),
            (b"\"a\"b@d", Quotes),
            (b"a\"b\"@d", Local),
            (b"a b@d", Local),
            (b"<a@d>", Local),
            (b"a@", Domain),
            (b"a@d..e", Domain),
            (b"a@.d", Domain),
            (b"a@d..", Domain),
            (b"a@b@c", Domain),
            (b"a@[", Domain),
            (b"a@[]", Domain),
            (b"a@[1.2.3.4]x", Domain),
            (b"a@../x", Domain),
            (&long_label, Domain),
        ] {
            assert_eq!(Address::parse(text), Err(why), "{}", text.escape_ascii());
            assert!(!why.to_string().is_empty());
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_that_reads_back_or_an_error(
            text in "[ -~]{0,20}|[a-c.\"@\\\\\\[\\]]{0,12}",
        ) {
            if let Ok(address) = Address::parse(text.as_bytes()) {
                prop_assert!(!address.local().is_empty());
                prop_assert_eq!(Address::parse(address.to_string().as_bytes()), Ok(address));
            }
        }
    }
}
