//! Modules compiled on this node, each once. Compiling takes long and runs on the caller's
//! thread: never call it from an async worker.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::library::{CodeCache, ModuleLibrary};
use crate::types::ModuleDigest;
use crate::wasm::{self, Engine, Module};

/// Wait before a module that cannot be read now is read again.
const READ_PAUSE: Duration = Duration::from_millis(200);

type Slot = Arc<OnceLock<Result<Module, Refused>>>;

/// Why a module is not run here.
#[derive(Clone, Debug)]
struct Refused {
    reason: String,
    /// Under a higher limit than this one it may be another story.
    work_max: Option<u64>,
}

/// Compiled modules by digest; a staged module that could not be compiled is remembered with the
/// reason.
#[derive(Default)]
pub struct CompiledModules {
    slots: Mutex<BTreeMap<ModuleDigest, Slot>>,
    cache: Option<Box<dyn CodeCache>>,
}

impl CompiledModules {
    /// Modules whose code is kept in a cache.
    pub fn with_cache(cache: Box<dyn CodeCache>) -> Self {
        Self { slots: Mutex::default(), cache: Some(cache) }
    }

    /// The compiled module, compiling it now if need be, unless that is more work than `work_max`.
    /// Two callers share one compilation.
    pub fn get(
        &self,
        engine: &Engine,
        library: &dyn ModuleLibrary,
        digest: ModuleDigest,
        work_max: u64,
    ) -> Result<Module, String> {
        self.find(digest, work_max, || {
            let bytes = read(library, &digest);
            let unread = |error: io::Error| Refused::for_good(error.to_string());
            self.make(engine, digest, &bytes.map_err(unread)?, work_max)
        })
    }

    /// Compiles bytes that are not in the library yet, which have this digest. Once they are,
    /// `get` finds the module; a refusal is not remembered.
    pub fn admit(
        &self,
        engine: &Engine,
        digest: ModuleDigest,
        bytes: &[u8],
        work_max: u64,
    ) -> Result<Module, String> {
        let made = self.find(digest, work_max, || self.make(engine, digest, bytes, work_max));
        if made.is_err() {
            self.forget(&digest);
        }
        made
    }

    /// What was made of a module, or is made now. One that was refused for its work alone is tried
    /// again under a higher limit, and one that was compiled under a higher limit is refused under
    /// a lower: the answer depends on the module and `work_max` alone.
    fn find(
        &self,
        digest: ModuleDigest,
        work_max: u64,
        make: impl Fn() -> Result<Module, Refused>,
    ) -> Result<Module, String> {
        loop {
            let slot = self.slot(digest);
            match slot.get_or_init(&make) {
                Ok(module) => {
                    module.check_work(work_max).map_err(|error| error.to_string())?;
                    return Ok(module.clone());
                }
                Err(Refused { work_max: Some(under), .. }) if *under < work_max => {
                    let mut slots = self.slots.lock().expect("no holder panics");
                    if slots.get(&digest).is_some_and(|now| Arc::ptr_eq(now, &slot)) {
                        slots.remove(&digest);
                    }
                }
                Err(refused) => return Err(refused.reason.clone()),
            }
        }
    }

    /// Drops a module that was admitted and is not needed after all.
    pub fn forget(&self, digest: &ModuleDigest) {
        self.slots.lock().expect("no holder panics").remove(digest);
    }

    /// Drops a module that nothing needs any more, and its code from the cache.
    pub fn remove(&self, digest: &ModuleDigest) {
        self.forget(digest);
        let removed = self.cache.as_ref().map_or(Ok(()), |cache| cache.remove(digest));
        if let Err(error) = removed {
            tracing::warn!(%digest, %error, "code that nothing needs stays in the cache");
        }
    }

    /// Whether it is known what came of compiling it.
    pub fn is_known(&self, digest: &ModuleDigest) -> bool {
        let slots = self.slots.lock().expect("no holder panics");
        slots.get(digest).is_some_and(|slot| slot.get().is_some())
    }

    fn slot(&self, digest: ModuleDigest) -> Slot {
        let mut slots = self.slots.lock().expect("no holder panics");
        Arc::clone(slots.entry(digest).or_default())
    }

    fn make(
        &self,
        engine: &Engine,
        digest: ModuleDigest,
        bytes: &[u8],
        work_max: u64,
    ) -> Result<Module, Refused> {
        let started = Instant::now();
        if let Some(module) = self.load(engine, digest, bytes) {
            let ms = started.elapsed().as_millis();
            tracing::info!(%digest, %ms, "compiled code was loaded from the cache");
            return Ok(module);
        }
        let module = engine.compile(bytes, work_max).map_err(|error| match error {
            wasm::Error::TooMuchWork { limit, .. } => {
                Refused { reason: error.to_string(), work_max: Some(limit) }
            }
            error => Refused::for_good(error.to_string()),
        })?;
        for warning in module.warnings() {
            tracing::warn!(%digest, %warning, "the self-test of a module");
        }
        tracing::info!(%digest, ms = %started.elapsed().as_millis(), "a module was compiled");
        self.save(engine, digest, &module);
        Ok(module)
    }

    /// The module with code from the cache. Whatever is wrong with it, compiling anew cures.
    fn load(&self, engine: &Engine, digest: ModuleDigest, bytes: &[u8]) -> Option<Module> {
        let code = match self.cache.as_ref()?.get(&digest) {
            Ok(code) => code?,
            Err(error) => {
                tracing::warn!(%digest, %error, "cached code is ignored");
                return None;
            }
        };
        match engine.load(bytes, &digest, &code) {
            Ok(module) => Some(module),
            Err(error) => {
                tracing::warn!(%digest, %error, "cached code is ignored");
                None
            }
        }
    }

    fn save(&self, engine: &Engine, digest: ModuleDigest, module: &Module) {
        let Some(cache) = &self.cache else { return };
        let saved = engine
            .seal(module, &digest)
            .map_err(|error| error.to_string())
            .and_then(|code| cache.put(&digest, &code).map_err(|error| error.to_string()));
        if let Err(reason) = saved {
            tracing::warn!(%digest, %reason, "compiled code is not kept: a restart compiles anew");
        }
    }
}

/// A module's bytes. It waits while no file can be opened: that says nothing about the module, and
/// must neither be reported to the cluster nor end the node.
fn read(library: &dyn ModuleLibrary, digest: &ModuleDigest) -> io::Result<Bytes> {
    loop {
        match library.get(digest) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                tracing::error!(%digest, %error, "a module cannot be read now: it is tried again");
                std::thread::park_timeout(READ_PAUSE);
            }
            read => return read,
        }
    }
}

impl Refused {
    fn for_good(reason: String) -> Self {
        Self { reason, work_max: None }
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::machine::MemoryLibrary;
    use crate::wasm::tests::{ENGINE, WORK_MAX, component};

    type Files = Arc<Mutex<BTreeMap<ModuleDigest, Vec<u8>>>>;

    /// A cache without a disk, which can be made to fail, and counts what is put into it.
    #[derive(Clone, Default)]
    struct MemoryCache {
        files: Files,
        puts: Arc<Mutex<u32>>,
        fails: bool,
    }

    impl MemoryCache {
        fn puts(&self) -> u32 {
            *self.puts.lock().unwrap()
        }
    }

    impl CodeCache for MemoryCache {
        fn put(&self, digest: &ModuleDigest, code: &[u8]) -> io::Result<()> {
            *self.puts.lock().unwrap() += 1;
            if self.fails {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.files.lock().unwrap().insert(*digest, code.to_vec());
            Ok(())
        }

        fn get(&self, digest: &ModuleDigest) -> io::Result<Option<Vec<u8>>> {
            if self.fails {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            Ok(self.files.lock().unwrap().get(digest).cloned())
        }

        fn remove(&self, digest: &ModuleDigest) -> io::Result<()> {
            self.files.lock().unwrap().remove(digest);
            Ok(())
        }
    }

    fn counter() -> (ModuleDigest, Bytes, MemoryLibrary) {
        let bytes = Bytes::from(component("counter"));
        let digest = ModuleDigest(Sha256::digest(&bytes).into());
        let library = MemoryLibrary::default();
        library.put(&digest, &bytes).unwrap();
        (digest, bytes, library)
    }

    fn modules(cache: &MemoryCache) -> CompiledModules {
        CompiledModules::with_cache(Box::new(cache.clone()))
    }

    /// Code is kept when a module is compiled, and a later start takes it from there.
    #[test]
    fn a_second_start_compiles_nothing() {
        let (digest, _, library) = counter();
        let cache = MemoryCache::default();
        let first = modules(&cache).get(&ENGINE, &library, digest, WORK_MAX).unwrap();
        assert_eq!(cache.puts(), 1);
        let second = modules(&cache).get(&ENGINE, &library, digest, WORK_MAX).unwrap();
        assert_eq!(cache.puts(), 1, "it was not compiled again");
        assert_eq!(second.manifest(), first.manifest());
        assert_eq!(second.shape(), first.shape());
    }

    /// Cached code that is damaged, or another module's, is ignored, and replaced.
    #[test]
    fn odd_code_is_compiled_anew() {
        let (digest, _, library) = counter();
        let cache = MemoryCache::default();
        modules(&cache).get(&ENGINE, &library, digest, WORK_MAX).unwrap();
        let good = cache.files.lock().unwrap()[&digest].clone();
        for place in [0, 100, good.len() / 2, good.len() - 1] {
            cache.files.lock().unwrap().get_mut(&digest).unwrap()[place] ^= 1;
            let before = cache.puts();
            modules(&cache).get(&ENGINE, &library, digest, WORK_MAX).unwrap();
            assert_eq!(cache.puts(), before + 1, "byte {place}");
            assert!(cache.files.lock().unwrap()[&digest] == good, "it is replaced");
        }
        let other = component("hostile");
        let other_digest = ModuleDigest(Sha256::digest(&other).into());
        library.put(&other_digest, &other).unwrap();
        cache.files.lock().unwrap().insert(other_digest, good);
        let module = modules(&cache).get(&ENGINE, &library, other_digest, WORK_MAX).unwrap();
        assert_eq!(module.manifest().name, "hostile");
    }

    /// A cache that fails costs nothing but time.
    #[test]
    fn a_cache_that_fails_is_done_without() {
        let (digest, _, library) = counter();
        let cache = MemoryCache { fails: true, ..MemoryCache::default() };
        modules(&cache).get(&ENGINE, &library, digest, WORK_MAX).unwrap();
        assert_eq!(cache.puts(), 1);
    }

    /// A module that cannot be read for want of descriptors is read again: nobody is told that this
    /// node cannot run it.
    #[test]
    fn a_module_is_read_again() {
        struct Busy(MemoryLibrary, Mutex<u32>);
        impl ModuleLibrary for Busy {
            fn put(&self, _: &ModuleDigest, _: &[u8]) -> io::Result<()> {
                Ok(())
            }
            fn get(&self, digest: &ModuleDigest) -> io::Result<Bytes> {
                let mut left = self.1.lock().unwrap();
                match left.checked_sub(1) {
                    Some(fewer) => *left = fewer,
                    None => return self.0.get(digest),
                }
                Err(io::ErrorKind::ResourceBusy.into())
            }
            fn list(&self) -> io::Result<Vec<ModuleDigest>> {
                self.0.list()
            }
            fn remove(&self, _: &ModuleDigest) -> io::Result<()> {
                Ok(())
            }
        }
        let (digest, _, library) = counter();
        let library = Busy(library, Mutex::new(2));
        let modules = modules(&MemoryCache::default());
        assert_eq!(
            modules.get(&ENGINE, &library, digest, WORK_MAX).unwrap().manifest().name,
            "counter"
        );
    }

    /// A module that is checked before it is staged is not compiled again when it is; one that is
    /// refused is not remembered; one that is forgotten is compiled anew.
    #[test]
    fn a_checked_module_is_compiled_once() {
        let (digest, bytes, library) = counter();
        let cache = MemoryCache::default();
        let modules = modules(&cache);
        modules.admit(&ENGINE, digest, &bytes, WORK_MAX).unwrap();
        cache.files.lock().unwrap().clear();
        modules.get(&ENGINE, &library, digest, WORK_MAX).unwrap();
        assert_eq!(cache.puts(), 1, "it was compiled once");

        let wrong = ModuleDigest([1; 32]);
        let reason = modules.admit(&ENGINE, wrong, b"junk", WORK_MAX).err().unwrap();
        assert_eq!(reason, ENGINE.compile(b"junk", WORK_MAX).err().unwrap().to_string());
        modules.admit(&ENGINE, wrong, &bytes, WORK_MAX).unwrap();
        let before = cache.puts();
        modules.forget(&digest);
        modules.get(&ENGINE, &library, digest, WORK_MAX).unwrap();
        assert_eq!(cache.puts(), before + 1);
    }

    /// The answer depends on the module and the limit on its work, not on who asked before under
    /// another limit.
    #[test]
    fn the_limit_on_work_alone_decides() {
        let (digest, bytes, library) = counter();
        let cache = MemoryCache::default();
        let (few, modules) = (1, modules(&cache));
        let get = |work_max| modules.get(&ENGINE, &library, digest, work_max);
        let said =
            "units of work by estimate, and the limit is 1 (compile_work_max of the cluster)";
        for _ in 0..2 {
            let reason = get(few).err().expect("it is too much");
            assert!(reason.contains(said), "{reason}");
            assert_eq!(get(WORK_MAX).unwrap().manifest().name, "counter");
            let reason = modules.admit(&ENGINE, digest, &bytes, few).err().expect("too much");
            assert!(reason.contains(said), "{reason}");
        }
        assert_eq!(cache.puts(), 1, "it was compiled once, and found in the cache then");
    }
}
