//! The real ring: conformance, and what only a kernel can show.

use std::os::fd::AsFd;

use tempfile::TempDir;

use super::*;
use crate::io::conformance::{Driver, Rig, conformance, entry};

/// A scratch directory with its helper threads.
pub(crate) struct Scratch {
    dir: TempDir,
    helpers: Helpers,
    options: UringOptions,
}

impl Rig for Scratch {
    type Io = UringIo;

    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let helpers = Helpers::start(dir.path()).unwrap();
        Self {
            dir,
            helpers,
            options: UringOptions::default(),
        }
    }

    fn io(&mut self) -> UringIo {
        UringIo::new(&self.options, &self.helpers).unwrap()
    }
}

conformance!(Scratch);

/// Kernel workers of the calling thread.
fn workers() -> usize {
    let name = format!("iou-wrk-{}", nix::unistd::gettid());
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .filter(|comm| comm.trim() == name)
        .count()
}

/// A pipe that nobody writes to, as an open file of the ring.
pub(crate) fn silent_pipe(io: &mut UringIo) -> (crate::io::FileId, OwnedFd) {
    let (read, write) = nix::unistd::pipe().unwrap();
    (adopt(io, read), write)
}

/// A descriptor as an open file of the ring.
fn adopt(io: &mut UringIo, fd: OwnedFd) -> crate::io::FileId {
    let path = entry("adopted");
    io.files.insert(OpenFile { fd, path })
}

/// Drops a ring with reads in flight that nothing will ever answer, and sees whether the kernel has let
/// go of them: the other end of the pipe knows whether there is a reader left.
pub(crate) fn reads_in_flight_end_with_the_ring(mut io: UringIo) {
    let (file, write) = silent_pipe(&mut io);
    for token in 0..3 {
        let op = Op::Read {
            file,
            offset: 0,
            len: 4096,
        };
        io.submit(op, Token(token)).unwrap();
    }
    io.poll(&mut Vec::new());
    assert_eq!(io.in_kernel, 3);
    drop(io);
    let error = nix::unistd::write(write.as_fd(), b"x").unwrap_err();
    assert_eq!(error, nix::errno::Errno::EPIPE);
}

#[test]
fn a_read_that_never_completes_is_cancelled_at_the_drop() {
    let mut rig = Scratch::new();
    let mut io = rig.io();
    let (file, write) = silent_pipe(&mut io);
    for token in 0..3 {
        let op = Op::Read {
            file,
            offset: 0,
            len: 4096,
        };
        io.submit(op, Token(token)).unwrap();
    }
    let mut out = Vec::new();
    io.poll(&mut out);
    assert!(out.is_empty());
    assert_eq!(io.in_kernel, 3);
    // Queued and not handed over: the kernel never saw it.
    let late = Op::Read {
        file,
        offset: 0,
        len: 4096,
    };
    io.submit(late, Token(3)).unwrap();
    io.drain();
    assert_eq!((io.in_kernel, io.in_flight.len()), (0, 1));
    drop(io);
    // The other end sees that no reader is left.
    let error = nix::unistd::write(write.as_fd(), b"x").unwrap_err();
    assert_eq!(error, nix::errno::Errno::EPIPE);
}

#[test]
fn a_receive_that_never_completes_is_cancelled_at_the_drop() {
    let mut rig = Scratch::new();
    let mut io = rig.io();
    let (own, peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let file = adopt(&mut io, own.into());
    let op = Op::Read {
        file,
        offset: 0,
        len: 65536,
    };
    io.submit(op, Token(1)).unwrap();
    io.poll(&mut Vec::new());
    assert_eq!(io.in_kernel, 1);
    drop(io);
    let error = nix::unistd::write(&peer, b"x").unwrap_err();
    assert_eq!(error, nix::errno::Errno::EPIPE);
}

#[test]
fn a_closed_file_stays_open_for_the_read_in_flight() {
    let mut rig = Scratch::new();
    let mut io = rig.io();
    let (file, write) = silent_pipe(&mut io);
    let op = Op::Read {
        file,
        offset: 0,
        len: 4096,
    };
    io.submit(op, Token(1)).unwrap();
    io.submit(Op::Close { file }, Token(2)).unwrap();
    let mut out = Vec::new();
    io.poll(&mut out);
    assert_eq!(out.remove(0).token, Token(2));
    let closed = Op::Read {
        file,
        offset: 0,
        len: 1,
    };
    io.submit(closed, Token(3)).unwrap();
    io.poll(&mut out);
    assert_eq!(out.remove(0).result.unwrap_err().error.errno, libc::EBADF);

    assert_eq!(nix::unistd::write(&write, b"late").unwrap(), 4);
    drop(write);
    while out.is_empty() {
        io.wait();
        io.poll(&mut out);
    }
    match out.remove(0).result {
        Ok(Done::Bytes(bytes)) => assert_eq!(bytes[..], b"late"[..]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_ring_may_be_dropped_at_any_moment() {
    let mut rig = Scratch::new();
    let log = Driver::new(rig.io()).log_file(1 << 20);
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut disk = Driver::new(rig.io());
        let (file, _) = disk.open(&log, OpenMode::Log);
        let (silent, write) = silent_pipe(&mut disk.io);
        let mut bufs = disk.io.log_bufs(8, 16384);
        let mut out = Vec::new();
        for token in 0..random.u64(1..60) {
            let offset = random.u64(0..32) * 16384;
            let op = match random.u8(0..7) {
                0 | 1 => match bufs.pop() {
                    Some(buf) if random.bool() => Op::LogWrite {
                        file,
                        offset,
                        buf,
                        len: 16384,
                    },
                    Some(buf) => Op::LogRead {
                        file,
                        offset,
                        buf,
                        len: 8192,
                    },
                    None => Op::Sync { file },
                },
                2 => Op::Read {
                    file: silent,
                    offset: 0,
                    len: random.usize(1..70_000),
                },
                3 => Op::Open {
                    path: log.clone(),
                    mode: OpenMode::Read,
                },
                4 => Op::SyncDir {
                    path: RelPath::root(),
                },
                5 => Op::ListDir {
                    path: RelPath::root(),
                },
                _ => Op::Read {
                    file: silent,
                    offset: 0,
                    len: 1,
                },
            };
            disk.io.submit(op, Token(1_000 + token)).unwrap();
            if random.u8(0..4) == 0 {
                disk.io.poll(&mut out);
            }
            if random.u8(0..16) == 0 {
                nix::unistd::write(&write, b"some bytes").unwrap();
            }
        }
        drop(disk);
        let error = nix::unistd::write(&write, b"x").unwrap_err();
        assert_eq!(error, nix::errno::Errno::EPIPE, "seed {seed}");
    }
}

/// Whether the file system writes past the page cache without blocking.
fn writes_inline(rig: &Scratch) -> bool {
    use nix::sys::statfs::{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, statfs};
    let found = statfs(rig.dir.path()).unwrap().filesystem_type();
    [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC].contains(&found)
}

#[test]
fn log_writes_need_no_kernel_worker() {
    if !writes_inline(&Scratch::new()) {
        println!("skipped: the scratch directory is not on ext4 or XFS");
        return;
    }
    for register_log_bufs in [true, false] {
        let mut rig = Scratch::new();
        rig.options.register_log_bufs = register_log_bufs;
        let log = Driver::new(rig.io()).log_file(1 << 20);
        // On a thread of its own: workers belong to the thread that made the ring.
        std::thread::spawn(move || {
            let mut disk = Driver::new(rig.io());
            let (file, _) = disk.open(&log, OpenMode::Log);
            let mut bufs = disk.io.log_bufs(4, 65536);
            assert_eq!(bufs.len(), 4);
            let registered = bufs.iter().all(|buf| buf.registered().is_some());
            assert!(registered == register_log_bufs || !disk.io.notes().is_empty());
            for round in 0..50 {
                let tokens: Vec<_> = bufs
                    .drain(..)
                    .zip(0..)
                    .map(|(mut buf, place)| {
                        buf.fill(round);
                        disk.start(Op::LogWrite {
                            file,
                            offset: place * 65536,
                            buf,
                            len: 65536,
                        })
                    })
                    .collect();
                for token in tokens {
                    match disk.finish(token) {
                        Ok(Done::Buf(buf)) => bufs.push(buf),
                        other => panic!("{other:?}"),
                    }
                }
            }
            assert_eq!(disk.log_read(file, 0, 1 << 18).0, [49; 64]);
            assert_eq!(workers(), 0, "a log write went to a worker");
            disk.ok(Op::Sync { file });
            assert!(workers() > 0, "a worker would have been seen");
        })
        .join()
        .unwrap();
    }
}

#[test]
fn a_buffer_of_another_ring_is_written_plainly() {
    let mut rig = Scratch::new();
    let mut one = Driver::new(rig.io());
    let mut two = Driver::new(rig.io());
    let log = one.log_file(64 << 10);
    let mut foreign = one.io.log_bufs(1, 4096).remove(0);
    let mut own = two.io.log_bufs(1, 4096).remove(0);
    own.fill(1);
    foreign.fill(2);
    let (file, _) = two.open(&log, OpenMode::Log);
    for (offset, buf) in [(0, own), (4096, foreign)] {
        let op = Op::LogWrite {
            file,
            offset,
            buf,
            len: 4096,
        };
        assert!(two.run(op).is_ok());
    }
    assert_eq!(two.log_read(file, 0, 8192).0, [1, 2]);
}

#[test]
fn one_event_tells_of_the_ring_and_of_the_helpers() {
    let mut rig = Scratch::new();
    let mut io = rig.io();
    let readable = |io: &UringIo, timeout: u16| {
        let mut fds = [PollFd::new(io.event_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, PollTimeout::from(timeout)).unwrap() == 1
    };
    let mut out = Vec::new();
    let log = Driver::new(rig.io()).log_file(64 << 10);
    for op in [
        Op::SyncTree,
        Op::FreeSpace,
        Op::SyncDir {
            path: RelPath::root(),
        },
        Op::LogCreate {
            path: log,
            bytes: 4096,
        },
    ] {
        io.clear_event();
        io.submit(op, Token(1)).unwrap();
        io.poll(&mut out);
        let mut turns = 0;
        while out.is_empty() {
            assert!(readable(&io, 10_000), "nothing told of a completion");
            io.clear_event();
            io.poll(&mut out);
            turns += 1;
            assert!(turns < 10, "woken for nothing");
        }
        assert!(out.remove(0).result.is_ok());
    }
    // Reaped completions leave no event behind that would wake the core for nothing.
    io.clear_event();
    io.poll(&mut out);
    assert!(!readable(&io, 0));
}

#[test]
fn jobs_are_answered_before_the_helpers_end() {
    let mut rig = Scratch::new();
    let mut io = rig.io();
    for token in 0..50 {
        io.submit(Op::SyncTree, Token(token)).unwrap();
        io.submit(Op::FreeSpace, Token(token)).unwrap();
    }
    let Scratch { dir, helpers, .. } = rig;
    drop(helpers);
    let mut out = Vec::new();
    while out.len() < 100 {
        io.wait();
        io.poll(&mut out);
    }
    assert!(out.iter().all(|done| done.result.is_ok()));
    drop(io);
    assert!(dir.path().exists());
}

#[test]
fn new_files_are_for_the_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let mut rig = Scratch::new();
    let mut disk = Driver::new(rig.io());
    disk.ok(Op::MakeDir { path: entry("d") });
    disk.create(&entry("f"), b"");
    let write = |name: &str| crate::io::Step::Write {
        path: entry("m").entry(name).unwrap(),
        offset: 0,
        pieces: Vec::new(),
    };
    let steps = vec![crate::io::Step::MakeDir(entry("m")), write("f")];
    let sync = crate::io::WorkSync::Later;
    let done = disk.run(Op::Materialise(vec![crate::io::Work { steps, sync }]));
    assert!(done.is_ok());
    for (name, expected) in [("d", 0o700), ("f", 0o600), ("m", 0o700), ("m/f", 0o600)] {
        let mode = std::fs::metadata(rig.dir.path().join(name)).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, expected, "{name}");
    }
}

#[test]
fn a_missing_data_directory_is_named() {
    let dir = TempDir::new().unwrap();
    let error = Helpers::start(&dir.path().join("none")).unwrap_err();
    assert_eq!(error.errno, libc::ENOENT);
    assert!(error.path.ends_with("none"));
}
