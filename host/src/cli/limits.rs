//! The limits of a machine on the command line: the flags that set them, and how they are printed.
//!
//! It checks no bounds: the node does, and names the limit.

use clap::builder::ValueParser;
use clap::{Arg, ArgMatches, Command};
use lockstep_client::v1;

use super::output::say;
use super::view;
use crate::node::{LIMITS, LIMITS_COUNT, LimitUnit, Limits};

/// Limits of a machine, those that are given, in the order of the table of limits. Each is a flag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags([Option<u64>; LIMITS_COUNT]);

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        command.args(LIMITS.map(|limit| {
            let (value_name, parser) = match limit.unit {
                LimitUnit::Bytes => ("SIZE", ValueParser::new(parse_size)),
                LimitUnit::Fuel | LimitUnit::Elements => ("N", clap::value_parser!(u64).into()),
            };
            Arg::new(limit.name)
                .long(limit.name.trim_end_matches("_max").replace('_', "-"))
                .value_name(value_name)
                .value_parser(parser)
                .help_heading("Limits (a SIZE is in bytes, or ends in KiB, MiB or GiB)")
                .help(format!("{} [default: {}]", limit.about, limit.default))
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(LIMITS.map(|limit| matches.get_one(limit.name).copied())))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Flags {
    /// Whether none is given.
    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// These, and where one is not given, that of `base`.
    pub(super) fn over(self, base: Limits) -> v1::Limits {
        let base = base.values();
        v1::Limits::from_values(std::array::from_fn(|at| self.0[at].or(Some(base[at]))))
    }
}

impl From<Flags> for v1::Limits {
    fn from(Flags(values): Flags) -> Self {
        Self::from_values(values)
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
pub(super) fn rows(limits: &v1::Limits) -> impl Iterator<Item = (&'static str, Option<u64>)> {
    LIMITS.into_iter().map(|limit| limit.name).zip(limits.values())
}

/// Prints the limits of a machine: what the log last set, and what its guest on the asked node has.
pub(super) fn print(machine: &v1::Machine) {
    let desired = machine.limits.unwrap_or_default();
    let active = machine.active_limits.unwrap_or_default();
    let text = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let mut table = view::table(&["LIMIT", "DESIRED", "ACTIVE"]);
    view::align_right(&mut table, [1, 2]);
    for ((name, desired), (_, active)) in rows(&desired).zip(rows(&active)) {
        table.add_row([name.to_owned(), text(desired), text(active)]);
    }
    say!("{}", table.trim_fmt());
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    /// Each limit has a flag, whose value goes to its own field and to no other.
    #[test]
    fn each_limit_has_a_flag() {
        for (at, limit) in LIMITS.iter().enumerate() {
            let flag = format!("--{}", limit.name.trim_end_matches("_max").replace('_', "-"));
            let command = Flags::augment_args(Command::new("x"));
            let matches = command.try_get_matches_from(["x", &flag, "77"]).unwrap();
            let given: v1::Limits = Flags::from_arg_matches(&matches).unwrap().into();
            let given: Vec<_> = rows(&given).filter(|(_, value)| value.is_some()).collect();
            assert_eq!(given, [(limit.name, Some(77))], "{at}: {flag}");
        }
    }

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
