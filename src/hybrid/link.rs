//! How fast the link to the server is: said by the user, or measured on what was published.

use std::time::Duration;

use crate::frame::Link;

/// Messages of that many bytes and more are a measure: smaller ones show the round trip.
const MEASURED_BYTES_MIN: f64 = 1_048_576.0;
/// Samples of which the fastest counts: the others waited for something else.
const SAMPLES: usize = 8;
/// Samples without which nothing is known.
const SAMPLES_MIN: usize = 3;
/// A server of this host that is slower than this by the name of its URL is behind a tunnel.
const SAME_HOST_BYTES_PER_S_MIN: f64 = 150e6;

/// What is known of the link.
#[derive(Debug)]
pub(super) struct LinkSpeed {
    /// What the user says counts in any case.
    said: Option<f64>,
    is_loopback: bool,
    samples: [f64; SAMPLES],
    count: usize,
}

impl LinkSpeed {
    /// `url`: the server's, where there is one.
    pub(super) fn new(link_bytes_per_s: Option<u64>, url: Option<&str>) -> Self {
        Self {
            said: link_bytes_per_s.map(|bytes_per_s| bytes_per_s as f64),
            is_loopback: url.is_none_or(is_loopback),
            samples: [0.0; SAMPLES],
            count: 0,
        }
    }

    /// What is known now.
    pub(super) fn link(&self) -> Link {
        if let Some(said) = self.said {
            return Link::BytesPerS(said);
        }
        let fastest = self.samples.iter().copied().fold(0.0, f64::max);
        let is_known = self.count >= SAMPLES_MIN;
        match self.is_loopback {
            true if !is_known || fastest >= SAME_HOST_BYTES_PER_S_MIN => Link::SameHost,
            false if !is_known => Link::Unknown,
            _ => Link::BytesPerS(fastest),
        }
    }

    /// Messages of that many bytes on the wire, on the mean, took so long each.
    pub(super) fn observe(&mut self, wire_bytes: f64, cost: Duration) {
        if wire_bytes >= MEASURED_BYTES_MIN && !cost.is_zero() {
            let next = self.count % SAMPLES;
            if let Some(sample) = self.samples.get_mut(next) {
                *sample = wire_bytes / cost.as_secs_f64();
            }
            self.count += 1;
        }
    }
}

/// Every server of a URL, or of a list of them, is on this host by its name.
fn is_loopback(url: &str) -> bool {
    url.split(',').all(|one| {
        let address = one.rsplit_once("://").map_or(one, |(_, address)| address);
        let address = address.rsplit_once('@').map_or(address, |(_, address)| address);
        let host = match address.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => address.split([':', '/']).next().unwrap_or_default(),
        };
        let is_ip = host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        is_ip || host.eq_ignore_ascii_case("localhost")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_by_their_names() {
        for url in ["nats://127.0.0.1:4222", "tls://localhost", "u:p@[::1]:4", "127.0.0.1,[::1]"] {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["nats://10.0.0.1:4222", "example.org", "127.0.0.1,10.0.0.1", "[fe80::1]:4222"] {
            assert!(!is_loopback(url), "{url}");
        }
    }

    #[test]
    fn the_fastest_of_the_last_samples_counts() {
        let second = Duration::from_secs(1);
        let mut remote = LinkSpeed::new(None, Some("nats://10.0.0.1"));
        for _ in 0..9 {
            remote.observe(1e3, second);
        }
        assert_eq!(remote.link(), Link::Unknown);
        remote.observe(2e6, second);
        remote.observe(9e6, second);
        assert_eq!(remote.link(), Link::Unknown);
        remote.observe(2e6, second);
        assert_eq!(remote.link(), Link::BytesPerS(9e6));
        for _ in 0..SAMPLES {
            remote.observe(3e6, second);
        }
        assert_eq!(remote.link(), Link::BytesPerS(3e6));
    }

    #[test]
    fn a_slow_server_of_this_host_is_behind_a_tunnel() {
        let second = Duration::from_secs(1);
        let mut local = LinkSpeed::new(None, Some("nats://127.0.0.1"));
        assert_eq!(local.link(), Link::SameHost);
        local.observe(2e6, second);
        local.observe(3e8, second);
        local.observe(2e6, second);
        assert_eq!(local.link(), Link::SameHost);
        for _ in 0..SAMPLES {
            local.observe(2e6, second);
        }
        assert_eq!(local.link(), Link::BytesPerS(2e6));
        assert_eq!(LinkSpeed::new(None, None).link(), Link::SameHost);
    }

    #[test]
    fn what_the_user_says_counts() {
        for url in ["nats://127.0.0.1", "nats://10.0.0.1"] {
            let mut fixed = LinkSpeed::new(Some(5), Some(url));
            for _ in 0..SAMPLES {
                fixed.observe(2e6, Duration::from_secs(1));
            }
            assert_eq!(fixed.link(), Link::BytesPerS(5.0));
        }
    }
}
