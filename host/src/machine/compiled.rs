//! Modules compiled on this node, each once. Compiling takes long and runs on the caller's
//! thread: never call it from an async worker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use super::library::ModuleLibrary;
use crate::types::ModuleDigest;
use crate::wasm::{Engine, Module};

type Slot = Arc<OnceLock<Result<Module, String>>>;

/// Compiled modules by digest; a module that could not be compiled is remembered with the reason.
#[derive(Default)]
pub struct CompiledModules {
    slots: Mutex<BTreeMap<ModuleDigest, Slot>>,
}

impl CompiledModules {
    /// The compiled module, compiling it now if need be. Two callers share one compilation.
    pub fn get(
        &self,
        engine: &Engine,
        library: &dyn ModuleLibrary,
        digest: ModuleDigest,
    ) -> Result<Module, String> {
        let slot = {
            let mut slots = self.slots.lock().expect("no holder panics");
            Arc::clone(slots.entry(digest).or_default())
        };
        let compile = || {
            let bytes = library.get(&digest).map_err(|error| error.to_string())?;
            engine.compile(&bytes).map_err(|error| error.to_string())
        };
        slot.get_or_init(compile).clone()
    }
}
