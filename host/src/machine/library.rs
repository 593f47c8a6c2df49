//! Where the bytes of staged modules are kept, and what was compiled from them.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use bytes::Bytes;

use crate::types::ModuleDigest;

/// Keeps modules by digest. Obligations: `get` returns exactly what was put, or an error, never
/// other bytes; what `put` returned for survives a crash, unless the disk has no room. Then it is
/// kept in memory, and [`ModuleLibrary::alarm`] says so: the log and the snapshots hold it too.
pub trait ModuleLibrary: Send + Sync {
    /// Keeps a module; one that is there already is left as it is. Blocking.
    fn put(&self, digest: &ModuleDigest, bytes: &[u8]) -> io::Result<()>;
    /// A module's bytes. Blocking. `ResourceBusy` says that no file can be opened now.
    fn get(&self, digest: &ModuleDigest) -> io::Result<Bytes>;
    /// Every module that is kept. Blocking.
    fn list(&self) -> io::Result<Vec<ModuleDigest>>;
    /// Keeps a module no longer. Blocking.
    fn remove(&self, digest: &ModuleDigest) -> io::Result<()>;
    /// Saves what the disk had no room for, as far as it has some now. Blocking.
    fn save_rest(&self) {}
    /// Modules that are kept in memory alone, a sentence.
    fn alarm(&self) -> Option<String> {
        None
    }
}

/// Keeps compiled code by digest, to save the time of compiling it again. Obligations: none but
/// the user of this process can have written what `get` returns. It may lose and damage things:
/// the engine knows its own code.
pub trait CodeCache: Send + Sync {
    /// Keeps code. Blocking.
    fn put(&self, digest: &ModuleDigest, code: &[u8]) -> io::Result<()>;
    /// The code of a module; `None` when there is none. Blocking.
    fn get(&self, digest: &ModuleDigest) -> io::Result<Option<Vec<u8>>>;
    /// Removes the code of a module, if there is any. Blocking.
    fn remove(&self, digest: &ModuleDigest) -> io::Result<()>;
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

    fn list(&self) -> io::Result<Vec<ModuleDigest>> {
        Ok(self.modules.lock().expect("no holder panics").keys().copied().collect())
    }

    fn remove(&self, digest: &ModuleDigest) -> io::Result<()> {
        self.modules.lock().expect("no holder panics").remove(digest);
        Ok(())
    }
}
