//! One operation: a stream, or a bare subject, published to and received from.

use std::io::IoSlice;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Failure;
use crate::payloads::{Checker, Payloads};
use crate::spec::{Spec, Workload};
use crate::wire::{Event, Reader, Writer, connect};

/// A receiver that gets nothing for this long has lost the rest.
const STALL: Duration = Duration::from_secs(30);
/// How long to look for messages beyond the last one.
const EXTRA: Duration = Duration::from_millis(100);
/// What goes into one write, where messages are small.
const WRITE_BYTES: usize = 64 << 10;
const WRITE_MSGS: usize = 256;

/// Connections, a stream and the payloads.
pub(crate) struct Operation {
    name: String,
    payloads: Payloads,
    publishing: (Writer, Reader),
    receiving: (Writer, Reader),
}

impl Operation {
    /// Makes all that is not on the clock.
    pub(crate) fn prepare(spec: &Spec, number: u64) -> Result<Self, Failure> {
        let name = format!("bench-{number}");
        let mut publishing = connect(spec)?;
        let mut receiving = connect(spec)?;
        publishing.0.subscribe(&acks_inbox(&name))?;
        receiving.0.subscribe(&receive_subject(&name, spec))?;
        if spec.workload != Workload::Core {
            let config = json!({"name": name, "subjects": [name], "storage": "file"});
            let subject = format!("STREAM.CREATE.{name}");
            publishing.1.request(&acks_inbox(&name), &subject, &config)?;
        }
        receiving.1.ping()?;
        if spec.workload == Workload::PubSub {
            consume(&mut publishing.1, &name)?;
        }
        let payloads = Payloads::new(&spec.sizes, number);
        Ok(Self { name, payloads, publishing, receiving })
    }

    /// Publishes and receives; returns the sample.
    pub(crate) fn run(self, spec: &Spec) -> Result<Value, Failure> {
        let Self { name, payloads, mut publishing, receiving: (writer, mut reader) } = self;
        let mut checker = Checker::new(payloads.clone());
        let is_concurrent = spec.workload != Workload::Publish;
        let started = Instant::now();
        let (window, is_core, subject) = (spec.window, spec.workload == Workload::Core, &name);
        let (acknowledged, received) = thread::scope(|scope| -> Result<_, Failure> {
            let (writing, acking) = &mut publishing;
            let payloads = &payloads;
            let publisher = scope.spawn(move || {
                if is_core {
                    publish_core(writing, acking, subject, payloads)
                } else {
                    publish(writing, acking, subject, payloads, window)
                }
            });
            let received = if is_concurrent {
                receive(&writer, &mut reader, &mut checker, started)?
            } else {
                started
            };
            let ended = publisher.join().map_err(|_| "the publisher panicked")??;
            Ok((ended, received))
        })?;
        if !is_concurrent {
            consume(&mut publishing.1, &name)?;
            receive(&writer, &mut reader, &mut checker, started)?;
        }
        if spec.workload != Workload::Core {
            let subject = format!("STREAM.DELETE.{name}");
            publishing.1.request(&acks_inbox(&name), &subject, &json!({}))?;
        }
        let end = acknowledged.max(received);
        Ok(json!({
            "seconds": end.duration_since(started).as_secs_f64(),
            "published_s": acknowledged.duration_since(started).as_secs_f64(),
            "verify_s": if is_concurrent { checker.verify.as_secs_f64() } else { 0.0 },
            "levels": [if is_core { "none" } else { "stored" }],
            "wire_bytes": null,
            "received_count": checker.received,
            "lost_count": checker.missing,
            "duplicate_count": checker.duplicates,
            "unordered_count": checker.unordered,
            "wrong_count": checker.wrong,
            "latencies_ns": null,
        }))
    }
}

fn acks_inbox(name: &str) -> String {
    format!("_INBOX.{name}.acks")
}

fn receive_subject(name: &str, spec: &Spec) -> String {
    if spec.workload == Workload::Core { name.to_owned() } else { format!("_INBOX.{name}.deliver") }
}

/// Makes the consumer that pushes the stream, from its start, to whoever receives.
fn consume(asking: &mut Reader, name: &str) -> Result<(), Failure> {
    let config = json!({
        "deliver_subject": format!("_INBOX.{name}.deliver"),
        "deliver_policy": "all",
        "ack_policy": "none",
        "flow_control": true,
        "idle_heartbeat": 15_000_000_000_u64,
    });
    let subject = format!("CONSUMER.CREATE.{name}");
    asking.request(&acks_inbox(name), &subject, &json!({"stream_name": name, "config": config}))
}

/// Publishes to the stream with a window of acknowledgements in flight; returns when the last came.
fn publish(
    writer: &Writer,
    reader: &mut Reader,
    name: &str,
    payloads: &Payloads,
    window: usize,
) -> Result<Instant, Failure> {
    let all = payloads.all();
    let (acked, acks) = channel();
    thread::scope(|scope| {
        let counting = scope.spawn(move || -> Result<(), Failure> {
            for _ in 0..all.len() {
                while !matches!(reader.next()?, Event::Message { .. }) {}
                if !reader.payload().starts_with(b"{\"stream\":") {
                    return Err(String::from_utf8_lossy(reader.payload()).into_owned().into());
                }
                // The publisher has failed; it says why.
                let _ = acked.send(());
            }
            Ok(())
        });
        let mut in_flight = 0;
        let mut next = 0;
        while next < all.len() {
            let Some(count) = take(&acks, in_flight == window) else { break };
            in_flight -= count;
            let room = (window - in_flight).min(WRITE_MSGS);
            let rest = all.get(next..).unwrap_or_default();
            let mut bytes = 0;
            let fits = rest.iter().take(room).take_while(|payload| {
                let is_first = bytes == 0;
                bytes += payload.len();
                is_first || bytes <= WRITE_BYTES
            });
            let count = fits.count();
            let heads: Vec<String> = (next..)
                .zip(rest)
                .take(count)
                .map(|(number, payload)| {
                    let headers = format!("NATS/1.0\r\nNats-Msg-Id: {name}.{number}\r\n\r\n");
                    let (size, total) = (headers.len(), headers.len() + payload.len());
                    format!("HPUB {name} {} {size} {total}\r\n{headers}", acks_inbox(name))
                })
                .collect();
            write(writer, &heads, rest)?;
            in_flight += count;
            next += count;
        }
        counting.join().map_err(|_| "the thread that counts acknowledgements panicked")??;
        Ok(Instant::now())
    })
}

/// How many acknowledgements came, at least one of a full window; None: no more will come.
fn take(acks: &Receiver<()>, is_full: bool) -> Option<usize> {
    let first = if is_full { acks.recv().ok().map(|()| 1)? } else { 0 };
    Some(first + acks.try_iter().count())
}

fn publish_core(
    writer: &Writer,
    reader: &mut Reader,
    name: &str,
    payloads: &Payloads,
) -> Result<Instant, Failure> {
    let mut rest = payloads.all();
    while let Some(first) = rest.first() {
        let count = (WRITE_BYTES / first.len().max(1)).clamp(1, WRITE_MSGS).min(rest.len());
        let (now, later) = rest.split_at(count);
        let heads: Vec<String> =
            now.iter().map(|payload| format!("PUB {name} {}\r\n", payload.len())).collect();
        write(writer, &heads, now)?;
        rest = later;
    }
    reader.ping()?;
    Ok(Instant::now())
}

fn write(writer: &Writer, heads: &[String], payloads: &[bytes::Bytes]) -> Result<(), Failure> {
    let mut slices = Vec::with_capacity(3 * heads.len());
    for (head, payload) in heads.iter().zip(payloads) {
        slices.extend([head.as_bytes(), payload, b"\r\n"].map(IoSlice::new));
    }
    Ok(writer.write(&mut slices)?)
}

/// Receives and verifies until the last message or a stall.
fn receive(
    writer: &Writer,
    reader: &mut Reader,
    checker: &mut Checker,
    started: Instant,
) -> Result<Instant, Failure> {
    reader.patience(STALL)?;
    while checker.missing > 0 && take_message(writer, reader, checker, started)? {}
    let ended = Instant::now();
    reader.patience(EXTRA)?;
    while take_message(writer, reader, checker, started)? {}
    Ok(ended)
}

/// Whether something came in time.
fn take_message(
    writer: &Writer,
    reader: &mut Reader,
    checker: &mut Checker,
    started: Instant,
) -> Result<bool, Failure> {
    match reader.next() {
        Ok(Event::Message { reply, is_status: true }) => {
            // Flow control asks, a heartbeat does not.
            if let Some(reply) = reply {
                writer.write(&mut [IoSlice::new(format!("PUB {reply} 0\r\n\r\n").as_bytes())])?;
            }
            Ok(true)
        }
        Ok(Event::Message { .. }) => {
            checker.take(reader.payload(), started);
            Ok(true)
        }
        Ok(Event::Pong) => Ok(true),
        Err(failure) if is_timeout(&failure) => Ok(false),
        Err(failure) => Err(failure),
    }
}

fn is_timeout(failure: &Failure) -> bool {
    use std::io::ErrorKind;
    failure
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}
