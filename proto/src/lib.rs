//! The gRPC messages and services of Lockstep, generated at build time from the `.proto` files of
//! this folder. Nothing is written by hand here but the module tree, and the order of the limits of
//! a machine.

/// What clients and operators speak.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("lockstep.v1");

    /// The descriptors of all services, for the reflection service.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lockstep.bin"));
}

/// What nodes speak to each other.
#[expect(missing_docs, unused_qualifications, clippy::too_many_lines, reason = "generated code")]
pub mod peer {
    tonic::include_proto!("lockstep.peer.v1");
}

impl v1::Limits {
    /// From the values in the order of the fields.
    pub fn from_values(values: [Option<u64>; 7]) -> Self {
        let [
            fuel_per_command,
            fuel_per_query,
            fuel_per_export_step,
            memory_bytes_max,
            table_elements_max,
            reply_bytes_max,
            export_bytes_max,
        ] = values;
        Self {
            fuel_per_command,
            fuel_per_query,
            fuel_per_export_step,
            memory_bytes_max,
            table_elements_max,
            reply_bytes_max,
            export_bytes_max,
        }
    }

    /// The values in the order of the fields.
    pub fn values(&self) -> [Option<u64>; 7] {
        [
            self.fuel_per_command,
            self.fuel_per_query,
            self.fuel_per_export_step,
            self.memory_bytes_max,
            self.table_elements_max,
            self.reply_bytes_max,
            self.export_bytes_max,
        ]
    }
}
