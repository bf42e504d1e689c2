//! Rules, blocks, the breaker and the audit log, for people.

use std::fmt::Write as _;

use super::output::{printable, span, table, time};
use crate::control::audit::AuditEntry;
use crate::control::breaker::{BreakerView, Level, LevelView};
use crate::control::policy::{PolicyView, RuleView, TestResult};
use crate::control::rule::{Action, Direction, Per, Rule};

/// The policy.
pub(super) fn policy(view: &PolicyView, now: i64) -> String {
    let shadow = if view.preset_shadow { ", in shadow" } else { "" };
    let mut out = format!(
        "Preset: {}{shadow} (decided {}, would have {})\n",
        view.preset.name(),
        view.preset_hits,
        view.preset_shadow_hits
    );
    if view.rules.is_empty() {
        out.push_str("\nNo rules.\n");
    } else {
        let mut rows =
            vec![["ID", "WHEN", "THEN", "HITS", "UNTIL", "BY", "REASON"].map(str::to_owned).to_vec()];
        rows.extend(view.rules.iter().map(|rule| rule_row(rule, now)));
        let _ = write!(out, "\nRules, the first match decides:\n{}", table(&rows));
    }
    for warning in &view.warnings {
        let _ = writeln!(out, "WARNING: {}", printable(warning));
    }
    if !view.blocks.is_empty() {
        let mut rows = vec![["DOMAIN", "UNTIL", "BY", "REASON"].map(str::to_owned).to_vec()];
        for blocked in &view.blocks {
            let star = if blocked.block.subdomains { " and below" } else { "" };
            rows.push(vec![
                format!("{}{star}", printable(&blocked.block.domain)),
                end(blocked.block.until, now),
                printable(&blocked.set_by),
                printable(&blocked.block.reason),
            ]);
        }
        let _ = write!(out, "\nBlocked domains ({}):\n{}", view.blocks_total, table(&rows));
        if view.blocks_total > view.blocks.len() as u64 {
            out.push_str("`trunkline federation blocks export` has all of them.\n");
        }
    }
    out
}

fn rule_row(view: &RuleView, now: i64) -> Vec<String> {
    let hits = match view.rule.shadow {
        true => format!("{} (shadow)", view.shadow_hits),
        false => view.hits.to_string(),
    };
    vec![
        view.id.map_or_else(|| "file".into(), |id| id.to_string()),
        printable(&when(&view.rule)),
        printable(&then(&view.rule.then)),
        hits,
        end(view.rule.until, now),
        printable(&view.set_by),
        printable(&view.rule.reason),
    ]
}

/// The conditions in words.
fn when(rule: &Rule) -> String {
    let when = &rule.when;
    let mut parts = Vec::new();
    match rule.direction {
        Direction::In => parts.push("in".to_owned()),
        Direction::Out => parts.push("out".to_owned()),
        Direction::Both => {}
    }
    if let Some(domain) = &when.domain {
        parts.push(format!("{domain}{}", if when.subdomains { " and below" } else { "" }));
    }
    parts.extend(when.address.clone());
    parts.extend(when.first_seen_within.map(|seconds| {
        format!(
            "known for less than {}",
            span(i64::try_from(seconds).unwrap_or(i64::MAX / 1000).saturating_mul(1000))
        )
    }));
    parts.extend(when.authentication.map(|proof| format!("proved by {}", word(&proof))));
    if !when.relation.is_empty() {
        parts.push(words(&when.relation));
    }
    if !when.kind.is_empty() {
        parts.push(words(&when.kind));
    }
    parts.extend(when.has.iter().map(|content| format!("with {}", word(content))));
    parts.extend(when.larger_than.map(|bytes| format!("over {bytes} bytes")));
    parts.extend(when.faster_than.map(|rate| format!("over {rate} a minute")));
    parts.extend(when.reputation_below.map(|below| format!("reputation below {below}")));
    parts.extend(when.listed_in.as_ref().map(|list| format!("on list {list}")));
    if parts.is_empty() { "always".into() } else { parts.join(", ") }
}

fn then(action: &Action) -> String {
    match action {
        Action::Limit { per_minute, per: Per::Domain } => {
            format!("limit each domain to {per_minute} a minute")
        }
        Action::Limit { per_minute, per: Per::Rule } => {
            format!("limit all together to {per_minute} a minute")
        }
        Action::Mark { text } => format!("mark \"{text}\""),
        Action::Reject { condition: Some(condition), .. } => format!("reject ({condition})"),
        other => other.name().into(),
    }
}

/// A value of the language as it is written.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn words(values: &[impl serde::Serialize]) -> String {
    values.iter().map(word).collect::<Vec<_>>().join(" or ")
}

fn end(until: Option<i64>, now: i64) -> String {
    until.map_or_else(|| "-".into(), |until| format!("in {}", span(until - now)))
}

/// The result of a test.
pub(super) fn tested(result: &TestResult) -> String {
    let mut out = format!("{}, by {}\n", result.action, printable(&result.by));
    if !result.reason.is_empty() {
        let _ = writeln!(out, "reason: {}", printable(&result.reason));
    }
    out.push_str("What was asked, in order:\n");
    for line in &result.trace {
        let _ = writeln!(out, "  {}", printable(line));
    }
    out
}

/// The breaker.
pub(super) fn breaker(view: &BreakerView, now: i64) -> String {
    let level = |view: &LevelView| {
        let mut text = view.level.name().to_owned();
        if view.level != Level::Normal {
            let _ = write!(text, ", since {} by {}", time(view.set_at), printable(&view.set_by));
            if let Some(until) = view.until {
                let _ = write!(text, ", ends in {}", span(until - now));
            }
            if !view.reason.is_empty() {
                let _ = write!(text, ": {}", printable(&view.reason));
            }
        }
        text
    };
    let mut out = format!("All of the outside: {}\n", level(&view.all));
    for domain in &view.domains {
        let name = domain.domain.as_deref().unwrap_or_default();
        let _ = writeln!(out, "{}: {}", printable(name), level(domain));
    }
    for covered in &view.covered {
        let name = covered.domain.as_deref().unwrap_or("all of the outside");
        let _ = writeln!(out, "  also set for {}: {}", printable(name), level(covered));
    }
    for trigger in &view.triggers {
        let _ = writeln!(out, "trigger: {}", printable(trigger));
    }
    out
}

/// A page of the audit log.
pub(super) fn audit(entries: &[AuditEntry], more: bool) -> String {
    if entries.is_empty() {
        return "No entries.\n".into();
    }
    let mut out = String::new();
    for entry in entries {
        let _ = writeln!(
            out,
            "{}  {}  {} ({})  {}{}",
            entry.id,
            time(entry.at),
            printable(&entry.who),
            printable(&entry.face),
            printable(&entry.what),
            if entry.why.is_empty() { String::new() } else { format!(": {}", printable(&entry.why)) }
        );
        for (name, value) in [("before", &entry.before), ("after", &entry.after)] {
            if let Some(value) = value {
                let _ = writeln!(out, "    {name}: {}", printable(value));
            }
        }
    }
    if let Some(last) = entries.last().filter(|_| more) {
        let _ = writeln!(out, "There are older ones: --before {}", last.id);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000;

    #[test]
    fn rules_are_sentences() {
        let rule = |json: &str| serde_json::from_str::<Rule>(json).unwrap();
        let view =
            |id, rule: Rule| RuleView { id, rule, set_by: "me".into(), set_at: 0, hits: 3, shadow_hits: 4 };
        let view = PolicyView {
            preset: crate::control::policy::Preset::Careful,
            preset_shadow: true,
            preset_hits: 0,
            preset_shadow_hits: 9,
            rules: vec![
                view(
                    None,
                    rule(
                        r#"{"when":{"domain":"a.example","subdomains":true,"kind":["call","iq"],"has":["link"]},"direction":"in","then":{"do":"limit","per_minute":5}}"#,
                    ),
                ),
                view(
                    Some(7),
                    rule(
                        r#"{"then":{"do":"mark","text":"x"},"shadow":true,"until":1700000060000,"reason":"why\u001b"}"#,
                    ),
                ),
            ],
            blocks: Vec::new(),
            blocks_total: 0,
            warnings: vec!["rule 7 never\u{1b} matches".into()],
        };
        let text = policy(&view, NOW);
        for part in [
            "Preset: careful, in shadow (decided 0, would have 9)",
            "file  in, a.example and below, call or iq, with link  limit each domain to 5 a minute  3 ",
            "7     always",
            "mark \"x\"",
            "4 (shadow)  in 1 min 0 s",
            "WARNING: rule 7 never",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn the_breaker_and_the_log() {
        let all = LevelView {
            level: Level::Closed,
            reason: "an attack".into(),
            set_by: "me".into(),
            set_at: NOW,
            until: Some(NOW + 60_000),
            ..LevelView::default()
        };
        let text = breaker(&BreakerView { all, ..BreakerView::default() }, NOW);
        assert_eq!(
            text,
            "All of the outside: closed, since 2023-11-14 22:13 UTC by me, ends in 1 min 0 s: an attack\n"
        );
        let entry = AuditEntry {
            id: 5,
            at: NOW,
            who: "me".into(),
            face: "api".into(),
            what: "policy block a.example".into(),
            why: "spam".into(),
            before: None,
            after: Some("{}".into()),
        };
        let text = audit(&[entry], true);
        assert!(
            text.starts_with(
                "5  2023-11-14 22:13 UTC  me (api)  policy block a.example: spam\n    after: {}\n"
            ),
            "{text}"
        );
        assert!(text.contains("--before 5"));
    }
}
