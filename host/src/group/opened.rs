//! What a group has on disk, opened, and the sandbox. Blocking work, before anything runs.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use anyhow::Context as _;
use bytes::Bytes;

use crate::config::Config;
use crate::machine::{CodeCache, CompiledModules, ModuleLibrary};
use crate::raft::duties::space::Space;
use crate::storage::code::CodeStore;
use crate::storage::modules::ModuleStore;
use crate::storage::snapshot::SnapshotDir;
use crate::storage::{self, DataDir, Log, LogConfig};
use crate::types::ModuleDigest;
use crate::wasm::Engine;

/// What was opened on disk, and the sandbox. All of it blocking work.
pub(super) struct Opened {
    pub(super) data_dir: DataDir,
    pub(super) log: Log,
    pub(super) snapshots: SnapshotDir,
    pub(super) modules: ModuleStore,
    pub(super) compiled: CompiledModules,
    pub(super) space: Space,
    pub(super) engine: Engine,
}

impl Opened {
    /// Opens them all.
    ///
    /// # Errors
    /// A folder in use or of another node, damaged files, a full disk, no sandbox.
    pub(super) fn open(config: &Config) -> anyhow::Result<Self> {
        let data_dir = DataDir::open(&config.data_dir, config.node_id)?;
        let space = Space::new(config.data_dir.clone(), config.file.disk_reserve_bytes)?;
        space.check().context("the node cannot start on a full disk")?;
        let log = Log::open(&data_dir.log(), &LogConfig::from(&config.file))?;
        let space = space.of_log(log.clone());
        let snapshots = SnapshotDir::open(&data_dir.snapshots())?
            .keeping_free(space.floor())
            .beside(log.clone());
        let modules = ModuleStore::open(&data_dir.modules())?;
        let engine = Engine::new().context("the sandbox cannot be set up")?;
        let compiled = match CodeStore::open(&data_dir.cache(), engine.profile()) {
            Ok(store) => CompiledModules::with_cache(Box::new(DiskCache(store))),
            Err(error) => {
                tracing::warn!(%error, "compiled code is not kept: each start compiles anew");
                CompiledModules::default()
            }
        };
        Ok(Self { data_dir, log, snapshots, modules, compiled, space, engine })
    }
}

/// Modules on disk, as the machines know them. One that the disk has no room for, or no file can be
/// opened for, is kept in memory until that has passed: the log and the snapshots hold it as well,
/// so nothing hangs on its file.
pub(super) struct DiskLibrary {
    store: ModuleStore,
    unsaved: Mutex<BTreeMap<ModuleDigest, Bytes>>,
}

impl DiskLibrary {
    /// Modules in this folder.
    pub(super) fn new(store: ModuleStore) -> Self {
        Self { store, unsaved: Mutex::default() }
    }

    fn unsaved(&self) -> MutexGuard<'_, BTreeMap<ModuleDigest, Bytes>> {
        self.unsaved.lock().expect("no holder panics")
    }
}

impl ModuleLibrary for DiskLibrary {
    fn put(&self, digest: &ModuleDigest, bytes: &[u8]) -> std::io::Result<()> {
        match self.store.put(*digest, bytes) {
            Err(error) if error.may_pass() => {
                tracing::error!(%error, "no file for a module: it is kept in memory");
                self.unsaved().insert(*digest, Bytes::copy_from_slice(bytes));
                Ok(())
            }
            stored => stored.map_err(storage::Error::into_io),
        }
    }

    fn get(&self, digest: &ModuleDigest) -> std::io::Result<Bytes> {
        if let Some(bytes) = self.unsaved().get(digest) {
            return Ok(bytes.clone());
        }
        let bytes = self.store.get(*digest).map_err(|error| match error.may_pass() {
            true => std::io::Error::new(std::io::ErrorKind::ResourceBusy, error),
            false => error.into_io(),
        })?;
        bytes.ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    fn list(&self) -> std::io::Result<Vec<ModuleDigest>> {
        let mut all = self.store.list().map_err(storage::Error::into_io)?;
        all.extend(self.unsaved().keys());
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    fn remove(&self, digest: &ModuleDigest) -> std::io::Result<()> {
        self.unsaved().remove(digest);
        self.store.remove(*digest).map_err(storage::Error::into_io)
    }

    fn save_rest(&self) {
        let unsaved = self.unsaved().clone();
        for (digest, bytes) in unsaved {
            // One that was removed meanwhile must not come back.
            if self.store.put(digest, &bytes).is_ok() && self.unsaved().remove(&digest).is_none() {
                self.store.remove(digest).ok();
            }
        }
    }

    fn alarm(&self) -> Option<String> {
        let count = self.unsaved().len();
        (count > 0).then(|| {
            format!("{count} modules cannot be written to the disk now: they are in memory")
        })
    }
}

/// Compiled code on disk, as the machines know it.
struct DiskCache(CodeStore);

impl CodeCache for DiskCache {
    fn put(&self, digest: &ModuleDigest, code: &[u8]) -> std::io::Result<()> {
        self.0.put(*digest, code).map_err(storage::Error::into_io)
    }

    fn get(&self, digest: &ModuleDigest) -> std::io::Result<Option<Vec<u8>>> {
        self.0.get(*digest).map_err(storage::Error::into_io)
    }

    fn remove(&self, digest: &ModuleDigest) -> std::io::Result<()> {
        self.0.remove(*digest).map_err(storage::Error::into_io)
    }
}
