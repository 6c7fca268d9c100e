//! What `librocksdb-sys` calls of bindgen 0.59, writing no declarations; see `Cargo.toml`.

use std::io::Result;
use std::path::Path;

/// Takes every option and ignores it.
#[derive(Default)]
pub struct Builder;

impl Builder {
    pub fn header<T>(self, _: T) -> Self {
        self
    }

    pub fn derive_debug(self, _: bool) -> Self {
        self
    }

    pub fn blocklist_type<T>(self, _: T) -> Self {
        self
    }

    pub fn ctypes_prefix<T>(self, _: T) -> Self {
        self
    }

    pub fn size_t_is_usize(self, _: bool) -> Self {
        self
    }

    pub fn generate(self) -> Result<Bindings> {
        Ok(Bindings)
    }
}

pub struct Bindings;

impl Bindings {
    /// Writes an empty file.
    pub fn write_to_file(&self, path: impl AsRef<Path>) -> Result<()> {
        std::fs::write(path, "")
    }
}
