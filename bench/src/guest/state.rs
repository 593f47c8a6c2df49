//! What images, restores, queries and failing commands cost, by size of the state.

use std::time::Duration;

use anyhow::Result;
use lockstep_host::machine::Instance;
use lockstep_host::wasm::{Fork, Guest, Limits};

use crate::kv::{CONTEXT, Guests, ROOM, Requests, VALUE_BYTES, key, mixed, reads};
use crate::timing::{longest, median, micros, millis, row, timed};

/// Queries that are asked together.
const WINDOW: usize = 16;
/// Windows of queries in a round.
const WINDOWS: usize = 200;
/// Failing commands in a row.
const POISONS: u32 = 1000;

/// Prints the rows of a state of `mib` MiB of values.
pub(crate) fn run(guests: &Guests, mib: usize, rounds: usize) -> Result<()> {
    let keys = Guests::keys_of(mib);
    let mut guest = filled(guests, keys)?;
    let memory = guest.memory_bytes() >> 20;
    println!("state of {mib} MiB: {keys} keys, {memory} MiB of guest memory");
    images(guests, &mut guest, keys, rounds)?;
    queries(guests, &mut guest, keys, rounds)?;
    drop(guest);
    poison(guests, keys)
}

fn filled(guests: &Guests, keys: u64) -> Result<Guest> {
    let mut guest = Guest::instantiate(&guests.engine, &guests.module)?;
    let value = [b'v'; VALUE_BYTES];
    let mut number = 0;
    while number < keys {
        let mut requests = Requests::default();
        for _ in 0..256.min(keys - number) {
            requests.push(&[b"SET", &key(number), &value]);
            number += 1;
        }
        guest.apply(&CONTEXT, requests.batch())?;
    }
    Ok(guest)
}

/// The pause of an image, and a restore from it, after which the guest answers.
fn images(guests: &Guests, guest: &mut Guest, keys: u64, rounds: usize) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(2);
    let value = [b'w'; VALUE_BYTES];
    let (first, fresh) = timed(|| guest.image(None));
    let mut room = Some(first?);
    let (mut pauses, mut restores, mut refaults) = (Vec::new(), Vec::new(), Vec::new());
    let (mut fuel, mut applying) = (0, Duration::ZERO);
    for _ in 0..rounds {
        let requests = mixed(&mut random, keys, 256, &value);
        let (applied, time) = timed(|| guest.apply(&CONTEXT, requests.batch()));
        applied?;
        applying += time;
        fuel += Limits::default().fuel_per_command - guest.fuel_left();
        let (image, pause) = timed(|| guest.image(room.take()));
        pauses.push(pause);
        let (restored, time) =
            timed(|| Guest::restore(&guests.engine, &guests.module, Limits::default(), image?));
        restores.push(time);
        let old = std::mem::replace(guest, restored?);
        let (applied, time) = timed(|| guest.apply(&CONTEXT, requests.batch()));
        applied?;
        refaults.push(time);
        room = old.into_room();
    }
    let pause = median(&mut pauses);
    row("image: pause", &format!("{}, longest {}", millis(pause), millis(longest(&pauses))));
    row("image: into room that is new", &millis(fresh));
    let due = Instance::image_fuel(u64::try_from(guest.memory_bytes())?);
    let between = Duration::from_nanos(u64::try_from(
        applying.as_nanos() * u128::from(due) / u128::from(fuel),
    )?);
    let share = 100.0 * pause.as_secs_f64() / between.as_secs_f64();
    row("image: share of the time of apply", &format!("{share:.1} %, one in {}", millis(between)));
    let restore = median(&mut restores);
    row(
        "rollback: restore the image",
        &format!("{}, longest {}", millis(restore), millis(longest(&restores))),
    );
    row("rollback: first 256 commands after it", &millis(median(&mut refaults)));
    Ok(())
}

/// Windows of queries on a fork, against the same requests as batches of the live guest: while the
/// fork is new, and once its pages are mapped, as the daemon sees to while it is idle.
fn queries(guests: &Guests, guest: &mut Guest, keys: u64, rounds: usize) -> Result<()> {
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    let (mut live, mut forks, mut warmings) = (Vec::new(), Vec::new(), Vec::new());
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..rounds {
        let (made, time) = timed(|| guest.fork(&guests.engine, &guests.module));
        let mut fork = made?;
        forks.push(time);
        let (forked, on_live) = windows(guests, guest, &mut fork, keys, &mut random)?;
        cold.push(forked);
        live.push(on_live);
        let ((), time) = timed(|| while fork.warm(guest) {});
        warmings.push(time);
        let (forked, on_live) = windows(guests, guest, &mut fork, keys, &mut random)?;
        warm.push(forked);
        live.push(on_live);
    }
    let live = median(&mut live);
    for (what, times) in [("16 queries on a new fork", cold), ("  on a warm one", warm)] {
        let mut times = times;
        let forked = median(&mut times);
        let over = micros(forked.saturating_sub(live));
        let figures = format!("{}, {over} over the live guest's {}", micros(forked), micros(live));
        row(what, &figures);
    }
    row("  making a fork", &micros(median(&mut forks)));
    row("  warming it, in steps", &millis(median(&mut warmings)));
    Ok(())
}

/// The mean of windows of queries, with a batch applied before each: on the fork, and live.
fn windows(
    guests: &Guests,
    guest: &mut Guest,
    fork: &mut Fork,
    keys: u64,
    random: &mut fastrand::Rng,
) -> Result<(Duration, Duration)> {
    let value = [b'x'; VALUE_BYTES];
    let (mut live, mut forked) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..WINDOWS {
        let requests = mixed(random, keys, 64, &value);
        guest.apply(&CONTEXT, requests.batch())?;
        let window = reads(random, keys, WINDOW);
        let (answered, time) = timed(|| {
            if !fork.follow(guest)? {
                *fork = guest.fork(&guests.engine, &guests.module)?;
            }
            fork.query(&CONTEXT, window.batch(), u64::MAX)
        });
        forked += time;
        let window = reads(random, keys, WINDOW);
        let (applied, time) = timed(|| guest.apply(&CONTEXT, window.batch()));
        live += time;
        drop((answered?, applied?));
    }
    let windows = u32::try_from(WINDOWS)?;
    Ok((forked / windows, live / windows))
}

/// Failing commands in a row, alone and among good ones, on a machine as it runs in the daemon.
fn poison(guests: &Guests, keys: u64) -> Result<()> {
    let value = [b'v'; VALUE_BYTES];
    let limits = Limits { reply_bytes_max: 256, ..Limits::default() };
    let mut machine = guests.filled(keys, &value, limits)?;
    let mut random = fastrand::Rng::with_seed(4);
    let good = |random: &mut fastrand::Rng| {
        let mut requests = Requests::default();
        let number = random.u64(..keys);
        requests.push(&[b"SET", &key(number), &value]);
        requests
    };
    let too_large = reads(&mut random, keys, 1);
    let first = timed(|| machine.apply(CONTEXT, &too_large.logged(), ROOM));
    first.0?;
    let row_of = each(&mut machine, |_| reads(&mut fastrand::Rng::with_seed(5), keys, 1))?;
    let among = |random: &mut fastrand::Rng| {
        let mut requests = good(random);
        requests.push(&[b"GET", &key(0)]);
        requests.push(&[b"SET", &key(random.u64(..keys)), &value]);
        requests
    };
    let mixed_in = each(&mut machine, |_| among(&mut random))?;
    let good_ones = each(&mut machine, |_| good(&mut fastrand::Rng::with_seed(6)))?;
    row("a failing command: the first, rolled back", &millis(first.1));
    row("  each of 1000 in a row", &micros(row_of));
    row("  each of 1000 between two good ones, all three", &micros(mixed_in));
    row("  a good one after them, mostly tried on a fork no more", &micros(good_ones));
    Ok(())
}

fn each(machine: &mut Instance, mut requests: impl FnMut(u32) -> Requests) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for number in 0..POISONS {
        let batch = requests(number).logged();
        let (applied, time) = timed(|| machine.apply(CONTEXT, &batch, ROOM));
        applied?;
        total += time;
    }
    Ok(total / POISONS)
}
