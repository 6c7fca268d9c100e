//! dtype and shape of an array payload.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};

/// Longest dtype name, in bytes.
const DTYPE_BYTES_MAX: usize = 32;
/// Most dimensions of a shape.
const DIMS_MAX: usize = 32;
/// Largest element, in bytes.
const ITEMSIZE_MAX: u16 = 256;

/// dtype name, element size and shape. The core interprets nothing but the sizes.
///
/// Shared: messages that follow each other are mostly alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout(Arc<Inner>);

#[derive(Debug, PartialEq, Eq)]
struct Inner {
    dtype: String,
    itemsize: u16,
    shape: Vec<u64>,
}

impl Layout {
    /// Checks and makes a layout.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when a name, size or shape is outside its limits.
    pub fn new(dtype: &str, itemsize: u16, shape: Vec<u64>) -> Result<Self> {
        let named = !dtype.is_empty()
            && dtype.len() <= DTYPE_BYTES_MAX
            && dtype.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !named {
            return Err(bad(format!(
                "dtype: expected 1 to {DTYPE_BYTES_MAX} bytes of [a-z0-9_], got {dtype:?}"
            )));
        }
        if itemsize == 0 || itemsize > ITEMSIZE_MAX {
            return Err(bad(format!(
                "itemsize: expected 1 to {ITEMSIZE_MAX} bytes, got {itemsize}"
            )));
        }
        if shape.len() > DIMS_MAX {
            return Err(bad(format!(
                "shape: expected at most {DIMS_MAX} dimensions, got {}",
                shape.len()
            )));
        }
        let layout = Self(Arc::new(Inner { dtype: dtype.to_owned(), itemsize, shape }));
        layout.bytes()?;
        Ok(layout)
    }

    /// The dtype's name, for example `float32`.
    pub fn dtype(&self) -> &str {
        &self.0.dtype
    }

    /// Bytes of one element.
    pub fn itemsize(&self) -> u16 {
        self.0.itemsize
    }

    /// The shape, outermost dimension first; empty for a scalar.
    pub fn shape(&self) -> &[u64] {
        &self.0.shape
    }

    /// The layout of `count` such arrays, one behind the other.
    ///
    /// # Errors
    /// As [`Layout::new`]: a dimension too many, or too many bytes.
    #[cfg(feature = "queue")]
    pub(crate) fn rows(&self, count: u32) -> Result<Self> {
        let mut shape = Vec::with_capacity(1 + self.0.shape.len());
        shape.push(u64::from(count));
        shape.extend_from_slice(&self.0.shape);
        Self::new(&self.0.dtype, self.0.itemsize, shape)
    }

    /// There is room for a dimension more.
    #[cfg(feature = "queue")]
    pub(crate) fn has_rows(&self) -> bool {
        self.0.shape.len() < DIMS_MAX
    }

    /// Bytes of the whole array.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the dimensions other than 0 make 2^63 bytes or more: numpy takes
    /// no such shape either, whatever the zeros.
    pub fn bytes(&self) -> Result<u64> {
        let overflow = || bad(format!("shape {:?}: 2^63 bytes or more", self.0.shape));
        let product = self
            .0
            .shape
            .iter()
            .try_fold(u64::from(self.0.itemsize), |product, &dim| product.checked_mul(dim.max(1)))
            .filter(|&product| i64::try_from(product).is_ok())
            .ok_or_else(overflow)?;
        Ok(if self.0.shape.contains(&0) { 0 } else { product })
    }
}

fn bad(context: String) -> Error {
    Error::new(ErrorKind::Corrupt, context)
}
