//! Tests of a shard on the simulated disk.
