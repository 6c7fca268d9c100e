use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    About, HEAD_BYTES, Head, Joining, META_BYTES_MAX, RANGES_MAX, Reply, Request, damaged,
};
use crate::error::ErrorKind;
use crate::hybrid::attach::runs;
use crate::hybrid::subscribe::SeekTo;
use crate::queue::{GroupInfo, GroupStart, Retention, TopicInfo};

fn requests() -> impl Strategy<Value = Request> {
    let range = (any::<u32>(), 1..u64::MAX / 2);
    let range = range.prop_map(|(start, count)| u64::from(start)..u64::from(start) + count);
    let ranges = prop::collection::vec(range.clone(), 0..20);
    let wait = any::<u64>().prop_map(Duration::from_micros);
    let joining =
        (".*", ".*", any::<bool>(), any::<Option<u64>>(), any::<Option<u32>>(), any::<bool>());
    let joining = joining.prop_map(|(topic, group, is_new, wait_us, deliveries_max, dead)| {
        let dead_letters = dead.then(|| format!("{topic}-dead"));
        let start = if is_new { GroupStart::New } else { GroupStart::First };
        let ack_wait = wait_us.map(Duration::from_micros);
        Joining { topic, group, start, ack_wait, deliveries_max, dead_letters }
    });
    let to = (0..4, any::<u64>(), any::<bool>()).prop_map(|(kind, value, inclusive)| match kind {
        0 => SeekTo::First,
        1 => SeekTo::New,
        2 => SeekTo::Seq { seq: value, inclusive },
        _ => SeekTo::Time { time_ms: value, inclusive },
    });
    prop_oneof![
        any::<u16>().prop_map(|version| Request::Hello { version }),
        Just(Request::Topics),
        Just(Request::Leave),
        ".*".prop_map(|topic| Request::Groups { topic }),
        ".*".prop_map(|topic| Request::TopicInfo { topic }),
        joining.prop_map(Request::Subscribe),
        (any::<u32>(), any::<u32>()).prop_map(|(id, messages)| Request::Want { id, messages }),
        ranges.clone().prop_map(Request::Ack),
        ranges.prop_map(Request::Extend),
        (range, wait).prop_map(|(seqs, delay)| Request::Nak { seqs, delay }),
        any::<u64>().prop_map(|seq| Request::AckThrough { seq }),
        (to, any::<u32>()).prop_map(|(to, generation)| Request::Seek { to, generation }),
    ]
}

proptest! {
    #[test]
    fn requests_come_out_as_they_went_in(request in requests()) {
        let (kind, meta) = request.encode();
        prop_assert_eq!(Request::decode(kind, &meta).ok(), Some(request));
    }

    #[test]
    fn cut_or_lengthened_requests_are_refused(
        request in requests(),
        cut in any::<prop::sample::Index>(),
    ) {
        let (kind, mut meta) = request.encode();
        if !meta.is_empty() {
            let short = meta.get(..cut.index(meta.len())).unwrap_or_default();
            prop_assert!(Request::decode(kind, short).is_err());
        }
        meta.push(0);
        prop_assert!(Request::decode(kind, &meta).is_err());
    }

    #[test]
    fn any_bytes_are_read_or_refused(kind in any::<u8>(), bytes in any::<Vec<u8>>()) {
        // Neither panics nor allocates by a length that is not there.
        let _ = Request::decode(kind % 14, &bytes);
        let _ = Reply::decode(kind % 8, &bytes);
        let _ = runs::decode(&bytes, &Bytes::from(bytes.clone()));
        let mut few = vec![0, 0, 0, 0, 1, 1, 0, 0, 0];
        few.extend_from_slice(&bytes);
        let _ = runs::decode(&few, &Bytes::from_static(&[0; 64]));
    }

    #[test]
    fn heads_over_a_limit_are_refused(
        kind in any::<u8>(),
        meta_bytes in any::<u32>(),
        payload_bytes in any::<u64>(),
    ) {
        let head = Head { kind, meta_bytes, payload_bytes };
        let bytes: [u8; HEAD_BYTES] = head.encode();
        match Head::decode(bytes, 1 << 20) {
            Ok(read) => {
                prop_assert_eq!(read, head);
                prop_assert!(meta_bytes <= META_BYTES_MAX && payload_bytes <= 1 << 20);
            }
            Err(error) => {
                prop_assert_eq!(error.kind(), ErrorKind::TooLarge);
                prop_assert!(meta_bytes > META_BYTES_MAX || payload_bytes > 1 << 20);
            }
        }
    }
}

#[test]
fn more_ranges_than_the_limit_are_refused() {
    let most = vec![1..2; RANGES_MAX];
    let (kind, meta) = Request::Ack(most.clone()).encode();
    assert!(Request::decode(kind, &meta).is_ok());
    let more = most.into_iter().chain(std::iter::once(5..6)).collect();
    let (kind, meta) = Request::Ack(more).encode();
    assert!(Request::decode(kind, &meta).is_err());
}

#[test]
fn replies_come_out_as_they_went_in() {
    let group = GroupInfo {
        name: "g".to_owned(),
        next_seq: 1,
        done_above: 2,
        lag: 3,
        handed_out: 4,
        subscribers: 5,
    };
    let info = TopicInfo {
        first_seq: 1,
        next_seq: 2,
        messages: 3,
        bytes: 4,
        file_bytes: 5,
        first_time_ms: Some(6),
        last_time_ms: None,
        open: 7,
    };
    let retention = Retention { age_ms_max: Some(1), unacked: true, ..Retention::default() };
    let replies = [
        Reply::Hello { version: 9 },
        Reply::Done,
        Reply::Topics(vec!["a".to_owned(), String::new()]),
        Reply::Groups(vec![group]),
        Reply::TopicInfo(Box::new((info, Some(retention)))),
        Reply::Failed(About::Wanted, damaged("x")),
        Reply::Failed(
            About::Earlier,
            crate::Error::new(ErrorKind::Rejected { code: 10_077 }, "no"),
        ),
    ];
    for reply in replies {
        let (kind, meta) = reply.encode();
        let again = Reply::decode(kind, &meta).map(|read| format!("{read:?}"));
        assert_eq!(again.ok(), Some(format!("{reply:?}")));
    }
}
