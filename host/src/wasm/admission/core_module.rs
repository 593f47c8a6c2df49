//! What a core module of a guest may hold, but for the code of its functions.

use wasmparser::{
    Element, ElementItems, ExternalKind, GlobalType, KnownCustom, MemoryType, Name, Parser,
    Payload, TableType, TypeRef, ValType,
};

use super::function::Wrong;
use super::{Error, Heaviest, Place};
use crate::config::limits;
use crate::wasm::limits::Limits;

/// Characters of a function's name in a message.
const NAME_CHARACTERS_MAX: usize = 120;

/// What all core modules of a component have together.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) memories: u32,
    /// Size of the memory at the start, in bytes.
    pub(super) memory_bytes: u64,
    types: u64,
    names: u64,
    functions: u64,
    globals: u64,
    table_elements: u64,
    segments: u64,
    segment_items: u64,
    component_items: u64,
}

impl Counts {
    /// Counts what components are made of: types, instances, aliases, functions, names.
    pub(super) fn add_component(&mut self, payload: &Payload<'_>) -> Result<(), Error> {
        let count = match payload {
            Payload::ComponentTypeSection(section) => section.count(),
            Payload::CoreTypeSection(section) => section.count(),
            Payload::InstanceSection(section) => section.count(),
            Payload::ComponentInstanceSection(section) => section.count(),
            Payload::ComponentAliasSection(section) => section.count(),
            Payload::ComponentCanonicalSection(section) => section.count(),
            Payload::ComponentImportSection(section) => section.count(),
            Payload::ComponentExportSection(section) => section.count(),
            _ => 0,
        };
        self.component_items += u64::from(count);
        check_count("items outside of its code", self.component_items, limits::COMPONENT_ITEMS_MAX)
    }
}

/// A core module that is being read.
pub(super) struct CoreModule {
    /// Number of the module in the component.
    number: u32,
    /// Where it begins, in bytes.
    pub(super) start: usize,
    /// The global that its functions write, once one was met.
    pub(super) pointer: Option<u32>,
    globals: Vec<GlobalType>,
}

impl CoreModule {
    pub(super) fn new(number: u32, start: usize) -> Self {
        Self { number, start, pointer: None, globals: Vec::new() }
    }

    /// Checks one section.
    pub(super) fn read(
        &mut self,
        payload: &Payload<'_>,
        limits: &Limits,
        counts: &mut Counts,
    ) -> Result<(), Error> {
        match payload {
            Payload::TypeSection(section) => {
                counts.types += u64::from(section.count());
                check_count("types", counts.types, limits::MODULE_TYPES_MAX)
            }
            Payload::ImportSection(section) => {
                counts.names += u64::from(section.count());
                check_count("imports and exports", counts.names, limits::MODULE_NAMES_MAX)?;
                section.clone().into_imports().try_for_each(|import| self.read_import(&import?))
            }
            Payload::FunctionSection(section) => {
                counts.functions += u64::from(section.count());
                check_count("functions", counts.functions, limits::MODULE_FUNCTIONS_MAX)
            }
            Payload::TableSection(section) => section
                .clone()
                .into_iter()
                .try_for_each(|table| counts.add_table(&table?.ty, limits.table_elements_max)),
            Payload::MemorySection(section) => section
                .clone()
                .into_iter()
                .try_for_each(|memory| counts.add_memory(&memory?, limits.memory_bytes_max)),
            Payload::GlobalSection(section) => {
                counts.globals += u64::from(section.count());
                check_count("globals", counts.globals, limits::MODULE_GLOBALS_MAX)?;
                for global in section.clone() {
                    self.globals.push(global?.ty);
                }
                Ok(())
            }
            Payload::ExportSection(section) => {
                counts.names += u64::from(section.count());
                check_count("imports and exports", counts.names, limits::MODULE_NAMES_MAX)?;
                section.clone().into_iter().try_for_each(|export| self.read_export(&export?))
            }
            Payload::ElementSection(section) => {
                counts.add_segments(section.count())?;
                section.clone().into_iter().try_for_each(|element| counts.add_items(&element?))
            }
            Payload::DataSection(section) => counts.add_segments(section.count()),
            _ => Ok(()),
        }
    }

    fn read_import(&mut self, import: &wasmparser::Import<'_>) -> Result<(), Error> {
        let TypeRef::Global(global) = import.ty else { return Ok(()) };
        if global.mutable {
            return Err(self.global(format!("imports the mutable global `{}`", import.name)));
        }
        self.globals.push(global);
        Ok(())
    }

    fn read_export(&self, export: &wasmparser::Export<'_>) -> Result<(), Error> {
        let is_mutable = |index: u32| {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            self.globals.get(index).is_some_and(|global| global.mutable)
        };
        if export.kind == ExternalKind::Global && is_mutable(export.index) {
            return Err(self.global(format!("exports the mutable global `{}`", export.name)));
        }
        Ok(())
    }

    /// Checks the global that the functions write, when the first of them was met.
    pub(super) fn check_pointer(&self, another_module_has_one: bool) -> Result<(), Error> {
        if another_module_has_one {
            return Err(self.global("writes a global, and so does another".to_owned()));
        }
        let index = self.pointer.and_then(|pointer| usize::try_from(pointer).ok());
        let global = index.and_then(|index| self.globals.get(index));
        match global.map(|global| global.content_type) {
            Some(ValType::I32) => Ok(()),
            _ => Err(self.global("writes a global that is no i32".to_owned())),
        }
    }

    fn global(&self, what: String) -> Error {
        let what = what.chars().take(NAME_CHARACTERS_MAX).collect();
        Error::Global { module: self.number, what }
    }

    /// A function that takes more work than those before it. Its name is not looked up yet.
    pub(super) fn heaviest(&self, function: u32, offset: usize, work: u64) -> Heaviest {
        let place = Place { module: self.number, function, name: None, offset };
        Heaviest { place, work }
    }

    /// What is wrong with a function, with the place of it. `start` is where its body begins, and
    /// `bytes` are those of the whole component.
    pub(super) fn refusal(&self, wrong: Wrong, function: u32, start: usize, bytes: &[u8]) -> Error {
        let place = |offset| {
            let name = function_name(bytes, self.start, function);
            Place { module: self.number, function, name, offset }
        };
        match wrong {
            Wrong::Invalid(error) => error.into(),
            Wrong::TooLarge { what, count, limit } => {
                Error::FunctionTooLarge { place: place(start), what, count, limit }
            }
            Wrong::Instruction { name, offset } => {
                Error::Instruction { place: place(offset), name }
            }
            Wrong::SecondGlobal { global, offset } => Error::StackPointer {
                place: place(offset),
                global,
                reason: "another global is written too",
            },
            Wrong::StackPointer { global, reason, offset } => {
                Error::StackPointer { place: place(offset), global, reason }
            }
        }
    }
}

impl Counts {
    fn add_memory(&mut self, memory: &MemoryType, bytes_max: u64) -> Result<(), Error> {
        self.memories += 1;
        if memory.shared {
            return Err(Error::MemoryKind("shared"));
        }
        if memory.memory64 {
            return Err(Error::MemoryKind("64-bit"));
        }
        if memory.page_size_log2.is_some() {
            return Err(Error::MemoryKind("of another page size"));
        }
        let bytes = memory.initial.saturating_mul(64 << 10);
        self.memory_bytes = bytes;
        if bytes <= bytes_max {
            return Ok(());
        }
        Err(Error::MemorySize { bytes, limit: bytes_max })
    }

    fn add_table(&mut self, table: &TableType, elements_max: u64) -> Result<(), Error> {
        self.table_elements = self.table_elements.saturating_add(table.initial);
        check_count("elements in its tables", self.table_elements, elements_max)
    }

    fn add_segments(&mut self, count: u32) -> Result<(), Error> {
        self.segments += u64::from(count);
        check_count("data and element segments", self.segments, limits::MODULE_SEGMENTS_MAX)
    }

    fn add_items(&mut self, element: &Element<'_>) -> Result<(), Error> {
        self.segment_items += u64::from(match &element.items {
            ElementItems::Functions(items) => items.count(),
            ElementItems::Expressions(_, items) => items.count(),
        });
        check_count(
            "items in element segments",
            self.segment_items,
            limits::MODULE_SEGMENT_ITEMS_MAX,
        )
    }
}

pub(super) fn check_count(what: &'static str, count: u64, limit: u64) -> Result<(), Error> {
    if count > limit {
        return Err(Error::TooMany { what, count, limit });
    }
    Ok(())
}

/// A function's name from the name section of the module that begins there, fit to be printed.
pub(super) fn function_name(bytes: &[u8], start: usize, function: u32) -> Option<String> {
    let payloads = Parser::new(0).parse_all(bytes.get(start..)?).map_while(Result::ok);
    let ends = payloads.take_while(|payload| !matches!(payload, Payload::End(_)));
    let names = ends.filter_map(|payload| match payload {
        Payload::CustomSection(section) => match section.as_known() {
            KnownCustom::Name(names) => Some(names),
            _ => None,
        },
        _ => None,
    });
    let mut functions = names.flatten().flatten().filter_map(|names| match names {
        Name::Function(names) => Some(names.into_iter().flatten()),
        _ => None,
    });
    let found = functions.find_map(|mut names| names.find(|naming| naming.index == function))?;
    let printable = found.name.chars().flat_map(char::escape_debug);
    Some(printable.take(NAME_CHARACTERS_MAX).collect())
}
