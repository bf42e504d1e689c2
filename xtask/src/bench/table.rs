//! The table, as Markdown.

use std::fmt::Write as _;

use super::results::{Results, Spread};
use super::rows::{ROWS, Row, Subject, Verdict};

/// The rows that were measured, each on one line, and below it why figures are missing.
pub(super) fn render(results: &Results) -> String {
    let mut text = String::from(
        "| work | unit | floor | Trunkline | Prosody | ejabberd | to the floor | to the best peer | target | met |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut notes = Vec::new();
    for row in ROWS.iter().filter(|row| results.samples.iter().any(|it| it.row == row.id)) {
        line(&mut text, row, results, &mut notes);
    }
    if !notes.is_empty() {
        text.push('\n');
    }
    for (n, note) in notes.iter().enumerate() {
        // Two spaces at the end of the line break it.
        let end = if n + 1 < notes.len() { "  " } else { "" };
        let _ = writeln!(text, "[{}] {note}{end}", n + 1);
    }
    text
}

fn line(text: &mut String, row: &Row, results: &Results, notes: &mut Vec<String>) {
    let _ = write!(text, "| {} | {} |", row.work, row.unit);
    for subject in Subject::ALL {
        let _ = write!(text, " {} |", cell(row, subject, results, notes));
    }
    let ours = results.median(row.id, Subject::Ours);
    let ratio = |to: Option<f64>| match (ours, to) {
        (Some(ours), Some(to)) if to > 0.0 => Some(ours / to),
        _ => None,
    };
    let floor = ratio(results.median(row.id, Subject::Floor)).map(|it| format!("{it:.2} ×"));
    let peer = ratio(results.best_peer(&[row.id])).map(part);
    let met = match row.verdict(results) {
        Verdict::Met => "met",
        Verdict::NotMet => "**not met**",
        Verdict::Unknown => "?",
        Verdict::NoTarget => "",
    };
    let _ = writeln!(
        text,
        " {} | {} | {} | {met} |",
        floor.unwrap_or_default(),
        peer.unwrap_or_default(),
        row.target
    );
}

fn cell(row: &Row, subject: Subject, results: &Results, notes: &mut Vec<String>) -> String {
    let figure = results.spread(row.id, subject).map(spread);
    let failure = results.failure(row.id, subject);
    let mut text = match (&figure, failure) {
        (Some(figure), _) => figure.clone(),
        (None, Some(_)) => "—".to_owned(),
        (None, None) => return String::new(),
    };
    let name = subject.name();
    for note in failure.into_iter().chain(results.note(row.id, subject)) {
        let note = format!("{name}, {}: {}", row.id, note.replace(['|', '\n'], " "));
        notes.push(note);
        let _ = write!(text, " [{}]", notes.len());
    }
    text
}

/// `84 (80–90)`.
fn spread(it: Spread) -> String {
    if it.count < 2 {
        return number(it.median);
    }
    format!("{} ({}–{})", number(it.median), number(it.least), number(it.most))
}

/// Three digits that count.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        it if it < 9.995 => format!("{value:.2}"),
        it if it < 99.95 => format!("{value:.1}"),
        it if it < 9999.5 => format!("{value:.0}"),
        _ => thousands(value),
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A ratio below one as its reciprocal: how people say it.
fn part(ratio: f64) -> String {
    if ratio < 1.0 { format!("1/{:.1}", 1.0 / ratio) } else { format!("{ratio:.2} ×") }
}

#[cfg(test)]
mod tests {
    use super::super::results::Sample;
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.574, 9.999, 21.74, 84.4, 1512.4, 105_400.0, 1_234_567.0].map(number);
        assert_eq!(shown, ["0.57", "10.0", "21.7", "84.4", "1512", "105,400", "1,234,567"]);
    }

    #[test]
    fn a_table_is_complete() {
        use Subject::{Ejabberd, Floor, Ours, Prosody};
        let figures =
            [(Floor, 6.5), (Ours, 12.0), (Ours, 11.0), (Ours, 14.0), (Prosody, 105.0), (Ejabberd, 84.0)];
        let mut samples: Vec<Sample> =
            figures.map(|(subject, value)| Sample::figure("chat-w1", subject, value)).to_vec();
        let failed = Err("lost | a message".to_owned());
        samples.push(Sample { outcome: failed, ..Sample::figure("s2s", Prosody, 0.0) });
        samples
            .push(Sample { note: Some("SCRAM-SHA-1".into()), ..Sample::figure("login", Ejabberd, 1500.0) });
        let lines = render(&Results { samples });
        let lines: Vec<&str> = lines.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| chat message, 100 pairs, window 1 | µs CPU | 6.50 | 12.0 (11.0–14.0) | 105 | 84.0 | 1.85 × | 1/7.0 \
                 | ≤ 2.0 × floor, ≤ 1/6 of the best peer | met |",
                "| login, full handshake, SCRAM-SHA-256 | µs CPU |  |  |  | 1500 [1] |  |  | ≤ 1/3 of the best peer | ? |",
                "| message from server to server, 100 pairs, window 1, CPU of both | µs CPU |  |  | — [2] |  |  |  \
                 | ≤ 1/4 of the best peer | ? |",
                "",
                "[1] ejabberd, login: SCRAM-SHA-1  ",
                "[2] prosody, s2s: lost   a message",
            ]
        );
    }
}
