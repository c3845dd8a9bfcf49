//! Memory for the bodies of small messages: reserved and touched once, used again and again.
//!
//! A body waits in memory until a checkpoint has written it, so mail keeps touching memory that the
//! allocator had given back, or never had. A page that is touched for the first time costs 1 to 3 us,
//! and 12 to 14 us in a virtual machine whose host takes free memory back: as much as all else that a
//! message of 4 KiB costs a core. So finished bodies are copied, one behind the other, into chunks
//! that were touched at the start, and a chunk is used again when the last of its bodies is gone,
//! wherever that was; the allocator gives the buffers that messages are received in out again at once,
//! while they are warm.
//!
//! The reserve bounds nothing: without room in it a body stays in memory of its own, as it came. It
//! never waits and never fails.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, channel};

use bytes::{Bytes, BytesMut};

/// Bytes of a chunk: hundreds of bodies share the cost of taking it, and one that a straggler keeps
/// is a small part of a reserve.
const CHUNK_BYTES: usize = 1 << 20;

/// Longer bodies stay where they are: the end of a chunk that they do not fit is lost.
const BODY_BYTES_MAX: usize = CHUNK_BYTES / 8;

/// Chunks that are looked at for a free one, the longest used first.
const LOOKS: usize = 4;

/// After a look that found none so many bodies go by before the next one.
const PAUSE_BODIES: u32 = 64;

/// The reserve of one core.
#[derive(Debug)]
pub struct Bodies {
    /// Chunks that are being touched.
    coming: Receiver<BytesMut>,
    /// What bodies are put into; empty before the first.
    current: BytesMut,
    /// Full chunks, the longest full first.
    full: VecDeque<BytesMut>,
    /// Bodies until the next look for a free chunk.
    pause: u32,
}

impl Bodies {
    /// Reserves about so many bytes, in whole chunks. They are touched by a thread that ends with
    /// that, so nobody waits for it; if there is no such thread there is no reserve.
    pub fn start(bytes: u64) -> Self {
        let (chunks, coming) = channel();
        let count = usize::try_from(bytes).unwrap_or(usize::MAX) / CHUNK_BYTES;
        let touch = move || {
            for _ in 0..count {
                let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
                // Zeros might come from the kernel untouched.
                chunk.resize(CHUNK_BYTES, 1);
                chunk.clear();
                if chunks.send(chunk).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("rp-memory".to_owned());
        if let Err(error) = thread.spawn(touch) {
            tracing::warn!(%error, "no thread reserves memory for mail");
        }
        Self {
            coming,
            current: BytesMut::new(),
            full: VecDeque::new(),
            pause: 0,
        }
    }

    /// The same bytes, in the reserve if there is room.
    pub fn hold(&mut self, body: Bytes) -> Bytes {
        if body.len() > BODY_BYTES_MAX || !self.has_room(body.len()) {
            return body;
        }
        self.current.extend_from_slice(&body);
        self.current.split().freeze()
    }

    fn has_room(&mut self, len: usize) -> bool {
        if self.current.capacity() >= len {
            return true;
        }
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        let Some(chunk) = self.free_chunk() else {
            self.pause = PAUSE_BODIES;
            return false;
        };
        let full = std::mem::replace(&mut self.current, chunk);
        if full.capacity() > 0 {
            self.full.push_back(full);
        }
        true
    }

    /// One whose bodies are all gone before one that was never used: the more often the better.
    fn free_chunk(&mut self) -> Option<BytesMut> {
        for _ in 0..LOOKS.min(self.full.len()) {
            let mut chunk = self.full.pop_front()?;
            if chunk.try_reclaim(CHUNK_BYTES) {
                return Some(chunk);
            }
            self.full.push_back(chunk);
        }
        self.coming.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// With all of its chunks touched.
    fn bodies(chunks: u64) -> Bodies {
        let mut bodies = Bodies::start(chunks * MIB);
        let touched: Vec<_> = bodies.coming.iter().collect();
        assert_eq!(touched.len() as u64, chunks);
        let (send, coming) = channel();
        for chunk in touched {
            send.send(chunk).unwrap();
        }
        bodies.coming = coming;
        bodies
    }

    fn body(number: usize, len: usize) -> Bytes {
        let text = format!("{number:08}");
        Bytes::from(text.into_bytes().repeat(len / 8))
    }

    /// Whether it was copied.
    fn is_held(held: &Bytes, body: &Bytes) -> bool {
        held.as_ptr() != body.as_ptr()
    }

    #[test]
    fn bodies_keep_their_bytes_while_their_neighbours_come_and_go() {
        let mut bodies = bodies(3);
        let mut kept = VecDeque::new();
        for number in 0..20_000 {
            let len = 8 * (1 + number * 7 % 900);
            kept.push_back((number, len, bodies.hold(body(number, len))));
            if kept.len() > 200 {
                let (number, len, held) = kept.pop_front().unwrap();
                assert_eq!(held, body(number, len), "{number}");
            }
        }
    }

    #[test]
    fn a_full_reserve_leaves_bodies_where_they_are_and_takes_them_again_later() {
        let mut bodies = bodies(2);
        let len = 100_000;
        let mut held = Vec::new();
        for number in 0..20 {
            let body = body(number, len);
            let mine = bodies.hold(body.clone());
            assert_eq!(
                is_held(&mine, &body),
                number < 20,
                "ten fit a chunk: {number}"
            );
            held.push(mine);
        }
        for number in 0..2 * PAUSE_BODIES as usize {
            let body = body(number, len);
            assert!(!is_held(&bodies.hold(body.clone()), &body), "no room");
        }
        // The first chunk's are gone, but for one.
        let straggler = held.drain(..10).next_back();
        bodies.pause = 0;
        let body = body(1, len);
        assert!(!is_held(&bodies.hold(body.clone()), &body), "one is left");
        drop(straggler);
        bodies.pause = 0;
        assert!(is_held(&bodies.hold(body.clone()), &body));
    }

    #[test]
    fn memory_is_used_again_before_more_is_taken() {
        let mut bodies = bodies(3);
        let mut places = std::collections::BTreeSet::new();
        for number in 0..1_000 {
            let held = bodies.hold(body(number, 100_000));
            places.insert(held.as_ptr() as usize);
        }
        // One chunk is always the current one, so two are in turn.
        assert!(places.len() <= 20, "{}", places.len());
    }

    #[test]
    fn long_bodies_and_no_reserve_are_left_alone() {
        let mut bodies = bodies(1);
        let long = body(1, BODY_BYTES_MAX + 8);
        assert!(!is_held(&bodies.hold(long.clone()), &long));
        let mut none = Bodies::start(0);
        let short = body(1, 80);
        assert!(!is_held(&none.hold(short.clone()), &short));
        assert_eq!(none.hold(Bytes::new()), Bytes::new());
    }
}
