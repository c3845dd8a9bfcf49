//! Names of folders in other programs' trees, as mailbox names: levels divided by `/`, UTF-8.

/// A folder of a Maildir++ (`.Archive.2024`, modified UTF-7 of RFC 3501 5.1.3), without its first
/// dot. A name that is not modified UTF-7 is taken as it is, if it is UTF-8.
pub fn of_maildir(name: &str) -> String {
    let levels = name.split('.');
    let named: Vec<String> = levels
        .map(|level| decode(level).unwrap_or_else(|| level.to_owned()))
        .collect();
    named.join("/")
}

/// A file in a folder of mbox files: without the endings that programs put behind.
pub fn of_file(name: &str) -> &str {
    let name = name.strip_suffix(".sbd").unwrap_or(name);
    name.strip_suffix(".mbox").unwrap_or(name)
}

/// Whether a file of this name is the INBOX.
pub fn is_inbox(name: &str) -> bool {
    name.eq_ignore_ascii_case("inbox") || name == "mbox"
}

/// Modified UTF-7; `None` if it is none.
fn decode(text: &str) -> Option<String> {
    if !text.is_ascii() {
        return None;
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some((plain, behind)) = rest.split_once('&') {
        out.push_str(plain);
        let (coded, next) = behind.split_once('-')?;
        if coded.is_empty() {
            out.push('&');
        } else {
            out.push_str(&utf16(coded)?);
        }
        rest = next;
    }
    out.push_str(rest);
    Some(out)
}

/// Big-endian UTF-16 in base 64 with `,` for `/`.
fn utf16(coded: &str) -> Option<String> {
    let mut bits: u32 = 0;
    let mut have = 0;
    let mut units = Vec::new();
    for letter in coded.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b',' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        have += 6;
        if have >= 16 {
            have -= 16;
            units.push(u16::try_from((bits >> have) & 0xFFFF).ok()?);
            bits &= (1 << have) - 1;
        }
    }
    let whole = have < 6 && bits == 0;
    whole.then(|| String::from_utf16(&units).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_a_maildir() {
        for (name, want) in [
            ("Sent", "Sent"),
            ("Archive.2024", "Archive/2024"),
            ("Gel&APY-scht", "Gel\u{f6}scht"),
            ("R&-D", "R&D"),
            ("&ZeVnLIqe-.&2D3cqQ-", "\u{65e5}\u{672c}\u{8a9e}/\u{1f4a9}"),
            ("b&d", "b&d"),
            ("&AP-", "&AP-"),
            ("\u{f6}", "\u{f6}"),
        ] {
            assert_eq!(of_maildir(name), want, "{name}");
        }
    }

    #[test]
    fn files_of_a_folder() {
        for (name, want) in [("Sent", "Sent"), ("Old.mbox", "Old"), ("Old.sbd", "Old")] {
            assert_eq!(of_file(name), want);
        }
        assert!(is_inbox("Inbox") && is_inbox("mbox") && !is_inbox("Mbox2"));
    }
}
