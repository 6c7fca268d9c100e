//! A bare NATS client as a worker of `vecmq bench`; docs/bench-workers.md is the contract.
//!
//! Blocking sockets and nothing between them and the payloads: it shows what protocol and server
//! cost, so that what a client library adds can be told. It knows no reconnect and no TLS.

#[expect(dead_code, reason = "the other worker measures latencies too")]
#[path = "../../async_nats/src/payloads.rs"]
mod payloads;
#[expect(dead_code, reason = "the other worker publishes at a rate too")]
#[path = "../../async_nats/src/spec.rs"]
mod spec;

mod operation;
mod wire;

use std::error::Error;
use std::io::{self, BufRead, StdinLock, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::operation::Operation;
use crate::spec::{Spec, Workload};

/// Whatever went wrong; it becomes an answer.
type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let Err(failure) = serve(&mut io::stdin().lock()) else {
        return ExitCode::SUCCESS;
    };
    // When nobody reads it there is nobody to tell.
    let _ = answer(&json!({"error": "WorkerError", "message": failure.to_string()}));
    ExitCode::FAILURE
}

fn serve(stdin: &mut StdinLock<'_>) -> Result<(), Failure> {
    let mut line = String::new();
    stdin.read_line(&mut line)?;
    let spec = Spec::parse(&line)?;
    if spec.workload == Workload::Latency {
        return Err("expected workload pubsub, publish or core, got latency".into());
    }
    let versions = json!({"vectored": env!("CARGO_PKG_VERSION")});
    answer(&json!({
        "ready": true, "versions": versions, "server_pids": [], "batch": spec.window,
    }))?;
    let mut operation: Option<Operation> = None;
    for line in stdin.lines() {
        let line = line?;
        if let Some(number) = line.strip_prefix("prepare ") {
            operation = Some(Operation::prepare(&spec, number.trim().parse()?)?);
            answer(&json!({"prepared": true}))?;
        } else if let ("go", Some(operation)) = (line.trim(), operation.take()) {
            answer(&operation.run(&spec)?)?;
        } else {
            return Err(format!("expected 'prepare N', then 'go', got {line:?}").into());
        }
    }
    Ok(())
}

fn answer(value: &Value) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{value}")?;
    stdout.flush()
}
