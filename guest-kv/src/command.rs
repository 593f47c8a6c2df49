//! What a request asks for. Reads names, arity and options as Redis 7.0 does; it knows neither
//! state nor time.

use lockstep_guest_sdk::{Decode, Rejection};

use crate::error::{self, c_string};
use crate::request::{Arguments, Request, number};

/// A command that can be obeyed.
#[derive(Clone, Debug)]
pub enum Command<'a> {
    /// SET key value [NX | XX] [GET] [EX s | PX ms | EXAT s | PXAT ms | KEEPTTL]
    Set(Set<'a>),
    /// GET key
    Get(&'a [u8]),
    /// DEL key [key ...]
    Del(Arguments<'a>),
    /// EXISTS key [key ...]
    Exists(Arguments<'a>),
    /// PING [message]
    Ping(Option<&'a [u8]>),
}

/// A SET with its options.
#[derive(Clone, Debug)]
pub struct Set<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) condition: Option<Condition>,
    /// The reply is the old value.
    pub(crate) get: bool,
    pub(crate) expiry: Expiry,
}

/// When a SET does anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// NX: only where there is no such key.
    Absent,
    /// XX: only where there is one.
    Present,
}

/// What becomes of a key's time, in milliseconds; positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    Never,
    Keep,
    After(i64),
    At(i64),
}

impl<'a> Decode<'a> for Command<'a> {
    fn decode(bytes: &'a [u8]) -> Result<Self, Rejection> {
        let Request { name, mut arguments } = Request::parse(bytes)?;
        if name.eq_ignore_ascii_case(b"GET") {
            match (arguments.next(), arguments.next()) {
                (Some(key), None) => Ok(Self::Get(key)),
                _ => Err(error::arity("get")),
            }
        } else if name.eq_ignore_ascii_case(b"SET") {
            Set::decode(arguments).map(Self::Set)
        } else if name.eq_ignore_ascii_case(b"DEL") {
            if arguments.len() == 0 { Err(error::arity("del")) } else { Ok(Self::Del(arguments)) }
        } else if name.eq_ignore_ascii_case(b"EXISTS") {
            let none = arguments.len() == 0;
            if none { Err(error::arity("exists")) } else { Ok(Self::Exists(arguments)) }
        } else if name.eq_ignore_ascii_case(b"PING") {
            let many = arguments.len() > 1;
            if many { Err(error::arity("ping")) } else { Ok(Self::Ping(arguments.next())) }
        } else {
            Err(error::unknown(name, arguments))
        }
    }
}

impl<'a> Set<'a> {
    fn decode(mut arguments: Arguments<'a>) -> Result<Self, Rejection> {
        let (Some(key), Some(value)) = (arguments.next(), arguments.next()) else {
            return Err(error::arity("set"));
        };
        let mut set = Set { key, value, condition: None, get: false, expiry: Expiry::Never };
        if arguments.len() > 0 {
            Options::decode(arguments)?.put_into(&mut set)?;
        }
        Ok(set)
    }
}

/// Units and kinds of an expiry option.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Time {
    Ex,
    Px,
    ExAt,
    PxAt,
}

/// The options of a SET. Redis reads them all before it looks at the number among them, and
/// refuses those that contradict one before.
#[derive(Default)]
struct Options<'a> {
    condition: Option<Condition>,
    get: bool,
    keep: bool,
    time: Option<(Time, &'a [u8])>,
}

impl<'a> Options<'a> {
    fn decode(mut words: Arguments<'a>) -> Result<Self, Rejection> {
        let mut options = Self::default();
        while let Some(word) = words.next() {
            options.add(c_string(word), &mut words)?;
        }
        Ok(options)
    }

    fn add(&mut self, word: &[u8], rest: &mut Arguments<'a>) -> Result<(), Rejection> {
        let is = |name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        if is("NX") {
            self.add_condition(Condition::Absent)
        } else if is("XX") {
            self.add_condition(Condition::Present)
        } else if is("GET") {
            self.get = true;
            Ok(())
        } else if is("KEEPTTL") && self.time.is_none() {
            self.keep = true;
            Ok(())
        } else if is("EX") {
            self.add_time(Time::Ex, rest)
        } else if is("PX") {
            self.add_time(Time::Px, rest)
        } else if is("EXAT") {
            self.add_time(Time::ExAt, rest)
        } else if is("PXAT") {
            self.add_time(Time::PxAt, rest)
        } else {
            Err(error::syntax())
        }
    }

    fn add_condition(&mut self, condition: Condition) -> Result<(), Rejection> {
        if self.condition.is_some_and(|other| other != condition) {
            return Err(error::syntax());
        }
        self.condition = Some(condition);
        Ok(())
    }

    /// The same kind of time may be given again, and the last counts.
    fn add_time(&mut self, kind: Time, rest: &mut Arguments<'a>) -> Result<(), Rejection> {
        let contradicts = self.keep || self.time.is_some_and(|(other, _)| other != kind);
        let number = rest.next().filter(|_| !contradicts).ok_or_else(error::syntax)?;
        self.time = Some((kind, number));
        Ok(())
    }

    fn put_into(self, set: &mut Set<'a>) -> Result<(), Rejection> {
        set.condition = self.condition;
        set.get = self.get;
        set.expiry = match self.time {
            None if self.keep => Expiry::Keep,
            None => Expiry::Never,
            Some((kind, text)) => {
                let number = number(text).ok_or_else(error::not_an_integer)?;
                let unit = if matches!(kind, Time::Ex | Time::ExAt) { 1000 } else { 1 };
                let time_ms = number.checked_mul(unit).filter(|&time_ms| time_ms > 0);
                let time_ms = time_ms.ok_or_else(error::expire_time)?;
                match kind {
                    Time::Ex | Time::Px => Expiry::After(time_ms),
                    Time::ExAt | Time::PxAt => Expiry::At(time_ms),
                }
            }
        };
        Ok(())
    }
}
