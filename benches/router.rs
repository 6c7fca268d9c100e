//! The router: what every message pays for the choice of its route and for the learning from it.
//!
//! One operation is one message, whatever its size, so throughput is in messages.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run has failed")]

mod common;

use std::hint::black_box;
use std::time::Duration;

use common::Random;
use criterion::Throughput;
use vecmq::router::{Route, Router, RouterConfig};

/// Time between two messages.
const STEP: Duration = Duration::from_micros(10);

fn main() {
    let mut criterion = common::criterion();
    let mut group = criterion.benchmark_group("router");
    group.throughput(Throughput::Elements(1));
    let (mut router, mut now) = learned();
    assert!(router.explain(1).learned);
    for (name, size_bytes) in [("far", 100), ("near", router.threshold_bytes())] {
        group.bench_function(format!("choose/{name}"), |bencher| {
            bencher.iter(|| router.choose(black_box(size_bytes)));
        });
    }
    let mut sizes = sizes().into_iter().cycle();
    group.bench_function("observe", |bencher| {
        bencher.iter(|| {
            let size_bytes = sizes.next().unwrap();
            now += STEP;
            router.observe(Route::Queue, size_bytes, cost(Route::Queue, size_bytes), now)
        });
    });
    group.bench_function("choose_and_observe", |bencher| {
        bencher.iter(|| {
            let size_bytes = sizes.next().unwrap();
            now += STEP;
            let route = router.choose(size_bytes).route;
            router.observe(route, size_bytes, cost(route, size_bytes), now)
        });
    });
    group.bench_function("explain", |bencher| bencher.iter(|| router.explain(black_box(1 << 20))));
    group.finish();
    criterion.final_summary();
}

/// 256 B to 8 MiB, evenly in the logarithm.
fn sizes() -> Vec<u64> {
    let mut random = Random::new(3);
    (0..1024).map(|_| 1 << (8 + random.next() % 16)).collect()
}

/// The queue is cheaper up to 128 KiB.
fn cost(route: Route, size_bytes: u64) -> Duration {
    match route {
        Route::Queue => Duration::from_nanos(4_000 + size_bytes * 2),
        Route::Nats => Duration::from_nanos(135_072 + size_bytes),
    }
}

/// A router that knows both routes, and its clock.
fn learned() -> (Router, Duration) {
    let mut router = Router::new(RouterConfig::default()).unwrap();
    let mut now = Duration::ZERO;
    for size_bytes in sizes() {
        let route = router.choose(size_bytes).route;
        now += STEP;
        router.observe(route, size_bytes, cost(route, size_bytes), now);
    }
    (router, now)
}
