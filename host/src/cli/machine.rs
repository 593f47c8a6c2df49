//! `lockstep machine`: create, list, describe, limit and remove machines.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::endpoint::Endpoint;
use super::output::say;
use super::{limits, view};
use crate::config::limits::MODULE_BYTES_MAX;
use crate::types::check_machine_name;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Upload a module and create a machine that runs it
    Create {
        /// Name of the machine
        name: String,
        /// The module, a WebAssembly component
        file: PathBuf,
        #[command(flatten)]
        limits: limits::Flags,
        #[command(flatten)]
        endpoint: Endpoint,
    },
    /// Show all machines
    List {
        #[command(flatten)]
        endpoint: Endpoint,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one machine
    Describe {
        /// Name of the machine
        name: String,
        #[command(flatten)]
        endpoint: Endpoint,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change what the guest of a machine may use, and show it; without a limit, only show it
    Limits {
        /// Name of the machine
        name: String,
        #[command(flatten)]
        limits: limits::Flags,
        #[command(flatten)]
        endpoint: Endpoint,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a machine and all its state
    Remove {
        /// Name of the machine
        name: String,
        #[command(flatten)]
        endpoint: Endpoint,
    },
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create { name, file, limits, endpoint } => {
            create(&name, file, limits, endpoint).await
        }
        Command::List { endpoint, json } => list(endpoint, json).await,
        Command::Describe { name, endpoint, json } => describe(&name, endpoint, json).await,
        Command::Limits { name, limits, endpoint, json } => {
            set_limits(&name, limits, endpoint, json).await
        }
        Command::Remove { name, endpoint } => {
            endpoint.client()?.remove_machine(&name).await?;
            say!("machine {name} is removed");
            Ok(())
        }
    }
}

async fn create(
    name: &str,
    file: PathBuf,
    limits: limits::Flags,
    endpoint: Endpoint,
) -> anyhow::Result<()> {
    let client = endpoint.client()?;
    let module = read_module(&file).await?;
    // Asked before a module is sent that would serve for nothing.
    check_machine_name(name).map_err(anyhow::Error::msg)?;
    if client.list_machines().await?.iter().any(|machine| machine.name == name) {
        bail!("a machine named {name:?} exists already");
    }
    let digest = client.upload_module(module).await?;
    let machine = client.create_machine(name, digest, limits.into()).await?;
    let (id, digest) = (machine.id, hex::encode(&machine.module_digest));
    say!("machine {name} is created (id {id}, module {digest})");
    Ok(())
}

/// Reads a module that is within the limit: a longer one need not be sent to be refused.
pub(super) async fn read_module(file: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    let module = tokio::fs::read(file).await;
    let module = module.with_context(|| format!("cannot read {}", file.display()))?;
    let (length, limit) = (module.len(), MODULE_BYTES_MAX);
    if length > limit {
        bail!("{} has {length} bytes, the limit for a module is {limit}", file.display());
    }
    Ok(module)
}

async fn list(endpoint: Endpoint, json: bool) -> anyhow::Result<()> {
    let machines = endpoint.client()?.list_machines().await?;
    if json {
        say!("{:#}", view::machines_json(&machines));
    } else {
        view::print_machines(&machines);
    }
    Ok(())
}

async fn describe(name: &str, endpoint: Endpoint, json: bool) -> anyhow::Result<()> {
    let machine = endpoint.client()?.describe_machine(name).await?;
    if json {
        say!("{:#}", view::machine_json(&machine));
        return Ok(());
    }
    say!("machine    {} (id {})", machine.name, machine.id);
    say!("module     {}", hex::encode(&machine.module_digest));
    say!("guest      {} (state schema {})", machine.guest_name, machine.schema_version);
    say!("uses time  {}", if machine.uses_time { "yes" } else { "no" });
    say!("memory     {} bytes", machine.memory_bytes);
    say!("fuel       {} last, {} highest, a command", machine.fuel_last, machine.fuel_highest);
    say!("applied    {}", machine.applied_index);
    say!("state      {}", view::state_text(&machine));
    view::print_checkpoint(machine.checkpoint.as_ref());
    say!("");
    limits::print(&machine);
    Ok(())
}

async fn set_limits(
    name: &str,
    flags: limits::Flags,
    endpoint: Endpoint,
    json: bool,
) -> anyhow::Result<()> {
    let client = endpoint.client()?;
    let machine = match flags.is_empty() {
        true => client.describe_machine(name).await?,
        false => client.set_limits(name, flags.into()).await?,
    };
    if json {
        say!("{:#}", view::machine_json(&machine)["limits"]);
    } else {
        limits::print(&machine);
    }
    Ok(())
}
