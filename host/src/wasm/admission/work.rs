//! What compiling a function may cost, from its operators alone.
//!
//! A compilation can't be stopped, and its cost grows faster than the code: a compiler knows at
//! each branch of each value that lives there, carries along each branch what was assigned since
//! the place that it leads to, and looks through all of that for each value again. So those are
//! counted, as upper bounds that a single pass can know. The weights were found by measuring
//! functions that are made to be costly, with a release build (docs/performance.md): most code
//! takes a third of its estimate. No clock is read here.

use wasmparser::Operator;

use super::function::Wrong;
use crate::config::limits;

/// Estimate for any function, in nanoseconds; so are the ones that follow.
const FUNCTION_NS: u64 = 38_000;
/// For an operator, with few values about.
const OPERATOR_NS: u64 = 600;
/// For an operator, for each value that may have to be kept meanwhile.
const OPERATOR_VALUE_NS: u64 = 4;
/// From here on, more values cost an operator no more.
const OPERATOR_VALUES_MAX: u64 = 1_000;
/// For a call, beyond any operator: all registers are saved, and fuel is brought up to date.
const CALL_NS: u64 = 8_000;
/// For a place where a branch or a block begins.
const BRANCH_NS: u64 = 48_000;
/// For each pair of such places: few values, too, are looked for at all of them.
const BRANCH_PAIR_NS: u64 = 12;
/// Values at branches, times values carried along them, that cost a nanosecond.
const SEARCHES_PER_NS: u64 = 75;

/// All of these, by which two builds come to one estimate or not.
pub(in crate::wasm) const WEIGHTS: [u64; 8] = [
    FUNCTION_NS,
    OPERATOR_NS,
    OPERATOR_VALUE_NS,
    OPERATOR_VALUES_MAX,
    CALL_NS,
    BRANCH_NS,
    BRANCH_PAIR_NS,
    SEARCHES_PER_NS,
];

/// What one function asks of a compiler, counted operator by operator.
pub(super) struct Work {
    locals: u64,
    operators: u64,
    calls: u64,
    /// Places where blocks begin, or branches lead to one.
    branches: u64,
    /// Highest stack of operands.
    height_max: u64,
    /// Assignments of locals so far.
    assignments: u64,
    /// Values that branches carry to where they lead.
    carried: u64,
    /// The same, each assignment counted.
    merges: u64,
    loops_open: u64,
    loops_deep: u64,
    labels: Vec<Target>,
}

/// Where branches lead to.
struct Target {
    is_loop: bool,
    /// Values that a branch takes with it from the stack.
    arity: u64,
    /// Assignments that came before it began.
    assignments: u64,
    branches: u64,
}

impl Work {
    /// A function of so many locals, parameters included, and results.
    pub(super) fn new(locals: u32, results: u32) -> Self {
        let body =
            Target { is_loop: false, arity: u64::from(results), assignments: 0, branches: 0 };
        Self {
            locals: u64::from(locals),
            operators: 0,
            calls: 0,
            branches: 0,
            height_max: 0,
            assignments: 0,
            carried: 0,
            merges: 0,
            loops_open: 0,
            loops_deep: 0,
            labels: vec![body],
        }
    }

    /// Takes the next operator of a valid function. `height` is that of the stack after it, and
    /// `arity` says what a block takes and gives.
    pub(super) fn add(&mut self, operator: &Operator<'_>, height: u32, arity: (u32, u32)) {
        self.operators += 1;
        self.height_max = self.height_max.max(u64::from(height));
        match operator {
            Operator::LocalSet { .. } | Operator::LocalTee { .. } => self.assignments += 1,
            Operator::Call { .. } => self.calls += 1,
            Operator::CallIndirect { .. } => {
                self.calls += 1;
                self.branches += 1;
            }
            Operator::Loop { .. } => self.begin(true, arity.0),
            Operator::Block { .. } | Operator::If { .. } => self.begin(false, arity.1),
            Operator::Else => self.branch(0),
            Operator::End => self.end(),
            Operator::Br { relative_depth } | Operator::BrIf { relative_depth } => {
                self.branch(*relative_depth);
            }
            Operator::BrTable { targets } => {
                let others = targets.targets().flatten();
                others.chain([targets.default()]).for_each(|depth| self.branch(depth));
            }
            Operator::Return => self.branch(u32::try_from(self.labels.len()).unwrap_or(0)),
            _ => {}
        }
    }

    fn begin(&mut self, is_loop: bool, arity: u32) {
        self.branches += 1;
        self.loops_open += u64::from(is_loop);
        self.loops_deep = self.loops_deep.max(self.loops_open);
        let (arity, assignments) = (u64::from(arity), self.assignments);
        self.labels.push(Target { is_loop, arity, assignments, branches: 0 });
    }

    fn branch(&mut self, depth: u32) {
        self.branches += 1;
        let depth = usize::try_from(depth).expect("32 bits fit");
        // Deeper than all labels is the function's own, which a return leads to.
        let index = self.labels.len().saturating_sub(1 + depth);
        if let Some(label) = self.labels.get_mut(index) {
            label.branches += 1;
        }
    }

    fn end(&mut self) {
        let Some(label) = self.labels.pop() else { return };
        self.loops_open -= u64::from(label.is_loop);
        if label.branches == 0 {
            return;
        }
        // It is also come to by what stands before it. Fuel is assigned wherever a block begins.
        let ways = label.branches + 1;
        let assigned = self.assignments - label.assignments;
        self.carried += ways * (1 + label.arity + assigned.min(self.locals));
        self.merges += ways * (1 + label.arity + assigned);
    }

    /// Refuses a function that would take a compiler too much memory or time by itself, and
    /// estimates how many nanoseconds any other one takes it.
    pub(super) fn cost_ns(&self) -> Result<u64, Wrong> {
        let values = self.locals + self.height_max;
        let live = values * self.branches;
        let rows = [
            ("loops in one another", self.loops_deep, limits::FUNCTION_LOOPS_DEEP_MAX),
            ("blocks and branches", self.branches, limits::FUNCTION_BRANCHES_MAX),
            ("values times branches", live, limits::FUNCTION_VALUES_MAX),
            ("assignments times branches past them", self.merges, limits::FUNCTION_MERGES_MAX),
        ];
        for (what, count, limit) in rows {
            if count > limit {
                return Err(Wrong::TooLarge { what, count, limit });
            }
        }
        let operator_ns = OPERATOR_NS + OPERATOR_VALUE_NS * values.min(OPERATOR_VALUES_MAX);
        Ok(FUNCTION_NS
            + self.operators * operator_ns
            + self.calls * CALL_NS
            + self.branches * (BRANCH_NS + self.branches * BRANCH_PAIR_NS)
            + live * self.carried / SEARCHES_PER_NS)
    }
}
