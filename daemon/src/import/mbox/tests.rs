//! Tables for each flavour, and any messages there and back through writers of two of them.

use std::io::Cursor;

use proptest::prelude::*;
use ringpost_engine::format::info::SEEN;

use super::*;
use crate::import::flavour::survey;

const FROM_A: &str = "From a@b Tue Jan  2 03:04:05 2024\n";

fn items(file: &[u8], flavour: Flavour) -> Result<Vec<(u64, Item)>, MboxError> {
    let mut mbox = Mbox::new(Cursor::new(file), flavour);
    let mut found = Vec::new();
    while let Some(item) = mbox.next_item()? {
        found.push(item);
    }
    Ok(found)
}

fn texts(file: &[u8], flavour: Flavour) -> Vec<Vec<u8>> {
    let found = items(file, flavour).unwrap();
    let mail = |(_, item)| match item {
        Item::Mail(mail) => mail.bytes,
        other => panic!("{other:?}"),
    };
    found.into_iter().map(mail).collect()
}

#[test]
fn quoting_is_undone_as_the_flavour_has_it() {
    let body = "\n>From a\n>>From b\n> x\n>From c\n>y\n";
    let file = format!("{FROM_A}{body}\n");
    for (flavour, want) in [
        (Flavour::Mboxrd, "\nFrom a\n>From b\n> x\nFrom c\n>y\n"),
        (Flavour::Mboxo, "\nFrom a\n>>From b\n> x\n>From c\n>y\n"),
        (Flavour::Mboxcl2, body),
    ] {
        let found = texts(file.as_bytes(), flavour);
        assert_eq!(found, [want.as_bytes()], "{flavour:?}");
    }
}

#[test]
fn lengths_are_taken_where_they_are_right() {
    let inside = "a\n\nFrom x@y Tue Jan  2 03:04:05 2024\nSubject: no message\n";
    let file = format!(
        "{FROM_A}Subject: x\nContent-Length: {}\n\n{inside}\n{FROM_A}Content-Length: 3\n\nnot 3\n\n{FROM_A}\nlast",
        inside.len()
    );
    let found = texts(file.as_bytes(), Flavour::Mboxcl2);
    let want = [
        format!("Subject: x\n\n{inside}"),
        "\nnot 3\n".to_owned(),
        "\nlast".to_owned(),
    ];
    assert_eq!(found, want.map(String::into_bytes));
    assert_eq!(texts(file.as_bytes(), Flavour::Mboxrd).len(), 4);
}

#[test]
fn a_message_has_date_sender_flags_and_place() {
    let data = format!("{FROM_A}Subject: FOLDER INTERNAL DATA\nX-IMAP: 1\n\n\n");
    let mail = format!("{FROM_A}Subject: x\r\nStatus: RO\r\n\r\nb\r\n\r\n");
    let file = format!("\n{data}{mail}{data}");
    let found = items(file.as_bytes(), Flavour::Mboxrd).unwrap();
    let [
        (1, Item::FolderData),
        (_, Item::Mail(mail)),
        (_, Item::Mail(_)),
    ] = &found[..]
    else {
        panic!("{found:?}");
    };
    assert_eq!(mail.bytes, b"Subject: x\r\n\r\nb\r\n");
    assert_eq!((mail.flags, &mail.sender[..]), (SEEN, &b"a@b"[..]));
    assert_eq!(mail.date.unwrap().value(), 1_704_164_645_000_000_000);
}

#[test]
fn what_is_no_mbox_is_named_with_its_place() {
    for (file, place) in [
        (&b"\x7fELF\x02\x01"[..], "byte 0: "),
        (b"\n\nSubject: one message\n\nx\n", "byte 2: "),
        (b"From here on\n", "byte 0: "),
    ] {
        let error = items(file, Flavour::Mboxrd).unwrap_err().to_string();
        assert!(error.starts_with(place), "{error}");
    }
    assert!(items(b"", Flavour::Mboxrd).unwrap().is_empty());
    assert!(items(b"\n\n", Flavour::Mboxrd).unwrap().is_empty());
}

/// A line that is longer than is looked at is one line, up to the last byte of the file.
#[test]
fn the_end_of_a_long_line_is_no_line() {
    for tail in [
        format!("{FROM_A}Subject: forged\n"),
        ">From y\n".to_owned(),
        "From y".to_owned(),
    ] {
        for filled in [65_535, 65_536, 65_537, 131_072, 200_000] {
            let body = format!("Subject: x\n\n{}{tail}", "x".repeat(filled));
            let file = format!("{FROM_A}{body}");
            let found = texts(file.as_bytes(), Flavour::Mboxrd);
            assert!(
                found == [body.as_bytes()],
                "{filled}, {tail}: {}",
                found.len()
            );
        }
    }
}

#[test]
fn a_message_above_the_limit_is_passed_over() {
    let file = format!("{FROM_A}\n{}\n\n{FROM_A}\nsmall\n\n", "x".repeat(200_000));
    let mut mbox = Mbox::new(Cursor::new(file), Flavour::Mboxrd).with_bytes_max(1_000);
    let (_, first) = mbox.next_item().unwrap().unwrap();
    assert_eq!(first, Item::TooLarge { bytes: 200_003 });
    let (_, second) = mbox.next_item().unwrap().unwrap();
    assert!(matches!(second, Item::Mail(mail) if mail.bytes == b"\nsmall\n"));
}

/// As our export and maildrop write it.
fn mboxrd(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for message in messages {
        file.extend_from_slice(FROM_A.as_bytes());
        for line in message.split_inclusive(|byte| *byte == b'\n') {
            if quotes(line).1 {
                file.push(b'>');
            }
            file.extend_from_slice(line);
        }
        file.extend_from_slice(b"\n");
    }
    file
}

/// As Dovecot and mutt write it: no quoting.
fn mboxcl2(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for message in messages {
        let text = String::from_utf8_lossy(message);
        let (header, body) = text.split_once("\n\n").expect("a header and a body");
        let len = body.len();
        let text = format!("{FROM_A}{header}\nContent-Length: {len}\n\n{body}\n");
        file.extend_from_slice(text.as_bytes());
    }
    file
}

fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("From a@b Tue Jan  2 03:04:05 2024".to_owned()),
        Just("Subject: in the text".to_owned()),
        Just("Content-Length: 12".to_owned()),
        "[ -~]{0,20}",
        "(>|> ){0,3}From [a-z]{0,4}",
        "\\PC{0,12}",
        Just("crlf\r".to_owned()),
    ]
}

prop_compose! {
    fn message()(lines in prop::collection::vec(line(), 0..12)) -> Vec<u8> {
        let body: Vec<String> = lines.iter().map(|line| format!("{line}\n")).collect();
        format!("Subject: s\n\n{}", body.concat()).into_bytes()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn mboxrd_comes_back(messages in prop::collection::vec(message(), 0..8)) {
        let file = mboxrd(&messages);
        prop_assert_eq!(texts(&file, Flavour::Mboxrd), messages);
    }

    #[test]
    fn mboxcl2_comes_back(messages in prop::collection::vec(message(), 1..8)) {
        let file = mboxcl2(&messages);
        let evidence = survey(&file[..]).unwrap();
        prop_assert_eq!(evidence.flavour().0.has_lengths(), true, "{:?}", evidence);
        prop_assert_eq!(texts(&file, Flavour::Mboxcl2), messages);
    }

    #[test]
    fn any_bytes_are_survived(file in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'>')], 0..400)) {
        let mut file = [FROM_A.as_bytes(), &file, FROM_A.as_bytes(), &file].concat();
        file.truncate(600);
        survey(&file[..]).unwrap();
        for flavour in [Flavour::Mboxrd, Flavour::Mboxo, Flavour::Mboxcl, Flavour::Mboxcl2] {
            let found = items(&file, flavour);
            prop_assert!(found.is_ok() || found.is_err());
        }
    }
}
