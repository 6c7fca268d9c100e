//! The durable position of a subscription group.

use rocksdb::{Direction, IteratorMode, WriteBatch};

use crate::error::Result;
use crate::queue::keys;
use crate::queue::topic::Topic;

impl Topic {
    /// The next seq that the group has to read; None for a group that was never saved.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Closed`], [`crate::ErrorKind::Storage`].
    pub fn cursor(&self, group: &str) -> Result<Option<u64>> {
        let open = self.db.get()?;
        let value = open
            .rocks
            .get_pinned_cf(&open.meta()?, keys::cursor(self.id, group))
            .map_err(|e| self.db.failed("read", e))?;
        value.map(|value| keys::u64_value(&value)).transpose()
    }

    /// Saves the next seq that the group has to read; makes the group where it does not exist.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Closed`], [`crate::ErrorKind::Storage`].
    pub fn set_cursor(&self, group: &str, next_seq: u64) -> Result<()> {
        let open = self.db.get()?;
        let mut batch = WriteBatch::default();
        batch.put_cf(&open.meta()?, keys::cursor(self.id, group), next_seq.to_le_bytes());
        self.db.write(&open, batch)
    }

    /// All groups and their cursors.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Closed`], [`crate::ErrorKind::Storage`].
    pub fn groups(&self) -> Result<Vec<(String, u64)>> {
        let open = self.db.get()?;
        let prefix = keys::cursor_prefix(self.id);
        let mode = IteratorMode::From(&prefix, Direction::Forward);
        let mut groups = Vec::new();
        for entry in open.rocks.iterator_cf(&open.meta()?, mode) {
            let (key, value) = entry.map_err(|e| self.db.failed("read", e))?;
            let Some(group) = key.strip_prefix(prefix.as_slice()) else { break };
            let group = String::from_utf8_lossy(group).into_owned();
            groups.push((group, keys::u64_value(&value)?));
        }
        Ok(groups)
    }
}
