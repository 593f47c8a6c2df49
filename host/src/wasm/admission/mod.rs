//! What a module must be before it is compiled: a component of our world, whose state between
//! two calls is its one linear memory alone.
//!
//! A state is saved and rolled back as an image of that memory. So what else could hold state is
//! refused: instructions that change tables or use up segments, globals that are written (but for
//! a stack pointer that is proved to be back in its place), handles of the component model. And
//! since a compilation cannot be stopped, what could make it take too long is counted first.
//!
//! Types are checked where the component is linked, by the engine, and behaviour where it is asked
//! to describe itself.
//!
//! Invariant: nothing is refused or admitted by chance. The answer depends on the bytes alone.

mod component;
mod core_module;
mod error;
mod function;
#[cfg(test)]
mod pointer_tests;
mod stack_pointer;
mod step;
#[cfg(test)]
mod tests;
mod work;
#[cfg(test)]
mod work_tests;

use wasmparser::{Encoding, Parser, Payload, ValidPayload, Validator, WasmFeatures};

pub use error::{Error, Heaviest, Place};

pub(super) use self::work::WEIGHTS as WORK_WEIGHTS;

use self::component::Component;
use self::core_module::{CoreModule, Counts};
use self::function::{Functions, Refused};
use super::limits::Limits;
use crate::config::limits::{self, MODULE_BYTES_MAX};

/// What guests may be made of: what compilers emit for `wasm32-unknown-unknown`, and fixed-width
/// SIMD. What is left out makes results differ (relaxed SIMD, threads), keeps state outside of
/// memory (garbage collection, exceptions, stack switching, async), or serves no guest yet.
pub(super) const FEATURES: WasmFeatures = WasmFeatures::COMPONENT_MODEL
    .union(WasmFeatures::FLOATS)
    .union(WasmFeatures::MUTABLE_GLOBAL)
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::EXTENDED_CONST);

/// What an admitted module is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Names of its imports.
    pub imports: Vec<String>,
    /// Core modules.
    pub core_modules: u32,
    /// Functions of all core modules, imports not counted.
    pub functions: u64,
    /// Size of its memory at the start, in bytes.
    pub memory_bytes: u64,
    /// The work of compiling it, by estimate.
    pub compile_work: u64,
    /// The function that takes most of that.
    pub heaviest: Heaviest,
}

impl Shape {
    /// Refuses what takes more work to compile than this.
    pub(super) fn check_work(&self, limit: u64) -> Result<(), Error> {
        if self.compile_work <= limit {
            return Ok(());
        }
        let (work, heaviest) = (self.compile_work, self.heaviest.clone());
        Err(Error::TooMuchWork { work, limit, heaviest })
    }
}

/// Checks a module, and says what it is made of. It may take so much work to compile.
pub(super) fn inspect(bytes: &[u8], limits: &Limits, work_max: u64) -> Result<Shape, Error> {
    if bytes.len() > MODULE_BYTES_MAX {
        return Err(Error::TooLong { length: bytes.len(), limit: MODULE_BYTES_MAX });
    }
    if !bytes.starts_with(b"\0asm") {
        return Err(Error::NotComponent("it does not begin as WebAssembly does".to_owned()));
    }
    let mut parser = Parser::new(0);
    parser.set_features(FEATURES);
    let mut inspection = Inspection::new(bytes, limits, work_max);
    for payload in parser.parse_all(bytes) {
        let malformed = |error: wasmparser::BinaryReaderError| {
            Error::NotComponent(format!("{} at offset {:#x}", error.message(), error.offset()))
        };
        inspection.read(&payload.map_err(malformed)?)?;
    }
    inspection.finish()
}

/// An inspection under way.
struct Inspection<'a> {
    bytes: &'a [u8],
    limits: &'a Limits,
    validator: Validator,
    /// The component, and the one inside of it that is being read, if any.
    components: Vec<Component>,
    /// The core module that is being read, if any.
    core_module: Option<CoreModule>,
    functions: Functions,
    work_max: u64,
    /// The heaviest function so far, and where its core module begins.
    heaviest: (Heaviest, usize),
    /// Whether a core module had a stack pointer already.
    has_pointer: bool,
    exports_machine: bool,
    counts: Counts,
    shape: Shape,
}

impl<'a> Inspection<'a> {
    fn new(bytes: &'a [u8], limits: &'a Limits, work_max: u64) -> Self {
        Self {
            bytes,
            limits,
            validator: Validator::new_with_features(FEATURES),
            components: Vec::new(),
            core_module: None,
            functions: Functions::new(work_max),
            work_max,
            heaviest: (Heaviest::default(), 0),
            has_pointer: false,
            exports_machine: false,
            counts: Counts::default(),
            shape: Shape::default(),
        }
    }

    /// Takes the next part: our rules first, since they bound what validating it costs.
    fn read(&mut self, payload: &Payload<'_>) -> Result<(), Error> {
        match payload {
            Payload::Version { encoding: Encoding::Module, range, .. } => {
                if self.components.is_empty() {
                    let reason = "it is a core module; wrap it as a component".to_owned();
                    return Err(Error::NotComponent(reason));
                }
                self.core_module = Some(CoreModule::new(self.shape.core_modules, range.start));
                self.shape.core_modules += 1;
            }
            Payload::Version { .. } => self.components.push(Component::default()),
            Payload::End(_) if self.core_module.is_some() => self.end_core_module()?,
            Payload::End(_) => drop(self.components.pop()),
            Payload::ModuleSection { unchecked_range, .. } => {
                let most = limits::MODULE_CORE_MODULES_MAX;
                let count = u64::from(self.shape.core_modules) + 1;
                core_module::check_count("core modules", count, most)?;
                component::refuse_inside(&self.components, unchecked_range.start)?;
            }
            Payload::ComponentSection { unchecked_range, .. } => {
                component::refuse_inside(&self.components, unchecked_range.start)?;
            }
            part => self.read_part(part)?,
        }
        match self.validator.payload(payload)? {
            ValidPayload::Func(function, body) => self.read_function(function, &body),
            _ => Ok(()),
        }
    }

    fn read_part(&mut self, payload: &Payload<'_>) -> Result<(), Error> {
        if let Some(core_module) = &mut self.core_module {
            return core_module.read(payload, self.limits, &mut self.counts);
        }
        self.counts.add_component(payload)?;
        let outermost = self.components.len() == 1;
        let Some(component) = self.components.last_mut() else { return Ok(()) };
        if outermost {
            component::read_imports(payload, &mut self.shape.imports)?;
            self.exports_machine |= component::exports_machine(payload)?;
        }
        component.read(payload, outermost)
    }

    fn read_function(
        &mut self,
        function: wasmparser::FuncToValidate<wasmparser::ValidatorResources>,
        body: &wasmparser::FunctionBody<'_>,
    ) -> Result<(), Error> {
        self.shape.functions += 1;
        let Some(core_module) = &mut self.core_module else { return Ok(()) };
        let index = function.index;
        let had_pointer = core_module.pointer.is_some();
        let checked = self.functions.check(function, body, &mut core_module.pointer);
        let start = body.range().start;
        let work = match checked {
            Ok(work) => work,
            Err(wrong) => return Err(core_module.refusal(wrong, index, start, self.bytes)),
        };
        if work >= self.heaviest.0.work {
            self.heaviest = (core_module.heaviest(index, start, work), core_module.start);
        }
        if !had_pointer && core_module.pointer.is_some() {
            core_module.check_pointer(std::mem::replace(&mut self.has_pointer, true))?;
        }
        Ok(())
    }

    fn end_core_module(&mut self) -> Result<(), Error> {
        let Some(core_module) = self.core_module.take() else { return Ok(()) };
        self.functions.end_module(core_module.pointer, self.bytes).map_err(|refused| {
            let Refused { wrong, function, start } = refused;
            core_module.refusal(wrong, function, start, self.bytes)
        })
    }

    fn finish(mut self) -> Result<Shape, Error> {
        let (mut heaviest, module_start) = self.heaviest;
        heaviest.place.name =
            core_module::function_name(self.bytes, module_start, heaviest.place.function);
        self.shape.heaviest = heaviest;
        self.shape.compile_work = self.functions.work();
        self.shape.check_work(self.work_max)?;
        if !self.exports_machine {
            return Err(Error::MissingExport);
        }
        if self.counts.memories != 1 {
            return Err(Error::Memories(self.counts.memories));
        }
        self.shape.memory_bytes = self.counts.memory_bytes;
        Ok(self.shape)
    }
}
