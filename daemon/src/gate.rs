//! Whether each core takes new mail, for all cores to see: a recipient is refused when it is named,
//! not after the message (storage.md 4.4).
//!
//! A core writes its own word after each turn; the others read it without asking. It may be a turn
//! old. The shard has the last word in any case.

use std::sync::atomic::{AtomicU8, Ordering};

use ringpost_engine::request::{BusyReason, Refused};

/// What a core can be busy with for everybody.
const REASONS: [BusyReason; 5] = [
    BusyReason::Log,
    BusyReason::PendingRecords,
    BusyReason::Bodies,
    BusyReason::SlowDisk,
    BusyReason::Tickets,
];

const OPEN: u8 = 0;
const DISK_FULL: u8 = 1;
const BUSY: u8 = 2;

/// A word for each core.
#[derive(Debug)]
pub struct Gates(Box<[AtomicU8]>);

impl Gates {
    /// All open.
    pub fn new(cores: usize) -> Self {
        Self((0..cores).map(|_| AtomicU8::new(OPEN)).collect())
    }

    /// What core `core` says now. A core that stops says so itself, when it is asked.
    pub fn set(&self, core: usize, says: &Result<(), Refused>) {
        let word = match says {
            Err(Refused::DiskFull) => DISK_FULL,
            Err(Refused::Busy(reason)) => {
                let place = REASONS.iter().position(|known| known == reason);
                BUSY + u8::try_from(place.unwrap_or(0)).unwrap_or(0)
            }
            _ => OPEN,
        };
        if let Some(gate) = self.0.get(core)
            && gate.load(Ordering::Relaxed) != word
        {
            gate.store(word, Ordering::Relaxed);
        }
    }

    /// Why mail for users of `core` would be refused.
    pub fn refusal(&self, core: usize) -> Option<Refused> {
        match self.0.get(core)?.load(Ordering::Relaxed) {
            OPEN => None,
            DISK_FULL => Some(Refused::DiskFull),
            busy => {
                let reason = REASONS.get(usize::from(busy - BUSY));
                reason.map(|reason| Refused::Busy(*reason))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_read() {
        let gates = Gates::new(2);
        assert_eq!(gates.refusal(0), None);
        gates.set(1, &Err(Refused::DiskFull));
        assert_eq!(gates.refusal(1), Some(Refused::DiskFull));
        assert_eq!(gates.refusal(0), None);
        for reason in REASONS {
            gates.set(1, &Err(Refused::Busy(reason)));
            assert_eq!(gates.refusal(1), Some(Refused::Busy(reason)));
        }
        gates.set(1, &Ok(()));
        assert_eq!(gates.refusal(1), None);
        assert_eq!(gates.refusal(9), None);
    }
}
