//! How a state leaves and enters a guest, as a sequence of records.
//!
//! The records are the guest's; magic, lengths and checksum around them are `export` and
//! `import`, so that no guest writes its own.
//!
//! A serde type is one record, in CBOR (RFC 8949): the record carries the names of fields and the
//! types of values. So fields may be added, removed and reordered by serde's own rules, and a value
//! of another type is refused rather than read as something else.

use std::marker::PhantomData;

use ciborium::de::Error;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

/// A state that can be taken elsewhere.
///
/// Any `Default` serde type has this by itself, as one record: fine up to some megabytes, since
/// that record is a second copy of the state. A larger state implements it by hand, a few dozen
/// kilobytes a record.
///
/// A record of a serde type holds names and types of what is in it. An import of another version of
/// the type goes by serde's rules: unknown fields are skipped, a field that is missing needs
/// `#[serde(default)]`, and a value that does not fit its type is refused. As in JSON, nothing and
/// `Some` of nothing are one: `Some(None)` of an `Option<Option<T>>` comes back as `None`. Values
/// may be nested in one another up to 256 levels deep.
pub trait Portable: Sized {
    /// Where an export stands, such as the last key that was written.
    type Position: Default;

    /// Appends the record at `position` to `record` and moves on, or returns false when there is
    /// none left. The state doesn't change between the records of an export.
    fn export_record(&self, position: &mut Self::Position, record: &mut Vec<u8>) -> bool;

    /// Takes in a record, starting from `Default`, in the order of the export. `schema` is the
    /// version that wrote it.
    ///
    /// # Errors
    /// What is wrong with the record.
    fn import_record(&mut self, schema: u32, record: &[u8]) -> Result<(), String>;
}

impl<T: Default + Serialize + DeserializeOwned> Portable for T {
    type Position = bool;

    fn export_record(&self, exported: &mut bool, record: &mut Vec<u8>) -> bool {
        if *exported {
            return false;
        }
        ciborium::into_writer(self, record).expect("a state of plain values can be encoded");
        *exported = true;
        true
    }

    fn import_record(&mut self, _: u32, record: &[u8]) -> Result<(), String> {
        let mut rest = record;
        *self = ciborium::from_reader(&mut rest).map_err(|error| match place::<T>(record) {
            Some(place) => format!("{place}: {}", in_words(error)),
            None => in_words(error),
        })?;
        if rest.is_empty() {
            return Ok(());
        }
        Err(format!("{} bytes are left over after the state", rest.len()))
    }
}

/// Where in a state its record cannot be read, such as `limits.low`; `None` for the whole of it.
/// The record is read once more for that, which only a failed import does.
fn place<T: DeserializeOwned>(record: &[u8]) -> Option<String> {
    let place = ciborium::from_reader::<Place<T>, _>(record).ok()?;
    place.path.filter(|path| path != ".")
}

/// Where reading a `T` failed. Reading this fails nowhere, so that it can be handed out by a reader
/// that takes no visitor of ours.
struct Place<T> {
    path: Option<String>,
    read: PhantomData<T>,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Place<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let failed = serde_path_to_error::deserialize::<D, T>(deserializer).err();
        let path = failed.map(|error| error.path().to_string());
        Ok(Self { path, read: PhantomData })
    }
}

fn in_words(error: Error<std::io::Error>) -> String {
    match error {
        Error::Semantic(_, words) => words,
        Error::Syntax(offset) => format!("it is no CBOR at byte {offset}"),
        Error::Io(_) => "it ends early".to_owned(),
        Error::RecursionLimitExceeded => "it is nested too deep".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    /// What a state of one type comes to in another.
    fn moved<A: Portable, B: Portable + Default>(state: &A) -> Result<B, String> {
        let mut record = Vec::new();
        assert!(state.export_record(&mut A::Position::default(), &mut record));
        let mut other = B::default();
        other.import_record(1, &record).map(|()| other)
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Signed {
        total: i64,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Unsigned {
        total: u64,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Narrow {
        total: u8,
    }

    /// A number keeps its value in a wider or a narrower type, or is refused: 42 was once read as
    /// 84 where `i64` had become `u64`.
    #[test]
    fn numbers_keep_their_value() {
        assert_eq!(moved(&Signed { total: 42 }), Ok(Unsigned { total: 42 }));
        assert_eq!(moved(&Unsigned { total: 42 }), Ok(Signed { total: 42 }));
        assert_eq!(moved(&Signed { total: 255 }), Ok(Narrow { total: 255 }));
        let refused = moved::<_, Unsigned>(&Signed { total: -1 });
        assert_eq!(refused, Err("total: unexpected negative integer".to_owned()));
        let refused = moved::<_, Signed>(&Unsigned { total: u64::MAX });
        assert_eq!(refused, Err("total: integer too large".to_owned()));
        let refused = moved::<_, Narrow>(&Signed { total: 256 });
        assert_eq!(refused, Err("total: invalid value: integer `256`, expected u8".to_owned()));
        for total in [i64::MIN, -1, 0, i64::MAX] {
            assert_eq!(moved(&Signed { total }), Ok(Signed { total }));
        }
    }

    /// A value of another type is refused, and the refusal names both.
    #[test]
    fn other_types_are_refused() {
        let refused = |value: &BTreeMap<String, String>| moved::<_, Signed>(value).unwrap_err();
        let text = BTreeMap::from([("total".to_owned(), "42".to_owned())]);
        assert_eq!(refused(&text), "total: invalid type: string, expected integer");
        let yes = BTreeMap::from([("total".to_owned(), true)]);
        let said = moved::<_, Signed>(&yes).unwrap_err();
        assert_eq!(said, "total: invalid type: boolean `true`, expected integer");
        let half = BTreeMap::from([("total".to_owned(), 0.5)]);
        let said = moved::<_, Signed>(&half).unwrap_err();
        assert_eq!(said, "total: invalid type: floating point `0.5`, expected integer");
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Earlier {
        name: String,
        total: i64,
        last: Option<(u8, char)>,
        kind: Kind,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Later {
        kind: Kind,
        total: i64,
        #[serde(default)]
        limits: BTreeMap<u16, f64>,
        #[serde(default = "seven")]
        seven: u8,
        last: Option<(u8, char)>,
    }

    fn seven() -> u8 {
        7
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    enum Kind {
        #[default]
        Empty,
        Full {
            at: u64,
        },
    }

    /// Fields that were added, removed and reordered are what serde says: skipped, or their
    /// default; one that is missing without a default is named.
    #[test]
    fn fields_change_by_serdes_rules() {
        let (total, last) = (-3, Some((9, 'ü')));
        let name = "a name".to_owned();
        let earlier = Earlier { name, total, last, kind: Kind::Full { at: 1 << 40 } };
        let later = Later {
            kind: Kind::Full { at: 1 << 40 },
            total,
            limits: BTreeMap::new(),
            seven: 7,
            last,
        };
        assert_eq!(moved(&earlier), Ok(later));
        let refused = moved::<Later, Earlier>(&Later::default()).unwrap_err();
        assert_eq!(refused, "missing field `name`");
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Shelf<T> {
        name: String,
        rows: Vec<T>,
        by_name: BTreeMap<String, T>,
        kept: Option<Box<T>>,
        kind: Holds<T>,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    enum Holds<T> {
        #[default]
        Nothing,
        One {
            held: T,
        },
    }

    /// A shelf that holds one value that is to be refused, in one place.
    fn shelf(place: usize) -> Shelf<i64> {
        let put = |at: usize| if at == place { -1 } else { 1 };
        Shelf {
            name: "a".to_owned(),
            rows: vec![1, put(0)],
            by_name: BTreeMap::from([("low".to_owned(), 1), ("high".to_owned(), put(1))]),
            kept: Some(Box::new(put(2))),
            kind: Holds::One { held: put(3) },
        }
    }

    /// What does not fit is named by its place in the state, however deep that is: among fields,
    /// in a list, in a map, in an option, in a variant. So are fields and variants that the type
    /// does not have, or misses.
    #[test]
    fn places_are_named() {
        let read = |place| moved::<Shelf<i64>, Shelf<u64>>(&shelf(place));
        for (place, path) in ["rows[1]", "by_name.high", "kept", "kind.One.held"].iter().enumerate()
        {
            assert_eq!(read(place), Err(format!("{path}: unexpected negative integer")));
        }
        assert_eq!(read(9).map(|shelf| shelf.rows), Ok(vec![1, 1]), "without one it fits");

        let inner = Shelf { rows: vec![Signed { total: 1 }], ..Shelf::default() };
        let renamed = moved::<_, Shelf<Renamed>>(&inner);
        assert_eq!(renamed, Err("rows[0]: missing field `sum`".to_owned()));
        let renamed = moved::<_, Renamed>(&Signed { total: 1 });
        assert_eq!(renamed, Err("missing field `sum`".to_owned()), "of the state itself");
        let aliased = moved::<_, Shelf<Aliased>>(&inner).map(|shelf| shelf.rows);
        assert_eq!(aliased, Ok(vec![Aliased { sum: 1 }]));
        let strict = moved::<_, Strict>(&shelf(9));
        assert_eq!(
            strict,
            Err("by_name: unknown field `by_name`, expected `name` or `rows`".into())
        );
        let kind = Shelf { kind: Holds::One { held: 1_i64 }, ..Shelf::default() };
        let gone = moved::<_, WithKind>(&kind).unwrap_err();
        assert_eq!(gone, "kind: unknown variant `One`, expected `Nothing`");
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Renamed {
        sum: i64,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Aliased {
        #[serde(alias = "total")]
        sum: i64,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Strict {
        name: String,
        rows: Vec<i64>,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct WithKind {
        kind: Nothing,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    enum Nothing {
        #[default]
        Nothing,
    }

    /// A record that is cut, longer than its value, or of the layout that bincode had, is refused.
    #[test]
    fn other_bytes_are_refused() {
        let mut record = Vec::new();
        Signed { total: 1000 }.export_record(&mut false, &mut record);
        let refused = |record: &[u8]| Signed::default().import_record(1, record).unwrap_err();
        assert_eq!(refused(&record[..record.len() - 1]), "total: it ends early");
        assert_eq!(refused(&[&record[..], &[0]].concat()), "1 bytes are left over after the state");
        assert_eq!(refused(&[0xff]), "invalid type: break, expected map");
        // 42, zigzag-encoded.
        let bincode = refused(&[84]);
        assert!(bincode.starts_with("invalid type: bytes"), "{bincode}");
    }
}
