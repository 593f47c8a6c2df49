//! Where the bytes of staged modules are kept.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use bytes::Bytes;

use crate::types::ModuleDigest;

/// Keeps modules by digest. Obligations: what `put` returned for survives a crash; `get` returns
/// exactly what was put, or an error, never other bytes.
pub trait ModuleLibrary: Send + Sync {
    /// Keeps a module; one that is there already is left as it is. Blocking.
    fn put(&self, digest: &ModuleDigest, bytes: &[u8]) -> io::Result<()>;
    /// A module's bytes. Blocking.
    fn get(&self, digest: &ModuleDigest) -> io::Result<Bytes>;
}

/// A library without a disk, for tests.
#[derive(Debug, Default)]
pub struct MemoryLibrary {
    modules: Mutex<BTreeMap<ModuleDigest, Bytes>>,
}

impl ModuleLibrary for MemoryLibrary {
    fn put(&self, digest: &ModuleDigest, bytes: &[u8]) -> io::Result<()> {
        let mut modules = self.modules.lock().expect("no holder panics");
        modules.insert(*digest, Bytes::copy_from_slice(bytes));
        Ok(())
    }

    fn get(&self, digest: &ModuleDigest) -> io::Result<Bytes> {
        let modules = self.modules.lock().expect("no holder panics");
        modules.get(digest).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
