//! One operation: a stream, published to and received from at the same time.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::{self, Context, consumer, stream};
use futures_util::StreamExt;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::Failure;
use crate::payloads::{Checker, Payloads};
use crate::spec::{Spec, WINDOW_BYTES, Workload};

/// A receiver that gets nothing for this long has lost the rest.
const STALL: Duration = Duration::from_secs(30);
/// How long to look for messages beyond the last one.
const EXTRA: Duration = Duration::from_millis(100);
/// Below this a sleep oversleeps; the wait for the next due message turns into a loop.
const SPIN: Duration = Duration::from_micros(200);
const EXPIRES: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(15);
/// The server's limit for what may be unacknowledged; far above every window.
const ACK_PENDING_MSGS: i64 = 65536;
const FETCH_MSGS: usize = 1000;

/// A stream, its consumer and the payloads.
pub(crate) struct Operation {
    name: String,
    payloads: Payloads,
    consumer: consumer::PullConsumer,
}

impl Operation {
    /// Makes all that is not on the clock.
    pub(crate) async fn prepare(
        context: &Context,
        spec: &Spec,
        number: u64,
    ) -> Result<Self, Failure> {
        let name = format!("bench-{number}");
        let config = stream::Config {
            name: name.clone(),
            subjects: vec![name.clone()],
            storage: stream::StorageType::File,
            ..Default::default()
        };
        let stream = context.create_stream(config).await?;
        let config = consumer::pull::Config {
            durable_name: Some("bench".to_owned()),
            // One acknowledgement stands for all before it.
            ack_policy: consumer::AckPolicy::All,
            max_ack_pending: ACK_PENDING_MSGS,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await?;
        Ok(Self { name, payloads: Payloads::new(&spec.sizes, number), consumer })
    }

    /// Deletes the stream.
    pub(crate) async fn delete(self, context: &Context) -> Result<(), Failure> {
        context.delete_stream(&self.name).await?;
        Ok(())
    }

    /// Publishes and receives; returns the sample.
    pub(crate) async fn run(&self, publishing: &Context, spec: &Spec) -> Result<Value, Failure> {
        let largest = spec.sizes.iter().max().copied().unwrap_or(1);
        let batch = (WINDOW_BYTES / largest).clamp(1, FETCH_MSGS);
        let mut checker = Checker::new(self.payloads.clone());
        let is_concurrent = spec.workload != Workload::Publish;
        let publisher = Publisher {
            context: publishing.clone(),
            name: self.name.clone(),
            payloads: self.payloads.clone(),
            window: spec.window,
            rate_per_s: spec.rate_per_s,
        };
        let started = Instant::now();
        let cpu_s = process_cpu_s();
        // A thread of its own: at a rate it sleeps more exactly than tokio's timers do.
        let handle = Handle::current();
        let thread = thread::spawn(move || handle.block_on(publisher.run(started)));
        let mut ended = started;
        if is_concurrent {
            ended = self.receive(&mut checker, batch, started).await?;
        }
        let joined = tokio::task::spawn_blocking(move || thread.join()).await?;
        let acknowledged = joined.map_err(|_| "the publisher panicked")??;
        let published_cpu_s = process_cpu_s();
        if !is_concurrent {
            self.receive(&mut checker, batch, started).await?;
        }
        let end = if is_concurrent { acknowledged.max(ended) } else { acknowledged };
        Ok(json!({
            "seconds": end.duration_since(started).as_secs_f64(),
            "published_s": acknowledged.duration_since(started).as_secs_f64(),
            "verify_s": if is_concurrent { checker.verify.as_secs_f64() } else { 0.0 },
            "verify_cpu_s": checker.verify.as_secs_f64(),
            "levels": ["stored"],
            "wire_bytes": null,
            // Of the two together where they overlap.
            "publish_cpu_s": published_cpu_s - cpu_s,
            "receive_cpu_s": process_cpu_s() - published_cpu_s,
            "received_count": checker.received,
            "lost_count": checker.missing,
            "duplicate_count": checker.duplicates,
            "unordered_count": checker.unordered,
            "wrong_count": checker.wrong,
            "latencies_ns": spec.rate_per_s.map(|rate| checker.latencies(rate)),
        }))
    }

    /// Receives, verifies and acknowledges until the last message or a stall.
    async fn receive(
        &self,
        checker: &mut Checker,
        batch: usize,
        started: Instant,
    ) -> Result<Instant, Failure> {
        let session = self.consumer.stream().max_messages_per_batch(batch);
        let mut messages = session.expires(EXPIRES).heartbeat(HEARTBEAT).messages().await?;
        let mut unacknowledged = 0;
        while checker.missing > 0 {
            let Ok(Some(message)) = timeout(STALL, messages.next()).await else {
                break;
            };
            let message = message?;
            checker.take(&message.payload, started);
            unacknowledged += 1;
            // A half, so that the server never waits for it.
            if unacknowledged * 2 >= batch || checker.missing == 0 {
                message.ack().await?;
                unacknowledged = 0;
            }
        }
        let ended = Instant::now();
        while let Ok(Some(message)) = timeout(EXTRA, messages.next()).await {
            checker.take(&message?.payload, started);
        }
        Ok(ended)
    }
}

/// Publishes with a window of acknowledgements in flight.
struct Publisher {
    context: jetstream::Context,
    name: String,
    payloads: Payloads,
    window: usize,
    rate_per_s: Option<f64>,
}

impl Publisher {
    /// Returns when the last acknowledgement came.
    async fn run(self, started: Instant) -> Result<Instant, Failure> {
        let mut acks: VecDeque<(PublishAckFuture, usize)> = VecDeque::with_capacity(self.window);
        let mut bytes = 0;
        for (number, payload) in self.payloads.all().iter().enumerate() {
            if let Some(rate_per_s) = self.rate_per_s {
                wait_until(started + Duration::from_secs_f64(number as f64 / rate_per_s));
            }
            while acks.len() >= self.window || bytes + payload.len() > WINDOW_BYTES {
                let Some((ack, size)) = acks.pop_front() else {
                    break;
                };
                ack.await?;
                bytes -= size;
            }
            let ack = self.context.publish(self.name.clone(), payload.clone()).await?;
            acks.push_back((ack, payload.len()));
            bytes += payload.len();
            if self.window == 1
                && let Some((ack, size)) = acks.pop_front()
            {
                ack.await?;
                bytes -= size;
            }
        }
        for (ack, _) in acks {
            ack.await?;
        }
        Ok(Instant::now())
    }
}

fn process_cpu_s() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

/// Blocks this thread, which is the publisher's own.
fn wait_until(due: Instant) {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.saturating_sub(SPIN));
    }
}
