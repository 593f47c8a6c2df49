//! A thread of a running node that does not come back: a small program stops it alone, as a
//! debugger would, while the other threads of its process go on (`frozen.c`).

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::preload;

/// A thread that stands still until this is dropped.
pub struct FrozenThread(Child);

impl FrozenThread {
    /// Stops the thread with this id. Once this returns, it does nothing. What is needed for that
    /// is built in `directory`.
    ///
    /// # Panics
    /// When the system does not allow it.
    pub fn new(directory: &Path, id: i32) -> Self {
        let program = preload::build_program(directory, "frozen", include_str!("frozen.c"));
        let mut command = Command::new(program);
        command.arg(id.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program can be started");
        let mut said = String::new();
        let output = child.stdout.take().expect("its output is a pipe");
        BufReader::new(output).read_line(&mut said).expect("its output can be read");
        assert_eq!(said.trim_end(), "stopped", "thread {id} can't be stopped");
        Self(child)
    }
}

impl Drop for FrozenThread {
    fn drop(&mut self) {
        // The end of its input lets the thread go on, and so does its own end.
        drop(self.0.stdin.take());
        self.0.wait().expect("it is our own process");
    }
}
