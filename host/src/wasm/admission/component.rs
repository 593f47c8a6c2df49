//! What a component may be put together from: core modules, each run once, lifted and lowered
//! functions, and one level of components that hold nothing but types and names, as
//! `wit-component` wraps each exported interface.

use std::collections::BTreeSet;

use wasmparser::{
    CanonicalFunction, CanonicalOption, ComponentAlias, ComponentExternalKind, ComponentInstance,
    ComponentOuterAliasKind, ComponentTypeRef, Instance, Payload,
};

use super::super::bindings::{LOG, MACHINE};
use super::Error;

/// What was seen of one component so far.
#[derive(Default)]
pub(super) struct Component {
    /// Core modules that it runs, by index.
    run: BTreeSet<u32>,
    /// Components that it makes instances of, by index.
    made: BTreeSet<u32>,
}

impl Component {
    /// Checks one part of it. The outermost may run code, one inside it may not.
    pub(super) fn read(&mut self, payload: &Payload<'_>, outermost: bool) -> Result<(), Error> {
        match payload {
            Payload::InstanceSection(section) => {
                for instance in section.clone().into_iter_with_offsets() {
                    let (offset, instance) = instance?;
                    let Instance::Instantiate { module_index, .. } = instance else { continue };
                    if !outermost {
                        return composed("runs a core module inside of another component", offset);
                    }
                    if !self.run.insert(module_index) {
                        return composed("runs a core module twice", offset);
                    }
                }
                Ok(())
            }
            Payload::ComponentInstanceSection(section) => {
                for instance in section.clone().into_iter_with_offsets() {
                    let (offset, instance) = instance?;
                    let ComponentInstance::Instantiate { component_index, .. } = instance else {
                        continue;
                    };
                    if !outermost || !self.made.insert(component_index) {
                        return composed("makes instances of a component twice", offset);
                    }
                }
                Ok(())
            }
            Payload::ComponentAliasSection(section) => {
                for alias in section.clone().into_iter_with_offsets() {
                    let (offset, alias) = alias?;
                    if is_code(&alias) {
                        return composed("gives code a second index", offset);
                    }
                }
                Ok(())
            }
            Payload::ComponentImportSection(section) => {
                for import in section.clone().into_iter_with_offsets() {
                    let (offset, import) = import?;
                    if let ComponentTypeRef::Module(_) | ComponentTypeRef::Component(_) = import.ty
                    {
                        return composed("imports code", offset);
                    }
                }
                Ok(())
            }
            Payload::ComponentExportSection(section) => {
                for export in section.clone().into_iter_with_offsets() {
                    let (offset, export) = export?;
                    if let ComponentExternalKind::Module | ComponentExternalKind::Component =
                        export.kind
                    {
                        return composed("exports code", offset);
                    }
                }
                Ok(())
            }
            Payload::ComponentCanonicalSection(section) => {
                section.clone().into_iter_with_offsets().try_for_each(|function| {
                    let (offset, function) = function?;
                    check_canonical(&function, offset)
                })
            }
            _ => Ok(()),
        }
    }
}

/// Refuses code, and further components, inside of a component that is not the outermost.
pub(super) fn refuse_inside(components: &[Component], offset: usize) -> Result<(), Error> {
    if components.len() > 1 {
        return composed("holds code inside of another component", offset);
    }
    Ok(())
}

/// Checks what the outermost component imports, and notes it.
pub(super) fn read_imports(payload: &Payload<'_>, names: &mut Vec<String>) -> Result<(), Error> {
    let Payload::ComponentImportSection(section) = payload else { return Ok(()) };
    for import in section.clone() {
        match import?.name.name {
            LOG => names.push(LOG.to_owned()),
            other => return Err(Error::Import(other.to_owned())),
        }
    }
    Ok(())
}

/// Whether the outermost component exports here what makes it a guest.
pub(super) fn exports_machine(payload: &Payload<'_>) -> Result<bool, Error> {
    let Payload::ComponentExportSection(section) = payload else { return Ok(false) };
    let mut found = false;
    for export in section.clone() {
        found |= export?.name.name == MACHINE;
    }
    Ok(found)
}

fn composed<T>(what: &'static str, offset: usize) -> Result<T, Error> {
    Err(Error::Composed { what, offset })
}

fn is_code(alias: &ComponentAlias<'_>) -> bool {
    match alias {
        ComponentAlias::InstanceExport { kind, .. } => {
            matches!(kind, ComponentExternalKind::Module | ComponentExternalKind::Component)
        }
        ComponentAlias::Outer { kind, .. } => {
            let code = [ComponentOuterAliasKind::CoreModule, ComponentOuterAliasKind::Component];
            code.contains(kind)
        }
        ComponentAlias::CoreInstanceExport { .. } => false,
    }
}

/// Others than lift and lower deal in handles, tasks and streams, which the host keeps.
fn check_canonical(function: &CanonicalFunction, offset: usize) -> Result<(), Error> {
    let (CanonicalFunction::Lift { options, .. } | CanonicalFunction::Lower { options, .. }) =
        function
    else {
        return Err(Error::Canonical { name: words(function), offset });
    };
    let foreign = options.iter().find(|option| {
        matches!(
            option,
            CanonicalOption::Async
                | CanonicalOption::Callback(_)
                | CanonicalOption::CoreType(_)
                | CanonicalOption::Gc
        )
    });
    match foreign {
        Some(option) => Err(Error::Canonical { name: words(option), offset }),
        None => Ok(()),
    }
}

/// `ResourceNew { resource: 3 }` as `resource-new`.
fn words(item: &impl std::fmt::Debug) -> String {
    let text = format!("{item:?}");
    let name = text.split(|character: char| !character.is_alphanumeric()).next();
    let mut words = String::new();
    for character in name.unwrap_or_default().chars() {
        if character.is_uppercase() && !words.is_empty() {
            words.push('-');
        }
        words.push(character.to_ascii_lowercase());
    }
    words
}
