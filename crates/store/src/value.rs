//! What goes into a statement and what comes out of it.

use std::{fmt, sync::Arc};

use bytes::Bytes;

/// One value of a row or parameter, in the types SQLite's STRICT tables and PostgreSQL share.
#[derive(Clone, Default, PartialEq)]
pub enum Value {
    /// SQL NULL.
    #[default]
    Null,
    /// A signed integer; also truth values (0 and 1).
    Int(i64),
    /// Text, UTF-8.
    Text(Arc<str>),
    /// Bytes; cloning shares them.
    Blob(Bytes),
}

impl Value {
    /// Bytes this value occupies, roughly: what queue bounds are counted in.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Value::Null | Value::Int(_) => 8,
            Value::Text(text) => text.len(),
            Value::Blob(blob) => blob.len(),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Value::Null => "NULL",
            Value::Int(_) => "an integer",
            Value::Text(_) => "text",
            Value::Blob(_) => "a blob",
        }
    }
}

/// Shows kind and size only: values may be messages or keys, and `Debug` ends up in logs.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("Null"),
            Value::Int(int) => write!(f, "Int({int})"),
            Value::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Value::Blob(blob) => write!(f, "Blob({} bytes)", blob.len()),
        }
    }
}

macro_rules! value_from {
    ($($from:ty => |$v:ident| $value:expr),* $(,)?) => {
        $(impl From<$from> for Value {
            fn from($v: $from) -> Value {
                $value
            }
        })*
    };
}

value_from! {
    i64 => |v| Value::Int(v),
    i32 => |v| Value::Int(v.into()),
    u32 => |v| Value::Int(v.into()),
    u16 => |v| Value::Int(v.into()),
    u8 => |v| Value::Int(v.into()),
    bool => |v| Value::Int(v.into()),
    &str => |v| Value::Text(v.into()),
    String => |v| Value::Text(v.into()),
    &String => |v| Value::Text(v.as_str().into()),
    Arc<str> => |v| Value::Text(v),
    &Arc<str> => |v| Value::Text(v.clone()),
    Bytes => |v| Value::Blob(v),
    &Bytes => |v| Value::Blob(v.clone()),
    Vec<u8> => |v| Value::Blob(v.into()),
    &[u8] => |v| Value::Blob(Bytes::copy_from_slice(v)),
}

impl<const N: usize> From<[u8; N]> for Value {
    fn from(bytes: [u8; N]) -> Value {
        Value::Blob(Bytes::copy_from_slice(&bytes))
    }
}

impl<const N: usize> From<&[u8; N]> for Value {
    fn from(bytes: &[u8; N]) -> Value {
        Value::Blob(Bytes::copy_from_slice(bytes))
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(option: Option<T>) -> Value {
        option.map_or(Value::Null, Into::into)
    }
}

/// What one statement gave: its rows, and how many rows it changed.
#[derive(Clone, Default)]
pub struct Rows {
    pub(crate) sql: &'static str,
    pub(crate) columns: usize,
    /// All rows behind each other, `columns` values each: one allocation instead of one per row.
    pub(crate) values: Vec<Value>,
    pub(crate) changes: u64,
    pub(crate) last_id: i64,
}

impl Rows {
    /// The rows, in the statement's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        self.values.chunks_exact(self.columns.max(1)).map(|values| Row { sql: self.sql, values })
    }

    /// The first row.
    pub fn first(&self) -> Option<Row<'_>> {
        self.iter().next()
    }

    /// How many rows came back (not: were changed).
    pub fn len(&self) -> usize {
        self.values.len() / self.columns.max(1)
    }

    /// Whether no row came back.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// How many rows the statement inserted, updated or deleted itself (triggers and cascades not counted).
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The rowid of the last row this connection inserted. SQLite only: where both engines must run, insert an id
    /// of your own or use `RETURNING`.
    pub fn last_id(&self) -> i64 {
        self.last_id
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rows({} rows of {} columns, {} changes)", self.len(), self.columns, self.changes)
    }
}

/// One row; columns are counted from 0.
///
/// The accessors panic when the column is of another type: the statement and its table (STRICT) are both ours, so
/// this is a mistake in the program, and going on with a made-up value would spread it.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    sql: &'static str,
    values: &'a [Value],
}

impl<'a> Row<'a> {
    /// An integer column that is never NULL.
    pub fn int(&self, column: usize) -> i64 {
        self.opt_int(column).unwrap_or_else(|| self.wrong(column, "an integer"))
    }

    /// An integer column.
    pub fn opt_int(&self, column: usize) -> Option<i64> {
        match self.value(column) {
            Value::Null => None,
            Value::Int(int) => Some(*int),
            _ => self.wrong(column, "an integer"),
        }
    }

    /// A truth value: an integer column that is not 0.
    pub fn bool(&self, column: usize) -> bool {
        self.int(column) != 0
    }

    /// A text column that is never NULL.
    pub fn text(&self, column: usize) -> &'a str {
        self.opt_text(column).unwrap_or_else(|| self.wrong(column, "text"))
    }

    /// A text column.
    pub fn opt_text(&self, column: usize) -> Option<&'a str> {
        match self.value(column) {
            Value::Null => None,
            Value::Text(text) => Some(text),
            _ => self.wrong(column, "text"),
        }
    }

    /// A text column that is never NULL, shared instead of copied.
    pub fn shared_text(&self, column: usize) -> Arc<str> {
        match self.value(column) {
            Value::Text(text) => text.clone(),
            _ => self.wrong(column, "text"),
        }
    }

    /// A blob column that is never NULL; clone it to keep it, that shares the bytes.
    pub fn blob(&self, column: usize) -> &'a Bytes {
        self.opt_blob(column).unwrap_or_else(|| self.wrong(column, "a blob"))
    }

    /// A blob column.
    pub fn opt_blob(&self, column: usize) -> Option<&'a Bytes> {
        match self.value(column) {
            Value::Null => None,
            Value::Blob(blob) => Some(blob),
            _ => self.wrong(column, "a blob"),
        }
    }

    /// Any column, whatever its type.
    pub fn value(&self, column: usize) -> &'a Value {
        self.values.get(column).unwrap_or_else(|| self.wrong(column, "there"))
    }

    #[track_caller]
    fn wrong(&self, column: usize, wanted: &str) -> ! {
        let found = self.values.get(column).map_or("missing", Value::kind);
        panic!("column {column} of `{}` is {found}, not {wanted}", self.sql)
    }
}

impl fmt::Debug for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.values).finish()
    }
}
