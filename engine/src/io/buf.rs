//! Memory for `O_DIRECT`: page-aligned, zeroed, owned, of a length that never changes.
//!
//! Whoever holds an [`AlignedBuf`] is the only one who can touch it. An op that reads or writes it
//! takes it by value and gives it back with its completion, so no slice of it can exist while the
//! kernel works on it. Dropping it while an `Io` holds it is impossible for the same reason.
#![expect(
    unsafe_code,
    reason = "the standard library has no owned, aligned bytes"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment and granularity in bytes: a page, and the largest common block size.
const ALIGN: usize = 4096;
const _: () = assert!(
    ALIGN as u64 == crate::limits::BLOCK_BYTES,
    "a buffer fits the blocks of a log file"
);

/// Where a buffer is registered with a kernel ring. Of no use with any other ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Registered {
    /// Number of the ring, unique in the process.
    pub(crate) ring: u64,
    /// Place in that ring's table.
    pub(crate) index: u16,
}

/// Page-aligned bytes, zero at first, in whole blocks of 4096.
pub struct AlignedBuf {
    start: NonNull<u8>,
    layout: Layout,
    registered: Option<Registered>,
}

// SAFETY: the buffer owns its allocation alone and has no thread-bound state; the global allocator
// takes memory back on any thread.
unsafe impl Send for AlignedBuf {}

// SAFETY: a shared reference gives out shared slices only, and nothing changes behind it.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Zeroed bytes, `bytes` rounded up to whole blocks (one at least). Where there is no memory the
    /// process ends like any allocation of the standard library: for sizes fixed by configuration.
    pub fn zeroed(bytes: usize) -> Self {
        Self::try_zeroed(bytes)
            .unwrap_or_else(|| handle_alloc_error(layout_of(bytes).unwrap_or(Layout::new::<u8>())))
    }

    /// As [`zeroed`](Self::zeroed); `None` if there is no memory: for sizes found at run time.
    pub fn try_zeroed(bytes: usize) -> Option<Self> {
        let layout = layout_of(bytes)?;
        // SAFETY: the layout's size is not zero. Owner of the memory is the value made here.
        let start = unsafe { alloc_zeroed(layout) };
        Some(Self {
            start: NonNull::new(start)?,
            layout,
            registered: None,
        })
    }

    /// Where it is registered, if it is.
    pub(crate) fn registered(&self) -> Option<Registered> {
        self.registered
    }

    /// Notes that a ring knows this buffer. The memory stays pinned by the kernel until that ring
    /// ends, whether or not the buffer still exists.
    pub(crate) fn set_registered(&mut self, registered: Registered) {
        self.registered = Some(registered);
    }
}

/// The layout of `bytes` rounded up to whole blocks.
fn layout_of(bytes: usize) -> Option<Layout> {
    let bytes = bytes.max(1).checked_next_multiple_of(ALIGN)?;
    Layout::from_size_align(bytes, ALIGN).ok()
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is valid for `layout.size()` initialised bytes until `drop`, and `&self`
        // keeps writers away.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` keeps all others away.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("len", &self.len())
            .field("registered", &self.registered)
            .finish_non_exhaustive()
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `try_zeroed` with this very layout, and freed here only. No ring
        // holds it: an op in flight owns the whole buffer until its completion (`inflight`).
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_zeroed_and_of_whole_blocks() {
        for (asked, got) in [(0, 4096), (1, 4096), (4096, 4096), (4097, 8192)] {
            let mut buf = AlignedBuf::zeroed(asked);
            assert_eq!(buf.len(), got);
            assert_eq!(buf.as_ptr().addr() % ALIGN, 0);
            assert!(buf.iter().all(|byte| *byte == 0));
            buf.fill(7);
            assert!(buf.iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn impossible_sizes_are_none_and_not_a_panic() {
        for bytes in [usize::MAX, isize::MAX.unsigned_abs()] {
            assert!(AlignedBuf::try_zeroed(bytes).is_none());
        }
    }

    #[test]
    fn a_buffer_moves_between_threads() {
        let mut buf = AlignedBuf::zeroed(4096);
        buf[0] = 1;
        let back = std::thread::spawn(move || {
            buf[1] = 2;
            buf
        });
        assert_eq!(back.join().unwrap()[..2], [1, 2]);
    }

    #[test]
    #[ignore = "wrong on purpose: the asan stage runs it alone and has to see it caught"]
    fn freed_memory_is_read() {
        let buf = AlignedBuf::zeroed(4096);
        let start = buf.as_ptr();
        drop(buf);
        // SAFETY: there is none. Owner of the memory is the allocator; only the sanitizer, which ends
        // the process here, may run this.
        let byte = unsafe { start.read_volatile() };
        assert_eq!(byte, 0);
    }
}
