//! A history as a file: a line of JSON for its title, each operation and each event, so that tools
//! that read lines can look at it, and a run that failed can be checked again without a cluster.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::operation::{Event, History, Operation};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Title(String),
    Operation(Operation),
    Event(Event),
}

/// Writes a history, in the order of its calls.
///
/// # Errors
/// When the file can't be written.
pub fn write(history: &History, path: &Path) -> std::io::Result<()> {
    let mut file = BufWriter::new(std::fs::File::create(path)?);
    let mut operations = history.operations.clone();
    operations.sort_by_key(|operation| operation.called_us);
    let mut events = history.events.iter().cloned().peekable();
    put(&mut file, &Line::Title(history.title.clone()))?;
    for operation in operations {
        while let Some(event) = events.next_if(|event| event.at_us <= operation.called_us) {
            put(&mut file, &Line::Event(event))?;
        }
        put(&mut file, &Line::Operation(operation))?;
    }
    events.try_for_each(|event| put(&mut file, &Line::Event(event)))?;
    file.flush()
}

fn put(file: &mut impl Write, line: &Line) -> std::io::Result<()> {
    serde_json::to_writer(&mut *file, line)?;
    file.write_all(b"\n")
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// When the file can't be read, or a line is none of a history.
pub fn read(path: &Path) -> std::io::Result<History> {
    let mut history = History::default();
    for line in BufReader::new(std::fs::File::open(path)?).lines() {
        match serde_json::from_str(&line?)? {
            Line::Title(title) => history.title = title,
            Line::Operation(operation) => history.operations.push(operation),
            Line::Event(event) => history.events.push(event),
        }
    }
    Ok(history)
}
