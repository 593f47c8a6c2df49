//! The house rules that neither rustfmt nor clippy knows, as code: `cargo xtask tidy` names each
//! place that breaks one. What a rule means and why it is there stands in CONTRIBUTING.md.
//!
//! The rules are pure functions of a file's path and text, so that each is tested by a table. They
//! read text, not syntax: a rule that needs more belongs in clippy.

mod layers;
mod text;

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::step;

/// A place that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// From the workspace's folder on, with `/`.
    path: String,
    /// Counted from 1.
    line: usize,
    rule: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.rule)
    }
}

/// Checks every file of the workspace.
pub(crate) fn run() -> Result<()> {
    step::say("checking the house rules");
    let mut findings = Vec::new();
    let mut files = 0;
    walk(step::workspace(), "", &mut |path, text| {
        files += 1;
        findings.extend(check(path, text));
    })?;
    findings.iter().for_each(|finding| eprintln!("{finding}"));
    if !findings.is_empty() {
        bail!("{} places break a house rule: CONTRIBUTING.md says why each exists", findings.len());
    }
    eprintln!("    {files} files are in order");
    Ok(())
}

/// Everything that is wrong with one file.
fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = text::check(path, text);
    findings.extend(layers::check(path, text));
    findings
}

/// Calls `visit` with the path and text of each file that people write, in order.
fn walk(folder: &Path, inside: &str, visit: &mut impl FnMut(&str, &str)) -> Result<()> {
    let unreadable = || format!("cannot read the folder {}", folder.display());
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .and_then(Iterator::collect::<std::io::Result<_>>)
        .with_context(unreadable)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{inside}{name}");
        let kind = entry.file_type().with_context(unreadable)?;
        if kind.is_dir() && !skipped(&name) {
            walk(&entry.path(), &format!("{path}/"), visit)?;
        } else if kind.is_file() && text::EXTENSIONS.iter().any(|end| name.ends_with(end)) {
            let text = std::fs::read_to_string(entry.path())
                .with_context(|| format!("{path} is not UTF-8 text"))?;
            visit(&path, &text);
        }
    }
    Ok(())
}

/// Folders that nobody writes by hand.
fn skipped(name: &str) -> bool {
    name == "target" || name == "data" || (name.starts_with('.') && name != ".ci")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A finding is printed as a compiler prints one, so that editors can jump to it.
    #[test]
    fn a_finding_is_printed_with_its_place() {
        let finding = Finding { path: "a/b.rs".into(), line: 3, rule: "no".into() };
        assert_eq!(finding.to_string(), "a/b.rs:3: no");
    }

    /// The workspace keeps its own rules.
    #[test]
    fn the_workspace_is_in_order() {
        let mut findings = Vec::new();
        walk(step::workspace(), "", &mut |path, text| findings.extend(check(path, text)))
            .expect("the workspace is readable");
        assert_eq!(findings, []);
    }
}
