//! What the disk itself can do: durable writes by size and depth, through the engine's own ring.
//!
//! Every figure of `deliver` stands beside the limit of the same run. The writes are those of the
//! commit log (`O_DIRECT` and `RWF_DSYNC` onto blocks written before, DESIGN.md decision 2),
//! without anything above them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ringpost_engine::io::ring::{UringIo, UringOptions};
use ringpost_engine::io::{
    AlignedBuf, Completion, Done, FileId, Helpers, Io as _, Op, OpenMode, RelPath, Token,
};
use serde::Serialize;

use crate::hist::{Latencies, LatencySummary};
use crate::table;

/// As long as one of the store's own log files.
const FILE_BYTES: usize = 64 << 20;

/// Sizes of all measurements, ascending; the largest is the engine's largest batch.
pub(crate) const SIZES: [usize; 9] = [
    4 << 10,
    8 << 10,
    16 << 10,
    32 << 10,
    64 << 10,
    128 << 10,
    256 << 10,
    512 << 10,
    1 << 20,
];

const SIZE_MAX: usize = 1 << 20;

/// Writes in flight: the engine has one per core and allows two.
pub(crate) const DEPTHS: [usize; 2] = [1, 2];

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct DiskRow {
    /// Bytes of a write.
    pub(crate) size: usize,
    /// Writes in flight.
    pub(crate) depth: usize,
    /// Durable writes per second.
    pub(crate) writes_per_s: f64,
    /// Of one write.
    pub(crate) latency: LatencySummary,
}

/// All measurements of a folder's file system.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct DiskLimits {
    /// By depth, then by size, both ascending.
    pub(crate) rows: Vec<DiskRow>,
}

impl DiskLimits {
    /// Measures below `folder`, `each` for every size and depth. What it writes is removed.
    pub(crate) fn measure(folder: &Path, each: Duration) -> anyhow::Result<Self> {
        let scratch = tempfile::Builder::new()
            .prefix("disk.")
            .tempdir_in(folder)
            .with_context(|| format!("cannot write to {}", folder.display()))?;
        std::fs::create_dir_all(scratch.path().join(RelPath::log_dir(0).as_str()))?;
        let helpers = Helpers::start(scratch.path())?;
        let io = UringIo::new(&UringOptions::default(), &helpers)?;
        let mut bench = Bench::open(io)?;
        let mut rows = Vec::new();
        for depth in DEPTHS {
            for size in SIZES {
                rows.push(bench.measure(size, depth, each)?);
            }
        }
        Ok(Self { rows })
    }

    /// The cost of a flush: the median of one durable write of 4 KiB, alone.
    pub(crate) fn flush_us(&self) -> Option<f64> {
        self.rows.first().map(|row| row.latency.p50_us)
    }

    /// For people: durable writes alone. `None` if nothing was measured.
    pub(crate) fn sentence(&self) -> Option<String> {
        let at = |size| {
            self.rows
                .iter()
                .find(|row| row.depth == 1 && row.size == size)
        };
        let (small, large) = (at(4 << 10)?, at(SIZE_MAX)?);
        Some(format!(
            "disk, one durable write at a time: 4 KiB in {} (p99 {}), 1 MiB at {} MiB/s",
            table::time(small.latency.p50_us),
            table::time(small.latency.p99_us),
            table::number(large.writes_per_s)
        ))
    }

    /// The whole table for people.
    pub(crate) fn table(&self) -> String {
        let cells = |row: &DiskRow| {
            let bytes = u32::try_from(row.size).map_or(f64::INFINITY, f64::from);
            vec![
                table::bytes(u64::try_from(row.size).unwrap_or(u64::MAX)),
                row.depth.to_string(),
                table::number(row.writes_per_s),
                table::number(row.writes_per_s * bytes / 1_048_576.0),
                table::time(row.latency.p50_us),
                table::time(row.latency.p99_us),
                table::time(row.latency.p999_us),
                table::time(row.latency.max_us),
            ]
        };
        let heads = [
            "size", "depth", "writes/s", "MiB/s", "p50", "p99", "p99.9", "max",
        ];
        table::render(&heads, &self.rows.iter().map(cells).collect::<Vec<_>>())
    }

    /// Messages per second that a perfect group commit could make durable on this disk, if
    /// `in_flight` messages of `size` bytes wait at any time and nothing but their bytes is
    /// written: all in one log, or halved over two. `None` if nothing was measured.
    pub(crate) fn messages_per_s(&self, size: usize, in_flight: usize) -> Option<f64> {
        let of_depth = |depth: usize| {
            let waiting = in_flight.div_ceil(depth).max(1);
            // A batch is at most the largest write; a single message may be longer than that.
            let batch = waiting.min((SIZE_MAX / size.max(1)).max(1));
            let per_s = self.writes_per_s(batch * size, depth)?;
            Some(per_s * f64::from(u32::try_from(batch).ok()?))
        };
        let depths = DEPTHS.iter().filter(|&&depth| depth <= in_flight);
        depths.filter_map(|&depth| of_depth(depth)).reduce(f64::max)
    }

    /// Writes per second of `bytes` bytes each: between two sizes the time of a write is taken as
    /// linear, above the largest the bandwidth as constant.
    fn writes_per_s(&self, bytes: usize, depth: usize) -> Option<f64> {
        let rows: Vec<&DiskRow> = self.rows.iter().filter(|row| row.depth == depth).collect();
        let at = rows.partition_point(|row| row.size < bytes);
        let time = |row: &DiskRow| 1.0 / row.writes_per_s;
        let float = |bytes: usize| u32::try_from(bytes).map(f64::from).ok();
        let seconds = match (at.checked_sub(1).and_then(|i| rows.get(i)), rows.get(at)) {
            (None, Some(above)) => time(above),
            (Some(below), None) => time(below) * float(bytes)? / float(below.size)?,
            (Some(below), Some(above)) => {
                let part = float(bytes - below.size)? / float(above.size - below.size)?;
                time(below) + part * (time(above) - time(below))
            }
            (None, None) => return None,
        };
        Some(1.0 / seconds)
    }
}

/// A log file and the buffers that are written to it.
struct Bench {
    io: UringIo,
    file: FileId,
    bufs: Vec<AlignedBuf>,
    offset: usize,
    done: Vec<Completion>,
}

impl Bench {
    fn open(mut io: UringIo) -> anyhow::Result<Self> {
        let path = RelPath::log_file(0, 0);
        let bytes = u64::try_from(FILE_BYTES)?;
        let create = Op::LogCreate {
            path: path.clone(),
            bytes,
        };
        one(&mut io, create)?;
        let Done::Opened { file, .. } = one(
            &mut io,
            Op::Open {
                path,
                mode: OpenMode::Log,
            },
        )?
        else {
            bail!("a file was opened and has no handle");
        };
        let mut bufs = io.log_bufs(DEPTHS.len(), SIZE_MAX);
        let mut random = fastrand::Rng::with_seed(1);
        // A device that compresses would flatter zeros.
        for buf in &mut bufs {
            random.fill(buf);
        }
        Ok(Self {
            io,
            file,
            bufs,
            offset: 0,
            done: Vec::new(),
        })
    }

    fn measure(&mut self, size: usize, depth: usize, each: Duration) -> anyhow::Result<DiskRow> {
        let mut latencies = Latencies::new();
        let mut started = vec![Instant::now(); depth];
        let begin = Instant::now();
        let mut in_flight = 0;
        let mut writes = 0_u32;
        for place in 0..depth {
            let buf = self
                .bufs
                .pop()
                .context("a buffer for each write in flight")?;
            self.write(place, buf, size)?;
            in_flight += 1;
        }
        while in_flight > 0 {
            self.io.poll(&mut self.done);
            if self.done.is_empty() {
                self.io.wait();
            }
            for completion in std::mem::take(&mut self.done) {
                let place = usize::try_from(completion.token.0)?;
                let buf = match completion.result {
                    Ok(Done::Buf(buf)) => buf,
                    Ok(other) => bail!("a log write gave {other:?}"),
                    Err(failed) => return Err(failed.error).context("the disk failed"),
                };
                let now = Instant::now();
                let since = started.get_mut(place).context("a completion of ours")?;
                latencies.record(now - *since);
                *since = now;
                writes += 1;
                if now - begin < each {
                    self.write(place, buf, size)?;
                } else {
                    self.bufs.push(buf);
                    in_flight -= 1;
                }
            }
        }
        let seconds = begin.elapsed().as_secs_f64();
        Ok(DiskRow {
            size,
            depth,
            writes_per_s: f64::from(writes) / seconds,
            latency: latencies.summary(),
        })
    }

    fn write(&mut self, place: usize, buf: AlignedBuf, len: usize) -> anyhow::Result<()> {
        if self.offset + len > FILE_BYTES {
            self.offset = 0;
        }
        let op = Op::LogWrite {
            file: self.file,
            offset: u64::try_from(self.offset)?,
            buf,
            len,
        };
        self.offset += len;
        let token = Token(u64::try_from(place)?);
        if self.io.submit(op, token).is_err() {
            bail!("the ring takes no write");
        }
        Ok(())
    }
}

/// Runs one op to its end.
fn one(io: &mut UringIo, op: Op) -> anyhow::Result<Done> {
    if io.submit(op, Token(0)).is_err() {
        bail!("the ring takes no op");
    }
    let mut done = Vec::new();
    loop {
        io.poll(&mut done);
        match done.pop() {
            Some(Completion {
                result: Ok(done), ..
            }) => return Ok(done),
            Some(Completion {
                result: Err(failed),
                ..
            }) => {
                return Err(failed.error).context("the disk cannot be measured");
            }
            None => io.wait(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 us and a microsecond per KiB, at both depths.
    fn limits() -> DiskLimits {
        let row = |depth, size: usize| DiskRow {
            size,
            depth,
            writes_per_s: 1e6 / (100.0 + f64::from(u32::try_from(size / 1024).unwrap())),
            latency: LatencySummary::default(),
        };
        let rows = DEPTHS
            .iter()
            .flat_map(|&depth| SIZES.map(|size| row(depth, size)));
        DiskLimits {
            rows: rows.collect(),
        }
    }

    fn close(a: Option<f64>, b: f64) -> bool {
        a.is_some_and(|a| (a / b - 1.0).abs() < 0.01)
    }

    #[test]
    fn times_between_sizes_are_linear_and_bandwidth_goes_on_above() {
        let limits = limits();
        assert!(close(limits.writes_per_s(512, 1), 1e6 / 104.0));
        assert!(close(limits.writes_per_s(4096, 1), 1e6 / 104.0));
        assert!(close(limits.writes_per_s(6 << 10, 1), 1e6 / 106.0));
        assert!(close(limits.writes_per_s(4 << 20, 1), 1e6 / (4.0 * 1124.0)));
        assert_eq!(DiskLimits::default().writes_per_s(1, 1), None);
    }

    #[test]
    fn limit_is_a_perfect_batch() {
        let limits = limits();
        assert!(close(limits.messages_per_s(4096, 1), 1e6 / 104.0));
        // Rates are of all writes in flight together: here two halves gain nothing over one batch.
        assert!(close(limits.messages_per_s(4096, 64), 64.0 * 1e6 / 356.0));
        assert!(close(
            limits.messages_per_s(256 << 10, 64),
            4.0 * 1e6 / 1124.0
        ));
        assert!(close(
            limits.messages_per_s(2 << 20, 64),
            1e6 / (2.0 * 1124.0)
        ));
    }

    /// On the real disk, where there is one: every size and depth gives a figure.
    #[test]
    fn the_real_disk_is_measured() {
        let folder = crate::programs::folder().unwrap();
        let limits = DiskLimits::measure(&folder, Duration::from_millis(1)).unwrap();
        assert_eq!(limits.rows.len(), SIZES.len() * DEPTHS.len());
        assert!(
            limits
                .rows
                .iter()
                .all(|row| row.writes_per_s > 0.0 && row.latency.count > 0)
        );
        assert!(limits.flush_us().unwrap() > 0.0);
    }
}
