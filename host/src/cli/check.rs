//! `lockstep check`: says of a module what a node would, without a node.

use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::machine;
use super::output::say;
use crate::config::limits;
use crate::node;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The module, a WebAssembly component
    file: PathBuf,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let bytes = machine::read_module(&arguments.file).await?;
    let digest = hex::encode(Sha256::digest(&bytes));
    let length = bytes.len();
    let module = tokio::task::spawn_blocking(move || node::check_module(&bytes)).await??;
    let (manifest, shape) = (module.manifest(), module.shape());
    let list = |names: &[String]| match names {
        [] => "none".to_owned(),
        names => names.join(", "),
    };
    let schemas: Vec<_> = manifest.importable_schemas.iter().map(u32::to_string).collect();
    say!("module     {digest} ({length} bytes)");
    say!("guest      {} (state schema {})", manifest.name, manifest.schema_version);
    say!("reads      state schemas {}", list(&schemas));
    say!("read-only  {}", list(&manifest.read_only));
    say!("uses time  {}", if manifest.uses_time { "yes" } else { "no" });
    say!("imports    {}", list(&shape.imports));
    say!("memory     {} bytes at the start", shape.memory_bytes);
    say!("code       {} functions in {} core modules", shape.functions, shape.core_modules);
    for warning in module.warnings() {
        say!("warning    {warning}");
    }
    let limit = limits::MODULE_COMPILE_MS_MAX;
    let work = shape.compile_ms;
    say!(
        "compiling  {work} ms of work at the worst, of {limit}; most take a fifth to a half of it"
    );
    Ok(())
}
