//! What was measured: samples, medians and their file.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::rows::{self, Subject};

/// One figure, or why there is none.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) row: &'static str,
    pub(super) subject: Subject,
    pub(super) round: u32,
    pub(super) outcome: Result<f64, String>,
    /// Something that the reader should know about the figure.
    pub(super) note: Option<String>,
    /// All that the tool printed.
    pub(super) raw: Value,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Results {
    pub(super) samples: Vec<Sample>,
}

/// The figures of one row and subject.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
    pub(super) count: usize,
}

impl Spread {
    fn of(mut figures: Vec<f64>) -> Option<Spread> {
        figures.sort_by(f64::total_cmp);
        let (least, most) = (*figures.first()?, *figures.last()?);
        let middle = figures.len() / 2;
        let median = match figures.len() % 2 {
            0 => (figures[middle - 1] + figures[middle]) / 2.0,
            _ => figures[middle],
        };
        Some(Spread { median, least, most, count: figures.len() })
    }
}

impl Sample {
    #[cfg(test)]
    pub(super) fn figure(row: &str, subject: Subject, value: f64) -> Sample {
        let row = rows::row(row).map_or("no such row", |row| row.id);
        Sample { row, subject, round: 1, outcome: Ok(value), note: None, raw: Value::Null }
    }
}

impl Results {
    pub(super) fn spread(&self, row: &str, subject: Subject) -> Option<Spread> {
        Spread::of(self.of(row, subject).filter_map(|it| it.outcome.clone().ok()).collect())
    }

    pub(super) fn median(&self, row: &str, subject: Subject) -> Option<f64> {
        self.spread(row, subject).map(|it| it.median)
    }

    /// The lowest median of a peer in these rows.
    pub(super) fn best_peer(&self, rows: &[&str]) -> Option<f64> {
        let medians = rows.iter().flat_map(|row| Subject::PEERS.map(|peer| self.median(row, peer)));
        medians.flatten().min_by(f64::total_cmp)
    }

    /// Why there is no figure, where there is none; else why some are missing.
    pub(super) fn failure(&self, row: &str, subject: Subject) -> Option<&str> {
        self.of(row, subject).find_map(|it| it.outcome.as_ref().err()).map(String::as_str)
    }

    pub(super) fn note(&self, row: &str, subject: Subject) -> Option<&str> {
        self.of(row, subject).filter_map(|it| it.note.as_deref()).next_back()
    }

    fn of(&self, row: &str, subject: Subject) -> impl DoubleEndedIterator<Item = &Sample> {
        self.samples.iter().filter(move |it| it.row == row && it.subject == subject)
    }

    /// The rows that have samples, in the table's order.
    pub(super) fn rows(&self) -> Vec<&'static str> {
        let measured = |id: &&str| self.samples.iter().any(|it| it.row == *id);
        rows::ROWS.iter().map(|row| row.id).filter(measured).collect()
    }

    /// Takes over the rows of `other` that this has no samples of.
    pub(super) fn complete(&mut self, other: Results) {
        let own: Vec<&str> = self.samples.iter().map(|it| it.row).collect();
        let missing: Vec<Sample> = other.samples.into_iter().filter(|it| !own.contains(&it.row)).collect();
        self.samples.extend(missing);
    }

    pub(super) fn to_json(&self) -> Value {
        let samples = self.samples.iter().map(|it| {
            let mut object = json!({ "row": it.row, "subject": it.subject.name(), "round": it.round });
            match &it.outcome {
                Ok(value) => object["value"] = json!(value),
                Err(reason) => object["error"] = json!(reason),
            }
            if let Some(note) = &it.note {
                object["note"] = json!(note);
            }
            if !it.raw.is_null() {
                object["raw"] = it.raw.clone();
            }
            object
        });
        Value::Array(samples.collect())
    }

    /// The samples of a file; none if there is no such file. Rows that are measured no more are left out.
    pub(super) fn read(file: &Path) -> Results {
        Results::from_json(&document(file)["samples"])
    }

    fn from_json(samples: &Value) -> Results {
        let samples = samples.as_array().into_iter().flatten().filter_map(|it| {
            let outcome = match (it["value"].as_f64(), it["error"].as_str()) {
                (Some(value), _) => Ok(value),
                (None, reason) => Err(reason?.to_owned()),
            };
            Some(Sample {
                row: rows::row(it["row"].as_str()?)?.id,
                subject: Subject::by_name(it["subject"].as_str()?)?,
                round: it["round"].as_u64()?.try_into().ok()?,
                outcome,
                note: it["note"].as_str().map(str::to_owned),
                raw: it["raw"].clone(),
            })
        });
        Results { samples: samples.collect() }
    }
}

/// The runs that a file is made of.
pub(super) fn runs(file: &Path) -> Vec<Value> {
    document(file)["runs"].as_array().cloned().unwrap_or_default()
}

fn document(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        let spread = |figures: &[f64]| Spread::of(figures.to_vec());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0]), Some(Spread { median: 3.0, least: 3.0, most: 3.0, count: 1 }));
        assert_eq!(spread(&[9.0, 1.0, 4.0]), Some(Spread { median: 4.0, least: 1.0, most: 9.0, count: 3 }));
        assert_eq!(spread(&[9.0, 1.0, 4.0, 6.0]).map(|it| it.median), Some(5.0));
    }

    #[test]
    fn failures_count_for_no_median() {
        let mut results = Results::default();
        results.samples.push(Sample::figure("login", Subject::Ours, 500.0));
        let failed = Err("the server went away".to_owned());
        results.samples.push(Sample { outcome: failed, ..Sample::figure("login", Subject::Ours, 0.0) });
        assert_eq!(results.median("login", Subject::Ours), Some(500.0));
        assert_eq!(results.failure("login", Subject::Ours), Some("the server went away"));
        assert_eq!(results.median("login", Subject::Prosody), None);
        assert_eq!(results.best_peer(&["login"]), None);
    }

    #[test]
    fn samples_survive_their_file() {
        let mut sample = Sample::figure("idle", Subject::Ejabberd, 70.5);
        sample.note = Some("a note".into());
        sample.raw = json!({ "sessions": 10_000 });
        let failed = Sample { outcome: Err("no".into()), ..Sample::figure("s2s", Subject::Prosody, 0.0) };
        let results = Results { samples: vec![sample, failed] };
        assert_eq!(Results::from_json(&results.to_json()), results);
    }

    #[test]
    fn a_partial_run_keeps_the_other_rows() {
        let mut new = Results { samples: vec![Sample::figure("login", Subject::Ours, 1.0)] };
        let old =
            [("login", Subject::Ours, 9.0), ("login", Subject::Prosody, 8.0), ("idle", Subject::Ours, 7.0)];
        let old = old.map(|(row, subject, value)| Sample::figure(row, subject, value)).to_vec();
        new.complete(Results { samples: old });
        assert_eq!(new.median("login", Subject::Ours), Some(1.0));
        assert_eq!(new.median("login", Subject::Prosody), None, "a row is of one run");
        assert_eq!(new.median("idle", Subject::Ours), Some(7.0));
    }
}
