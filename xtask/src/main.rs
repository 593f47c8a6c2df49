//! Everything a developer runs.

mod guests;
mod setup;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Builds the guests of this repository, or the guest crates in the folders given
    Guests { folders: Vec<PathBuf> },
    /// Installs what is missing
    Setup {
        /// Ask nothing
        #[arg(long)]
        yes: bool,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().task {
        Task::Guests { folders } if folders.is_empty() => guests::build(),
        Task::Guests { folders } => {
            folders.iter().try_for_each(|folder| guests::build_folder(folder).map(drop))
        }
        Task::Setup { yes } => setup::run(yes),
    }
}
