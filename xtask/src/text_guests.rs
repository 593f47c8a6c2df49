//! Core modules that do not carry the contract, made components of our world: those of other
//! toolchains, and guests for tests that no compiler makes, in text.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::guests::{component, encode, is_current, root, write};

/// Files of `tests/guests/text`, and names of the components.
const GUESTS: [&str; 5] =
    ["call-at-start", "cannot-export", "large-table", "loses-state", "traps-always"];

/// Builds each that is not up to date.
pub(crate) fn build() -> Result<()> {
    for name in GUESTS {
        let source = root().join("tests/guests/text").join(format!("{name}.wat"));
        let component = component(name);
        if is_current(&component, &source)? {
            continue;
        }
        let mut module = wat::parse_file(&source).context("a guest in text does not parse")?;
        embed_world(&mut module).with_context(|| format!("guest {name}"))?;
        write(&component, &encode(&module).with_context(|| format!("guest {name}"))?)?;
        eprintln!("built {}", component.display());
    }
    Ok(())
}

/// Makes components of core modules in files.
pub(crate) fn wrap(modules: &[PathBuf]) -> Result<()> {
    for path in modules {
        let mut module = fs::read(path).with_context(|| format!("no module {}", path.display()))?;
        let name = path.file_stem().and_then(|name| name.to_str()).context("a file has a name")?;
        let made = embed_world(&mut module).and_then(|()| encode(&module));
        let component = component(name);
        write(&component, &made.with_context(|| path.display().to_string())?)?;
        eprintln!("built {}", component.display());
    }
    Ok(())
}

/// Adds the contract to a module, as `export!` does for guests in Rust.
fn embed_world(module: &mut Vec<u8>) -> Result<()> {
    let mut resolve = Resolve::default();
    let read = resolve.push_dir(root().join("wit")).map_err(|error| anyhow!("{error:#}"))?;
    let world = resolve.select_world(&[read.0], Some("guest"))?;
    embed_component_metadata(module, &resolve, world, StringEncoding::UTF8, false)
}
