//! Which module may name which: folder depth equals knowledge (docs/ARCHITECTURE.md). A module
//! that reached around its neighbour would make the next step of a command hard to find.

use super::{Finding, text};

/// A foreign crate, and the only places of the daemon that may name it or a crate of its family.
const CRATES: &[(&str, &[&str])] = &[
    ("openraft", &["host/src/raft/", "host/src/group"]),
    // The door, and what else of `api` every protocol needs, know none.
    ("http", &["host/src/api/grpc/"]),
    ("lockstep_proto", &["host/src/api/grpc/", "host/src/raft/network"]),
    ("prost", &["host/src/api/grpc/", "host/src/raft/network"]),
    ("tonic", &["host/src/api/grpc/", "host/src/raft/network"]),
    ("tower", &["host/src/api/grpc/"]),
    ("wasmtime", &["host/src/wasm/"]),
];

/// The modules of the daemon, and the siblings each may name. `node` sees all of them.
const MODULES: &[(&str, &[&str])] = &[
    ("api", &["budget", "config", "raft", "telemetry", "types"]),
    ("budget", &[]),
    ("cli", &["config", "node", "telemetry", "types"]),
    ("codec", &["types"]),
    ("config", &["types"]),
    ("group", &["config", "machine", "raft", "storage", "telemetry", "types", "wasm"]),
    ("in_turn", &[]),
    ("machine", &["config", "in_turn", "telemetry", "types", "wasm"]),
    ("raft", &["budget", "codec", "config", "in_turn", "machine", "storage", "telemetry", "types"]),
    ("storage", &["codec", "config", "telemetry", "types"]),
    ("telemetry", &[]),
    ("types", &[]),
    ("wasm", &["config", "telemetry", "types"]),
];

/// Checks what a file of the daemon names.
pub(super) fn check(path: &str, content: &str) -> Vec<Finding> {
    let Some(inside) = path.strip_prefix("host/src/") else { return Vec::new() };
    // A test may put a module to use through the one above it.
    if text::is_test(path) {
        return Vec::new();
    }
    let module = inside.split(['/', '.']).next().unwrap_or_default();
    let siblings = MODULES.iter().find(|(name, _)| *name == module).map(|(_, siblings)| *siblings);
    let code = without_comments(content);
    let mut findings = Vec::new();
    let mut complain = |place, rule| {
        let line = code[..place].matches('\n').count() + 1;
        findings.push(Finding { path: path.to_owned(), line, rule });
    };
    for (place, word) in words_before_colons(&code) {
        if let Some((owner, places)) = CRATES.iter().find(|(name, _)| is_family(word, name))
            && !places.iter().any(|place| path.starts_with(place))
        {
            complain(
                place,
                format!("`{word}` may be named only in {}: {owner}", places.join(", ")),
            );
        }
        let Some(siblings) = siblings.filter(|_| word == "crate") else { continue };
        for named in first_names(&code[place + "crate::".len()..]) {
            let known = MODULES.iter().any(|(name, _)| *name == named) || named == "node";
            if known && named != module && !siblings.contains(&named) {
                complain(place, format!("`{module}` may not know `{named}`"));
            }
        }
    }
    findings
}

/// True for the crate itself and its companions: `tonic_types` is of the family of `tonic`.
fn is_family(word: &str, name: &str) -> bool {
    word.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

/// The text with comments blanked, every other byte in its place.
fn without_comments(text: &str) -> String {
    text.split_inclusive('\n')
        .map(|line| match line.find("//") {
            Some(start) => {
                format!("{}{}", &line[..start], " ".repeat(line.len() - start - 1) + "\n")
            }
            None => line.to_owned(),
        })
        .collect()
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Each word that stands before `::` and is the beginning of its path, with its place.
fn words_before_colons(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.match_indices("::").filter_map(|(end, _)| {
        let start = code[..end].trim_end_matches(is_word).len();
        let begins_path = start < end && !code[..start].ends_with("::");
        begins_path.then(|| (start, &code[start..end]))
    })
}

/// The first names of what follows `crate::`: one, or those of a group in braces.
fn first_names(after: &str) -> Vec<&str> {
    let word = |text: &'_ str| text.len() - text.trim_start_matches(is_word).len();
    let Some(group) = after.strip_prefix('{') else { return vec![&after[..word(after)]] };
    let mut depth = 1;
    let mut names = Vec::new();
    let mut item_begins = true;
    for (place, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => item_begins = true,
            _ if depth == 1 && item_begins && is_word(character) => {
                names.push(&group[place..place + word(&group[place..])]);
                item_begins = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that crosses a layer is found wherever it is written, and the right ones pass.
    #[test]
    fn layers_are_kept() {
        let rows: &[(&str, &str, &[&str])] = &[
            ("host/src/api/grpc/client.rs", "use tonic::Status;\nuse crate::raft::Replica;", &[]),
            ("host/src/raft/network/peer.rs", "use tonic::Status;", &[]),
            ("host/src/api/door.rs", "use tonic::Status;", &["`tonic` may be named only in"]),
            ("host/src/api/door/error.rs", "fn f(f: lockstep_proto::v1::Failure) {}", &["proto"]),
            ("host/src/api/connection.rs", "use tonic_types::ErrorInfo;", &["`tonic_types`"]),
            (
                "host/src/api/door/caller.rs",
                "use http::HeaderMap;\nuse http_body::Body;",
                &["`http`", "`http_body`"],
            ),
            ("host/src/raft/store/log_store.rs", "use tonic_types::X;", &["`tonic_types`"]),
            ("host/src/raft/mod.rs", "use crate::wasm::Engine;", &["`raft` may not know `wasm`"]),
            ("host/src/wasm/mod.rs", "use wasmtime::Engine;", &[]),
            ("host/src/node.rs", "use crate::{api, group, raft, wasm};", &[]),
            ("host/src/group.rs", "use openraft::Raft;\nuse crate::{api, raft};", &["know `api`"]),
            ("host/src/node.rs", "fn f(e: wasmtime::Engine) {}", &["`wasmtime`"]),
            ("host/src/wasm/mod.rs", "// crate::raft::Replica is not known here", &[]),
            ("host/src/wasm/mod.rs", "fn f(r: crate::raft::Replica) {}", &["may not know `raft`"]),
            (
                "host/src/storage/log.rs",
                "use crate::{config::A,\n machine::{raft, B}};",
                &["`storage` may not know `machine`"],
            ),
            ("host/src/machine/mod.rs", "use crate::types::raft::X;", &[]),
            ("host/src/types.rs", "use crate::api::X;", &["`types` may not know `api`"]),
            ("clients/rust/src/lib.rs", "use tonic::Status;", &[]),
            ("host/src/raft/network/tests/node.rs", "use crate::api::peer::X;", &[]),
        ];
        for (path, text, expected) in rows {
            let found = check(path, text);
            assert_eq!(found.len(), expected.len(), "{path}: {text}: {found:?}");
            for (finding, part) in found.iter().zip(*expected) {
                assert!(finding.rule.contains(part), "{path}: {text}: {finding}");
            }
        }
    }

    /// The line of a finding is that of the name, also behind comments.
    #[test]
    fn a_finding_knows_its_line() {
        let found = check("host/src/wasm/mod.rs", "//! é: wasm\n\nuse crate::node::run;\n");
        assert_eq!(found[0].line, 3);
    }
}
