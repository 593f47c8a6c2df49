//! `lockstep check`: says of a module what a node would, without a node.

use std::path::PathBuf;
use std::time::Instant;

use sha2::{Digest as _, Sha256};

use super::machine;
use super::output::say;
use crate::config::limits;
use crate::node;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The module, a WebAssembly component
    file: PathBuf,
    /// Work that compiling it may take: the limit of your cluster, as `lockstep cluster limits`
    /// shows it
    #[arg(long, value_name = "UNITS", default_value_t = limits::COMPILE_WORK_MAX_DEFAULT)]
    compile_work: u64,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let bytes = machine::read_module(&arguments.file).await?;
    let digest = hex::encode(Sha256::digest(&bytes));
    let length = bytes.len();
    let (limit, began) = (arguments.compile_work, Instant::now());
    let module = tokio::task::spawn_blocking(move || node::check_module(&bytes, limit)).await??;
    let took_ms = began.elapsed().as_millis();
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
    let (work, heaviest) = (shape.compile_work, &shape.heaviest);
    say!("compiling  {work} units of work by estimate, of {limit}; all of this took {took_ms} ms");
    say!("           {} of them for {}", heaviest.work, heaviest.place);
    Ok(())
}
