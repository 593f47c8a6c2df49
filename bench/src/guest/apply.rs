//! Apply through the sandbox, against the same state machine compiled natively.

use std::time::{Duration, Instant};

use anyhow::Result;
use lockstep_guest_kv::Kv;
use lockstep_guest_sdk::bindings::exports::lockstep::guest::machine as wit;
use lockstep_guest_sdk::runtime::Live;
use lockstep_host::machine::Proposal;
use lockstep_host::wasm::Limits;

use crate::kv::{CONTEXT, Guests, ROOM, Requests, mixed};
use crate::timing::row;

/// Keys of the state; values have as many bytes as a small counter.
const KEYS: u64 = 5_000;
const VALUE: &[u8] = b"12345678";
/// Commands applied in one round of one contender.
const ROUND_COMMANDS: usize = 200_000;

/// Prints a row for each size of batch.
pub(crate) fn run(guests: &Guests, rounds: usize) -> Result<()> {
    println!("apply: {KEYS} keys, half SET and half GET, a core");
    for size in [1, 16, 256] {
        let mut random = fastrand::Rng::with_seed(1);
        let batches: Vec<Requests> =
            (0..ROUND_COMMANDS / size).map(|_| mixed(&mut random, KEYS, size, VALUE)).collect();
        let entries: Vec<_> = batches
            .iter()
            .map(|requests| Proposal::Commands { time_ms: 1, batches: vec![requests.logged()] })
            .map(|proposal| proposal.encode())
            .collect();
        let mut native = Live::<Kv>::default();
        let mut guest = guests.filled(KEYS, VALUE, Limits::default())?;
        let mut machine = guests.filled(KEYS, VALUE, Limits::default())?;
        let mut bare = lockstep_host::wasm::Guest::instantiate(&guests.engine, &guests.module)?;
        let mut best = [f64::INFINITY; 4];
        for _ in 0..rounds {
            let times = [
                natively(&mut native, &batches),
                time(|| {
                    for requests in &batches {
                        bare.apply(&CONTEXT, requests.batch())?;
                    }
                    Ok(())
                })?,
                time(|| {
                    for requests in &batches {
                        guest.apply(CONTEXT, &requests.logged(), ROOM)?;
                    }
                    Ok(())
                })?,
                time(|| {
                    for entry in &entries {
                        let Proposal::Commands { batches, .. } = Proposal::decode(entry)? else {
                            continue;
                        };
                        for batch in batches {
                            machine.apply(CONTEXT, &batch, ROOM)?;
                        }
                    }
                    Ok(())
                })?,
            ];
            for (best, time) in best.iter_mut().zip(times) {
                *best = best.min(time.as_secs_f64());
            }
        }
        let commands = f64::from(u32::try_from(ROUND_COMMANDS)?);
        let rate = |seconds: f64| format!("{:.2} M/s", commands / seconds / 1e6);
        let [native, bare, _, replay] = best;
        row(&format!("{size} commands a batch: native"), &rate(native));
        row("  sandbox", &format!("{}  {:.2} x native", rate(bare), bare / native));
        row("  replay: decode, apply, images", &rate(replay));
        row("  images, journal and decoding", &format!("{:+.1} %", (replay / bare - 1.0) * 100.0));
    }
    Ok(())
}

fn natively(live: &mut Live<Kv>, batches: &[Requests]) -> Duration {
    let context =
        || wit::Context { index: CONTEXT.index, time_ms: CONTEXT.time_ms, seed: CONTEXT.seed };
    let start = Instant::now();
    for requests in batches {
        // The sandbox copies the batch into the guest, so a copy is fair here.
        let batch = wit::Batch { data: requests.data.clone(), ends: requests.ends.clone() };
        std::hint::black_box(live.apply(context(), &batch));
    }
    start.elapsed()
}

fn time(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}
