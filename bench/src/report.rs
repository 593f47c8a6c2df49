//! The tables that people read: medians over rounds, and ratios per pair of neighbours in time.

use std::fmt::Display;

use crate::args::{Args, Contender, Mode, Operation, System};
use crate::caller::{CONNECTIONS, KEY_BYTES, VALUE_BYTES};
use crate::cell::{Cell, Sample};

/// Widths of the columns, in the order of `heading`.
const WIDTHS: [usize; 11] = [7, 15, 8, 8, 8, 16, 7, 17, 7, 31, 31];

/// Prints what the next rows are about.
pub(crate) fn heading(args: &Args, nodes: usize, operation: Operation) {
    let kind = match operation {
        Operation::Writes => "durable writes",
        Operation::Reads => "linearizable reads",
    };
    println!(
        "\n{nodes} node(s), {kind}, {KEY_BYTES}-byte keys of {}, {VALUE_BYTES}-byte values, \
         {CONNECTIONS} connections to the leader; medians of {} round(s) of {} s",
        args.keyspace, args.rounds, args.seconds
    );
    if operation == Operation::Reads && args.mode.contains(&Mode::Stream) && !args.rival_only {
        println!("(a stream carries commands alone: its reads are ordered through the log)");
    }
    row([
        &"clients",
        &"contender",
        &"ops/s",
        &"p50 ms",
        &"p99 ms",
        &"node CPU us/op",
        &"client",
        &"RSS MiB",
        &"others",
        &if args.vs.is_some() { "vs etcd: ops (range), p50" } else { "" },
        &if args.before.is_some() { "vs before: ops (range), p50" } else { "" },
    ]);
}

/// Prints a row for each contender of `cell`, and what was wrong with its samples.
pub(crate) fn rows(args: &Args, cell: Cell, samples: &[Sample]) {
    for contender in args.contenders() {
        let own = of(samples, contender);
        row([
            &cell.clients,
            &contender.name(),
            &format!("{:.0}", median_of(&own, |sample| sample.ops_per_second)),
            &format!("{:.2}", median_of(&own, |sample| sample.p50_us) / 1000.0),
            &format!("{:.2}", median_of(&own, |sample| sample.p99_us) / 1000.0),
            &per_node(cell, |node| median_of(&own, |sample| sample.node_cpu_us[node])),
            &format!("{:.1}", median_of(&own, |sample| sample.client_cpu_us)),
            &per_node(cell, |node| median_of(&own, |sample| mebibytes(sample.rss_bytes[node]))),
            &format!("{:.0}%", median_of(&own, |sample| sample.others_cpu_percent)),
            &ratios(&own, &rival(samples)),
            &ratios(&own, &of(samples, Contender { system: System::Before, ..contender })),
        ]);
        own.iter().for_each(|sample| warn(sample));
    }
}

/// The ratio to another per round, as a median and its range; empty for all but this build.
fn ratios(own: &[&Sample], rival: &[&Sample]) -> String {
    if rival.is_empty() || own.iter().any(|sample| sample.contender.system != System::Lockstep) {
        return String::new();
    }
    let pairs = || own.iter().zip(rival);
    let speeds: Vec<f64> =
        pairs().map(|(own, rival)| own.ops_per_second / rival.ops_per_second).collect();
    let waits = pairs().map(|(own, rival)| own.p50_us / rival.p50_us).collect();
    let least = speeds.iter().copied().fold(f64::INFINITY, f64::min);
    let most = speeds.iter().copied().fold(0.0, f64::max);
    format!("{:.2}x ({least:.2}-{most:.2}), {:.2}x", median(speeds), median(waits))
}

fn warn(sample: &Sample) {
    let round = sample.round + 1;
    if sample.leader_changed {
        println!("        ! round {round}: another node became leader");
    }
    if sample.errors > 0 {
        let first = sample.first_error.as_deref().unwrap_or_default();
        println!("        ! round {round}: {} failed requests; the first: {first}", sample.errors);
    }
}

fn of(samples: &[Sample], contender: Contender) -> Vec<&Sample> {
    samples.iter().filter(|sample| sample.contender == contender).collect()
}

fn rival(samples: &[Sample]) -> Vec<&Sample> {
    samples.iter().filter(|sample| sample.contender.system == System::Etcd).collect()
}

fn per_node(cell: Cell, figure: impl Fn(usize) -> f64) -> String {
    let figures: Vec<String> = (0..cell.nodes).map(|node| format!("{:.0}", figure(node))).collect();
    figures.join(" ")
}

/// Bytes as people read them.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn median_of(samples: &[&Sample], figure: impl Fn(&Sample) -> f64) -> f64 {
    median(samples.iter().map(|sample| figure(sample)).collect())
}

/// The middle value; of an even number of values, the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

fn row(cells: [&dyn Display; WIDTHS.len()]) {
    let cells =
        cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{:>width$}", cell.to_string()));
    println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The median needs no order, and has two middles when their number is even.
    #[test]
    fn medians() {
        for (values, expected) in
            [(vec![3.0], 3.0), (vec![9.0, 1.0, 2.0], 2.0), (vec![4.0, 1.0, 2.0, 9.0], 3.0)]
        {
            assert_eq!(median(values.clone()), expected, "{values:?}");
        }
    }
}
