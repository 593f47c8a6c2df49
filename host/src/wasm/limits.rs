//! What a guest may take of memory and tables. The limits are replicated, so that growth fails at
//! the same point on every node; growth that the host itself cannot give is remembered, because
//! then this node must stop instead of letting its guest see a failure the others do not see.

use wasmtime::ResourceLimiter;

use crate::config::limits;

/// The limits of one instance, and whether the host fell short of them.
#[derive(Debug, Default)]
pub(super) struct Limits {
    memory_bytes: usize,
    host_failure: Option<String>,
}

impl Limits {
    /// Why the host could not give what the limits allow, if that happened.
    pub(super) fn host_failure(&self) -> Option<&str> {
        self.host_failure.as_deref()
    }

    /// Size of the one linear memory, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    fn fell_short(&mut self, what: &str, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.host_failure = Some(format!("the host cannot grow a guest's {what}: {error}"));
        Err(error)
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // Above the module's own maximum wasmtime fails by itself, which is not the host's fault.
        let allowed =
            desired <= limits::GUEST_MEMORY_BYTES_MAX && maximum.is_none_or(|max| desired <= max);
        if allowed {
            self.memory_bytes = desired;
        }
        Ok(allowed)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.fell_short("memory", error)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= limits::GUEST_TABLE_ELEMENTS_MAX && maximum.is_none_or(|max| desired <= max))
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.fell_short("table", error)
    }

    fn instances(&self) -> usize {
        limits::GUEST_CORE_INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        limits::GUEST_TABLES_MAX
    }

    fn memories(&self) -> usize {
        1
    }
}
