//! One body of tests for every disk: what [`Io`] promises, run over the real ring, the simulated disk
//! and the fault injector. Without it the simulator drifts into fiction.

use bytes::Bytes;
use ringpost_netproto::id::{Guid, MailboxId, WallNs};

use super::{
    AlignedBuf, Completion, Done, FileId, Io, Op, OpenMode, Piece, RelPath, Step, Token, Work,
    WorkSync,
};
use crate::error::IoError;
use crate::format::store_line::StoreLine;

/// A data directory and the disks on it.
pub(crate) trait Rig {
    type Io: Io;
    fn new() -> Self;
    fn io(&mut self) -> Self::Io;
}

/// Drives an [`Io`] one op at a time.
pub(crate) struct Driver<I: Io> {
    pub(crate) io: I,
    next: u64,
    out: Vec<Completion>,
}

impl<I: Io> Driver<I> {
    pub(crate) fn new(io: I) -> Self {
        Self {
            io,
            next: 0,
            out: Vec::new(),
        }
    }

    pub(crate) fn start(&mut self, op: Op) -> Token {
        self.next += 1;
        let token = Token(self.next);
        let mut back = self.io.submit(op, token);
        while let Err(op) = back {
            self.io.wait();
            self.io.poll(&mut self.out);
            back = self.io.submit(op, token);
        }
        token
    }

    /// Waits for one op; completions of others are kept.
    pub(crate) fn finish(&mut self, token: Token) -> Result<Done, super::Failed> {
        loop {
            if let Some(place) = self.out.iter().position(|done| done.token == token) {
                return self.out.remove(place).result;
            }
            let before = self.out.len();
            self.io.poll(&mut self.out);
            if self.out.len() == before {
                self.io.wait();
            }
        }
    }

    pub(crate) fn run(&mut self, op: Op) -> Result<Done, IoError> {
        let token = self.start(op);
        self.finish(token).map_err(|failed| failed.error)
    }

    pub(crate) fn errno(&mut self, op: Op) -> i32 {
        self.run(op).expect_err("an op that must fail").errno
    }

    pub(crate) fn ok(&mut self, op: Op) {
        let done = self.run(op).expect("an op that must succeed");
        assert!(matches!(done, Done::Nothing), "{done:?}");
    }

    pub(crate) fn open(&mut self, path: &RelPath, mode: OpenMode) -> (FileId, u64) {
        let path = path.clone();
        match self.run(Op::Open { path, mode }).unwrap() {
            Done::Opened { file, bytes } => (file, bytes),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn create(&mut self, path: &RelPath, data: &'static [u8]) -> FileId {
        let (file, bytes) = self.open(path, OpenMode::Create);
        assert_eq!(bytes, 0);
        self.ok(Op::Write {
            file,
            offset: 0,
            data: Bytes::from_static(data),
        });
        file
    }

    pub(crate) fn read(&mut self, file: FileId, offset: u64, len: usize) -> Vec<u8> {
        match self.run(Op::Read { file, offset, len }).unwrap() {
            Done::Bytes(bytes) => bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn read_file(&mut self, path: &RelPath) -> Result<Vec<u8>, IoError> {
        let op = Op::ReadFile {
            path: path.clone(),
            bytes_max: 1 << 20,
        };
        self.run(op).map(|done| match done {
            Done::Bytes(bytes) => bytes.to_vec(),
            other => panic!("{other:?}"),
        })
    }

    pub(crate) fn list(&mut self, path: &RelPath) -> Vec<(String, u64)> {
        match self.run(Op::ListDir { path: path.clone() }).unwrap() {
            Done::Listing(listing) => listing,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn log_file(&mut self, bytes: u64) -> RelPath {
        for path in [entry("log"), RelPath::log_dir(0)] {
            self.ok(Op::MakeDir { path });
        }
        let path = RelPath::log_file(0, 1);
        self.ok(Op::LogCreate {
            path: path.clone(),
            bytes,
        });
        path
    }

    pub(crate) fn log_write(&mut self, file: FileId, offset: u64, blocks: &[u8]) {
        let mut buf = AlignedBuf::zeroed(blocks.len() * 4096);
        for (chunk, byte) in buf.chunks_mut(4096).zip(blocks) {
            chunk.fill(*byte);
        }
        let len = buf.len();
        let op = Op::LogWrite {
            file,
            offset,
            buf,
            len,
        };
        match self.run(op).unwrap() {
            Done::Buf(buf) => assert_eq!(buf[0], blocks[0]),
            other => panic!("{other:?}"),
        }
    }

    /// The first byte of each block read, and the count.
    pub(crate) fn log_read(&mut self, file: FileId, offset: u64, len: usize) -> (Vec<u8>, usize) {
        let buf = AlignedBuf::zeroed(len);
        let op = Op::LogRead {
            file,
            offset,
            buf,
            len,
        };
        match self.run(op).unwrap() {
            Done::Read { buf, count } => {
                let blocks = buf[..count].chunks(4096).map(|chunk| chunk[0]).collect();
                (blocks, count)
            }
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn entry(name: &str) -> RelPath {
    RelPath::root().entry(name).unwrap()
}

pub(crate) fn opens_say_what_is_wrong<R: Rig>() {
    let mut rig = R::new();
    let mut disk = Driver::new(rig.io());
    let path = entry("a");
    let open = |mode| Op::Open {
        path: entry("a"),
        mode,
    };
    for mode in [OpenMode::Read, OpenMode::Log, OpenMode::Edit] {
        assert_eq!(disk.errno(open(mode)), libc::ENOENT);
    }
    disk.create(&path, b"x");
    assert_eq!(disk.errno(open(OpenMode::Create)), libc::EEXIST);
    disk.ok(Op::MakeDir { path: entry("d") });
    let directory = Op::Open {
        path: entry("d"),
        mode: OpenMode::Read,
    };
    assert_eq!(disk.errno(directory), libc::EISDIR);
    for (parent, errno) in [("none", libc::ENOENT), ("a", libc::ENOTDIR)] {
        let op = Op::Open {
            path: entry(parent).entry("b").unwrap(),
            mode: OpenMode::Create,
        };
        assert_eq!(disk.errno(op), errno);
    }
    let failed = Op::Open {
        path: entry("none"),
        mode: OpenMode::Read,
    };
    let error = disk.run(failed).unwrap_err();
    assert_eq!((error.operation, error.path.as_str()), ("open", "./none"));
}

pub(crate) fn reads_end_where_the_file_ends<R: Rig>() {
    let mut rig = R::new();
    let mut disk = Driver::new(rig.io());
    let file = disk.create(&entry("a"), b"hello world");
    assert_eq!(disk.read(file, 0, 5), b"hello");
    assert_eq!(disk.read(file, 6, 100), b"world");
    assert_eq!(disk.read(file, 11, 100), b"");
    assert_eq!(disk.read(file, 1000, 100), b"");
    assert_eq!(disk.read(file, 0, 0), b"");
    disk.ok(Op::Write {
        file,
        offset: 5000,
        data: Bytes::from_static(b"far"),
    });
    let all = disk.read(file, 0, 8192);
    assert_eq!(all.len(), 5003);
    assert_eq!(&all[..11], b"hello world");
    assert!(all[11..5000].iter().all(|byte| *byte == 0));
    disk.ok(Op::StartWriteback {
        file,
        offset: 0,
        len: 4096,
    });
    disk.ok(Op::StartWriteback {
        file,
        offset: 0,
        len: 0,
    });
    disk.ok(Op::Sync { file });
    disk.ok(Op::Close { file });
    let (file, bytes) = disk.open(&entry("a"), OpenMode::Read);
    assert_eq!(bytes, 5003);
    let write = Op::Write {
        file,
        offset: 0,
        data: Bytes::from_static(b"no"),
    };
    assert_eq!(disk.errno(write), libc::EBADF);
    let (edited, bytes) = disk.open(&entry("a"), OpenMode::Edit);
    assert_eq!(bytes, 5003);
    disk.ok(Op::Write {
        file: edited,
        offset: 6,
        data: Bytes::from_static(b"there"),
    });
    assert_eq!(disk.read(edited, 0, 11), b"hello there");
    assert_eq!(disk.read(file, 0, 11), b"hello there");
    let long = Op::Read {
        file,
        offset: 0,
        len: (1 << 20) + 1,
    };
    assert_eq!(disk.errno(long), libc::EINVAL);
}

pub(crate) fn log_files_keep_what_is_written<R: Rig>() {
    let mut rig = R::new();
    let mut disk = Driver::new(rig.io());
    let path = disk.log_file(64 << 10);
    let (file, bytes) = disk.open(&path, OpenMode::Log);
    assert_eq!(bytes, 64 << 10);
    assert_eq!(disk.log_read(file, 0, 65536), (vec![0; 16], 65536));
    disk.log_write(file, 4096, &[1, 2, 3]);
    disk.log_write(file, 8192, &[9]);
    assert_eq!(disk.log_read(file, 0, 20480).0, [0, 1, 9, 3, 0]);
    assert_eq!(disk.log_read(file, 61440, 16384), (vec![0], 4096));
    assert_eq!(disk.log_read(file, 65536, 4096).1, 0);
    assert_eq!(disk.log_read(file, 1 << 30, 4096).1, 0);
    disk.ok(Op::Sync { file });
    disk.ok(Op::Close { file });
    // An existing file is written over, and gets the length that is asked for.
    disk.ok(Op::LogCreate {
        path: path.clone(),
        bytes: 32 << 10,
    });
    let (file, bytes) = disk.open(&path, OpenMode::Log);
    assert_eq!(bytes, 32 << 10);
    assert_eq!(disk.log_read(file, 0, 32768).0, [0; 8]);
    for bytes in [0, 1000] {
        let op = Op::LogCreate {
            path: path.clone(),
            bytes,
        };
        assert_eq!(disk.errno(op), libc::EINVAL);
    }
}

pub(crate) fn failed_log_ops_give_the_buffer_back<R: Rig>() {
    let mut rig = R::new();
    let mut disk = Driver::new(rig.io());
    let path = disk.log_file(16 << 10);
    let (file, _) = disk.open(&path, OpenMode::Log);
    let marked = || {
        let mut buf = AlignedBuf::zeroed(8192);
        buf[0] = 77;
        buf
    };
    let write = |file, offset, len, buf| Op::LogWrite {
        file,
        offset,
        buf,
        len,
    };
    let read = |file, offset, len, buf| Op::LogRead {
        file,
        offset,
        buf,
        len,
    };
    let closed = FileId(u64::MAX >> 1);
    for (op, errno) in [
        (write(file, 1, 4096, marked()), libc::EINVAL),
        (write(file, 0, 4095, marked()), libc::EINVAL),
        (write(file, 0, 12288, marked()), libc::EINVAL),
        (read(file, 512, 4096, marked()), libc::EINVAL),
        (write(closed, 0, 4096, marked()), libc::EBADF),
        (read(closed, 0, 4096, marked()), libc::EBADF),
    ] {
        let token = disk.start(op);
        let failed = disk.finish(token).unwrap_err();
        assert_eq!(failed.error.errno, errno, "{}", failed.error);
        assert_eq!(failed.buf.unwrap()[0], 77);
    }
}

pub(crate) fn names_behave_like_names<R: Rig>() {
    let mut rig = R::new();
    let mut disk = Driver::new(rig.io());
    let link = |from: &str, to: &str| Op::Link {
        from: entry(from),
        to: entry(to),
    };
    let rename = |from: &str, to: &str| Op::Rename {
        from: entry(from),
        to: entry(to),
    };
    let unlink = |name: &str| Op::Unlink { path: entry(name) };
    let file = disk.create(&entry("a"), b"one");
    disk.ok(link("a", "b"));
    assert_eq!(disk.errno(link("a", "b")), libc::EEXIST);
    assert_eq!(disk.errno(link("none", "c")), libc::ENOENT);
    assert_eq!(disk.errno(rename("none", "c")), libc::ENOENT);
    disk.ok(unlink("a"));
    disk.ok(unlink("a"));
    assert_eq!(disk.read_file(&entry("b")).unwrap(), b"one");
    // The open file and the linked name are one file; it outlives both names.
    disk.ok(Op::Write {
        file,
        offset: 0,
        data: Bytes::from_static(b"two"),
    });
    assert_eq!(disk.read_file(&entry("b")).unwrap(), b"two");
    disk.create(&entry("c"), b"old");
    disk.ok(rename("b", "c"));
    assert_eq!(disk.read_file(&entry("c")).unwrap(), b"two");
    disk.ok(unlink("c"));
    assert_eq!(disk.read(file, 0, 10), b"two");
    disk.ok(Op::MakeDir { path: entry("d") });
    disk.ok(Op::MakeDir { path: entry("d") });
    assert_eq!(disk.errno(unlink("d")), libc::EISDIR);
    let orphan = entry("none").entry("d").unwrap();
    assert_eq!(disk.errno(Op::MakeDir { path: orphan }), libc::ENOENT);
    disk.ok(Op::SyncDir { path: entry("d") });
    assert_eq!(
        disk.errno(Op::SyncDir {
            path: entry("none")
        }),
        libc::ENOENT
    );
    disk.ok(Op::SyncTree);
    disk.create(&entry("d").entry("z").unwrap(), b"12345");
    disk.create(&entry("d").entry("y").unwrap(), b"");
    let deep = entry("d").entry("x").unwrap();
    disk.ok(Op::MakeDir { path: deep });
    let expected = [("x", 0), ("y", 0), ("z", 5)].map(|(name, len)| (name.to_owned(), len));
    assert_eq!(disk.list(&entry("d")), expected);
    assert_eq!(
        disk.errno(Op::ListDir {
            path: entry("none")
        }),
        libc::ENOENT
    );
}

pub(crate) fn a_closed_handle_is_never_another_file<R: Rig>() {
    let mut rig = R::new();
    let mut disk = Driver::new(rig.io());
    let first = disk.create(&entry("a"), b"aaaa");
    // A close beside reads in flight harms neither.
    let read = |file| Op::Read {
        file,
        offset: 0,
        len: 4,
    };
    let tokens = [
        disk.start(read(first)),
        disk.start(Op::Close { file: first }),
        disk.start(read(first)),
    ];
    let [before, close, after] = tokens.map(|token| disk.finish(token));
    assert!(matches!(before, Ok(Done::Bytes(bytes)) if bytes == "aaaa"));
    assert!(matches!(close, Ok(Done::Nothing)));
    assert_eq!(after.unwrap_err().error.errno, libc::EBADF);
    let second = disk.create(&entry("b"), b"bbbb");
    assert_ne!(first, second);
    assert_eq!(disk.errno(read(first)), libc::EBADF);
    assert_eq!(disk.errno(Op::Close { file: first }), libc::EBADF);
    assert_eq!(disk.errno(Op::Sync { file: first }), libc::EBADF);
    assert_eq!(disk.read(second, 0, 4), b"bbbb");
}

pub(crate) fn a_full_table_gives_the_op_back_and_loses_nothing<R: Rig>() {
    let mut rig = R::new();
    let mut disk = Driver::new(rig.io());
    let file = disk.create(&entry("a"), b"0123456789");
    let mut taken = 0;
    let refused = loop {
        let op = Op::Read {
            file,
            offset: taken % 10,
            len: 1,
        };
        match disk.io.submit(op, Token(1000 + taken)) {
            Ok(()) => taken += 1,
            Err(op) => break op,
        }
        assert!(taken < 100_000, "the table is bounded");
    };
    assert!(matches!(refused, Op::Read { len: 1, .. }));
    let mut seen = vec![false; usize::try_from(taken).unwrap()];
    let mut out = Vec::new();
    while seen.contains(&false) {
        disk.io.wait();
        disk.io.poll(&mut out);
        for done in out.drain(..) {
            let place = done.token.0 - 1000;
            let Ok(Done::Bytes(bytes)) = done.result else {
                panic!("a read that must succeed");
            };
            assert_eq!(u64::from(bytes[0] - b'0'), place % 10);
            let first = !std::mem::replace(&mut seen[usize::try_from(place).unwrap()], true);
            assert!(first, "token {place} came twice");
        }
    }
    disk.io.wait();
    disk.io.poll(&mut out);
    assert!(out.is_empty());
    assert_eq!(disk.read(file, 0, 2), b"01");
}

/// A user's first mail, twice.
fn work(log: &RelPath, crc: u32, sync: WorkSync) -> Work {
    let user = entry("u");
    let seg = user.entry("1.mbox").unwrap();
    let info = user.entry("info").unwrap();
    let write = |path: &RelPath, offset, pieces: &[&'static str]| Step::Write {
        path: path.clone(),
        offset,
        pieces: pieces
            .iter()
            .map(|piece| Piece::Bytes(Bytes::from_static(piece.as_bytes())))
            .collect(),
    };
    let steps = vec![
        Step::MakeDir(user.clone()),
        write(&seg, 0, &["ab", "", "cd"]),
        write(&info, 0, &["I"]),
        write(&seg, 4, &["ef"]),
        Step::Write {
            path: seg.clone(),
            offset: 6,
            pieces: vec![Piece::Log {
                path: log.clone(),
                offset: 4090,
                len: 12,
                crc,
            }],
        },
        write(&info, 10, &["J"]),
        write(&user.entry("2.part").unwrap(), 0, &["P"]),
        Step::Rename {
            from: user.entry("2.part").unwrap(),
            to: user.entry("2.mbox").unwrap(),
        },
        Step::Replace {
            path: user.entry("folders").unwrap(),
            data: Bytes::from_static(b"INBOX"),
        },
        Step::Unlink(user.entry("gone").unwrap()),
    ];
    Work { steps, sync }
}

pub(crate) fn materialise_writes_what_it_is_told<R: Rig>() {
    let mut rig = R::new();
    let mut disk = Driver::new(rig.io());
    let log = disk.log_file(16 << 10);
    let (file, _) = disk.open(&log, OpenMode::Log);
    disk.log_write(file, 0, b"xy");
    let crc = crc32fast::hash(b"xxxxxxyyyyyy");
    for sync in [WorkSync::Later, WorkSync::Each, WorkSync::Each] {
        let done = disk.run(Op::Materialise(vec![work(&log, crc, sync)]));
        match done.unwrap() {
            Done::Materialised { bytes, syncs } => {
                assert_eq!(bytes, 6 + 12 + 2 + 1 + 5);
                // Replace always syncs its file.
                assert_eq!(syncs > 1, sync == WorkSync::Each);
            }
            other => panic!("{other:?}"),
        }
        let user = entry("u");
        let read =
            |disk: &mut Driver<_>, name: &str| disk.read_file(&user.entry(name).unwrap()).unwrap();
        assert_eq!(read(&mut disk, "1.mbox"), b"abcdefxxxxxxyyyyyy");
        assert_eq!(read(&mut disk, "info"), b"I\0\0\0\0\0\0\0\0\0J");
        assert_eq!(read(&mut disk, "2.mbox"), b"P");
        assert_eq!(read(&mut disk, "folders"), b"INBOX");
        let names: Vec<_> = disk.list(&user).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["1.mbox", "2.mbox", "folders", "info"]);
    }
    let error = disk.run(Op::Materialise(vec![work(&log, crc ^ 1, WorkSync::Later)]));
    let error = error.unwrap_err();
    assert_eq!((error.operation, error.errno), ("checksum", libc::EIO));
    assert_eq!(error.path, log.as_str());
    let none = Work {
        steps: vec![Step::Rename {
            from: entry("no"),
            to: entry("nor"),
        }],
        sync: WorkSync::Later,
    };
    assert_eq!(disk.errno(Op::Materialise(vec![none])), libc::ENOENT);
}

pub(crate) fn messages_are_proved_while_they_are_copied<R: Rig>() {
    let mut rig = R::new();
    let mut disk = Driver::new(rig.io());
    let line = |stored: &[u8]| StoreLine {
        mailbox: MailboxId::INBOX,
        uidvalidity: 1,
        uid: 2,
        guid: Guid::new([3; 16]),
        internal_date: WallNs::new(0),
        stored_len: u32::try_from(stored.len()).unwrap(),
        stored_crc: crc32fast::hash(stored),
        format_flags: 0,
    };
    let (first, second) = (line(b"first\n"), line(b"the second\n"));
    let mut file = b"junk".to_vec();
    let mut pieces = Vec::new();
    for (line, stored) in [(first, &b"first\n"[..]), (second, b"the second\n")] {
        let prefix = crate::mbox::prefix(b"a@b.test", line.internal_date, &line);
        pieces.push(Piece::Message {
            path: entry("1.mbox"),
            offset: file.len() as u64,
            skip: u16::try_from(prefix.len()).unwrap(),
            line,
        });
        file.extend_from_slice(&prefix);
        file.extend_from_slice(stored);
        file.push(b'\n');
    }
    let (id, _) = disk.open(&entry("1.mbox"), OpenMode::Create);
    disk.ok(Op::Write {
        file: id,
        offset: 0,
        data: Bytes::from(file.clone()),
    });
    let copy = |pieces: &[Piece]| {
        let write = Step::Write {
            path: entry("2.part"),
            offset: 0,
            pieces: pieces.to_vec(),
        };
        Op::Materialise(vec![Work {
            steps: vec![write],
            sync: WorkSync::Each,
        }])
    };
    assert!(disk.run(copy(&pieces)).is_ok());
    assert_eq!(disk.read_file(&entry("2.part")).unwrap(), file[4..]);
    // Another store line than the index tells, a place where no message is, one that ends too early.
    let other = |change: fn(&mut u64, &mut StoreLine)| {
        let mut pieces = pieces.clone();
        if let Some(Piece::Message { offset, line, .. }) = pieces.last_mut() {
            change(offset, line);
        }
        pieces
    };
    let damaged = [
        other(|_, line| line.uid = 9),
        other(|_, line| line.stored_crc ^= 1),
        other(|offset, _| *offset -= 1),
        other(|offset, _| *offset += 1),
        other(|offset, _| *offset = 1 << 40),
        other(|_, line| line.stored_len = u32::MAX),
    ];
    for pieces in damaged {
        let error = disk.run(copy(&pieces)).unwrap_err();
        assert_eq!(error.operation, "verify a message in");
        assert_eq!(error.path, entry("1.mbox").as_str());
        assert!(!error.is_no_space(), "{error}");
    }
}

pub(crate) fn small_files_are_read_within_their_bound<R: Rig>() {
    let mut rig = R::new();
    let mut disk = Driver::new(rig.io());
    disk.create(&entry("a"), b"0123456789");
    assert_eq!(disk.read_file(&entry("a")).unwrap(), b"0123456789");
    assert_eq!(disk.read_file(&entry("b")).unwrap_err().errno, libc::ENOENT);
    let op = Op::ReadFile {
        path: entry("a"),
        bytes_max: 9,
    };
    assert_eq!(disk.errno(op), libc::EFBIG);
    disk.ok(Op::MakeDir { path: entry("d") });
    assert_eq!(disk.read_file(&entry("d")).unwrap_err().errno, libc::EISDIR);
    match disk.run(Op::FreeSpace).unwrap() {
        Done::Space {
            free_bytes,
            total_bytes,
            free_inodes,
            total_inodes,
        } => {
            assert!(free_bytes > 0 && free_bytes <= total_bytes);
            assert!(free_inodes > 0 && free_inodes <= total_inodes);
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) fn line_ends_are_put_back<R: Rig>() {
    let mut rig = R::new();
    let mut disk = Driver::new(rig.io());
    disk.create(&entry("a"), b"From x\nline\n\nend");
    let copy = |skip| Op::CopyExpanded {
        from: entry("a"),
        to: entry("b"),
        skip,
    };
    match disk.run(copy(7)).unwrap() {
        Done::Copied { crc, bytes } => {
            assert_eq!(bytes, 18);
            assert_eq!(crc, crc32fast::hash(b"line\r\n\r\nend"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        disk.read_file(&entry("b")).unwrap(),
        b"From x\nline\r\n\r\nend"
    );
    assert_eq!(disk.errno(copy(7)), libc::EEXIST);
    let missing = Op::CopyExpanded {
        from: entry("none"),
        to: entry("c"),
        skip: 0,
    };
    assert_eq!(disk.errno(missing), libc::ENOENT);
}

pub(crate) fn a_drop_with_ops_in_flight_ends<R: Rig>() {
    let mut rig = R::new();
    let mut disk = Driver::new(rig.io());
    let log = disk.log_file(1 << 20);
    let (file, _) = disk.open(&log, OpenMode::Log);
    for block in 0..64 {
        let mut buf = AlignedBuf::zeroed(4096);
        buf.fill(5);
        disk.start(Op::LogWrite {
            file,
            offset: block * 4096,
            buf,
            len: 4096,
        });
        disk.start(Op::Read {
            file,
            offset: 0,
            len: 4096,
        });
        disk.start(Op::Sync { file });
        disk.start(Op::ListDir {
            path: RelPath::root(),
        });
    }
    disk.io.poll(&mut Vec::new());
    drop(disk);
    let mut disk = Driver::new(rig.io());
    let (file, _) = disk.open(&log, OpenMode::Log);
    let (blocks, count) = disk.log_read(file, 0, 1 << 18);
    assert_eq!(count, 1 << 18);
    assert!(blocks.iter().all(|byte| [0, 5].contains(byte)));
}

/// Makes a test of each for one rig.
macro_rules! conformance {
    ($rig:ty) => {
        conformance!($rig:
            opens_say_what_is_wrong,
            reads_end_where_the_file_ends,
            log_files_keep_what_is_written,
            failed_log_ops_give_the_buffer_back,
            names_behave_like_names,
            a_closed_handle_is_never_another_file,
            a_full_table_gives_the_op_back_and_loses_nothing,
            materialise_writes_what_it_is_told,
            messages_are_proved_while_they_are_copied,
            small_files_are_read_within_their_bound,
            line_ends_are_put_back,
            a_drop_with_ops_in_flight_ends
        );
    };
    ($rig:ty: $($name:ident),+) => {
        $(
            #[test]
            fn $name() {
                $crate::io::conformance::$name::<$rig>();
            }
        )+
    };
}
pub(crate) use conformance;
