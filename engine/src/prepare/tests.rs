//! One message in, its stored form and counts out, however it is cut.
use super::*;

fn options(return_path: Option<&'static [u8]>) -> PrepareOptions {
    PrepareOptions {
        message_bytes_max: 1 << 20,
        return_path: return_path.map(Bytes::from_static),
        content_key: [7; 16],
    }
}

fn whole(message: &[u8]) -> PreparedBody {
    let mut preparer = Preparer::new(options(None));
    assert_eq!(preparer.push(message), Ok(Push::Buffered));
    preparer.finish().body
}

#[test]
fn line_ends_are_told_apart() {
    for (message, stored, flags) in [
        (&b"a\r\nb\r\n"[..], &b"a\nb\n"[..], ALL_CRLF),
        (b"a\nb\n", b"a\nb\n", 0),
        (b"a\r\nb\n", b"a\r\nb\n", MIXED_LINE_ENDS),
        (b"a\nb\r\n", b"a\nb\r\n", MIXED_LINE_ENDS),
        (b"a\r\nb", b"a\nb\n", ALL_CRLF | NO_FINAL_NEWLINE),
        (b"a\r\r\n\rb\r\n", b"a\r\n\rb\n", ALL_CRLF),
        (b"a\nb\r", b"a\nb\r\n", NO_FINAL_NEWLINE),
        (b"", b"", 0),
        (b"\r\n", b"\n", ALL_CRLF),
        (
            b"From x\r\n>From y\nFrom",
            b">From x\r\n>>From y\nFrom\n",
            0x0E,
        ),
        (b"From", b"From\n", NO_FINAL_NEWLINE),
        (b"\xff\n", b"\xff\n", EIGHT_BIT),
    ] {
        let body = whole(message);
        assert_eq!(body.stored, stored, "{}", message.escape_ascii());
        assert_eq!(
            body.summary.format_flags,
            flags,
            "{}",
            message.escape_ascii()
        );
    }
}
