//! What a function of a guest may do: nothing that changes more than the guest's memory.
//!
//! It validates the body, and translates it into what [`stack_pointer`] runs.

use wasmparser::{
    BlockType, FuncToValidate, FuncValidator, FuncValidatorAllocations, FunctionBody, ModuleArity,
    Operator, ValidatorResources,
};

use super::stack_pointer::{self, Label, Step};
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

/// Checks the bodies of functions. It keeps its buffers from one to the next.
#[derive(Default)]
pub(super) struct Functions {
    allocations: FuncValidatorAllocations,
    steps: Vec<Step>,
    offsets: Vec<usize>,
    /// Locals times branches, of all functions so far.
    work: u64,
}

impl Functions {
    /// Checks one body. `pointer` is the one global that the module writes, once one was met.
    pub(super) fn check(
        &mut self,
        function: FuncToValidate<ValidatorResources>,
        body: &FunctionBody<'_>,
        pointer: &mut Option<u32>,
    ) -> Result<(), Wrong> {
        check_size(body)?;
        let mut validator = function.into_validator(std::mem::take(&mut self.allocations));
        let written = self.translate(&mut validator, body, *pointer)?;
        let results = results(&validator);
        self.allocations = validator.into_allocations();
        let Some(global) = written else { return Ok(()) };
        *pointer = Some(global);
        stack_pointer::prove(&self.steps, results).map_err(|unproved| Wrong::StackPointer {
            global,
            reason: unproved.reason,
            offset: self.offsets[unproved.step],
        })
    }

    /// Fills `steps`, and returns the global that the function writes.
    fn translate(
        &mut self,
        validator: &mut FuncValidator<ValidatorResources>,
        body: &FunctionBody<'_>,
        pointer: Option<u32>,
    ) -> Result<Option<u32>, Wrong> {
        self.steps.clear();
        self.offsets.clear();
        for local in body.get_locals_reader()? {
            let (count, kind) = local?;
            validator.define_locals(body.range().start, count, kind)?;
        }
        let locals = u64::from(validator.len_locals());
        let mut operators = body.get_operators_reader()?;
        let (mut written, mut branches) = (None, 0);
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
            branches += u64::from(branches_at(&operator));
            check_work("locals times branches", locals * branches, limits::FUNCTION_WORK_MAX)?;
            self.steps.push(step(&operator, validator));
            self.offsets.push(offset);
        }
        operators.finish()?;
        self.work += locals * branches;
        check_work("locals times branches with all before it", self.work, limits::MODULE_WORK_MAX)?;
        let Some(pointer) = written else { return Ok(None) };
        // Other globals are never written; what they hold is not followed.
        for step in &mut self.steps {
            if let Step::GlobalGet(global) = *step {
                let other = Step::Other { pops: 0, pushes: 1 };
                *step = if global == pointer { Step::PointerGet } else { other };
            }
        }
        Ok(Some(pointer))
    }
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

/// Places where this operator makes the compiler begin a block, or lead to one.
fn branches_at(operator: &Operator<'_>) -> u32 {
    match operator {
        Operator::Block { .. }
        | Operator::Loop { .. }
        | Operator::If { .. }
        | Operator::Else
        | Operator::Br { .. }
        | Operator::BrIf { .. } => 1,
        Operator::BrTable { targets } => 1 + targets.len(),
        _ => 0,
    }
}

/// Bounds what compiling costs beyond the length of the code: each block knows of each local.
fn check_work(what: &'static str, count: u64, limit: u64) -> Result<(), Wrong> {
    if count > limit {
        return Err(Wrong::TooLarge { what, count, limit });
    }
    Ok(())
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
