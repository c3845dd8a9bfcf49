//! The mbox that `export` writes, one message at a time: `From_` line, the message in its stored
//! form, an empty line. No store line: the file is not ours any more. Stored means mboxrd-quoted
//! with LF ends (or verbatim where they were mixed), which Python's mailbox, mutt and Thunderbird
//! all split into the same messages; what came in byte for byte is `ringpost show`'s to give.

use ringpost_netproto::id::WallNs;

use super::from_line;

/// What stands behind each message.
pub const EXPORT_END: &[u8] = b"\n";

/// Bytes of the message's beginning in which its `Return-Path:` is looked for.
const RETURN_PATH_BYTES_MAX: usize = 1_024;

/// The `From_` line for a message whose stored form begins with `stored_start` (1 KiB is enough):
/// its sender is the one of the `Return-Path:` in front, if there is one.
pub fn export_from_line(stored_start: &[u8], internal_date: WallNs) -> Vec<u8> {
    from_line(return_path(stored_start).unwrap_or_default(), internal_date)
}

/// The address in a `Return-Path:` on the first line.
fn return_path(stored_start: &[u8]) -> Option<&[u8]> {
    const NAME: &[u8] = b"Return-Path:";
    let start = stored_start
        .get(..RETURN_PATH_BYTES_MAX)
        .unwrap_or(stored_start);
    let line = start.split(|byte| *byte == b'\n').next()?;
    let (name, value) = line.split_at_checked(NAME.len())?;
    if !name.eq_ignore_ascii_case(NAME) {
        return None;
    }
    let value = value.trim_ascii();
    value.strip_prefix(b"<")?.strip_suffix(b">")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_is_taken_from_the_return_path_in_front() {
        for (start, sender) in [
            (&b"Return-Path: <a@b>\nSubject: x\n"[..], "a@b"),
            (b"return-path:<a@b>\r\n", "a@b"),
            (b"Return-Path: <>\n", "MAILER-DAEMON"),
            (b"Return-Path: a@b\n", "MAILER-DAEMON"),
            (b"Subject: x\nReturn-Path: <a@b>\n", "MAILER-DAEMON"),
            (b"", "MAILER-DAEMON"),
        ] {
            let line = export_from_line(start, WallNs::new(0));
            let want = format!("From {sender} Thu Jan  1 00:00:00 1970\n");
            assert_eq!(line, want.as_bytes());
        }
    }
}
