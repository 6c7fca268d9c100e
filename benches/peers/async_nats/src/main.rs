//! async-nats as a worker of `vecmq bench`; docs/bench-workers.md is the contract.
//!
//! Two connections in one process with tokio's threads: one publishes with a window of
//! acknowledgements in flight, one receives from a pull consumer.

mod operation;
mod payloads;
mod spec;

use std::error::Error;
use std::io::{self, BufRead, StdinLock, Write};
use std::process::ExitCode;
use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::{Context, ContextBuilder};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use crate::operation::Operation;
use crate::spec::{Spec, Workload};

/// Whatever went wrong; it becomes an answer.
type Failure = Box<dyn Error + Send + Sync>;

const LOCK: &str = include_str!("../Cargo.lock");
const TIMEOUT: Duration = Duration::from_mins(1);

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
    if spec.workload == Workload::Core {
        return Err("expected workload pubsub, publish or latency, got core".into());
    }
    // Its threads go on while this one waits for a line, so that the server's pings are answered.
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    let publishing = runtime.block_on(connect(&spec))?;
    let receiving = runtime.block_on(connect(&spec))?;
    let versions = json!({"async-nats": locked_version()});
    answer(&json!({
        "ready": true, "versions": versions, "server_pids": [], "batch": spec.window,
    }))?;
    let mut operation: Option<Operation> = None;
    let mut is_prepared = false;
    for line in stdin.lines() {
        let line = line?;
        if let Some(number) = line.strip_prefix("prepare ") {
            if let Some(last) = operation.take() {
                runtime.block_on(last.delete(&receiving))?;
            }
            let number = number.trim().parse()?;
            operation = Some(runtime.block_on(Operation::prepare(&receiving, &spec, number))?);
            is_prepared = true;
            answer(&json!({"prepared": true}))?;
        } else if let ("go", Some(operation), true) = (line.trim(), &operation, is_prepared) {
            is_prepared = false;
            answer(&run(&runtime, operation, &publishing, &spec)?)?;
        } else {
            return Err(format!("expected 'prepare N', then 'go', got {line:?}").into());
        }
    }
    Ok(())
}

fn run(
    runtime: &Runtime,
    operation: &Operation,
    publishing: &Context,
    spec: &Spec,
) -> Result<Value, Failure> {
    runtime.block_on(operation.run(publishing, spec))
}

async fn connect(spec: &Spec) -> Result<Context, Failure> {
    let options = spec.token.clone().map_or_else(ConnectOptions::new, ConnectOptions::with_token);
    let client = options.connect(&spec.url).await?;
    Ok(ContextBuilder::new().timeout(TIMEOUT).ack_timeout(TIMEOUT).build(client))
}

/// The version of async-nats that this was built with.
fn locked_version() -> &'static str {
    LOCK.split_once("name = \"async-nats\"\nversion = \"")
        .and_then(|(_, rest)| rest.split_once('"'))
        .map_or("unknown", |(version, _)| version)
}

fn answer(value: &Value) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{value}")?;
    stdout.flush()
}
