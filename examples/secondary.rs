use std::io::Read;
use std::time::Instant;
fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let records: u64 = std::env::args().nth(2).unwrap().parse().unwrap();
    let mut o = rocksdb::Options::default();
    o.set_max_open_files(-1);
    let sec = tempfile::tempdir().unwrap();
    let queue = format!("{dir}/queue");
    let db = rocksdb::DB::open_cf_as_secondary(
        &o,
        queue.as_str(),
        sec.path().to_str().unwrap(),
        &["default", "log"],
    )
    .unwrap();
    println!("ready");
    let (mut next, mut seen, mut bytes, mut rounds) = (vec![0u8; 0], 0u64, 0usize, 0u64);
    let cf = db.cf_handle("log").unwrap();
    while seen < records {
        db.try_catch_up_with_primary().unwrap();
        rounds += 1;
        let mut it = db.raw_iterator_cf(&cf);
        it.seek(&next);
        while it.valid() {
            let k = it.key().unwrap();
            bytes += it.value().unwrap().to_vec().len();
            next = k.to_vec();
            next.push(0);
            seen += 1;
            it.next();
        }
        it.status().unwrap();
    }
    let db_done = now();
    // large values lie in files
    let mut buf = Vec::new();
    if let Ok(list) = std::fs::read_dir(format!("{queue}/values")) {
        for f in list {
            buf.clear();
            bytes += std::fs::File::open(f.unwrap().path()).unwrap().read_to_end(&mut buf).unwrap();
        }
    }
    println!("{} {} {} {}", db_done, now(), bytes, rounds);
    let _ = Instant::now();
}
fn now() -> f64 {
    let t = {
        let s = std::fs::read_to_string("/proc/uptime").unwrap();
        let _ = s;
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap()
    };
    t.as_secs_f64()
}
