//! The store against a model of a few lines: batches happen whole or not at all, and for the right reason.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;
use trunkline_store::{Batch, Db, Lane, Migration, Options, Statement, StoreError, Violation, sql};

const MIGRATIONS: &[Migration] = &[Migration {
    name: "cells",
    sql: "CREATE TABLE cells (key INTEGER PRIMARY KEY, value INTEGER NOT NULL CHECK (value < 90)) STRICT",
}];

#[derive(Clone, Debug)]
enum Step {
    Insert(i64, i64),
    Upsert(i64, i64),
    Delete(i64),
    /// Fails unless the key is there.
    Take(i64),
    /// Compare and swap.
    Swap(i64, i64, i64),
    /// Fails unless the key is there; changes nothing.
    Require(i64),
}

impl Step {
    fn statement(&self) -> Statement {
        match *self {
            Step::Insert(key, value) => {
                sql("INSERT INTO cells (key, value) VALUES (?1, ?2)").bind(key).bind(value)
            }
            Step::Upsert(key, value) => sql(
                "INSERT INTO cells (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
            )
            .bind(key)
            .bind(value),
            Step::Delete(key) => sql("DELETE FROM cells WHERE key = ?1").bind(key),
            Step::Take(key) => sql("DELETE FROM cells WHERE key = ?1").bind(key).must_change(),
            Step::Swap(key, old, new) => sql("UPDATE cells SET value = ?3 WHERE key = ?1 AND value = ?2")
                .bind(key)
                .bind(old)
                .bind(new)
                .must_change(),
            Step::Require(key) => sql("SELECT 1 FROM cells WHERE key = ?1").bind(key).must_change(),
        }
    }

    fn model(&self, cells: &mut BTreeMap<i64, i64>) -> Result<(), Outcome> {
        let small = |value: i64| if value < 90 { Ok(value) } else { Err(Outcome::Value) };
        match *self {
            Step::Insert(key, value) => {
                let value = small(value)?;
                if cells.contains_key(&key) {
                    return Err(Outcome::Unique);
                }
                cells.insert(key, value);
            }
            Step::Upsert(key, value) => drop(cells.insert(key, small(value)?)),
            Step::Delete(key) => drop(cells.remove(&key)),
            Step::Take(key) => drop(cells.remove(&key).ok_or(Outcome::Conflict)?),
            Step::Swap(key, old, new) => {
                let value = cells.get_mut(&key).filter(|value| **value == old).ok_or(Outcome::Conflict)?;
                *value = small(new)?;
            }
            Step::Require(key) => drop(cells.get(&key).ok_or(Outcome::Conflict)?),
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Done,
    Conflict,
    Unique,
    Value,
}

fn outcome<T>(result: &Result<T, StoreError>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(StoreError::Conflict) => Outcome::Conflict,
        Err(StoreError::Constraint(Violation::Unique, _)) => Outcome::Unique,
        Err(StoreError::Constraint(Violation::Value, _)) => Outcome::Value,
        Err(error) => panic!("{error}"),
    }
}

fn step() -> impl Strategy<Value = Step> {
    let (key, value) = (|| 0..6_i64, || 0..100_i64);
    prop_oneof![
        (key(), value()).prop_map(|(key, value)| Step::Insert(key, value)),
        (key(), value()).prop_map(|(key, value)| Step::Upsert(key, value)),
        key().prop_map(Step::Delete),
        key().prop_map(Step::Take),
        (key(), 0..3_i64, 0..3_i64).prop_map(|(key, old, new)| Step::Swap(key, old, new)),
        key().prop_map(Step::Require),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn batches_are_atomic_and_must_change_is_kept(
        batches in prop::collection::vec(prop::collection::vec(step(), 1..6), 1..40),
        inline in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(Options { inline, readers: 1, ..Options::file(dir.path().join("db"), MIGRATIONS) }).unwrap();
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        for steps in &batches {
            let mut batch = Batch::new(Lane::Inside);
            for step in steps {
                batch.push(step.statement());
            }
            let outcomes = outcomes.clone();
            db.submit(batch, move |result| outcomes.lock().unwrap().push(outcome(&result)));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(db.flush());

        let mut cells = BTreeMap::new();
        let mut expected = Vec::new();
        for steps in &batches {
            let mut after = cells.clone();
            let result = steps.iter().try_for_each(|step| step.model(&mut after));
            if result.is_ok() {
                cells = after;
            }
            expected.push(result.err().unwrap_or(Outcome::Done));
        }
        prop_assert_eq!(&*outcomes.lock().unwrap(), &expected);
        let rows = runtime.block_on(db.read(sql("SELECT key, value FROM cells"))).unwrap();
        prop_assert_eq!(rows.iter().map(|row| (row.int(0), row.int(1))).collect::<BTreeMap<_, _>>(), cells);
    }
}
