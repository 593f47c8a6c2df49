//! Generates the services with protox, a protobuf compiler in Rust, so that no protoc is needed.

use std::error::Error;
use std::fmt::Write as _;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["client.proto", "admin.proto", "peer.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("lockstep.bin"), prost::Message::encode_to_vec(&descriptors))?;
    let mut messages = descriptors.file.iter().flat_map(|file| &file.message_type);
    let limits = messages.find(|message| message.name() == "Limits");
    let fields = limits.ok_or("there is no message Limits")?.field.iter();
    let names: Vec<&str> = fields.map(|field| field.name()).collect();
    std::fs::write(out.join("limits.rs"), limits_in_order(&names)?)?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}

/// What goes over all limits of a machine, from the fields of their message.
fn limits_in_order(names: &[&str]) -> Result<String, std::fmt::Error> {
    let (count, fields) = (names.len(), names.join(", "));
    let values: String = names.iter().map(|name| format!("self.{name}, ")).collect();
    let mut code = String::new();
    writeln!(code, "impl Limits {{")?;
    writeln!(code, "    /// The names of the fields, in their order.")?;
    writeln!(code, "    pub const NAMES: [&str; {count}] = {names:?};")?;
    writeln!(code, "    /// From the values in the order of the fields.")?;
    writeln!(code, "    pub fn from_values([{fields}]: [Option<u64>; {count}]) -> Self {{")?;
    writeln!(code, "        Self {{ {fields} }}\n    }}")?;
    writeln!(code, "    /// The values in the order of the fields.")?;
    writeln!(code, "    pub fn values(&self) -> [Option<u64>; {count}] {{")?;
    writeln!(code, "        [{values}]\n    }}\n}}")?;
    Ok(code)
}
