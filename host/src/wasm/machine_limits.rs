//! What the guest of a machine may use: one table of all limits, from which everything else about
//! them follows. That is the fields of [`Limits`], their bounds and defaults, what the command line
//! and the protocol know of them, and the table in docs/operations.md, which a test compares.

use serde::{Deserialize, Serialize};

use crate::config::limits::*;

/// One limit of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The field of [`Limits`], and its name everywhere else.
    pub name: &'static str,
    /// What it counts.
    pub unit: LimitUnit,
    /// The least it can be.
    pub min: u64,
    /// What it is where nobody says otherwise.
    pub default: u64,
    /// The most it can be.
    pub max: u64,
    /// What it limits.
    pub about: &'static str,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitUnit {
    /// Units of fuel, each about one instruction.
    Fuel,
    /// Bytes.
    Bytes,
    /// Elements of a table.
    Elements,
}

macro_rules! table {
    ($($name:ident, $unit:ident, $min:expr, $default:expr, $max:expr, $about:literal;)*) => {
        /// How many limits there are.
        pub const LIMITS_COUNT: usize = [$(stringify!($name)),*].len();

        /// All limits, in the order of the fields.
        pub const LIMITS: [Limit; LIMITS_COUNT] = [$(Limit {
            name: stringify!($name),
            unit: LimitUnit::$unit,
            min: $min,
            default: $default,
            max: $max,
            about: $about,
        }),*];

        /// What one guest may use. Replicas of a machine must agree on it: it stands in the log.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Limits {
            $(#[doc = $about] pub $name: u64,)*
        }

        /// Other limits for a machine; what is `None` stays as it is.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct LimitsChange {
            $(#[doc = $about] pub $name: Option<u64>,)*
        }

        impl Limits {
            /// From the values in the order of [`LIMITS`].
            pub fn from_values([$($name),*]: [u64; LIMITS_COUNT]) -> Self {
                Self { $($name),* }
            }

            /// The values in the order of [`LIMITS`].
            pub fn values(&self) -> [u64; LIMITS_COUNT] {
                [$(self.$name),*]
            }
        }

        impl LimitsChange {
            /// From the values in the order of [`LIMITS`].
            pub fn from_values([$($name),*]: [Option<u64>; LIMITS_COUNT]) -> Self {
                Self { $($name),* }
            }

            /// The values in the order of [`LIMITS`].
            pub fn values(&self) -> [Option<u64>; LIMITS_COUNT] {
                [$(self.$name),*]
            }
        }
    };
}

table! {
    fuel_per_command, Fuel, FUEL_MIN, FUEL_PER_COMMAND_DEFAULT, FUEL_MAX,
        "Fuel of a call that applies commands, about one unit per instruction";
    fuel_per_query, Fuel, FUEL_MIN, FUEL_PER_QUERY_DEFAULT, FUEL_MAX,
        "Fuel of a call that answers queries";
    fuel_per_export_step, Fuel, FUEL_PER_EXPORT_STEP_MIN, FUEL_PER_EXPORT_STEP_DEFAULT, FUEL_MAX,
        "Fuel of a step of an export or import";
    memory_bytes_max, Bytes, GUEST_MEMORY_BYTES_MIN, GUEST_MEMORY_BYTES_DEFAULT,
        GUEST_MEMORY_BYTES_MAX,
        "Linear memory, at most; a guest that holds more keeps it, and gets no more";
    table_elements_max, Elements, 0, GUEST_TABLE_ELEMENTS_DEFAULT, GUEST_TABLE_ELEMENTS_MAX,
        "Elements of a table, at most; acts when a guest is created";
    reply_bytes_max, Bytes, 1, REPLY_BYTES_MAX as u64, REPLY_BYTES_MAX as u64,
        "A reply, at most";
    export_bytes_max, Bytes, EXPORT_BYTES_MIN, EXPORT_BYTES_DEFAULT, EXPORT_BYTES_MAX,
        "An export, at most";
}

/// A limit that no machine can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} must be {min} to {max}, and {value} is not")]
pub struct InvalidLimit {
    /// The field of [`Limits`].
    pub name: &'static str,
    /// What it was to be.
    pub value: u64,
    /// The least it can be.
    pub min: u64,
    /// The most it can be.
    pub max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self::from_values(LIMITS.map(|row| row.default))
    }
}

impl Limits {
    /// The most that any machine can have. A module is admitted, and a state brought back, under
    /// these: what a machine holds may be more than it was limited to since.
    pub fn largest() -> Self {
        Self::from_values(LIMITS.map(|row| row.max))
    }

    /// What a module may use while it is admitted, on the node that checks it and on every voter.
    pub(super) fn for_admission() -> Self {
        Self {
            fuel_per_command: ADMISSION_FUEL,
            fuel_per_query: ADMISSION_FUEL,
            fuel_per_export_step: ADMISSION_FUEL,
            memory_bytes_max: ADMISSION_MEMORY_BYTES_MAX,
            table_elements_max: GUEST_TABLE_ELEMENTS_MAX,
            ..Self::default()
        }
    }

    /// Refuses what no machine can have.
    ///
    /// # Errors
    /// The first such limit, with its bounds.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        for (Limit { name, min, max, .. }, value) in LIMITS.into_iter().zip(self.values()) {
            if !(min..=max).contains(&value) {
                return Err(InvalidLimit { name, value, min, max });
            }
        }
        Ok(())
    }

    /// These limits after a change.
    #[must_use]
    pub fn with(self, change: &LimitsChange) -> Self {
        let (values, changes) = (self.values(), change.values());
        Self::from_values(std::array::from_fn(|at| changes[at].unwrap_or(values[at])))
    }

    /// Bytes of all replies of one call. What fails by it is tried command by command, so that no
    /// command fails for what its neighbours are answered.
    pub(super) fn replies_bytes_max(&self) -> u64 {
        (self.reply_bytes_max * ENTRY_COMMANDS_MAX as u64).min(REPLIES_BYTES_MAX as u64)
    }

    /// Bytes that may cross from guest to host in one call: the replies, and both lists of
    /// positions beside them, or a chunk of an export, or a line for the log.
    pub(super) fn crossing_bytes_max(&self) -> usize {
        let longest = self.replies_bytes_max().max(u64::from(EXPORT_CHUNK_BYTES));
        let longest = usize::try_from(longest).expect("no more than REPLIES_BYTES_MAX");
        longest + 8 * ENTRY_COMMANDS_MAX + (64 << 10)
    }
}

impl LimitsChange {
    /// Refuses a change to what no machine can have, whatever else the machine has.
    ///
    /// # Errors
    /// As [`Limits::check`].
    pub fn check(&self) -> Result<(), InvalidLimit> {
        Limits::default().with(self).check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table that operators read has every limit, with the same bounds and in the same order.
    #[test]
    fn the_documents_know_every_limit() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
        let text = std::fs::read_to_string(path).unwrap();
        let mut rows = text.lines().filter(|line| line.starts_with("| `"));
        for row in LIMITS {
            let [min, default, max] = [row.min, row.default, row.max].map(|value| show(value, row));
            let name = format!("| `{}`", row.name);
            let found = rows.find(|line| line.starts_with(&name)).expect(row.name);
            let cells: Vec<&str> = found.split('|').map(str::trim).collect();
            assert_eq!(cells[2..5], [default, min, max], "{}", row.name);
        }
    }

    /// As the documents write it.
    fn show(value: u64, row: Limit) -> String {
        let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let whole = |(unit, bits): &(&str, u32)| {
            let is_whole = value >= 1 << bits && value.is_multiple_of(1 << bits);
            is_whole.then(|| format!("{} {unit}", value >> bits))
        };
        match row.unit {
            LimitUnit::Bytes if value == (4 << 30) - (64 << 10) => "4 GiB less 64 KiB".to_owned(),
            LimitUnit::Bytes => units.iter().find_map(whole).unwrap_or_else(|| value.to_string()),
            LimitUnit::Fuel | LimitUnit::Elements => {
                let digits = value.to_string();
                let groups = digits.as_bytes().rchunks(3).rev();
                let groups: Vec<_> =
                    groups.map(|group| std::str::from_utf8(group).unwrap()).collect();
                groups.join(",")
            }
        }
    }
}
