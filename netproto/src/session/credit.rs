//! Credit both ways: bytes that may be sent before some are given back (cluster.md 9.3).
//!
//! Requests and stream data cost their payload; all else is free. A sender needs one byte of credit
//! to send a frame of any length, so it may exceed the window by one frame and a frame larger than
//! what is left cannot hang. The receiver counts the same way and so catches a sender that does not.

use crate::error::Violation;
use crate::limits::STREAM_WINDOW_SHARE_BYTES;

/// The two accounts of one side.
#[derive(Debug)]
pub(super) struct Credit {
    /// Granted to us; 0 before HELLO.
    send_window: i64,
    /// Left of it; below 0 by at most one frame.
    send_left: i64,
    /// Granted to the peer.
    receive_window: u64,
    /// Received and not given back in any frame yet.
    receive_held: u64,
    /// The part of `receive_held` that the next frame gives back.
    owed: u64,
}

impl Credit {
    /// `receive_window` is what our HELLO grants.
    pub(super) fn new(receive_window: u32) -> Self {
        Self {
            send_window: 0,
            send_left: 0,
            receive_window: receive_window.into(),
            receive_held: 0,
            owed: 0,
        }
    }

    /// The peer's HELLO came.
    pub(super) fn granted(&mut self, window: u32) {
        self.send_window = window.into();
        self.send_left = self.send_window;
    }

    /// How many streams may be under way.
    pub(super) fn streams_max(&self) -> usize {
        usize::try_from(self.send_window / i64::from(STREAM_WINDOW_SHARE_BYTES)).unwrap_or(0)
    }

    /// Whether a frame that costs may be sent.
    pub(super) const fn may_send(&self) -> bool {
        self.send_left > 0
    }

    /// A frame was put in line.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.send_left -= i64::try_from(bytes).expect("a payload is below the ceiling");
    }

    /// A frame gave some back.
    pub(super) fn returned(&mut self, bytes: u32) -> Result<(), Violation> {
        self.send_left += i64::from(bytes);
        if self.send_left > self.send_window {
            return Err(Violation::CreditOverflow);
        }
        Ok(())
    }

    /// A frame that costs came.
    pub(super) fn received(&mut self, bytes: u32) -> Result<(), Violation> {
        if bytes > 0 && self.receive_held >= self.receive_window {
            return Err(Violation::CreditExceeded);
        }
        self.receive_held += u64::from(bytes);
        Ok(())
    }

    /// The caller is done with so many bytes.
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.owed += bytes;
        debug_assert!(
            self.owed <= self.receive_held,
            "more given back than was received"
        );
    }

    /// What the next frame gives back.
    pub(super) fn take_owed(&mut self) -> u32 {
        let bytes = u32::try_from(self.owed).unwrap_or(u32::MAX);
        self.owed -= u64::from(bytes);
        self.receive_held -= u64::from(bytes);
        bytes
    }

    /// Whether a frame of its own is due. Below a quarter of the window the rest is still with the
    /// caller, so a peer that waits is not waiting for this.
    pub(super) const fn owes_much(&self) -> bool {
        self.owed > 0 && self.owed >= self.receive_window / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_exceeds_its_window_by_one_frame_at_most() {
        let (mut sender, mut receiver) = (Credit::new(100), Credit::new(100));
        sender.granted(100);
        for bytes in [99, 1_000] {
            assert!(sender.may_send());
            sender.spend(bytes);
            receiver
                .received(u32::try_from(bytes).unwrap())
                .expect("the sender had credit");
        }
        assert!(!sender.may_send());
        assert_eq!(receiver.received(1), Err(Violation::CreditExceeded));
    }

    #[test]
    fn what_is_given_back_can_be_sent_again_and_no_more() {
        let (mut sender, mut receiver) = (Credit::new(100), Credit::new(100));
        sender.granted(100);
        sender.spend(100);
        receiver.received(100).unwrap();
        receiver.give_back(20);
        assert!(!receiver.owes_much());
        receiver.give_back(20);
        assert!(receiver.owes_much());
        assert_eq!(sender.returned(receiver.take_owed()), Ok(()));
        assert!(sender.may_send() && !receiver.owes_much());
        assert_eq!(sender.returned(61), Err(Violation::CreditOverflow));
    }
}
