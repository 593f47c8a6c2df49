//! A function as the proof about the stack pointer sees it: one step for each operator.

/// What an operator does, as far as the pointer is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Takes values from the operand stack and puts others there.
    Other {
        pops: u32,
        pushes: u32,
    },
    Constant(i32),
    Add,
    Subtract,
    LocalGet(u32),
    LocalSet(u32),
    LocalTee(u32),
    /// Reads a global that may be the pointer; `PointerGet` once it is known to be.
    GlobalGet(u32),
    PointerGet,
    PointerSet,
    Block(Label),
    Loop(Label),
    If(Label),
    Else,
    End,
    Branch(u32),
    BranchIf(u32),
    /// Labels, none twice.
    BranchTable(Box<[u32]>),
    Return,
    /// The rest of the block is never reached.
    Trap,
    /// Calls the function of this index.
    Call {
        function: u32,
        pops: u32,
        pushes: u32,
    },
    /// It is not known what it does.
    Unknown,
}

impl Step {
    /// How long it is in the code: a switch grows with its labels.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::BranchTable(labels) => 1 + labels.len(),
            _ => 1,
        }
    }
}

/// Values that a block takes and leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) parameters: u32,
    pub(super) results: u32,
}
