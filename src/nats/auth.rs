//! Who we are -> what the server's nonce is answered with.
//!
//! Files are read again for every connection, so that credentials can be exchanged while we run.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::{AuthError, ConnectOptions};
use nkeys::KeyPair;

use crate::error::{Error, ErrorKind, Result};
use crate::nats::options::{Auth, Seed};

/// Credentials and seeds are a few KiB; what is larger is no such file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Options that authenticate; once `spent` is set they let no connection come back.
///
/// # Errors
/// [`ErrorKind::Config`] for a file that cannot be used and a seed that is none.
pub(super) fn connect_options(
    auth: &Auth,
    spent: Option<Arc<AtomicBool>>,
) -> Result<ConnectOptions> {
    answer(auth, b"")?;
    let auth = auth.clone();
    Ok(ConnectOptions::with_auth_callback(move |nonce| {
        let is_spent = spent.as_ref().is_some_and(|spent| spent.load(Ordering::Acquire));
        let answered = if is_spent {
            Err(AuthError::new(config("this connection does not come back")))
        } else {
            answer(&auth, &nonce).map_err(AuthError::new)
        };
        std::future::ready(answered)
    }))
}

/// Says who we are; signs the nonce where that takes a seed.
fn answer(auth: &Auth, nonce: &[u8]) -> Result<async_nats::Auth> {
    let mut answer = async_nats::Auth::new();
    let seed = match auth {
        Auth::None => return Ok(answer),
        Auth::Token(token) => {
            answer.token = Some(token.clone());
            return Ok(answer);
        }
        Auth::UserPassword { user, password } => {
            (answer.username, answer.password) = (Some(user.clone()), Some(password.clone()));
            return Ok(answer);
        }
        Auth::CredsFile(path) => {
            let text = read(path)?;
            let (jwt, seed) = creds(&text).ok_or_else(|| {
                let expected = "expected a user JWT and a seed between BEGIN and END lines";
                config(&format!("credentials in {}: {expected}", path.display()))
            })?;
            answer.jwt = Some(jwt.to_owned());
            seed.to_owned()
        }
        Auth::Jwt { jwt, seed } => {
            answer.jwt = Some(jwt.clone());
            read_seed(seed)?
        }
        Auth::NKey(seed) => read_seed(seed)?,
    };
    // The cause names what is wrong with the seed, never the seed.
    let unusable =
        |error| Error::with_source(ErrorKind::Config, "nats: the seed cannot be used", error);
    let keys = KeyPair::from_seed(seed.trim()).map_err(unusable)?;
    answer.signature = Some(keys.sign(nonce).map_err(unusable)?);
    if answer.jwt.is_none() {
        answer.nkey = Some(keys.public_key());
    }
    Ok(answer)
}

fn read_seed(seed: &Seed) -> Result<String> {
    match seed {
        Seed::Text(seed) => Ok(seed.clone()),
        // `nk` writes a seed alone; a .creds file will do, too.
        Seed::File(path) => {
            let text = read(path)?;
            Ok(creds(&text).map_or(text.trim(), |(_, seed)| seed).to_owned())
        }
    }
}

fn read(path: &Path) -> Result<String> {
    let unusable = |error: std::io::Error| {
        let context = format!("nats: cannot read {}", path.display());
        Error::with_source(ErrorKind::Config, context, error)
    };
    let size_bytes = std::fs::metadata(path).map_err(unusable)?.len();
    if size_bytes > FILE_BYTES_MAX {
        let what = format!("{} has {size_bytes} bytes", path.display());
        return Err(config(&format!("{what}; expected {FILE_BYTES_MAX} at most")));
    }
    std::fs::read_to_string(path).map_err(unusable)
}

fn config(context: &str) -> Error {
    Error::new(ErrorKind::Config, format!("nats: {context}"))
}

/// JWT and seed of a .creds file: what stands between dashed BEGIN and END lines.
fn creds(text: &str) -> Option<(&str, &str)> {
    let mut lines = text.lines().map(str::trim);
    let mut after = |title: &str| {
        lines.find(|line| line.starts_with("---") && line.contains(title))?;
        lines.next().filter(|line| !line.is_empty() && !line.starts_with("---"))
    };
    Some((after("BEGIN NATS USER JWT")?, after("BEGIN USER NKEY SEED")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: &str = "SUANQDPB2RUOE4ETUA26CNX7FUKE5ZZKFCQIIW63OX225F2CO7UEXTM7ZY";

    #[test]
    fn a_creds_file_is_taken_apart_whatever_its_line_ends() {
        let text = "-----BEGIN NATS USER JWT-----\na.b.c\n------END NATS USER JWT------\n\n*** \
                    keep\n\n-----BEGIN USER NKEY SEED-----\nSUX\n------END USER NKEY SEED------\n";
        assert_eq!(creds(text), Some(("a.b.c", "SUX")));
        assert_eq!(creds(&text.replace('\n', "\r\n")), Some(("a.b.c", "SUX")));
        assert_eq!(creds("-----BEGIN NATS USER JWT-----\na.b.c\n"), None);
        assert_eq!(creds(SEED), None);
    }

    #[test]
    fn what_is_no_seed_is_refused_and_not_shown() {
        for seed in ["", "secret", &SEED[1..]] {
            let error = answer(&Auth::NKey(Seed::Text(seed.to_owned())), b"n").err();
            let error = error.map(|error| (error.kind(), error.to_string()));
            assert!(error.is_some_and(|(kind, text)| kind == ErrorKind::Config
                && (seed.is_empty() || !text.contains(seed))));
        }
        assert!(answer(&Auth::NKey(Seed::Text(SEED.to_owned())), b"n").is_ok());
    }
}
