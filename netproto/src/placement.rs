//! Name -> keyed hash -> partition -> core: the arithmetic that every node agrees on.
//!
//! The hash is SipHash-2-4 under the cluster's key, so that outsiders cannot aim at one partition
//! (DESIGN.md decision 7). The core count is not part of it: core = partition mod cores.
//! Descends from the thesis's user cache, which named a primary and a secondary per user (3.1.3.2).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use siphasher::sip::SipHasher24;

use crate::id::{PartitionId, UserHash};

/// A canonical user name has 1 to this many bytes (storage.md 2.1: the info header's field).
pub const NAME_BYTES_MAX: usize = 255;

/// The number of partitions a new store gets.
pub const PARTITIONS_DEFAULT: PartitionCount = PartitionCount(4096);

/// The cluster's 128-bit hash key. Its `Debug` shows only the check value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey([u8; 16]);

impl HashKey {
    /// Wraps 16 bytes of entropy.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The key itself, for the STORE file alone.
    pub const fn bytes(&self) -> [u8; 16] {
        self.0
    }

    /// A value that tells keys apart without giving them away: the low half of the hash of
    /// `"ringpost key check"`.
    pub fn check(&self) -> u32 {
        let hash = SipHasher24::new_with_key(&self.0).hash(b"ringpost key check");
        u32::try_from(hash & 0xFFFF_FFFF).expect("masked to 32 bits")
    }

    /// SipHash-2-4 of the bytes of `name`, not of its `Hash` (which appends 0xff to a `str`).
    pub fn user_hash(&self, name: &[u8]) -> UserHash {
        UserHash::new(SipHasher24::new_with_key(&self.0).hash(name))
    }
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashKey(check {:08x})", self.check())
    }
}

/// How many partitions there are: a power of two from 1 to 65,536.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionCount(u32);

impl PartitionCount {
    /// `None` unless `count` is a power of two from 1 to 65,536.
    pub const fn new(count: u32) -> Option<Self> {
        if count.is_power_of_two() && count <= 65_536 {
            Some(Self(count))
        } else {
            None
        }
    }

    /// The plain number.
    pub const fn value(self) -> u32 {
        self.0
    }

    /// The partition of a hash: its top log2(P) bits.
    pub fn partition(self, hash: UserHash) -> PartitionId {
        let bits = self.0.trailing_zeros();
        let top = if bits == 0 {
            0
        } else {
            hash.value() >> (64 - bits)
        };
        PartitionId::new(u16::try_from(top).expect("at most 16 bits are kept"))
    }
}

/// The core that owns `partition` on a node with `cores` cores (at least 1).
pub fn core_of(partition: PartitionId, cores: usize) -> usize {
    usize::from(partition.value()) % cores.max(1)
}

/// A user as placement and store know it: name, hash and partition, cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct UserKey {
    name: Arc<[u8]>,
    hash: UserHash,
    partition: PartitionId,
}

impl UserKey {
    /// `None` if the name is empty, longer than [`NAME_BYTES_MAX`] bytes, or contains a NUL, CR or
    /// LF. The name must be canonical already (mail.md 6.1): nothing is folded here.
    pub fn new(name: &[u8], key: &HashKey, partitions: PartitionCount) -> Option<Self> {
        let fits = (1..=NAME_BYTES_MAX).contains(&name.len());
        if !fits || name.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
            return None;
        }
        let hash = key.user_hash(name);
        Some(Self {
            name: Arc::from(Vec::from(name)),
            hash,
            partition: partitions.partition(hash),
        })
    }

    /// The canonical name.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Its keyed hash.
    pub const fn hash(&self) -> UserHash {
        self.hash
    }

    /// Its partition.
    pub const fn partition(&self) -> PartitionId {
        self.partition
    }
}

impl fmt::Debug for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}@{}",
            alloc::string::String::from_utf8_lossy(&self.name),
            self.hash
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first rows of the reference vectors of SipHash-2-4 (Aumasson, Bernstein; vectors.h).
    #[test]
    fn hash_is_siphash_2_4_of_the_bytes() {
        let key = HashKey::new(core::array::from_fn(|i| u8::try_from(i).expect("below 16")));
        assert_eq!(key.user_hash(&[]).value(), 0x726f_db47_dd0e_0e31);
        assert_eq!(key.user_hash(&[0]).value(), 0x74f8_39c5_93dc_67fd);
        assert_eq!(key.user_hash(&[0, 1]).value(), 0x0d6c_8009_d9a9_4f5a);
    }

    #[test]
    fn partition_is_the_top_bits() {
        let hash = UserHash::new(0xABCD_1234_0000_0000);
        for (count, want) in [(1, 0), (2, 1), (4096, 0xABC), (65_536, 0xABCD)] {
            let count = PartitionCount::new(count).expect("a power of two");
            assert_eq!(count.partition(hash).value(), want);
        }
        assert_eq!(PartitionCount::new(3), None);
        assert_eq!(PartitionCount::new(131_072), None);
        assert_eq!(PartitionCount::new(0), None);
    }

    #[test]
    fn names_are_bounded_and_single_lines() {
        let key = HashKey::new([7; 16]);
        let user = |name: &[u8]| UserKey::new(name, &key, PARTITIONS_DEFAULT);
        assert!(user(b"bob@example.test").is_some());
        assert!(user(&[b'a'; 255]).is_some());
        for bad in [&b""[..], &[b'a'; 256], b"a\0b", b"a\nb", b"a\rb"] {
            assert!(user(bad).is_none());
        }
    }
}
