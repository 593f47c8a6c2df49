//! What a function of a guest may do: nothing that changes more than the guest's memory.
//!
//! It validates the body, and translates it into what [`stack_pointer`] runs.

use std::ops::Range;

use wasmparser::{
    BinaryReader, BlockType, CompositeInnerType, FuncToValidate, FuncValidator,
    FuncValidatorAllocations, FunctionBody, ModuleArity, Operator, ValidatorResources,
    WasmModuleResources as _,
};

use super::stack_pointer::{self, Returned};
use super::step::{Label, Step};
use super::work::Work;
use crate::config::limits;

/// What is wrong with a function, and where in the module.
pub(super) enum Wrong {
    Invalid(wasmparser::BinaryReaderError),
    TooLarge {
        what: &'static str,
        count: u64,
        limit: u64,
    },
    Instruction {
        name: &'static str,
        offset: usize,
    },
    /// It writes a second global; the first is given.
    SecondGlobal {
        global: u32,
        offset: usize,
    },
    StackPointer {
        global: u32,
        reason: &'static str,
        offset: usize,
    },
}

impl From<wasmparser::BinaryReaderError> for Wrong {
    fn from(error: wasmparser::BinaryReaderError) -> Self {
        Self::Invalid(error)
    }
}

/// A function to be looked at again.
struct Unproved {
    function: FuncToValidate<ValidatorResources>,
    /// Where its body lies, in bytes of the whole component.
    body: Range<usize>,
}

/// A function that is refused.
pub(super) struct Refused {
    pub(super) wrong: Wrong,
    pub(super) function: u32,
    /// Where its body begins.
    pub(super) start: usize,
}

/// Checks the bodies of functions. It keeps its buffers from one to the next.
#[derive(Default)]
pub(super) struct Functions {
    allocations: FuncValidatorAllocations,
    steps: Vec<Step>,
    offsets: Vec<usize>,
    /// Functions of the module so far that return a parameter.
    returned: Returned,
    /// Those of which there is no proof as long as it is not known what others return.
    unproved: Vec<Unproved>,
    /// What compiling all functions so far is estimated to take, in nanoseconds.
    cost_ns: u64,
    /// More than this, in units of work, is refused. The rest is counted then, and no more.
    work_max: u64,
}

impl Functions {
    pub(super) fn new(work_max: u64) -> Self {
        Self { work_max, ..Self::default() }
    }

    /// Checks one body, and returns the work of compiling it. `pointer` is the one global that the
    /// module writes, once one was met.
    pub(super) fn check(
        &mut self,
        function: FuncToValidate<ValidatorResources>,
        body: &FunctionBody<'_>,
        pointer: &mut Option<u32>,
    ) -> Result<u64, Wrong> {
        check_size(body)?;
        let again = again(&function);
        let parameters = parameters(&function);
        let mut validator = function.into_validator(std::mem::take(&mut self.allocations));
        let (written, work) = self.translate(&mut validator, body, *pointer)?;
        let cost_ns = work.cost_ns()?;
        self.cost_ns = self.cost_ns.saturating_add(cost_ns);
        let (index, results) = (validator.index(), results(&validator));
        self.allocations = validator.into_allocations();
        if self.is_too_much() {
            return Ok(units(cost_ns));
        }
        if let Some(parameter) = stack_pointer::returns(&self.steps, parameters, results) {
            self.returned.insert(index, parameter);
        }
        let Some(global) = written else { return Ok(units(cost_ns)) };
        *pointer = Some(global);
        if stack_pointer::prove(&self.steps, results, &Returned::new()).is_err() {
            self.unproved.push(Unproved { function: again, body: body.range() });
        }
        Ok(units(cost_ns))
    }

    /// Looks again at the functions of a module that were not proved yet, now that it is known what
    /// the others return. `bytes` are those of the whole component.
    pub(super) fn end_module(&mut self, pointer: Option<u32>, bytes: &[u8]) -> Result<(), Refused> {
        let returned = std::mem::take(&mut self.returned);
        if self.is_too_much() {
            self.unproved.clear();
        }
        for Unproved { function, body } in std::mem::take(&mut self.unproved) {
            let (index, start) = (function.index, body.start);
            let refused = |wrong| Refused { wrong, function: index, start };
            let code = bytes.get(body).expect("it was read from there");
            let body = FunctionBody::new(BinaryReader::new(code, start));
            let mut validator = function.into_validator(std::mem::take(&mut self.allocations));
            self.translate(&mut validator, &body, pointer).map_err(refused)?;
            let results = results(&validator);
            self.allocations = validator.into_allocations();
            let global = pointer.expect("it writes the pointer");
            stack_pointer::prove(&self.steps, results, &returned).map_err(|unproved| {
                let stack_pointer::Unproved { step, reason } = unproved;
                refused(Wrong::StackPointer { global, reason, offset: self.offsets[step] })
            })?;
        }
        Ok(())
    }

    /// Fills `steps`, and returns the global that the function writes, and what compiling it asks.
    fn translate(
        &mut self,
        validator: &mut FuncValidator<ValidatorResources>,
        body: &FunctionBody<'_>,
        pointer: Option<u32>,
    ) -> Result<(Option<u32>, Work), Wrong> {
        self.steps.clear();
        self.offsets.clear();
        for local in body.get_locals_reader()? {
            let (count, kind) = local?;
            validator.define_locals(body.range().start, count, kind)?;
        }
        let mut work = Work::new(validator.len_locals(), results(validator));
        let mut operators = body.get_operators_reader()?;
        let mut written = None;
        while !operators.eof() {
            let (operator, offset) = operators.read_with_offset()?;
            validator.op(offset, &operator)?;
            if let Some(name) = changes_more_than_memory(&operator) {
                return Err(Wrong::Instruction { name, offset });
            }
            if let Operator::GlobalSet { global_index } = operator {
                if let Some(global) = pointer.or(written).filter(|first| *first != global_index) {
                    return Err(Wrong::SecondGlobal { global, offset });
                }
                written = Some(global_index);
            }
            work.add(&operator, validator.operand_stack_height(), arity(&operator, validator));
            self.steps.push(step(&operator, validator));
            self.offsets.push(offset);
        }
        operators.finish()?;
        let Some(pointer) = written else { return Ok((None, work)) };
        // Other globals are never written; what they hold is not followed.
        for step in &mut self.steps {
            if let Step::GlobalGet(global) = *step {
                let other = Step::Other { pops: 0, pushes: 1 };
                *step = if global == pointer { Step::PointerGet } else { other };
            }
        }
        Ok((Some(pointer), work))
    }

    /// The work of compiling all functions so far.
    pub(super) fn work(&self) -> u64 {
        units(self.cost_ns)
    }

    /// Whether that is more than is allowed. What follows is counted and validated then, and
    /// nothing is proved of it, so that a refusal costs little and names the whole work.
    pub(super) fn is_too_much(&self) -> bool {
        self.work() > self.work_max
    }
}

/// An estimate in units of work, a millisecond each.
fn units(cost_ns: u64) -> u64 {
    cost_ns / 1_000_000
}

fn check_size(body: &FunctionBody<'_>) -> Result<(), Wrong> {
    let (what, count, limit) = ("bytes", body.range().len(), limits::FUNCTION_BODY_BYTES_MAX);
    if count > limit {
        return Err(Wrong::TooLarge { what, count: count as u64, limit: limit as u64 });
    }
    let (what, mut count, limit) = ("locals", 0, u64::from(limits::FUNCTION_LOCALS_MAX));
    for local in body.get_locals_reader()? {
        count += u64::from(local?.0);
        if count > limit {
            return Err(Wrong::TooLarge { what, count, limit });
        }
    }
    Ok(())
}

/// What a block takes from the stack and gives back; nothing for other operators.
fn arity(operator: &Operator<'_>, validator: &FuncValidator<ValidatorResources>) -> (u32, u32) {
    match operator {
        Operator::Block { blockty } | Operator::Loop { blockty } | Operator::If { blockty } => {
            let label = label(*blockty, validator);
            (label.parameters, label.results)
        }
        _ => (0, 0),
    }
}

/// The same function, to be validated once more.
fn again(function: &FuncToValidate<ValidatorResources>) -> FuncToValidate<ValidatorResources> {
    let FuncToValidate { resources, index, ty, features } = function;
    FuncToValidate { resources: resources.clone(), index: *index, ty: *ty, features: *features }
}

fn parameters(function: &FuncToValidate<ValidatorResources>) -> u32 {
    let kind = function.resources.sub_type_at(function.ty);
    let count = kind.map_or(0, |kind| match &kind.composite_type.inner {
        CompositeInnerType::Func(kind) => kind.params().len(),
        _ => 0,
    });
    u32::try_from(count).expect("a function has few parameters")
}

fn results(validator: &FuncValidator<ValidatorResources>) -> u32 {
    let kind = validator.type_index_of_function(validator.index());
    let arity = kind.and_then(|kind| validator.block_type_arity(BlockType::FuncType(kind)));
    arity.map_or(0, |(_, results)| results)
}

/// Instructions that change tables, or use up segments. What else keeps state is not among the
/// features that are offered.
fn changes_more_than_memory(operator: &Operator<'_>) -> Option<&'static str> {
    match operator {
        Operator::TableSet { .. } => Some("table.set"),
        Operator::TableGrow { .. } => Some("table.grow"),
        Operator::TableFill { .. } => Some("table.fill"),
        Operator::TableCopy { .. } => Some("table.copy"),
        Operator::TableInit { .. } => Some("table.init"),
        Operator::ElemDrop { .. } => Some("elem.drop"),
        Operator::DataDrop { .. } => Some("data.drop"),
        Operator::MemoryInit { .. } => Some("memory.init"),
        _ => None,
    }
}

fn step(operator: &Operator<'_>, validator: &FuncValidator<ValidatorResources>) -> Step {
    match operator {
        Operator::I32Const { value } => Step::Constant(*value),
        Operator::I32Add => Step::Add,
        Operator::I32Sub => Step::Subtract,
        Operator::LocalGet { local_index } => Step::LocalGet(*local_index),
        Operator::LocalSet { local_index } => Step::LocalSet(*local_index),
        Operator::LocalTee { local_index } => Step::LocalTee(*local_index),
        Operator::GlobalGet { global_index } => Step::GlobalGet(*global_index),
        Operator::GlobalSet { .. } => Step::PointerSet,
        Operator::Block { blockty } => Step::Block(label(*blockty, validator)),
        Operator::Loop { blockty } => Step::Loop(label(*blockty, validator)),
        Operator::If { blockty } => Step::If(label(*blockty, validator)),
        Operator::Else => Step::Else,
        Operator::End => Step::End,
        Operator::Br { relative_depth } => Step::Branch(*relative_depth),
        Operator::BrIf { relative_depth } => Step::BranchIf(*relative_depth),
        Operator::BrTable { targets } => Step::BranchTable(labels(targets)),
        Operator::Return => Step::Return,
        Operator::Unreachable => Step::Trap,
        Operator::Call { function_index } => match operator.operator_arity(validator) {
            Some((pops, pushes)) => Step::Call { function: *function_index, pops, pushes },
            None => Step::Unknown,
        },
        // Only operators that branch have an arity that depends on where they stand, and those
        // that branch in other ways are not offered.
        other => match other.operator_arity(validator) {
            Some((pops, pushes)) => Step::Other { pops, pushes },
            None => Step::Unknown,
        },
    }
}

fn label(kind: BlockType, validator: &FuncValidator<ValidatorResources>) -> Label {
    // The validator has just found the type to be there.
    let (parameters, results) = validator.block_type_arity(kind).unwrap_or_default();
    Label { parameters, results }
}

fn labels(table: &wasmparser::BrTable<'_>) -> Box<[u32]> {
    // The validator has just read all of them.
    let mut labels: Vec<_> = table.targets().flatten().chain([table.default()]).collect();
    labels.sort_unstable();
    labels.dedup();
    labels.into()
}
