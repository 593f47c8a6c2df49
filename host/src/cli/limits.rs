//! The limits of a machine on the command line: the flags that set them, and how they are printed.
//!
//! It checks no bounds: the node does, and names the limit.

use lockstep_client::v1;

use super::output::say;
use super::view;
use crate::node::Limits;

/// What the guest of a machine may use. Sizes are bytes, or end in KiB, MiB or GiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct Flags {
    /// Fuel of a call that applies commands, about one unit per instruction
    #[arg(long, value_name = "N")]
    fuel_per_command: Option<u64>,
    /// Fuel of a call that answers queries
    #[arg(long, value_name = "N")]
    fuel_per_query: Option<u64>,
    /// Fuel of a step of an export or import
    #[arg(long, value_name = "N")]
    fuel_per_export_step: Option<u64>,
    /// Linear memory, at most
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory_bytes: Option<u64>,
    /// Elements of a table, at most; acts when a guest is created
    #[arg(long, value_name = "N")]
    table_elements: Option<u64>,
    /// A reply, at most
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    reply_bytes: Option<u64>,
    /// An export, at most
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    export_bytes: Option<u64>,
}

impl Flags {
    /// Whether none is given.
    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// These, and where one is not given, that of `base`.
    pub(super) fn over(self, base: Limits) -> v1::Limits {
        v1::Limits {
            fuel_per_command: self.fuel_per_command.or(Some(base.fuel_per_command)),
            fuel_per_query: self.fuel_per_query.or(Some(base.fuel_per_query)),
            fuel_per_export_step: self.fuel_per_export_step.or(Some(base.fuel_per_export_step)),
            memory_bytes_max: self.memory_bytes.or(Some(base.memory_bytes_max)),
            table_elements_max: self.table_elements.or(Some(base.table_elements_max)),
            reply_bytes_max: self.reply_bytes.or(Some(base.reply_bytes_max)),
            export_bytes_max: self.export_bytes.or(Some(base.export_bytes_max)),
        }
    }
}

impl From<Flags> for v1::Limits {
    fn from(flags: Flags) -> Self {
        Self {
            fuel_per_command: flags.fuel_per_command,
            fuel_per_query: flags.fuel_per_query,
            fuel_per_export_step: flags.fuel_per_export_step,
            memory_bytes_max: flags.memory_bytes,
            table_elements_max: flags.table_elements,
            reply_bytes_max: flags.reply_bytes,
            export_bytes_max: flags.export_bytes,
        }
    }
}

/// Reads a number of bytes, which may end in KiB, MiB or GiB.
fn parse_size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let with_unit = units.iter().find_map(|(unit, of)| Some((text.strip_suffix(unit)?, *of)));
    let (number, unit) = with_unit.unwrap_or((text, 1));
    let wrong = || "a size is a whole number of bytes, or of KiB, MiB or GiB".to_owned();
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).ok_or_else(wrong)
}

/// Limits by name, in the order in which they are shown.
pub(super) fn rows(limits: &v1::Limits) -> [(&'static str, Option<u64>); 7] {
    [
        ("fuel_per_command", limits.fuel_per_command),
        ("fuel_per_query", limits.fuel_per_query),
        ("fuel_per_export_step", limits.fuel_per_export_step),
        ("memory_bytes_max", limits.memory_bytes_max),
        ("table_elements_max", limits.table_elements_max),
        ("reply_bytes_max", limits.reply_bytes_max),
        ("export_bytes_max", limits.export_bytes_max),
    ]
}

/// Prints the limits of a machine: what the log last set, and what its guest on the asked node has.
pub(super) fn print(machine: &v1::Machine) {
    let desired = machine.limits.unwrap_or_default();
    let active = machine.active_limits.unwrap_or_default();
    let text = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let mut table = view::table(&["LIMIT", "DESIRED", "ACTIVE"]);
    view::align_right(&mut table, [1, 2]);
    for ((name, desired), (_, active)) in rows(&desired).into_iter().zip(rows(&active)) {
        table.add_row([name.to_owned(), text(desired), text(active)]);
    }
    say!("{}", table.trim_fmt());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes are bytes or have a unit; anything else is refused, and nothing overflows.
    #[test]
    fn sizes_are_parsed() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(parse_size(text).ok(), expected, "{text}");
        };
        check("0", Some(0));
        check("1048576", Some(1 << 20));
        check("64KiB", Some(64 << 10));
        check("3MiB", Some(3 << 20));
        check("4GiB", Some(4 << 30));
        for bad in ["", "KiB", "-1", "1.5GiB", "1 MiB", "1MB", "1mib", "0x10", "99999999999GiB"] {
            check(bad, None);
        }
    }
}
