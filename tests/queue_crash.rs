//! kill -9 in the middle of appends: everything acknowledged is there, in order, without a hole.
//!
//! The child is this test binary itself, started again with a directory in an environment variable.
//! `VECMQ_KILLS` sets the number of kills (default 10).

#![cfg(feature = "queue")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::print_stdout, reason = "the counts are the result")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use vecmq::ErrorKind;
use vecmq::queue::{Appender, GroupStart, Queue, QueueOptions};

const CHILD: &str = "VECMQ_CRASH_DIRECTORY";
const PRIVATE: &str = "VECMQ_CRASH_PRIVATE";

/// What the record at `seq` holds: its length and bytes depend on nothing else.
fn value(seq: u64) -> Vec<u8> {
    let length = [100, 1000, 30_000, 7].into_iter().nth(usize::try_from(seq % 4).unwrap()).unwrap();
    vec![u8::try_from(seq % 253).unwrap(); length]
}

/// In the child: appends, acknowledges on stdout, moves a cursor, until it is killed.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let queue = Queue::open(Path::new(&directory), QueueOptions::default()).unwrap();
    let topic = queue.topic("t").unwrap();
    let group = topic.group("g", GroupStart::First).unwrap();
    let mut out = std::io::stderr();
    loop {
        let many = if topic.next_seq().is_multiple_of(3) { 20 } else { 1 };
        let range = topic.append(1, |appender| {
            for _ in 0..many {
                appender.push(1, vec![value(appender.next_seq()).into()]);
            }
            Ok(())
        });
        let last = *range.unwrap().end();
        group.ack_through(last - 1).unwrap();
        // While the log is stalled it is saved a moment later; the kill may come before.
        while topic.cursor("g").unwrap() < Some(last) {
            std::thread::sleep(Duration::from_millis(1));
        }
        writeln!(out, "acked {last}").unwrap();
    }
}

#[test]
fn kill_9_loses_nothing_acknowledged() {
    let kills: u32 = std::env::var("VECMQ_KILLS").map_or(10, |kills| kills.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("queue");
    let mut acked = 0;
    for kill in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // Until it has opened the directory; then some more, a different time in every cycle.
        let first = lines.next().unwrap().unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(kill * 7 % 40)));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in std::iter::once(first).chain(lines.map_while(Result::ok)) {
            if let Some(seq) = line.strip_prefix("acked ") {
                acked = seq.parse::<u64>().unwrap_or(acked).max(acked);
            }
        }
        let queue = Queue::open(&path, QueueOptions::default()).unwrap();
        let topic = queue.existing_topic("t").unwrap();
        assert!(topic.next_seq() > acked, "lost: {acked} acknowledged, next {}", topic.next_seq());
        let cursor = topic.cursor("g").unwrap().unwrap();
        assert!(cursor >= acked && cursor < topic.next_seq());
        let mut next = 1;
        while next < topic.next_seq() {
            for record in topic.read(next, 10_000, 64 << 20).unwrap() {
                assert_eq!(record.first_seq, next);
                assert_eq!(record.value, value(next));
                next += 1;
            }
        }
        queue.close().unwrap();
    }
    println!("kills {kills}, acknowledged {acked}, lost 0");
    assert!(acked > 0);
}

/// Whatever the umask: it is the shell's that starts the child.
#[test]
fn directories_and_files_are_private() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a").join("queue");
    for umask in ["000", "022", "077"] {
        let done = Command::new("sh")
            .args(["-c", &format!("umask {umask}; exec \"$0\" private --exact --nocapture")])
            .arg(std::env::current_exe().unwrap())
            .env(PRIVATE, &path)
            .status()
            .unwrap();
        assert!(done.success(), "umask {umask}");
    }
}

/// In the child: every mode, while the queue is open and after its close.
#[test]
fn private() {
    let Some(directory) = std::env::var_os(PRIVATE) else { return };
    let path = Path::new(&directory);
    let queue = Queue::open(path, QueueOptions::default()).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(path), mode(&path.join("OWNER"))), (0o700, 0o600));
    let topic = queue.topic("t").unwrap();
    for _ in 0..40 {
        let push = |appender: &mut Appender| {
            appender.push(1, vec![value(2).into(), vec![1; 1 << 20].into()]);
            appender.push(200, vec![vec![1; 12_000].into()]);
            Ok(())
        };
        topic.append(1, push).unwrap();
    }
    queue.close().unwrap();
    let mut directories = vec![path.to_owned()];
    let mut files = 0;
    while let Some(directory) = directories.pop() {
        assert_eq!(mode(&directory), 0o700);
        for entry in std::fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
            } else {
                assert_eq!(mode(&entry.path()), 0o600, "{}", entry.path().display());
                files += 1;
            }
        }
    }
    println!("files {files}, all 0600; directories 0700");
}

/// A flipped byte in the middle of the write-ahead log refuses to open; a torn tail is what a kill
/// leaves, and costs only what was never acknowledged: here nothing says that it was.
#[test]
fn a_damaged_middle_is_refused_and_a_torn_tail_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let (whole, path) = (directory.path().join("whole"), directory.path().join("copy"));
    let queue = Queue::open(&whole, QueueOptions::default()).unwrap();
    let topic = queue.topic("t").unwrap();
    for seq in 1..=200 {
        topic
            .append(1, |appender| {
                appender.push(1, vec![value(seq).into()]);
                Ok(())
            })
            .unwrap();
    }
    // Copied while open: a closed queue has written its log out.
    copy(&whole, &path);
    let log = std::fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|file| file.extension().is_some_and(|ending| ending == "log"))
        .max_by_key(|file| std::fs::metadata(file).unwrap().len())
        .unwrap();
    let bytes = std::fs::read(&log).unwrap();
    let mut flipped = bytes.clone();
    let middle = flipped.len() / 2;
    *flipped.get_mut(middle).unwrap() ^= 0x10;
    std::fs::write(&log, &flipped).unwrap();
    let refused = Queue::open(&path, QueueOptions::default()).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    std::fs::remove_dir_all(&path).unwrap();
    copy(&whole, &path);
    std::fs::write(&log, bytes.get(..bytes.len() - 5).unwrap()).unwrap();
    std::fs::remove_file(path.join("MARK")).unwrap();
    let reopened = Queue::open(&path, QueueOptions::default()).unwrap();
    assert_eq!(reopened.existing_topic("t").unwrap().next_seq(), 200);
    assert!(reopened.recovery().is_repaired() && reopened.recovery().wal_dropped_bytes > 0);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
