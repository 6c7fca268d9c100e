//! Holds the dependency on `librocksdb-sys`; see `Cargo.toml`.
