//! Compares a sample of what a peer stored with what was sent: of each watched user the count, and
//! every remembered message line by line.
//!
//! Peers put lines of their own above a message and some rewrite header fields, so a message is
//! known by its Received line, which has the serial, and its body has to be equal. Line ends are
//! the store's own; a `>` that mbox puts before `From ` is taken off where the store is mbox.

use std::collections::BTreeMap;

use crate::deliver::plan::Plan;
use crate::deliver::tally::Tally;
use crate::deliver::verify::{Verification, expected};

/// How a line of a body that begins with `From ` is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Quoting {
    /// As it is.
    None,
    /// With a `>` before it (mboxo).
    Mboxo,
}

/// A Received line and a body.
type Parts = (Vec<u8>, Vec<u8>);

/// Begin of the line that the generator puts on top of each letter.
const RECEIVED: &[u8] = b"Received: by mail.perf.test (Postfix) id ";

/// Compares the watched users of a run. `mailbox` gives all messages of a user.
pub(crate) fn compare(
    plan: &Plan,
    tally: &mut Tally,
    before: &[u32],
    quoting: Quoting,
    mailbox: &mut dyn FnMut(&str) -> anyhow::Result<Vec<Vec<u8>>>,
) -> anyhow::Result<Verification> {
    let mut verification = Verification::default();
    let letters = expected(tally);
    for user in (0..plan.users.count()).filter(|&user| plan.is_watched(user)) {
        let name = plan.users.name(user);
        let messages = mailbox(name)?;
        let at = |counts: &[u32]| u64::from(counts.get(user).copied().unwrap_or(0));
        let (stored, doubtful) = (at(&tally.stored_by_user), at(&tally.doubtful_by_user));
        let found = u64::try_from(messages.len())?.saturating_sub(at(before));
        let missing = stored.saturating_sub(found);
        let surplus = found.saturating_sub(stored + doubtful);
        verification.users_count += 1;
        verification.found += found;
        verification.missing += missing;
        verification.surplus += surplus;
        if missing + surplus > 0 {
            verification.say(|| {
                format!("{name}: {stored} acknowledged, {doubtful} in doubt, {found} found")
            });
        }
        let mut there: BTreeMap<Parts, u32> = BTreeMap::new();
        for message in &messages {
            *there.entry(parts(message, quoting)).or_default() += 1;
        }
        for (letter, &count) in letters.get(&user).into_iter().flatten() {
            let same = there.get(&parts(letter, Quoting::None)).copied();
            let equal = same.unwrap_or(0).min(count);
            verification.equal += u64::from(equal);
            verification.damaged += u64::from(count - equal);
        }
    }
    if verification.damaged > 0 {
        let damaged = verification.damaged;
        verification.say(|| format!("{damaged} acknowledged messages are not there line by line"));
    }
    Ok(verification)
}

fn parts(message: &[u8], quoting: Quoting) -> Parts {
    let mut received = Vec::new();
    let mut body = Vec::new();
    let mut in_body = false;
    for line in message.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if in_body {
            let plain = line
                .strip_prefix(b">")
                .filter(|rest| rest.starts_with(b"From "));
            let line = plain.filter(|_| quoting == Quoting::Mboxo).unwrap_or(line);
            body.extend_from_slice(line);
            body.push(b'\n');
        } else if line.is_empty() {
            in_body = true;
        } else if line.starts_with(RECEIVED) {
            received = line.get(RECEIVED.len()..).unwrap_or_default().to_vec();
            // An MTA adds when it came.
            received.truncate(16);
        }
    }
    while body.ends_with(b"\n") {
        body.pop();
    }
    (received, body)
}

/// The messages of an mbox file, each from behind its `From ` line. A blank line ends each.
pub(crate) fn split_mbox(text: &[u8]) -> Vec<Vec<u8>> {
    let mut messages: Vec<Vec<u8>> = Vec::new();
    let mut after_blank = true;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        if after_blank && line.starts_with(b"From ") {
            messages.push(Vec::new());
        } else if let Some(message) = messages.last_mut() {
            message.extend_from_slice(line);
        }
        after_blank = line == b"\n" || line == b"\r\n";
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::session::Outcome;
    use crate::deliver::tally::Watched;
    use std::time::Duration;

    const SENT: &[u8] =
        b"Received: by mail.perf.test (Postfix) id 0000000000000007\nTo: a\n\nFrom here\nx\n";

    #[test]
    fn lines_on_top_line_ends_and_quoting_do_not_matter_but_the_body_does() {
        let sent = parts(SENT, Quoting::None);
        assert_eq!(sent.0, b"0000000000000007");
        let stored = b"Return-Path: <b>\r\nReceived: from x\r\n\tby y\r\n\
            Received: by mail.perf.test (Postfix) id 0000000000000007\r\nTo: a\r\n\r\n\
            From here\r\nx\r\n";
        assert_eq!(parts(stored, Quoting::None), sent);
        let quoted = String::from_utf8(SENT.to_vec())
            .unwrap()
            .replace("From here", ">From here");
        assert_eq!(parts(quoted.as_bytes(), Quoting::Mboxo), sent);
        assert_ne!(parts(quoted.as_bytes(), Quoting::None), sent);
        let cut = SENT.strip_suffix(b"x\n").unwrap();
        assert_ne!(parts(cut, Quoting::None), sent);
    }

    #[test]
    fn mbox_is_cut_at_from_lines_behind_blank_lines() {
        let text = b"From a Mon\nA: b\n\nx\nFrom y\n\nFrom b Tue\nC: d\n\nz\n\n";
        let messages = split_mbox(text);
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[0], b"A: b\n\nx\nFrom y\n\n");
        assert!(split_mbox(b"").is_empty());
    }

    #[test]
    fn lost_doubled_and_changed_messages_are_found() {
        let plan = Plan::tiny(1);
        let check = |stored: &dyn Fn(&[u8]) -> Vec<Vec<u8>>| {
            let mut tally = Tally::new(1);
            let mut letters = plan.letters(0, 1).unwrap();
            let (letter, sealed) = letters.seal(5, &mut fastrand::Rng::with_seed(1));
            let sent = sealed.to_vec();
            letters.put_back(letter, sealed);
            let to = Watched {
                user: 0,
                letter,
                serial: 5,
            };
            tally.count_recipient(&plan, to, &Outcome::Stored, Duration::ZERO);
            tally.close(letters.into_all());
            compare(&plan, &mut tally, &[0], Quoting::None, &mut |_| {
                Ok(stored(&sent))
            })
            .unwrap()
        };
        let good = check(&|sent| vec![sent.to_vec()]);
        assert!(good.is_good());
        assert_eq!((good.found, good.equal), (1, 1));
        let lost = check(&|_| Vec::new());
        assert_eq!((lost.missing, lost.damaged), (1, 1));
        assert_eq!(check(&|sent| vec![sent.to_vec(); 2]).surplus, 1);
        let changed = check(&|sent| vec![[sent, b"y\n"].concat()]);
        assert_eq!((changed.missing, changed.damaged), (0, 1));
    }
}
