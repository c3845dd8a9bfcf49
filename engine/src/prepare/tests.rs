//! One message in, its stored form and counts out, and back again, however it is cut.
use proptest::prelude::*;

use super::*;
use crate::header_cache::Fields;
use crate::mbox::{Restorer, View, restore};

fn options(return_path: Option<&'static [u8]>) -> PrepareOptions {
    PrepareOptions {
        message_bytes_max: 80 << 20,
        return_path: return_path.map(Bytes::from_static),
        content_key: [7; 16],
    }
}

/// Prepares `message` in the given pieces, takes what is stored after each piece for which `take`
/// says so, and puts CRs back into it when told to. Gives the whole stored form and the rest.
fn prepared<'a>(
    options: &PrepareOptions,
    pieces: impl Iterator<Item = &'a [u8]>,
    mut take: impl FnMut() -> bool,
) -> PreparedBody {
    let mut preparer = Preparer::new(options.clone());
    let mut taken = Vec::new();
    for piece in pieces {
        if preparer.push(piece).expect("below the limit") == Push::ExpandSpilled {
            taken = lines::expanded(&taken);
            preparer.expanded(crc::of(&taken), len_u64(taken.len()));
        }
        if take() {
            assert_eq!(preparer.buffered_len(), preparer.lines.stored.len());
            taken.extend_from_slice(&preparer.take_stored());
        }
    }
    let mut body = preparer.finish().body;
    taken.extend_from_slice(&body.stored);
    body.stored = Bytes::from(taken);
    body
}

fn whole(message: &[u8]) -> PreparedBody {
    prepared(&options(None), std::iter::once(message), || false)
}

fn fields(body: &PreparedBody) -> Fields<'_> {
    header_cache::decode(&body.cache).expect("just encoded")
}

/// Counts that can be told from the stored form and the message alone.
fn check(message: &[u8], body: &PreparedBody) {
    let summary = &body.summary;
    let given = restore(&body.stored, summary.format_flags, View::AsReceived);
    assert_eq!(given, message, "{}", message.escape_ascii());
    assert_eq!(summary.received_len, len_u64(given.len()));
    let crlf = restore(&body.stored, summary.format_flags, View::Crlf);
    assert_eq!(u64::from(summary.rfc822_size), len_u64(crlf.len()));
    assert_eq!(summary.stored_len, len_u64(body.stored.len()));
    assert_eq!(summary.stored_crc, crc::of(&body.stored));
    let lines = memchr::memchr_iter(b'\n', &body.stored).count();
    assert_eq!(u64::from(summary.lines_count), len_u64(lines));
    assert!(body.stored.is_empty() || body.stored.ends_with(b"\n"));
    let unquoted = |line: &[u8]| line.iter().position(|b| *b != b'>').unwrap_or(line.len());
    let quoted = |line: &&[u8]| line[unquoted(line)..].starts_with(b"From ");
    assert_eq!(
        body.stored.split(|b| *b == b'\n').filter(quoted).count(),
        usize::try_from(summary.quoted_count).expect("small")
    );
    assert!(
        !body
            .stored
            .split(|b| *b == b'\n')
            .any(|line| line.starts_with(b"From "))
    );
    let header_len = usize::try_from(summary.header_len).expect("small");
    let mut at = 0;
    let empty = body
        .stored
        .split_inclusive(|b| *b == b'\n')
        .find_map(|line| {
            at += line.len();
            let empty = line == b"\n" || (line == b"\r\n" && summary.format_flags & ALL_CRLF == 0);
            empty.then_some(at)
        });
    let added = summary.format_flags & NO_FINAL_NEWLINE != 0;
    assert_eq!(
        header_len,
        empty.unwrap_or(body.stored.len()),
        "{added} {}",
        message.escape_ascii()
    );
}

/// Every cut of a short message into two, with and without taking; a long one by some.
fn check_cuts(message: &[u8]) {
    let want = whole(message);
    check(message, &want);
    let cuts = if message.len() < 100_000 { 200 } else { 8 };
    let step = (message.len() / cuts).max(1);
    for cut in (0..=message.len()).step_by(step) {
        for takes in [false, true] {
            let (one, two) = message.split_at(cut);
            let body = prepared(&options(None), [one, two].into_iter(), || takes);
            assert_eq!(body, want, "cut at {cut} of {}", message.escape_ascii());
        }
    }
    if message.len() < 1000 {
        let body = prepared(&options(None), message.chunks(1), || true);
        assert_eq!(body, want, "byte by byte: {}", message.escape_ascii());
    }
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

/// The list of mail.md 6.4.
#[test]
fn every_message_of_the_list_comes_back_byte_for_byte_at_every_cut() {
    let marks = [&[b'>'; 10_000][..], b"From x\n"].concat();
    let long = [&b"Subject: long\n\n"[..], &vec![b'x'; 2 << 20], b"\nend\n"].concat();
    let mixed_last = [&b"line of a large message\r\n".repeat(8_000)[..], b"last\n"].concat();
    let list: &[&[u8]] = &[
        b"",
        b"Subject: header only\r\n",
        b"Subject: header only\r\n\r\n",
        b"\r\nbody only\r\n",
        b"body only, no colon",
        b"Subject: x\n\nno final newline",
        b"a\r\n\r\nends with CRLF\r\n",
        b"a\n\nends with CR\r",
        b"a\r\n\r\nends with CR\r",
        b"a\r\n\r\nends with CRCR\r\r",
        b"a\r\nb\nmixed\r\n",
        b"a\nb\r\nmixed\n",
        b"a\r\n\nmixed empty line\n",
        b"a\n\r\nmixed empty line\r\n",
        b"bare\rCR\r\n\rin\r\r\nlines\r\n",
        b"NUL \0 and \xff and \xc3\xa4\n\0",
        b"Subject: \xc3\xa4\xff\r\n\r\n",
        b"From first in header\nSubject: x\n\nFrom first in body\nFrom last in file",
        b"Subject: x\r\n\r\nFrom first in body\r\n>From y\r\n>>From z\r\n",
        b"From: x\nFrom : x\nFrom\n>From\n>From\t\n >From x\n>>>From ",
        b"From ",
        b">",
        b">>>",
        b">Fro",
        b"Fro",
        b"From\r\n",
        b"From \r\nFrom\r",
        b">\r\n>From \r\n> From \r\n",
        b".\r\n..\r\n.x\r\n",
        b"a\n.\nb\n.\r\nc\r\n.\r\n",
        b"X-Ringpost: 1 m=00000001\nContent-Length: 3\nStatus: RO\nX-UID: 4\nReturn-Path: <x@y>\n\n",
        b"trailing blanks  \t\r\n  \r\n\t\r\n",
        b"x\n",
        b"x\n\n",
        b"x\n\n\n",
        b"x\n\n\n\n",
        &marks,
        &mixed_last,
        &long,
    ];
    for message in list {
        check_cuts(message);
    }
    for len in [131_071, 131_072, 131_073] {
        check(&vec![b'x'; len], &whole(&vec![b'x'; len]));
    }
}

#[test]
fn a_return_path_is_added_unless_the_message_begins_with_one() {
    let sender: Option<&[u8]> = Some(b"a b%\r\n\xe4@c");
    let added = "Return-Path: <a b%%0D%0A%E4@c>";
    for (message, end) in [
        (&b""[..], "\n"),
        (b"Subject: x\r\n\r\nb\r\n", "\r\n"),
        (b"Subject: x\n\nb\n", "\n"),
        (b"Subject: x\r\n\r\nb\n", "\r\n"),
        (b"Return-Pat", "\n"),
        (b"Return-Pathological: no\r\n", "\r\n"),
        (b"\nbody", "\n"),
    ] {
        let want = [added.as_bytes(), end.as_bytes(), message].concat();
        for len in 1..=message.len().max(1) {
            let body = prepared(&options(sender), message.chunks(len), || len % 2 == 0);
            check(&want, &body);
            assert_eq!(
                body.summary.content_hash,
                whole(message).summary.content_hash
            );
        }
    }
    for message in [
        &b"Return-Path: <x@y>\r\nSubject: x\r\n"[..],
        b"rETURN-pATH:",
    ] {
        for len in 1..=message.len() {
            let body = prepared(&options(sender), message.chunks(len), || false);
            check(message, &body);
        }
    }
}

#[test]
fn mixed_line_ends_are_told_only_if_something_with_a_line_end_was_taken() {
    let mut preparer = Preparer::new(options(None));
    assert_eq!(preparer.push(b"no line end yet"), Ok(Push::Buffered));
    assert_eq!(preparer.take_stored(), "no line end yet");
    assert_eq!(preparer.push(b"\r\na\n"), Ok(Push::Buffered));
    assert_eq!(preparer.take_stored(), "\r\na\n");
    assert_eq!(preparer.finish().body.summary.stored_len, 19);

    let mut preparer = Preparer::new(options(None));
    assert_eq!(preparer.push(b"a\r\nb"), Ok(Push::Buffered));
    assert_eq!(preparer.take_stored(), "a\nb");
    assert_eq!(preparer.push(b"\r\n\nc\r\n"), Ok(Push::ExpandSpilled));
    assert_eq!(preparer.push(b"d\n"), Ok(Push::Buffered));
    preparer.expanded(crc::of(b"a\r\nb"), 4);
    let body = preparer.finish().body;
    assert_eq!(body.stored, "\r\n\nc\r\nd\n");
    assert_eq!(body.summary.stored_crc, crc::of(b"a\r\nb\r\n\nc\r\nd\n"));
    assert_eq!(body.summary.header_len, 7);
}

#[test]
fn one_byte_above_the_limit_is_refused_for_good() {
    let options = PrepareOptions {
        message_bytes_max: 10,
        ..options(None)
    };
    let mut preparer = Preparer::new(options);
    assert_eq!(preparer.push(b"0123456789"), Ok(Push::Buffered));
    assert_eq!(preparer.push(b"x"), Err(TooLarge { bytes_max: 10 }));
    assert_eq!(preparer.push(b""), Err(TooLarge { bytes_max: 10 }));
}

#[test]
fn header_fields_are_read() {
    let body = whole(
        b"Received: from x by y\r\n\tid z; Mon, 1 Jan 2024 10:00:00 +0000\r\n\
          From: A <a@b>\r\nDate: Tue, 2 Jan 2024 03:04:05 +0100 (CET)\r\n\
          Subject: one\r\n two\r\n\r\nTo: not a header\r\n",
    );
    assert_eq!(body.summary.received_field, ReceivedField::Present);
    assert_eq!(body.summary.date_s, Some(1_704_161_045));
    assert_eq!(fields(&body).bytes(Field::Subject), b"one two");
    assert_eq!(fields(&body).bytes(Field::From), b"A <a@b>");
    assert_eq!(fields(&body).value(Field::To), None);
    assert_eq!(
        whole(b"\nReceived: x\n").summary.received_field,
        ReceivedField::Absent
    );
}

#[test]
fn dates_are_read_leniently_or_not_at_all() {
    for (date, want) in [
        ("Thu, 01 Jan 1970 00:00:00 +0000", Some(0)),
        ("Mon, 1 Jan 1970 00:00:00 GMT", Some(0)),
        ("1 Jan 1970 00:00 EST", Some(18_000)),
        ("Thu, 1 Jan 70 00:00:01 -0000 (comment)", Some(1)),
        ("yesterday", None),
        ("", None),
        ("Thu, 32 Jan 1970 00:00:00 +0000", None),
    ] {
        assert_eq!(date_s(date.as_bytes()), want, "{date}");
    }
}

/// The key of the reference vectors of SipHash-2-4-128, and two of them (Aumasson, Bernstein).
#[test]
fn the_content_hash_is_siphash_2_4_128() {
    let key = std::array::from_fn(|i| u8::try_from(i).expect("below 16"));
    let hash = |message: &[u8]| {
        let mut preparer = Preparer::new(PrepareOptions {
            content_key: key,
            ..options(Some(b"x"))
        });
        for piece in message.chunks(1) {
            preparer.push(piece).expect("short");
        }
        preparer.finish().body.summary.content_hash
    };
    assert_eq!(
        hash(b""),
        [
            0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55,
            0x02, 0x93
        ]
    );
    assert_eq!(
        hash(&[0]),
        [
            0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9b, 0x22,
            0xfc, 0x45
        ]
    );
}

/// The stored form and its quoted lines, line by line and without care for time.
fn plainly(message: &[u8]) -> (Vec<u8>, u32) {
    let lines = || message.split_inclusive(|byte| *byte == b'\n');
    let ended = || lines().filter(|line| line.ends_with(b"\n"));
    let crlf = ended().all(|line| line.ends_with(b"\r\n"));
    let (mut stored, mut quoted_count) = (Vec::new(), 0);
    for line in lines() {
        let marks = line.iter().take_while(|byte| **byte == b'>').count();
        if line[marks..].starts_with(b"From ") {
            stored.push(b'>');
            quoted_count += 1;
        }
        match line.strip_suffix(b"\r\n") {
            Some(line) if crlf => stored.extend_from_slice(line),
            _ => stored.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line)),
        }
        stored.push(b'\n');
    }
    (stored, quoted_count)
}

#[test]
fn every_kind_of_line_behind_every_other_is_stored_as_plainly() {
    const LINES: [&[u8]; 9] = [
        b"",
        b"x",
        b">",
        b"F",
        b"From",
        b"From ",
        b"From x\r",
        b">From x",
        b">>From  >",
    ];
    const ENDS: [&[u8]; 3] = [b"\n", b"\r\n", b""];
    for header_end in &ENDS[..2] {
        for case in 0..9usize.pow(3) * 3usize.pow(3) {
            let mut message = [&b"A: b"[..], header_end, header_end].concat();
            let mut case = case;
            for _ in 0..3 {
                message.extend_from_slice(LINES[case % 9]);
                message.extend_from_slice(ENDS[case / 9 % 3]);
                case /= 27;
            }
            let body = whole(&message);
            let (stored, quoted_count) = plainly(&message);
            assert_eq!(body.stored, stored, "{}", message.escape_ascii());
            assert_eq!(body.summary.quoted_count, quoted_count);
            check(&message, &body);
            let byte_by_byte = prepared(&options(None), message.chunks(1), || false);
            assert_eq!(body, byte_by_byte, "{}", message.escape_ascii());
        }
    }
}

#[test]
fn without_a_content_hash_all_else_is_the_same() {
    let message = b"Received: x\r\nSubject: y\r\n\r\nFrom z\r\n";
    let hashed = whole(message);
    let mut preparer = Preparer::new(options(None)).without_content_hash();
    assert_eq!(preparer.push(message), Ok(Push::Buffered));
    let mut body = preparer.finish().body;
    assert_eq!(body.summary.content_hash, [0; 16]);
    assert_ne!(hashed.summary.content_hash, [0; 16]);
    body.summary.content_hash = hashed.summary.content_hash;
    assert_eq!(body, hashed);
}

/// Messages made of what matters.
fn message() -> impl Strategy<Value = Vec<u8>> {
    const PIECES: [&[u8]; 16] = [
        b"\r\n",
        b"\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b">",
        b"From ",
        b"From",
        b"F",
        b"Subject: x",
        b"Date: Thu, 01 Jan 1970 00:00:00 +0000",
        b"Received:",
        b" ",
        b"\0",
        b"\xff",
        b"Return-Path: ",
    ];
    let piece = proptest::sample::select(&PIECES[..]);
    let crlf_only = any::<bool>();
    (proptest::collection::vec(piece, 0..40), crlf_only).prop_map(|(pieces, crlf_only)| {
        let keep =
            |piece: &&&'static [u8]| !crlf_only || !piece.ends_with(b"\n") || piece.len() == 2;
        pieces
            .iter()
            .filter(keep)
            .copied()
            .collect::<Vec<_>>()
            .concat()
    })
}

proptest! {
    #[test]
    fn any_message_in_any_pieces_comes_back(
        message in message(),
        cuts in proptest::collection::vec((1usize..12, any::<bool>()), 1..20),
    ) {
        let want = whole(&message);
        check(&message, &want);
        let mut rest = &message[..];
        let mut pieces = Vec::new();
        for (len, _) in cuts.iter().cycle() {
            let (piece, behind) = rest.split_at((*len).min(rest.len()));
            pieces.push(piece);
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        let mut takes = cuts.iter().map(|(_, take)| *take).cycle();
        let body = prepared(&options(None), pieces.iter().copied(), || takes.next() == Some(true));
        prop_assert_eq!(&body, &want);
        for view in [View::AsReceived, View::Crlf] {
            let flags = want.summary.format_flags;
            let mut restorer = Restorer::new(flags, want.summary.stored_len, view);
            let mut given = Vec::new();
            let mut stored = want.stored.clone();
            for (len, _) in cuts.iter().cycle() {
                let piece = stored.split_to((*len).min(stored.len()));
                given.extend_from_slice(&restorer.push(&piece));
                if stored.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(&given, &restore(&want.stored, flags, view));
        }
    }
}
