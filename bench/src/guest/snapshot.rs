//! Applying while a snapshot of the state is written: image and export, as the daemon does.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use lockstep_host::machine::{Frozen, Instance};
use lockstep_host::storage::snapshot::SnapshotDir;
use lockstep_host::types::{LogId, NodeId};
use lockstep_host::wasm::{Limits, THREAD_STACK_BYTES};

use crate::kv::{CONTEXT, Guests, ROOM, VALUE_BYTES, mixed};
use crate::timing::{millis, row, timed};

/// Commands in a batch.
const BATCH: usize = 256;
/// How long is measured without a snapshot being written.
const ALONE: Duration = Duration::from_secs(1);

/// Prints the rows of a state of `mib` MiB of values.
pub(crate) fn run(guests: &Guests, mib: usize, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let folder = tempfile::tempdir_in(dir).context("a folder for snapshots")?;
    let snapshots = SnapshotDir::open(folder.path())?;
    let keys = Guests::keys_of(mib);
    let value = [b'v'; VALUE_BYTES];
    let mut machine = guests.filled(keys, &value, Limits::default())?;
    let mut random = fastrand::Rng::with_seed(9);
    let mut apply_for = |machine: &mut Instance, go_on: &dyn Fn(Duration) -> bool| {
        let (mut commands, start) = (0_u64, Instant::now());
        while go_on(start.elapsed()) {
            let batch = mixed(&mut random, keys, BATCH, &value).logged();
            machine.apply(CONTEXT, &batch, ROOM)?;
            commands += u64::try_from(BATCH)?;
        }
        Ok::<_, anyhow::Error>(start.elapsed().as_secs_f64() / f64::from(u32::try_from(commands)?))
    };
    let alone = apply_for(&mut machine, &|elapsed| elapsed < ALONE)?;
    let (frozen, pause) = timed(|| machine.freeze());
    let frozen = frozen?;
    let done = AtomicBool::new(false);
    let (writing, meanwhile) = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(THREAD_STACK_BYTES);
        let writer = thread.spawn_scoped(scope, || {
            let (written, time) = timed(|| write(&snapshots, frozen));
            done.store(true, Ordering::Release);
            written.map(|bytes| (bytes, time))
        })?;
        let meanwhile = apply_for(&mut machine, &|_| !done.load(Ordering::Acquire));
        let writing = writer.join().map_err(|_| anyhow!("the writer panicked"))??;
        Ok::<_, anyhow::Error>((writing, meanwhile?))
    })?;
    let (bytes, time) = writing;
    row("snapshot: pause of apply", &millis(pause));
    row("snapshot: image and export written", &format!("{}, {} MiB", millis(time), bytes >> 20));
    row("apply while it is written", &format!("{:.2} x as long", meanwhile / alone));
    Ok(())
}

/// Writes image and export; the length of the file.
fn write(snapshots: &SnapshotDir, frozen: Frozen) -> Result<u64> {
    let last = LogId { term: 1, node: NodeId(1), index: 1 };
    let mut writer = snapshots.begin(Some(last), b"")?;
    writer.section(6)?;
    let image = frozen.image();
    for block in image.blocks()? {
        writer.chunk(&image.contents()[block])?;
    }
    writer.section(2)?;
    let mut failed = None;
    let exported = Frozen::export_on(frozen.fork()?, &mut |chunk: Vec<u8>| {
        failed = writer.chunk(&chunk).err();
        failed.is_none()
    })?;
    failed.map_or(Ok(()), Err)?;
    exported.map_err(|outcome| anyhow!("the export failed: {outcome:?}"))?;
    drop(frozen);
    Ok(writer.finish()?.id().length)
}
