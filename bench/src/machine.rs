//! What the kernel says of this machine and of processes: the figures beside the latencies.
//!
//! Everything comes from /proc, so it works on Linux alone.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Syncs that the disk probe makes: enough for a median, over in well under a second.
const PROBE_SYNCS: usize = 200;

/// Milliseconds of the tick in which /proc counts CPU time: USER_HZ is 100 on every architecture
/// that Lockstep runs on, whatever the kernel's own tick (proc_pid_stat(5)).
const TICK_MS: u64 = 10;

/// CPU time and memory of one process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// User and system time of all its threads so far, to the tick.
    pub(crate) cpu: Duration,
    /// Resident set now.
    pub(crate) rss_bytes: u64,
}

/// One line on the machine and its disk under `dir`; makes the folder.
pub(crate) fn describe(dir: &Path) -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let load: Vec<&str> = load.split_whitespace().take(3).collect();
    let sync = probe_disk(dir).with_context(|| format!("probing the disk in {}", dir.display()))?;
    Ok(format!(
        "machine: {} cores ({}), Linux {}, load average {}, 4 KiB append+fdatasync p50 {} us",
        std::thread::available_parallelism()?,
        cpu_model()?,
        kernel.trim(),
        load.join(" "),
        sync.as_micros(),
    ))
}

fn cpu_model() -> Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Ok(model.map_or("unknown", |(_, name)| name.trim()).to_owned())
}

/// Median time of one small durable append by one writer: what no system can beat per entry.
fn probe_disk(dir: &Path) -> Result<Duration> {
    fs::create_dir_all(dir)?;
    let mut file = tempfile::tempfile_in(dir)?;
    let block = [0x5a_u8; 4096];
    let mut times = Vec::with_capacity(PROBE_SYNCS);
    for _ in 0..PROBE_SYNCS {
        let started = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Ok(times[PROBE_SYNCS / 2])
}

/// CPU time and memory of `process`: a pid, or `self`.
pub(crate) fn usage(process: &str) -> Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))
        .with_context(|| format!("process {process} is gone"))?;
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    // The second field is the name in parentheses, which may hold anything; fields 14 and 15 are
    // the user and system ticks (proc_pid_stat(5)).
    let (_, rest) = stat.rsplit_once(')').context("malformed /proc/PID/stat")?;
    let ticks = sum_fields(rest.split_whitespace().skip(11).take(2))?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss = rss.and_then(|value| value.split_whitespace().next()).context("no VmRSS")?;
    Ok(Usage { cpu: from_ticks(ticks), rss_bytes: rss.parse::<u64>()? * 1024 })
}

/// CPU time that all processes and the kernel have used since boot, idling and waiting excluded.
pub(crate) fn busy() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let first = stat.lines().next().context("empty /proc/stat")?;
    // user nice system idle iowait irq softirq steal (proc_stat(5)).
    let fields: Vec<&str> = first.split_whitespace().skip(1).collect();
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|&field| fields.get(field).copied());
    Ok(from_ticks(sum_fields(busy)?))
}

fn sum_fields<'a>(fields: impl Iterator<Item = &'a str>) -> Result<u64> {
    fields.map(|field| field.parse::<u64>().context("malformed /proc figure")).sum()
}

fn from_ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks * TICK_MS)
}

/// Bytes that the disk holds for all below `path`; files that vanish meanwhile don't count.
pub(crate) fn disk_bytes(path: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            bytes += disk_bytes(&entry.path())?;
        }
    }
    Ok(bytes)
}
