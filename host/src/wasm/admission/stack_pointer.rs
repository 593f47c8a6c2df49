//! The proof that a function leaves the stack pointer as it found it.
//!
//! The one global that a guest may write is LLVM's `__stack_pointer`. No image holds it, so
//! between two calls it must be what it was after the start. It is, when every function that
//! writes it puts it back on each way out: what a function calls is a function of that kind too,
//! and a call that returns has made finitely many.
//!
//! The proof runs a function on symbols: a value is the pointer at entry plus a constant, a
//! constant, or anything. Where ways meet, what they disagree on is anything. At the head of a
//! loop the ways back are believed to agree until one is found that does not, and then all is run
//! again with less believed, until nothing changes. A way that ends in a trap doesn't count: the
//! instance is dropped.
//!
//! LLVM takes the frame's address from the result of a call where it knows that the callee returns
//! what it was given, as `memset` does. So it is found out of functions which of their parameters
//! they return, and a call of such a function gives what it was given for that one.
//!
//! Invariant: it errs on the side of refusing. It needs code that has been validated.

use std::collections::BTreeMap;

use super::step::{Label, Step};

/// Functions that always return one of their parameters, and which.
pub(super) type Returned = BTreeMap<u32, u32>;

/// Locals whose value is known at once. LLVM keeps the pointer in one local, or, unoptimized, in
/// one and a fresh copy.
const LOCALS_KNOWN_MAX: usize = 16;
/// When one too many would be known, one of these is forgotten that were used longest ago: a
/// constant before all, then the one that was read least. Unoptimized code has a local for each
/// intermediate value, which is read once or twice and soon, and one with the pointer, which is
/// read throughout.
const LOCALS_OLD: usize = 8;
/// Work for each step of a function, and each label of a switch: one for each that is run, and
/// more where ways meet. Compilers' code takes two or three runs.
const WORK_PER_STEP_MAX: usize = 200;
/// Work where two ways meet: what is known on one is compared with what is known on the other.
const WORK_PER_MEETING: usize = 32;

/// Why there is no proof, and at which step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unproved {
    pub(super) step: usize,
    pub(super) reason: &'static str,
}

/// Proves that each way out of the function finds the pointer as it was at entry.
pub(super) fn prove(steps: &[Step], results: u32, returned: &Returned) -> Result<(), Unproved> {
    follow(steps, results, returned, 0).map(drop)
}

/// Which of its parameters a function returns on each way out, if there is one. Only one that ends
/// by reading a parameter is looked at.
pub(super) fn returns(steps: &[Step], parameters: u32, results: u32) -> Option<u32> {
    let [.., Step::LocalGet(last), Step::End] = steps else { return None };
    if results != 1 || *last >= parameters {
        return None;
    }
    match follow(steps, results, &Returned::new(), parameters) {
        Ok(Some(Value::Parameter(parameter))) => Some(parameter),
        _ => None,
    }
}

/// Follows a function until what is believed of its loops holds. With parameters, what it returns
/// on each way out; without, that each way out finds the pointer as it was.
fn follow(
    steps: &[Step],
    results: u32,
    returned: &Returned,
    parameters: u32,
) -> Result<Option<Value>, Unproved> {
    let length: usize = steps.iter().map(Step::length).sum();
    let mut work = WORK_PER_STEP_MAX.saturating_mul(length);
    let mut heads = Vec::new();
    loop {
        let mut run = Run::new(&mut heads, &mut work, results, returned, parameters);
        for (position, step) in steps.iter().enumerate() {
            run.take(step).map_err(|reason| Unproved { step: position, reason })?;
        }
        if run.settled {
            return Ok(run.result);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// The pointer at entry, plus this.
    Pointer(i32),
    /// What the function was given for this parameter.
    Parameter(u32),
    Constant(i32),
    Any,
}

impl Value {
    fn add(self, other: Self) -> Self {
        match (self, other) {
            (Self::Pointer(a), Self::Constant(b)) | (Self::Constant(a), Self::Pointer(b)) => {
                Self::Pointer(a.wrapping_add(b))
            }
            (Self::Constant(a), Self::Constant(b)) => Self::Constant(a.wrapping_add(b)),
            _ => Self::Any,
        }
    }

    fn subtract(self, other: Self) -> Self {
        match other {
            Self::Constant(b) => self.add(Self::Constant(b.wrapping_neg())),
            _ => Self::Any,
        }
    }

    fn join(self, other: Self) -> Self {
        if self == other { self } else { Self::Any }
    }
}

/// What is known on one way through the function, but for the operand stack.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    pointer: Value,
    /// Locals whose value is known, the one used last at the end.
    locals: Vec<Known>,
}

/// A local whose value is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    local: u32,
    value: Value,
    /// How often it was read since it was set.
    reads: u32,
}

impl State {
    fn get(&mut self, local: u32) -> Value {
        let Some(place) = self.locals.iter().position(|known| known.local == local) else {
            return Value::Any;
        };
        let known = self.locals.remove(place);
        let value = known.value;
        self.locals.push(Known { reads: known.reads.saturating_add(1), ..known });
        value
    }

    fn set(&mut self, local: u32, value: Value) {
        self.locals.retain(|known| known.local != local);
        if value == Value::Any {
            return;
        }
        if self.locals.len() == LOCALS_KNOWN_MAX {
            let old = self.locals[..LOCALS_OLD].iter().enumerate();
            let worth = |known: &Known| {
                let is_constant = matches!(known.value, Value::Constant(_));
                (!is_constant, known.reads)
            };
            let least = old.min_by_key(|(_, known)| worth(known)).map(|(place, _)| place);
            self.locals.remove(least.expect("some are old"));
        }
        self.locals.push(Known { local, value, reads: 0 });
    }

    /// Keeps what both agree on, and says whether that is less than before.
    fn join(&mut self, other: &Self) -> bool {
        if self == other {
            return false;
        }
        let before = (self.pointer, self.locals.len());
        self.pointer = self.pointer.join(other.pointer);
        let holds = |known: &Known| {
            let same = |other: &Known| (other.local, other.value) == (known.local, known.value);
            other.locals.iter().any(same)
        };
        self.locals.retain(holds);
        before != (self.pointer, self.locals.len())
    }
}

/// A block that the run is in.
struct Frame {
    kind: Kind,
    results: u32,
    /// Height of the operand stack below its parameters.
    height: usize,
    parameters: u32,
    /// What is known at its end, from all ways that lead there.
    end: Option<State>,
}

enum Kind {
    Function,
    Block,
    /// The loop with this number.
    Loop(usize),
    /// What is known where the `else` begins.
    If(Option<State>),
}

/// One run over a function.
struct Run<'a> {
    /// What is believed at the head of each loop, by its number.
    heads: &'a mut Vec<Option<State>>,
    work: &'a mut usize,
    returned: &'a Returned,
    /// Whether the result is asked for, and not the pointer.
    asks_result: bool,
    /// What was returned on all ways out so far.
    result: Option<Value>,
    /// Loops met so far.
    loops: usize,
    frames: Vec<Frame>,
    operands: Vec<Value>,
    /// `None` where the code is never reached.
    state: Option<State>,
    /// No way back to a loop disagreed with what was believed.
    settled: bool,
}

type Taken = Result<(), &'static str>;

impl<'a> Run<'a> {
    fn new(
        heads: &'a mut Vec<Option<State>>,
        work: &'a mut usize,
        results: u32,
        returned: &'a Returned,
        parameters: u32,
    ) -> Self {
        let frame = Frame { kind: Kind::Function, results, height: 0, parameters: 0, end: None };
        let mut entry = State { pointer: Value::Pointer(0), locals: Vec::new() };
        (0..parameters).for_each(|local| entry.set(local, Value::Parameter(local)));
        Self {
            heads,
            work,
            returned,
            asks_result: parameters > 0,
            result: None,
            loops: 0,
            frames: vec![frame],
            operands: Vec::new(),
            state: Some(entry),
            settled: true,
        }
    }

    fn spend(&mut self, work: usize) -> Taken {
        *self.work = self.work.checked_sub(work).ok_or("it is too intricate to follow")?;
        Ok(())
    }

    fn take(&mut self, step: &Step) -> Taken {
        self.spend(1)?;
        match step {
            Step::Block(label) => self.enter(*label, Kind::Block),
            Step::Loop(label) => self.enter_loop(*label),
            Step::If(label) => self.enter_if(*label),
            Step::Else => self.turn_to_else(),
            Step::End => self.leave(),
            _ if self.state.is_none() => Ok(()),
            Step::Branch(label) => {
                self.branch(*label)?;
                self.state = None;
                Ok(())
            }
            Step::BranchIf(label) => {
                self.pop()?;
                self.branch(*label)
            }
            Step::BranchTable(labels) => {
                self.pop()?;
                labels.iter().try_for_each(|label| self.branch(*label))?;
                self.state = None;
                Ok(())
            }
            Step::Return => {
                self.check_exit()?;
                self.state = None;
                Ok(())
            }
            Step::Trap => {
                self.state = None;
                Ok(())
            }
            straight => self.compute(straight),
        }
    }

    /// Takes a step that leads to the next one.
    fn compute(&mut self, step: &Step) -> Taken {
        match *step {
            Step::Other { pops, pushes } => {
                for _ in 0..pops {
                    self.pop()?;
                }
                self.push_any(pushes);
            }
            Step::Call { function, pops, pushes } => {
                let parameter = self.returned.get(&function).copied();
                let mut given = Value::Any;
                for number in (0..pops).rev() {
                    let value = self.pop()?;
                    if parameter == Some(number) {
                        given = value;
                    }
                }
                match (parameter, pushes) {
                    (Some(_), 1) => self.operands.push(given),
                    _ => self.push_any(pushes),
                }
            }
            Step::Constant(value) => self.operands.push(Value::Constant(value)),
            Step::Add => {
                let (right, left) = (self.pop()?, self.pop()?);
                self.operands.push(left.add(right));
            }
            Step::Subtract => {
                let (right, left) = (self.pop()?, self.pop()?);
                self.operands.push(left.subtract(right));
            }
            Step::LocalGet(local) => {
                let value = self.known()?.get(local);
                self.operands.push(value);
            }
            Step::LocalSet(local) => {
                let value = self.pop()?;
                self.known()?.set(local, value);
            }
            Step::LocalTee(local) => {
                let value = self.pop()?;
                self.known()?.set(local, value);
                self.operands.push(value);
            }
            Step::PointerGet => {
                let value = self.known()?.pointer;
                self.operands.push(value);
            }
            Step::PointerSet => {
                let value = self.pop()?;
                self.known()?.pointer = value;
            }
            Step::GlobalGet(_) | Step::Unknown => return Err("it has an unknown instruction"),
            _ => unreachable!("`take` has seen to the steps that branch"),
        }
        Ok(())
    }

    fn enter(&mut self, label: Label, kind: Kind) -> Taken {
        let Label { parameters, results } = label;
        if self.state.is_some() {
            // Values that a block takes are not followed into it.
            for _ in 0..parameters {
                self.pop()?;
            }
        }
        let height = self.operands.len();
        if self.state.is_some() {
            self.push_any(parameters);
        }
        self.frames.push(Frame { kind, results, height, parameters, end: None });
        Ok(())
    }

    fn enter_loop(&mut self, label: Label) -> Taken {
        let number = self.loops;
        self.loops += 1;
        if self.heads.len() < self.loops {
            self.heads.push(None);
        }
        self.enter(label, Kind::Loop(number))?;
        let Some(state) = &mut self.state else { return Ok(()) };
        match &mut self.heads[number] {
            Some(head) => {
                head.join(state);
                state.clone_from(head);
            }
            unseen => *unseen = Some(state.clone()),
        }
        self.spend(WORK_PER_MEETING)
    }

    fn enter_if(&mut self, label: Label) -> Taken {
        self.spend(WORK_PER_MEETING)?;
        if self.state.is_some() {
            self.pop()?;
        }
        let state = self.state.clone();
        self.enter(label, Kind::If(state))
    }

    fn turn_to_else(&mut self) -> Taken {
        self.reach_end(0)?;
        let frame = self.frames.last_mut().ok_or(MALFORMED)?;
        let Kind::If(state) = std::mem::replace(&mut frame.kind, Kind::Block) else {
            return Err(MALFORMED);
        };
        let (height, parameters) = (frame.height, frame.parameters);
        self.state = state;
        self.operands.truncate(height);
        if self.state.is_some() {
            self.push_any(parameters);
        }
        Ok(())
    }

    fn leave(&mut self) -> Taken {
        if self.frames.len() == 1 {
            return if self.state.is_some() { self.check_exit() } else { Ok(()) };
        }
        self.reach_end(0)?;
        let mut frame = self.frames.pop().ok_or(MALFORMED)?;
        // Without an `else` the way around it leads to the end.
        if let Kind::If(Some(around)) = frame.kind {
            match &mut frame.end {
                Some(end) => drop(end.join(&around)),
                none => *none = Some(around),
            }
        }
        self.operands.truncate(frame.height);
        self.state = frame.end;
        if self.state.is_some() {
            self.push_any(frame.results);
        }
        Ok(())
    }

    fn branch(&mut self, label: u32) -> Taken {
        let depth = usize::try_from(label).map_err(|_| MALFORMED)?;
        let place = self.frames.len().checked_sub(depth + 1).ok_or(MALFORMED)?;
        self.spend(WORK_PER_MEETING)?;
        match self.frames[place].kind {
            Kind::Function => self.check_exit(),
            Kind::Loop(number) => self.go_back(number),
            Kind::Block | Kind::If(_) => self.reach_end(depth),
        }
    }

    /// The way leads to the head of a loop again.
    fn go_back(&mut self, number: usize) -> Taken {
        let (Some(head), Some(state)) = (&mut self.heads[number], &self.state) else {
            return Err(MALFORMED);
        };
        self.settled &= !head.join(state);
        Ok(())
    }

    /// The way leads to the end of the block so many levels out.
    fn reach_end(&mut self, depth: usize) -> Taken {
        let place = self.frames.len().checked_sub(depth + 1).ok_or(MALFORMED)?;
        let Some(state) = &self.state else { return Ok(()) };
        match &mut self.frames[place].end {
            Some(end) => drop(end.join(state)),
            none => *none = Some(state.clone()),
        }
        Ok(())
    }

    fn check_exit(&mut self) -> Taken {
        if self.asks_result {
            let result = self.operands.last().copied().ok_or(MALFORMED)?;
            self.result = Some(self.result.map_or(result, |before| before.join(result)));
            return Ok(());
        }
        match self.state.as_ref().map(|state| state.pointer) {
            Some(Value::Pointer(0)) => Ok(()),
            Some(Value::Any) => Err("it cannot be shown that it puts it back"),
            _ => Err("it does not put it back"),
        }
    }

    fn known(&mut self) -> Result<&mut State, &'static str> {
        self.state.as_mut().ok_or(MALFORMED)
    }

    fn pop(&mut self) -> Result<Value, &'static str> {
        self.operands.pop().ok_or(MALFORMED)
    }

    fn push_any(&mut self, count: u32) {
        self.operands.extend((0..count).map(|_| Value::Any));
    }
}

/// Valid code has none of it.
const MALFORMED: &str = "its blocks or operands do not fit";
