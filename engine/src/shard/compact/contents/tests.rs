//! What a new generation says is what the old one said.

use ringpost_netproto::id::{Modseq, UserHash};

use super::*;
use crate::format::Version;
use crate::format::info::Keyword;
use crate::position::Lsn;
use crate::shard::compact::write::Writer;

const INBOX: MailboxId = MailboxId::INBOX;

fn header(generation: u32) -> InfoHeader {
    InfoHeader {
        user: UserHash::new(9),
        ordinal: 0,
        generation,
        created_at: WallNs::new(1),
        base_lsn: Lsn::new(0),
        base_modseq: 0,
        tombstones_from: 0,
        next_segment: 2,
        uidvalidity_max: 7,
        name: Box::from(*b"bob"),
        version: Version::OURS,
    }
}

fn folder(mailbox: MailboxId, op: MailboxOp, modseq: u64, name: &str) -> Mailbox<'_> {
    Mailbox {
        op,
        special_use: SpecialUse::None,
        mailbox,
        uidvalidity: UidValidity::new(7),
        modseq: Modseq::new(modseq),
        lsn: Lsn::new(4096),
        uidnext: 1,
        highest_modseq: 0,
        time: WallNs::new(modseq),
        name,
    }
}

fn change(kind: ChangeKind, low: u32, high: u32, modseq: u64) -> Change {
    let flags = kind == ChangeKind::Flags;
    Change {
        kind,
        mailbox: INBOX,
        uid_low: Uid::new(low),
        uid_high: Uid::new(high),
        modseq: Modseq::new(modseq),
        lsn: Lsn::new(4096),
        system_flags: if flags { 5 } else { 0 },
        keywords: if flags { 2 } else { 0 },
        time: WallNs::new(modseq),
    }
}

/// Writes runs behind each other.
struct Info {
    seed: Seed,
    slot: u32,
    bytes: Vec<u8>,
}

impl Info {
    fn new(generation: u32) -> Self {
        let header = header(generation);
        Self {
            seed: header.seed(),
            slot: FIRST_SLOT,
            bytes: header.seal().to_vec(),
        }
    }

    fn run(&mut self, encode: impl FnOnce(Seed, u32, &mut Vec<u8>)) {
        encode(self.seed, self.slot, &mut self.bytes);
        self.slot = u32::try_from(self.bytes.len() / SLOT).expect("short");
    }

    fn folder(&mut self, run: Mailbox<'_>) {
        self.run(|seed, slot, out| run.encode(seed, slot, out));
    }

    fn change(&mut self, run: Change) {
        self.run(|seed, slot, out| run.encode(seed, slot, out));
    }

    fn message(&mut self, mailbox: MailboxId, uid: u32, modseq: u64) {
        let msg = Msg {
            mailbox,
            uid: Uid::new(uid),
            modseq: Modseq::new(modseq),
            ..crate::space::tests::message(1, 100)
        };
        self.run(|seed, slot, out| {
            let cache_crc = crate::format::crc::of(&[uid_byte(uid); 64]);
            out.extend_from_slice(msg.fixed(1).seal(seed, slot, cache_crc).bytes());
            out.extend_from_slice(&[uid_byte(uid); 64]);
        });
    }

    fn contents(&self) -> Contents {
        let bytes = Bytes::from(self.bytes.clone());
        let header = header(self.seed.generation);
        Contents::fold(&header, &bytes, std::iter::empty()).expect("every run holds")
    }
}

fn uid_byte(uid: u32) -> u8 {
    u8::try_from(uid).expect("few")
}

/// Contents as a new generation has them.
fn written(contents: &Contents) -> Contents {
    let header = header(3);
    let mut writer = Writer::new(&header);
    contents.prologue(&mut writer, &[]);
    for message in &contents.messages {
        let (msg, cache) = contents.values(message).expect("it was read before");
        writer.message(&msg, &cache);
    }
    for gone in &contents.gone {
        writer.gone(gone);
    }
    let (offset, bytes) = writer.take();
    assert_eq!((offset, bytes.len()), (0, SLOT * index(writer.slots())));
    Contents::fold(&header, &bytes, std::iter::empty()).expect("every run holds")
}

/// Every kind of change.
fn busy() -> Info {
    let mut info = Info::new(2);
    info.folder(folder(INBOX, MailboxOp::Create, 1, "INBOX"));
    info.folder(folder(MailboxId::new(5), MailboxOp::Create, 2, "old"));
    info.folder(folder(MailboxId::new(5), MailboxOp::Subscribe, 3, "old"));
    info.folder(folder(
        MailboxId::new(5),
        MailboxOp::Rename,
        4,
        "new/\u{fc}",
    ));
    info.folder(folder(MailboxId::new(9), MailboxOp::Create, 5, "gone"));
    info.folder(folder(MailboxId::new(9), MailboxOp::Delete, 6, "gone"));
    let word = Keyword {
        mailbox: INBOX,
        bit: 1,
        modseq: Modseq::new(7),
        lsn: Lsn::new(4096),
        name: "$Work",
    };
    info.run(|seed, slot, out| word.encode(seed, slot, out));
    for uid in 1..=6 {
        info.message(INBOX, uid, 10 + u64::from(uid));
    }
    info.change(change(ChangeKind::Flags, 1, 3, 20));
    info.change(change(ChangeKind::Expunge, 2, 2, 21));
    info.change(change(ChangeKind::Expunge, 5, 6, 23));
    info.change(change(ChangeKind::Expunge, 4, 4, 22));
    info
}

#[test]
fn a_new_generation_says_the_same_in_fewer_runs() {
    let mut info = busy();
    let contents = info.contents();
    let again = written(&contents);
    for contents in [&contents, &again] {
        let seen = |message: &Message| {
            let (msg, cache) = contents.values(message).expect("it was read before");
            assert_eq!(cache[..], [uid_byte(msg.uid.value()); 64]);
            let life = message.life == Life::Alive;
            (
                msg.uid.value(),
                msg.modseq.value(),
                msg.system_flags,
                msg.keywords,
                life,
            )
        };
        let seen: Vec<_> = contents.messages.iter().map(seen).collect();
        let expected = [
            (1, 20, 5, 2, true),
            (2, 20, 5, 2, false),
            (3, 20, 5, 2, true),
            (4, 14, 0, 0, false),
            (5, 15, 0, 0, false),
            (6, 16, 0, 0, false),
        ];
        assert_eq!(seen, expected);
        let gone: Vec<_> = contents.gone.iter().collect();
        let gone = gone
            .iter()
            .map(|gone| (gone.low, gone.high, gone.modseq, gone.time.value()));
        assert_eq!(gone.collect::<Vec<_>>(), [(2, 2, 21, 21), (4, 6, 23, 23)]);
        let inbox = &contents.folders[&INBOX];
        assert_eq!((inbox.uidnext, inbox.highest_modseq), (7, 23));
        let renamed = &contents.folders[&MailboxId::new(5)];
        assert_eq!(renamed.name, "new/\u{fc}");
        assert_eq!(renamed.subscribed, Some((3, WallNs::new(3))));
        // Its id must not be given again.
        assert!(contents.folders[&MailboxId::new(9)].deleted.is_some());
        assert_eq!(contents.keywords[&(INBOX, 1)], ("$Work".to_owned(), 7));
    }
    // No flags run, and one expunge less.
    assert_eq!(again.messages.len(), 6);
    info.folder(folder(MailboxId::new(10), MailboxOp::Create, 30, "later"));
    let again = written(&info.contents());
    assert!(
        !again.folders.contains_key(&MailboxId::new(9)),
        "a higher id is known"
    );
}

#[test]
fn tombstones_are_never_more_than_messages() {
    let mut info = Info::new(2);
    info.folder(folder(INBOX, MailboxOp::Create, 1, "INBOX"));
    info.message(INBOX, 50, 2);
    // One by one, in any order, also of messages whose runs are long gone.
    for uid in (1..=99).rev().filter(|uid| *uid != 50) {
        info.change(change(ChangeKind::Expunge, uid, uid, 200 - u64::from(uid)));
    }
    let contents = info.contents();
    assert_eq!(contents.gone.len(), 2);
    assert_eq!((contents.gone[0].low, contents.gone[0].high), (51, 99));
    assert_eq!((contents.gone[1].low, contents.gone[1].high), (1, 49));
    let modseqs = contents.gone.iter().map(|gone| gone.modseq);
    assert!(
        modseqs.is_sorted(),
        "the index wants them in the order of their changes"
    );
}

#[test]
fn the_messages_of_a_deleted_mailbox_are_gone() {
    let mut info = Info::new(2);
    info.folder(folder(INBOX, MailboxOp::Create, 1, "INBOX"));
    info.folder(folder(MailboxId::new(3), MailboxOp::Create, 2, "x"));
    info.message(MailboxId::new(3), 1, 3);
    info.folder(folder(MailboxId::new(3), MailboxOp::Delete, 4, "x"));
    let contents = info.contents();
    assert_eq!(contents.messages[0].life, Life::Gone);
}

#[test]
fn damage_in_the_index_is_named_and_nothing_is_folded() {
    let mut info = Info::new(2);
    info.folder(folder(INBOX, MailboxOp::Create, 1, "INBOX"));
    info.message(INBOX, 1, 2);
    for at in INFO_HEADER_BYTES..info.bytes.len() {
        let mut bytes = info.bytes.clone();
        bytes[at] ^= 1;
        let folded = Contents::fold(&header(2), &Bytes::from(bytes), std::iter::empty());
        let bad = folded.err().expect("a changed byte");
        let seen = matches!(
            bad.reason,
            CorruptReason::Checksum | CorruptReason::Truncated
        );
        assert!(seen, "{bad:?}");
    }
}
