//! The options of a connection, as `NatsOptions` of `vecmq` hands them in.

use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::nats::{Auth, NatsOptions, Seed, Tls};
use crate::py::hub::field;

/// Reads the options that `vecmq._nats_options` has checked; every key is there.
pub(super) fn nats_options(options: &Bound<'_, PyDict>) -> PyResult<NatsOptions> {
    let seconds = |name| field(options, name).map(Duration::from_secs_f64);
    let cert: Option<PathBuf> = field(options, "tls_cert_path")?;
    let key: Option<PathBuf> = field(options, "tls_key_path")?;
    Ok(NatsOptions {
        servers: field(options, "servers")?,
        auth: auth(options)?,
        tls: Tls {
            required: field(options, "tls")?,
            first: field(options, "tls_first")?,
            ca: field(options, "tls_ca_path")?,
            identity: cert.zip(key),
        },
        name: field(options, "name")?,
        inbox_prefix: field(options, "inbox_prefix")?,
        connect_timeout: seconds("connect_timeout_s")?,
        request_timeout: seconds("request_timeout_s")?,
        ping_interval: seconds("ping_interval_s")?,
        reconnect_wait: seconds("reconnect_wait_s")?,
        max_reconnects: field(options, "max_reconnects")?,
        max_pending: field(options, "max_pending")?,
    })
}

fn auth(options: &Bound<'_, PyDict>) -> PyResult<Auth> {
    let text = |name| field::<Option<String>>(options, name);
    let file = |name| field::<Option<PathBuf>>(options, name);
    let seed = text("nkey_seed")?.map(Seed::Text).or(file("nkey_path")?.map(Seed::File));
    Ok(match (text("token")?, file("creds_path")?, text("user_jwt")?, seed, text("user")?) {
        (Some(token), ..) => Auth::Token(token),
        (_, Some(path), ..) => Auth::CredsFile(path),
        (_, _, Some(jwt), Some(seed), _) => Auth::Jwt { jwt, seed },
        (_, _, _, Some(seed), _) => Auth::NKey(seed),
        (_, _, _, _, Some(user)) => {
            Auth::UserPassword { user, password: text("password")?.unwrap_or_default() }
        }
        _ => Auth::None,
    })
}
