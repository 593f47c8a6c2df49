//! `lockstep restore`: rebuilds machines from the exports in a snapshot file.
//!
//! Everything that can be refused is looked at before the first machine is begun, and a machine
//! whose state does not come in whole is removed again.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use lockstep_client::{Client, Outcome, Restore, reason, v1};
use tokio::sync::mpsc;

use super::endpoint::Endpoint;
use super::output::say;
use super::{limits, machine, view};
use crate::node::{self, Backup, ExportState, SavedMachine};
use crate::types::{check_machine_name, short};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A snapshot, from the folder `snapshots` of any node of any cluster
    file: PathBuf,
    /// Only this machine of the file [default: all of them]
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
    /// Another name for the one machine that is restored
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// Another module for the one machine that is restored, such as a later version of its guest
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// Only show what is in the file
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    limits: limits::Flags,
    #[command(flatten)]
    endpoint: Endpoint,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let backup = Backup::open(arguments.file.clone()).await?;
    if arguments.list {
        print_contents(&backup);
        return Ok(());
    }
    let plans = plan(&arguments, &backup)?;
    let client = arguments.endpoint.client()?;
    let machines = client.list_machines().await?;
    if let Some(taken) =
        machines.iter().find(|machine| plans.iter().any(|p| p.name == machine.name))
    {
        bail!("{}", name_taken(taken));
    }
    let module = match &arguments.module {
        Some(file) => Some(replacement(file.clone(), &plans).await?),
        None => None,
    };
    for plan in &plans {
        let restored = restore(&client, &backup, plan, module.as_ref()).await;
        restored.with_context(|| format!("machine {} is not restored", plan.name))?;
    }
    Ok(())
}

/// A machine to be restored.
struct Plan<'a> {
    saved: &'a SavedMachine,
    name: String,
    limits: v1::Limits,
}

/// What is to be restored, of which every export is whole.
fn plan<'a>(arguments: &Arguments, backup: &'a Backup) -> anyhow::Result<Vec<Plan<'a>>> {
    let file = arguments.file.display();
    let wanted = |saved: &&SavedMachine| match &arguments.machine {
        Some(name) => saved.name == *name,
        None => true,
    };
    let chosen: Vec<&SavedMachine> = backup.machines().filter(wanted).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = backup.machines().map(|saved| saved.name.as_str()).collect();
        match &arguments.machine {
            Some(name) => bail!("{file} holds no machine {name:?}, only: {}", names.join(", ")),
            None => bail!("{file} holds no machine"),
        }
    }
    let one = chosen.len() == 1;
    ensure!(one || arguments.name.is_none(), "--as is for one machine: name it with --machine");
    let of_one = "--module is for one machine: name it with --machine";
    ensure!(one || arguments.module.is_none(), "{of_one}");
    chosen.into_iter().map(|saved| plan_one(arguments, saved)).collect()
}

fn plan_one<'a>(arguments: &Arguments, saved: &'a SavedMachine) -> anyhow::Result<Plan<'a>> {
    let whose = &saved.name;
    let hint = "restore the others with --machine, or this one from an earlier snapshot";
    match saved.export.state {
        ExportState::Whole => {}
        ExportState::BrokenOff => {
            bail!("the export of machine {whose} was broken off by its guest's failure: {hint}")
        }
        ExportState::Absent => {
            bail!("machine {whose} was being restored itself, so there is no export of it: {hint}")
        }
    }
    let name = arguments.name.as_ref().unwrap_or(whose).clone();
    check_machine_name(&name).map_err(|reason| anyhow::anyhow!("{name:?}: {reason}"))?;
    Ok(Plan { saved, name, limits: arguments.limits.over(saved.limits) })
}

fn name_taken(machine: &v1::Machine) -> String {
    let name = &machine.name;
    match machine.restoring {
        None => format!("a machine named {name:?} exists already: choose another name with --as"),
        Some(v1::Restoring { parts, .. }) => format!(
            "a machine named {name:?} is being restored ({parts} parts are in): if nobody is at it \
             any more, run `lockstep machine remove {name}` first"
        ),
    }
}

/// A module given on the command line, if it takes in what is to be restored.
async fn replacement(file: PathBuf, plans: &[Plan<'_>]) -> anyhow::Result<Bytes> {
    let bytes = Bytes::from(machine::read_module(&file).await?);
    let checked = bytes.clone();
    // Whether it is too much work to compile is the node's to say, by the limit of its cluster.
    let module = tokio::task::spawn_blocking(move || node::check_module(&checked, u64::MAX));
    let module = module.await??;
    let manifest = module.manifest();
    let schemas = &manifest.importable_schemas;
    for Plan { saved, .. } in plans {
        let schema = saved.export.schema;
        ensure!(
            schemas.contains(&schema),
            "{} does not import states of schema {schema}, which machine {} has, only of {}",
            file.display(),
            saved.name,
            schemas.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(bytes)
}

/// Restores one machine, with a bar that shows how far it is.
async fn restore(
    client: &Client,
    backup: &Backup,
    plan: &Plan<'_>,
    module: Option<&Bytes>,
) -> anyhow::Result<()> {
    let module = match module {
        Some(module) => module.clone(),
        None => backup.module(plan.saved.module).await?.into(),
    };
    let export = plan.saved.export;
    let begin = v1::BeginRestoreRequest {
        name: plan.name.clone(),
        module_digest: client.upload_module(module).await?,
        limits: Some(plan.limits),
        schema_version: export.schema,
    };
    let mut restore = match client.restore(begin).await {
        Ok(restore) => restore,
        Err(error) => return Err(not_begun(plan, error)),
    };
    let bar = progress_bar(&plan.name, export.bytes);
    let chunks = backup.export(plan.saved.id);
    let stopped = node::shutdown_signal()?;
    let pushed = tokio::select! {
        pushed = push_all(&mut restore, chunks, export.chunks, &bar) => pushed,
        () = stopped => Err(anyhow::anyhow!("it was stopped")),
    };
    bar.finish_and_clear();
    if let Err(error) = pushed {
        return Err(abandon(&restore, error).await);
    }
    let machine = restore.machine();
    let (name, id, digest) = (&machine.name, machine.id, hex::encode(&machine.module_digest));
    let bytes = export.bytes;
    say!("machine {name} is restored (id {id}, module {digest}, {bytes} bytes of state)");
    Ok(())
}

fn not_begun(plan: &Plan<'_>, error: lockstep_client::Error) -> anyhow::Error {
    let outcome = error.outcome;
    let error = anyhow::Error::new(error);
    if outcome != Outcome::Unknown {
        return error;
    }
    let name = &plan.name;
    error.context(format!(
        "it may have begun: look at `lockstep machine list`, and if {name} is there, run \
         `lockstep machine remove {name}`"
    ))
}

/// Hands over `count` chunks; an export of none is one part without bytes.
async fn push_all(
    restore: &mut Restore,
    mut chunks: mpsc::Receiver<anyhow::Result<Bytes>>,
    count: u64,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    if count == 0 {
        return Ok(restore.push(Bytes::new(), true).await?);
    }
    for number in 1..=count {
        let chunk = chunks.recv().await.context("the file changed while it was read")??;
        let bytes = chunk.len() as u64;
        restore.push(chunk, number == count).await?;
        bar.inc(bytes);
    }
    Ok(())
}

/// Removes what has come in; says so if that fails too.
async fn abandon(restore: &Restore, error: anyhow::Error) -> anyhow::Error {
    match restore.abandon().await {
        Ok(()) => error,
        Err(gone) if gone.reason == reason::NO_SUCH_MACHINE => error,
        Err(left) => {
            let name = &restore.machine().name;
            error.context(format!(
                "half of it is left, which could not be removed ({left}): run `lockstep machine \
                 remove {name}`"
            ))
        }
    }
}

/// Nothing is shown where standard error is no terminal.
fn progress_bar(name: &str, bytes: u64) -> ProgressBar {
    let template = "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    ProgressBar::new(bytes).with_style(style).with_prefix(name.to_owned())
}

fn print_contents(backup: &Backup) {
    let index = backup.index().unwrap_or(0);
    say!("snapshot at log index {index}");
    let mut rows = view::table(&["MACHINE", "MODULE", "SCHEMA", "BYTES", "EXPORT"]);
    view::align_right(&mut rows, [2, 3]);
    for saved in backup.machines() {
        let state = match saved.export.state {
            ExportState::Whole => "complete",
            ExportState::BrokenOff => "broken off",
            ExportState::Absent => "none (was being restored)",
        };
        rows.add_row([
            saved.name.clone(),
            short(&saved.module.to_string()).to_owned(),
            saved.export.schema.to_string(),
            saved.export.bytes.to_string(),
            state.to_owned(),
        ]);
    }
    say!("{}", rows.trim_fmt());
}
