//! Segments whole and damaged, in pieces of any size.
use ringpost_netproto::id::{Guid, MailboxId, WallNs};

use super::*;
use crate::mbox::prefix;

fn message(uid: u32, stored: &[u8]) -> Vec<u8> {
    let store = StoreLine {
        mailbox: MailboxId::INBOX,
        uidvalidity: 1,
        uid,
        guid: Guid::new([9; 16]),
        internal_date: WallNs::new(1),
        stored_len: u32::try_from(stored.len()).expect("small"),
        stored_crc: crc::of(stored),
        format_flags: 0,
    };
    let mut out = prefix(b"a@b", WallNs::new(0), &store);
    out.extend_from_slice(stored);
    out.push(b'\n');
    out
}

fn in_pieces(file: &[u8], piece_len: usize) -> Vec<Item> {
    let mut out = Vec::new();
    let mut scanner = Scanner::new();
    for piece in file.chunks(piece_len) {
        scanner.push(piece, &mut out);
    }
    scanner.finish(&mut out);
    out
}

/// State, uid (0 without a store line) and body of each message, `Err` for junk.
type Told<'a> = Vec<Result<(State, u32, &'a [u8]), &'a [u8]>>;

fn told(file: &[u8]) -> Told<'_> {
    let items = scan(file);
    for piece_len in [1, 2, 3, 5, 7, 64, 127, 128, 129, 1000] {
        assert_eq!(
            in_pieces(file, piece_len),
            items,
            "in pieces of {piece_len}"
        );
    }
    let slice = |offset: u64, len: u64| {
        let at = |value| usize::try_from(value).expect("small");
        &file[at(offset)..at(offset + len)]
    };
    items
        .iter()
        .map(|item| match item {
            Item::Message(found) => Ok((
                found.state,
                found.store.map_or(0, |store| store.uid),
                slice(found.offset + found.prefix_len, found.body_len),
            )),
            Item::Junk { offset, len } => Err(slice(*offset, *len)),
        })
        .collect()
}

#[test]
fn a_segment_gives_its_messages() {
    let stored: [&[u8]; 5] = [
        b"Subject: 1\n\nx\n",
        b"",
        b">From x\n\n\n",
        b"\n",
        b"From\n\0From \n",
    ];
    let mut file = Vec::new();
    let mut want: Told<'_> = Vec::new();
    for (uid, stored) in (1..).zip(stored) {
        file.extend_from_slice(&message(uid, stored));
        want.push(Ok((State::Whole, uid, stored)));
    }
    assert_eq!(told(&file), want);
    assert_eq!(told(b""), vec![]);
}

#[test]
fn every_cut_keeps_the_messages_in_front_of_it() {
    let first = message(1, b"one\n");
    let mut file = first.clone();
    file.extend_from_slice(&message(2, b"two\nthree\n"));
    for cut in 0..file.len() {
        let items = told(&file[..cut]);
        let whole = items
            .iter()
            .flatten()
            .filter(|(state, ..)| *state == State::Whole);
        let want = match cut {
            _ if cut < first.len() - 1 => 0,
            _ if cut < file.len() - 1 => 1,
            _ => 2,
        };
        assert_eq!(whole.count(), want, "cut at {cut}");
    }
}

#[test]
fn every_flipped_byte_costs_one_message_at_most() {
    let parts: Vec<_> = (1..=3)
        .map(|uid| message(uid, b"Subject: x\n\nbody\n"))
        .collect();
    let file = parts.concat();
    for at in 0..file.len() {
        let mut bad = file.clone();
        bad[at] ^= 0x15;
        let whole = scan(&bad)
            .iter()
            .filter(|item| matches!(item, Item::Message(found) if found.state == State::Whole))
            .count();
        assert!(whole >= 2, "byte {at}: {}", bad.escape_ascii());
    }
}

#[test]
fn lost_sectors_are_junk_and_the_walk_goes_on() {
    let (one, two) = (message(1, b"one\n"), message(2, b"two\n"));
    let file = [&one[..], &[0; 300], &two[..], b"tail"].concat();
    assert_eq!(
        told(&file),
        vec![
            Ok((State::Whole, 1, &b"one\n"[..])),
            Err(&[0; 300][..]),
            Ok((State::Whole, 2, &b"two\n"[..])),
            Err(&b"tail"[..]),
        ]
    );
}

#[test]
fn a_length_that_lies_does_not_swallow_the_next_message() {
    let mut one = message(1, b"one\n");
    let at = one
        .windows(3)
        .position(|w| w == b" l=")
        .expect("a store line")
        + 3;
    one[at..at + 8].copy_from_slice(b"00000100");
    let file = [one, message(2, b"two\n")].concat();
    assert_eq!(
        told(&file),
        vec![
            Ok((State::Short, 1, &b"one\n\n"[..])),
            Ok((State::Whole, 2, &b"two\n"[..])),
        ]
    );
}

#[test]
fn other_programs_mboxes_are_split_at_from() {
    let file = b"From a Thu Jan  1 00:00:00 1970\nSubject: 1\n\nx\n\nFrom b x\nSubject: 2\n\n\
                 >From y\n\nFrom c\n\nFrom d\n";
    assert_eq!(
        told(file),
        vec![
            Ok((State::Unproved, 0, &b"Subject: 1\n\nx\n"[..])),
            Ok((State::Unproved, 0, &b"Subject: 2\n\n>From y\n"[..])),
            Ok((State::Unproved, 0, &b""[..])),
            Ok((State::Unproved, 0, &b""[..])),
        ]
    );
}

#[test]
fn a_from_line_without_end_is_junk() {
    let mut file = b"From ".to_vec();
    file.resize(10_000, b'x');
    assert_eq!(told(&file), vec![Err(&file[..])]);
}

/// Pieces longer than what is held of one for the next, where a cut may fall into anything.
#[test]
fn long_pieces_give_what_the_whole_file_gives() {
    let mut file = Vec::new();
    for (uid, len) in (1..).zip([0usize, 1, 900, 1_100, 5, 3_000, 1_117, 40]) {
        let stored = b"a line of words\n>From x\n".repeat(len / 25 + 1);
        file.extend_from_slice(&message(uid, &stored));
        match uid % 4 {
            0 => file.extend_from_slice(b"junk\n"),
            1 => file.extend_from_slice(b"From nobody\nwithout a store line\n\n"),
            2 => file.extend_from_slice(&[&b"From "[..], &[b'x'; 1_200]].concat()),
            _ => {}
        }
    }
    let items = scan(&file);
    assert_eq!(items.len(), 12, "{items:?}");
    let shorter = file.len() - 1;
    for piece_len in (1..40)
        .chain(AHEAD - 140..AHEAD + 140)
        .chain([2_000, 4_096, shorter])
    {
        assert_eq!(
            in_pieces(&file, piece_len),
            items,
            "in pieces of {piece_len}"
        );
    }
    for cut in 0..file.len() {
        let mut out = Vec::new();
        let mut scanner = Scanner::new();
        let (one, two) = file.split_at(cut);
        scanner.push(one, &mut out);
        scanner.push(two, &mut out);
        scanner.finish(&mut out);
        assert_eq!(out, items, "cut at {cut}");
    }
}
