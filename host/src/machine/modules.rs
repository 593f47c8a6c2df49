//! Modules on this node: staged piece by piece, compiled one at a time, and removed once nothing
//! needs them. Which modules there are is in the tables, and so the same on every node.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinError;

use super::HostFailure;
use super::machines::{Environment, Machines};
use super::tables::Refusal;
use crate::machine::entry::proposal::ModuleChunk;
use crate::types::{LogIndex, ModuleDigest};
use crate::wasm::Module;

impl Environment {
    /// Compiles a staged module, or finds it compiled. It may take so much work by estimate:
    /// [`u64::MAX`] where the cluster has decided to run it. The inner error says why it can't be
    /// run here, the outer one that the compiler panicked.
    pub async fn compile(
        &self,
        digest: ModuleDigest,
        work_max: u64,
    ) -> Result<Result<Module, String>, JoinError> {
        let turn = self.turn_to_compile(&digest).await;
        let Self { engine, library, compiled, .. } = self.clone();
        let compile = move || {
            let _turn = turn;
            compiled.get(&engine, &*library, digest, work_max)
        };
        tokio::task::spawn_blocking(compile).await
    }

    /// Compiles a module that is not staged yet; what this comes to is kept for when it is.
    pub async fn admit(
        &self,
        digest: ModuleDigest,
        bytes: Bytes,
        work_max: u64,
    ) -> Result<Result<(), String>, JoinError> {
        let turn = self.turn_to_compile(&digest).await;
        let Self { engine, compiled, .. } = self.clone();
        let admit = move || {
            let _turn = turn;
            compiled.admit(&engine, digest, &bytes, work_max).map(drop)
        };
        tokio::task::spawn_blocking(admit).await
    }

    /// Waits behind those who compile; not where it is done already. It stays taken until the
    /// compiler is through, though nobody may wait for it any more.
    async fn turn_to_compile(&self, digest: &ModuleDigest) -> Option<OwnedSemaphorePermit> {
        if self.compiled.is_known(digest) {
            return None;
        }
        Arc::clone(&self.compiling).acquire_owned().await.ok()
    }
}

impl Machines {
    /// Keeps a piece of a module; the last one is checked against the digest and made durable.
    pub(super) async fn stage(
        &mut self,
        index: LogIndex,
        chunk: ModuleChunk,
    ) -> Result<Result<(), Refusal>, HostFailure> {
        if chunk.offset == 0 && self.tables.begin_again(&chunk.digest) {
            self.environment.compiled.forget(&chunk.digest);
        }
        let staged = self.tables.stage(index, &chunk);
        self.forget_dropped();
        match staged {
            Ok(true) => {}
            Ok(false) => return Ok(Ok(())),
            Err(refusal) => return Ok(Err(refusal)),
        }
        let ModuleChunk { digest, length, bytes, .. } = chunk;
        let pieces = self.staging.entry(digest).or_default();
        pieces.push(Bytes::from(bytes));
        if u64::try_from(pieces.iter().map(Bytes::len).sum::<usize>()) != Ok(length) {
            self.publish();
            return Ok(Ok(()));
        }
        let pieces = self.staging.remove(&digest).expect("it was just there");
        let is_whole = self.tables.modules.get(&digest).is_some_and(|module| !module.is_partial());
        assert!(is_whole, "all pieces of module {digest} are here, and the tables say so");
        let result = self.keep_module(digest, pieces.concat()).await;
        self.publish();
        result
    }

    /// Lets go of what the tables have dropped. Files go with the next sweep: a snapshot that is
    /// being written may need them.
    pub(super) fn forget_dropped(&mut self) {
        let modules = &self.tables.modules;
        self.staging.retain(|digest, _| modules.contains_key(digest));
        self.unswept = true;
    }

    /// Removes from this node's disk, cache and memory the modules that the tables do not have. To
    /// be called while no snapshot is being written. What cannot be removed stays until the next.
    pub async fn sweep_modules(&mut self) {
        if !std::mem::take(&mut self.unswept) {
            return;
        }
        let kept: BTreeSet<ModuleDigest> = self.tables.modules.keys().copied().collect();
        assert!(
            self.tables.machines.values().all(|machine| kept.contains(&machine.module)),
            "the module of no machine is removed"
        );
        let Environment { library, compiled, .. } = self.environment.clone();
        let swept = tokio::task::spawn_blocking(move || {
            for digest in library.list()? {
                if !kept.contains(&digest) {
                    library.remove(&digest)?;
                    compiled.remove(&digest);
                    tracing::info!(%digest, "a module that nothing needs is removed");
                }
            }
            Ok::<(), std::io::Error>(())
        });
        let swept = swept.await.map_err(|error| error.to_string());
        if let Err(error) = swept.and_then(|swept| swept.map_err(|error| error.to_string())) {
            tracing::warn!(error, "modules that nothing needs cannot be removed");
            self.unswept = true;
        }
    }

    pub(super) async fn keep_module(
        &mut self,
        digest: ModuleDigest,
        bytes: Vec<u8>,
    ) -> Result<Result<(), Refusal>, HostFailure> {
        if <[u8; 32]>::from(Sha256::digest(&bytes)) != digest.0 {
            self.tables.unstage(&digest);
            let reason = "the bytes of the module do not have its digest: upload it again";
            return Ok(Err(Refusal::BadChunk(reason.to_owned())));
        }
        let library = Arc::clone(&self.environment.library);
        let bytes = Bytes::from(bytes);
        tokio::task::spawn_blocking(move || library.put(&digest, &bytes))
            .await
            .map_err(HostFailure::panicked)?
            .map_err(|error| HostFailure::Stop(format!("cannot keep module {digest}: {error}")))?;
        Ok(Ok(()))
    }
}
