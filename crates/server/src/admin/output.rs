//! What the command line prints: tables for people. Programs use `--json`.

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::tokens::TokenView;
use super::{
    AccountView, Counts, FederationStatus, Outcome, PeerStatus, Status, StreamStatus, User, output_policy,
};
use crate::control::lists::{ListEntry, ListView, Subscriber};
use crate::control::reports::ReportView;
use crate::control::requests::RequestView;
use crate::control::traffic::{DomainDetail, DomainSummary, HistoryPoint, NowView};
use crate::devices::Device;

/// An outcome for people, at the time `now` (milliseconds since 1970).
pub fn human(outcome: &Outcome, now: i64) -> String {
    match outcome {
        Outcome::Done { text } => format!("{text}\n"),
        Outcome::Users { users, .. } => user_table(users),
        Outcome::Account(view) => account_text(view),
        Outcome::Counts(counts) => counts_text(counts),
        Outcome::Motd { text: None, .. } => "No message of the day.\n".into(),
        Outcome::Motd { text: Some(text), set_at } => {
            format!("{text}\nSet: {}\n", set_at.map_or("-".into(), time))
        }
        Outcome::Clients { clients } => device_table(clients),
        Outcome::Reloaded { reload } => {
            let mut out = String::new();
            if reload.applied.is_empty() && reload.needs_restart.is_empty() {
                out.push_str("Nothing changed; the certificates were read again.\n");
            }
            for key in &reload.applied {
                let _ = writeln!(out, "applied: {key}");
            }
            for key in &reload.needs_restart {
                let _ = writeln!(out, "needs a restart: {key}");
            }
            out
        }
        Outcome::Status(status) => status_text(status, now),
        Outcome::Federation(status) => federation_text(status, now),
        Outcome::Invitation { uri, expires_at } => {
            format!("{uri}\nIt can be used once, until {}.\n", time(*expires_at))
        }
        Outcome::File { text, .. } => text.clone(),
        Outcome::Requests { requests, more } => requests_text(requests, *more, now),
        Outcome::Policy(view) => output_policy::policy(view, now),
        Outcome::Tested(result) => output_policy::tested(result),
        Outcome::Breaker(view) => output_policy::breaker(view, now),
        Outcome::Audit { entries, more } => output_policy::audit(entries, *more),
        Outcome::Now(view) => now_text(view),
        Outcome::Domains { domains, total } => domains_text(domains, *total, now),
        Outcome::Domain(detail) => domain_text(detail, now),
        Outcome::History { step, points } => history_text(*step, points),
        Outcome::Tokens { tokens } => tokens_text(tokens, now),
        Outcome::Token { name, token } => {
            format!("{token}\nThis is the token {name}. It is not shown again.\n")
        }
        Outcome::Reports { reports, more } => report_table(reports, *more),
        Outcome::Report(report) => report_text(report),
        Outcome::Lists { lists } => list_table(lists, now),
        Outcome::ListItems { items, more } => item_table(items, *more),
        Outcome::ListSubscribers { subscribers } => subscriber_table(subscribers, now),
    }
}

fn now_text(view: &NowView) -> String {
    let mut rows = vec![
        vec!["inside".to_owned(), format!("{:.1} stanzas/s, {} sessions", view.inside, view.sessions)],
        vec![
            "outside".into(),
            format!("{:.1} in, {:.1} out stanzas/s, {} peers", view.outside_in, view.outside_out, view.peers),
        ],
        vec!["breaker".into(), format!("{}, {} domains of their own", word(&view.level), view.levels)],
        vec!["waiting".into(), format!("{} first contacts, {} reports", view.requests, view.reports)],
    ];
    rows.extend(view.busiest.iter().map(|(domain, count)| {
        vec!["busy".to_owned(), format!("{}: {count} in the last minute", printable(domain))]
    }));
    let refused = view.refused.iter();
    rows.extend(
        refused
            .map(|(name, count)| vec!["refused".to_owned(), format!("{name}: {count} in the last minute")]),
    );
    table(&rows)
}

/// An enum's word, as it is written everywhere.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "-".into(),
    }
}

fn domains_text(domains: &[DomainSummary], total: u64, now: i64) -> String {
    if domains.is_empty() {
        return "No peer domains.\n".into();
    }
    let heads = [
        "DOMAIN",
        "STATE",
        "FIRST SEEN",
        "IN",
        "OUT",
        "REFUSED",
        "HELD",
        "REPORTS",
        "REPUTATION",
        "QUEUE",
        "LEVEL",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for domain in domains {
        let first = if domain.first_seen > 0 { span(now - domain.first_seen) } else { "-".into() };
        let mut row = vec![printable(&domain.domain), domain.state.clone(), first];
        row.extend(
            [domain.stanzas_in, domain.stanzas_out, domain.refused, domain.held, domain.reports]
                .map(|n| n.to_string()),
        );
        row.extend([domain.reputation.to_string(), domain.queue.to_string(), word(&domain.level)]);
        rows.push(row);
    }
    let mut out = table(&rows);
    if total > domains.len() as u64 {
        let _ = writeln!(out, "{} of {total}; more with --offset.", domains.len());
    }
    out
}

fn domain_text(detail: &DomainDetail, now: i64) -> String {
    let summary = &detail.summary;
    let when =
        |at: i64| if at > 0 { format!("{} ({} ago)", time(at), span(now - at)) } else { "never".into() };
    let mut rows = vec![
        vec!["domain".to_owned(), printable(&summary.domain)],
        vec![
            "state".into(),
            format!(
                "{}, level {}{}",
                summary.state,
                word(&summary.level),
                if summary.blocked { ", blocked" } else { "" }
            ),
        ],
        vec!["first seen".into(), when(summary.first_seen)],
        vec!["last seen".into(), when(summary.last_seen)],
        vec!["proved by".into(), detail.authentication.clone().unwrap_or_else(|| "nothing yet".into())],
        vec!["reputation".into(), summary.reputation.to_string()],
    ];
    let mut add = |name: &str, text: String| rows.push(vec![name.to_owned(), printable(&text)]);
    detail.reputation_reasons.iter().for_each(|(points, why)| add("", format!("{points:+} {why}")));
    detail.certificate.iter().for_each(|line| add("certificate", line.clone()));
    if let Some((median, late)) = detail.acknowledged_after {
        add("acknowledges", format!("after {median} ms, 99 of 100 within {late} ms"));
    }
    if let Some(age) = detail.queue_age {
        add("queue", format!("{} wait, the oldest for {}", summary.queue, span(age)));
    }
    detail.sanctions.iter().for_each(|rule| {
        let id = rule.id.map_or_else(|| "in the configuration".into(), |id| format!("rule {id}"));
        add("sanction", format!("{id}, {}: {}", rule.set_by, rule.rule.reason));
    });
    detail.contacts.iter().for_each(|contact| add("contact", contact.clone()));
    detail.last_error.iter().for_each(|error| add("last error", error.clone()));
    let counted = detail.counters.iter().filter(|(_, count)| **count > 0);
    counted.for_each(|(name, count)| add("counted", format!("{name}: {count}")));
    table(&rows)
}

/// Forty lines at most: neighbouring points are added up.
fn history_text(step: i64, points: &[HistoryPoint]) -> String {
    let heads = ["FROM", "IN", "OUT", "BYTES IN", "BYTES OUT", "REFUSED", "HELD", "REPORTS"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let together = points.len().div_ceil(40).max(1);
    for chunk in points.chunks(together) {
        let sum = |of: fn(&HistoryPoint) -> u64| chunk.iter().map(of).sum::<u64>();
        rows.push(vec![
            chunk.first().map_or("-".into(), |point| time(point.at)),
            sum(|point| point.stanzas_in).to_string(),
            sum(|point| point.stanzas_out).to_string(),
            size(sum(|point| point.bytes_in)),
            size(sum(|point| point.bytes_out)),
            sum(|point| point.refused).to_string(),
            sum(|point| point.held).to_string(),
            sum(|point| point.reports).to_string(),
        ]);
    }
    let length = step.saturating_mul(i64::try_from(together).unwrap_or(1));
    table(&rows) + &format!("Each line is {}.\n", span(length))
}

fn tokens_text(tokens: &[TokenView], now: i64) -> String {
    if tokens.is_empty() {
        return "No tokens.\n".into();
    }
    let mut rows = vec![["NAME", "SCOPES", "BY", "CREATED", "ENDS", "USED"].map(str::to_owned).to_vec()];
    for token in tokens {
        let scopes: Vec<&str> = token.scopes.iter().map(|scope| scope.name()).collect();
        rows.push(vec![
            printable(&token.name),
            scopes.join(" "),
            printable(&token.created_by),
            time(token.created_at),
            match token.until {
                Some(until) if until <= now => "ENDED".into(),
                Some(until) => time(until),
                None => "never".into(),
            },
            token.last_used_at.map_or("never".into(), time),
        ]);
    }
    table(&rows)
}

/// Accounts as a table.
pub fn user_table(users: &[User]) -> String {
    if users.is_empty() {
        return "No accounts.\n".into();
    }
    let mut rows = vec![vec!["ADDRESS".to_owned(), "CREATED".into(), "DEVICES".into(), String::new()]];
    for user in users {
        let sessions = user.sessions.map_or("-".into(), |sessions| sessions.to_string());
        let disabled = if user.disabled { "disabled" } else { "" };
        rows.push(vec![printable(&user.address), time(user.created_at), sessions, disabled.into()]);
    }
    table(&rows)
}

/// Devices as a table.
fn account_text(view: &AccountView) -> String {
    let names = view.resources.iter().map(|name| printable(name)).collect::<Vec<_>>().join(", ");
    let state = if view.disabled { "disabled" } else { "enabled" };
    let rows = [
        ["address".to_owned(), printable(&view.address)],
        ["made".into(), time(view.created_at)],
        ["state".into(), state.into()],
        ["last login".into(), view.last_login.map_or("-".into(), time)],
        ["contacts".into(), view.contacts.to_string()],
        ["connected".into(), if names.is_empty() { "-".into() } else { names }],
    ];
    table(&rows.map(Vec::from))
}

fn counts_text(counts: &Counts) -> String {
    let rows = [
        ("registered", counts.registered),
        ("disabled", counts.disabled),
        ("online", counts.online),
        ("active", counts.active),
        ("idle", counts.idle),
    ];
    table(&rows.map(|(name, count)| vec![name.to_owned(), count.to_string()]))
}

fn device_table(devices: &[Device]) -> String {
    if devices.is_empty() {
        return "No devices.\n".into();
    }
    let header = ["ID", "DEVICE", "SIGNED IN", "BY", ""];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for device in devices {
        let names = [&device.device, &device.software].into_iter().flatten();
        let names = names.map(|name| printable(name)).collect::<Vec<_>>().join(", ");
        let by = match (device.password, device.token) {
            (true, true) => "password, token",
            (true, false) => "password",
            (false, true) => "token",
            (false, false) => "-",
        };
        rows.push(vec![
            printable(&device.id),
            if names.is_empty() { "-".into() } else { names },
            device.last_seen.map_or("-".into(), time),
            by.into(),
            if device.connected { "connected".into() } else { String::new() },
        ]);
    }
    table(&rows)
}

fn report_table(reports: &[ReportView], more: bool) -> String {
    if reports.is_empty() {
        return "No reports.\n".into();
    }
    let head = ["ID", "TIME", "ABOUT", "REASON", "REPORTER", "STATE"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for report in reports {
        let state = match (&report.forwarded_to, report.state.as_str()) {
            (Some(_), "open") => "open, forwarded".to_owned(),
            (_, state) => state.to_owned(),
        };
        rows.push(vec![
            report.id.to_string(),
            time(report.at),
            printable(&report.about),
            printable(&report.reason),
            format!("{} ({})", printable(&report.reporter), report.affiliation),
            state,
        ]);
    }
    let mut out = table(&rows);
    if let (true, Some(last)) = (more, reports.last()) {
        let _ = writeln!(out, "There are older ones: --before {}", last.id);
    }
    out
}

fn report_text(report: &ReportView) -> String {
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    let mut rows = vec![
        vec!["report".to_owned(), format!("{}, {}", report.id, report.state)],
        vec!["time".into(), time(report.at)],
        vec!["about".into(), printable(&report.about)],
        vec!["reason".into(), printable(&report.reason)],
        vec!["reporter".into(), format!("{} ({})", printable(&report.reporter), report.affiliation)],
        vec!["may be forwarded".into(), yes(report.may_forward).into()],
        vec!["may be shared".into(), yes(report.may_share).into()],
    ];
    rows.extend(report.forwarded_to.iter().map(|to| vec!["forwarded to".to_owned(), printable(to)]));
    if !report.text.is_empty() {
        rows.push(vec!["text".into(), printable(&report.text)]);
    }
    rows.extend(report.stanza_ids.iter().map(|id| vec!["stanza".to_owned(), printable(id)]));
    let mut out = table(&rows);
    for action in &report.actions {
        let _ = writeln!(out, "  {}", printable(action));
    }
    if !report.messages.is_empty() {
        out.push_str("\nFrom the reporter's archive:\n");
    }
    for message in &report.messages {
        let _ = writeln!(out, "  {}", printable(message));
    }
    out
}

fn list_table(lists: &[ListView], now: i64) -> String {
    let head = ["LIST", "SERVICE", "NODE", "ACTION", "ENTRIES", "HITS", "CHANGED", "STATE"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for list in lists {
        let action = serde_json::to_value(&list.action).unwrap_or_default();
        rows.push(vec![
            list.name.clone(),
            printable(&list.service),
            printable(&list.node),
            action.get("do").and_then(|action| action.as_str()).unwrap_or("-").to_owned(),
            list.entries.to_string(),
            list.hits.to_string(),
            list.changed_at.map_or("-".into(), |at| format!("{} ago", span(now - at))),
            printable(&list.state),
        ]);
    }
    table(&rows)
}

fn subscriber_table(subscribers: &[Subscriber], now: i64) -> String {
    if subscribers.is_empty() {
        return "Nobody follows it.\n".into();
    }
    let mut rows = vec![["ADDRESS", "NODE", "OF", "SINCE", "ENDS IN"].map(str::to_owned).to_vec()];
    for one in subscribers {
        let since = format!("{} ago", span((now - one.since).max(0)));
        let ends = span((one.until - now).max(0));
        rows.push(vec![printable(&one.address), printable(&one.node), printable(&one.host), since, ends]);
    }
    table(&rows)
}

fn item_table(items: &[ListEntry], more: bool) -> String {
    if items.is_empty() {
        return "Nobody is on it.\n".into();
    }
    let rows: Vec<Vec<String>> =
        items.iter().map(|item| vec![printable(&item.entry), printable(&item.reason)]).collect();
    let mut out = table(&rows);
    if let (true, Some(last)) = (more, items.last()) {
        let _ = writeln!(out, "There are more: --after {}", printable(&last.entry));
    }
    out
}

fn status_text(status: &Status, now: i64) -> String {
    let mut rows = vec![
        vec!["version".to_owned(), status.version.clone()],
        vec!["running".into(), format!("{} (pid {})", span(now - status.started_at), status.pid)],
    ];
    for domain in &status.domains {
        let certificate = match domain.certificate_expires_at {
            Some(end) if end <= now => "certificate EXPIRED".into(),
            Some(end) => format!("certificate valid for {}", span(end - now)),
            None => "no certificate".into(),
        };
        rows.push(vec!["domain".into(), format!("{} ({certificate})", domain.name)]);
    }
    for listener in &status.listeners {
        rows.push(vec!["listener".into(), format!("{} {}", listener.address, listener.name)]);
    }
    rows.push(vec!["accounts".into(), status.accounts.to_string()]);
    let waiting = match status.sessions_waiting {
        0 => String::new(),
        waiting => format!(" ({waiting} waiting to be resumed)"),
    };
    rows.push(vec!["sessions".into(), format!("{}{waiting}", status.sessions)]);
    let federation =
        if status.federation_open { format!("open, {} peers", status.peers) } else { "CLOSED".into() };
    rows.push(vec!["federation".into(), federation]);
    rows.extend(status.memory.map(|bytes| vec!["memory".to_owned(), size(bytes)]));
    rows.extend(status.database.map(|bytes| vec!["database".to_owned(), size(bytes)]));
    if !status.needs_restart.is_empty() {
        rows.push(vec!["needs a restart".into(), status.needs_restart.join(", ")]);
    }
    for problem in &status.problems {
        rows.push(vec!["PROBLEM".into(), printable(problem)]);
    }
    table(&rows)
}

fn federation_text(status: &FederationStatus, now: i64) -> String {
    let mut out = String::new();
    if !status.open {
        out.push_str("Federation is CLOSED.\n");
    }
    if status.peers.is_empty() {
        out.push_str("No peers yet.\n");
    }
    let mut rows = Vec::new();
    for peer in &status.peers {
        rows.push(vec![printable(&peer.domain), peer.state.clone(), queue(peer), retry(peer, now)]);
    }
    if !rows.is_empty() {
        rows.insert(0, vec!["PEER".into(), "STATE".into(), "QUEUE".into(), String::new()]);
        out.push_str(&table(&rows));
    }
    for peer in status.peers.iter().filter(|peer| !peer.streams.is_empty() || peer.last_error.is_some()) {
        let _ = writeln!(out, "\n{}", printable(&peer.domain));
        for stream in &peer.streams {
            let _ = writeln!(out, "  {}", stream_text(stream, now));
        }
        if let Some(error) = &peer.last_error {
            let _ = writeln!(out, "  last error, {} ago: {}", span(now - error.at), printable(&error.text));
        }
    }
    out
}

fn requests_text(requests: &[RequestView], more: bool, now: i64) -> String {
    if requests.is_empty() {
        return "Nobody waits for consent.\n".into();
    }
    let mut rows =
        vec![vec!["FROM".to_owned(), "TO".into(), "STANZAS".into(), "SINCE".into(), String::new()]];
    for request in requests {
        rows.push(vec![
            printable(&request.from),
            printable(&request.account),
            request.stanzas.to_string(),
            span(now - request.since),
            if request.asks_subscription { "asks for a subscription".into() } else { String::new() },
        ]);
    }
    let mut out = table(&rows);
    if let Some(last) = requests.last().filter(|_| more) {
        let _ = writeln!(out, "There are older ones: --before {}", last.id);
    }
    out
}

fn stream_text(stream: &StreamStatus, now: i64) -> String {
    let arrow = match stream.direction.as_str() {
        "in" => "<-",
        "out" => "->",
        _ => "<->",
    };
    let tls = match (&stream.tls, stream.direct_tls) {
        (Some(version), true) => format!("TLS {version} (direct)"),
        (Some(version), false) => format!("TLS {version}"),
        (None, _) => "no TLS".into(),
    };
    let proof = |proof: &Option<String>| printable(proof.as_deref().unwrap_or("nothing yet"));
    let acks = if stream.acks { ", acknowledged" } else { "" };
    format!(
        "{} {arrow} {} {tls}, they proved by {}, we by {}{acks}, for {}",
        printable(&stream.us),
        stream.address,
        proof(&stream.they_proved),
        proof(&stream.we_proved),
        span(now - stream.since)
    )
}

fn queue(peer: &PeerStatus) -> String {
    match (peer.queue_stanzas, peer.queue_kept) {
        (0, 0) => "-".into(),
        (stanzas, 0) => format!("{stanzas} ({})", size(peer.queue_bytes)),
        (stanzas, kept) => format!("{stanzas} ({}), {kept} on disk", size(peer.queue_bytes)),
    }
}

fn retry(peer: &PeerStatus, now: i64) -> String {
    peer.retry_at.map_or(String::new(), |at| format!("next attempt in {}", span(at - now)))
}

/// Columns of equal width, two spaces between them.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// What others chose must not steer the operator's terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

pub(crate) fn time(millis: i64) -> String {
    Timestamp::from_millisecond(millis)
        .map(|time| time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M UTC").to_string())
        .unwrap_or_else(|_| "-".into())
}

/// A length of time in its two largest units.
pub(crate) fn span(millis: i64) -> String {
    let seconds = millis.max(0) / 1000;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (1, hours, ..) => format!("1 day {hours} h"),
        (days, hours, ..) if days < 14 => format!("{days} days {hours} h"),
        (days, ..) => format!("{days} days"),
    }
}

fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        b if b < 1e3 => format!("{b} B"),
        b if b < 1e6 => format!("{:.1} kB", b / 1e3),
        b if b < 1e9 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.1} GB", b / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DomainStatus, LastError, ListenerStatus};
    use super::*;
    use crate::config::Reload;

    const NOW: i64 = 1_700_000_000_000;

    #[test]
    fn users() {
        let user = |address: &str, sessions, disabled| User {
            address: address.into(),
            created_at: NOW,
            disabled,
            sessions,
        };
        let users =
            vec![user("romeo@example.org", Some(2), false), user("juliet.capulet@example.org", None, true)];
        assert_eq!(
            human(&Outcome::Users { users, more: false }, NOW),
            "ADDRESS                     CREATED               DEVICES\n\
             romeo@example.org           2023-11-14 22:13 UTC  2\n\
             juliet.capulet@example.org  2023-11-14 22:13 UTC  -        disabled\n"
        );
    }

    #[test]
    fn first_contacts() {
        let request = RequestView {
            id: 7,
            account: "juliet@example.org".into(),
            from: "iago@evil.example".into(),
            stanzas: 3,
            since: NOW - 3_725_000,
            asks_subscription: true,
        };
        let text = human(&Outcome::Requests { requests: vec![request], more: true }, NOW);
        for part in ["iago@evil.example", "juliet@example.org", "3", "1 h 2 min", "asks for", "--before 7"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let text = human(&Outcome::Requests { requests: Vec::new(), more: false }, NOW);
        assert_eq!(text, "Nobody waits for consent.\n");
    }

    #[test]
    fn status() {
        let status = Status {
            version: "0.1.0".into(),
            pid: 7,
            started_at: NOW - 3_725_000,
            domains: vec![DomainStatus {
                name: "example.org".into(),
                certificate_expires_at: Some(NOW + 86_400_000 * 40),
            }],
            listeners: vec![ListenerStatus { name: "clients.listen".into(), address: "[::]:5222".into() }],
            accounts: 3,
            sessions: 2,
            sessions_waiting: 1,
            peers: 1,
            federation_open: true,
            memory: Some(12_345_678),
            needs_restart: vec!["clients.listen".into()],
            problems: vec!["store: the disk is full".into()],
            ..Status::default()
        };
        let text = human(&Outcome::Status(Box::new(status)), NOW);
        for part in [
            "1 h 2 min (pid 7)",
            "certificate valid for 40 days",
            "[::]:5222 clients.listen",
            "2 (1 waiting to be resumed)",
            "12.3 MB",
            "needs a restart  clients.listen",
            "the disk is full",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn federation() {
        let stream = StreamStatus {
            direction: "both".into(),
            us: "example.org".into(),
            address: "192.0.2.1:5269".into(),
            they_proved: Some("external".into()),
            we_proved: Some("dialback".into()),
            tls: Some("1.3".into()),
            acks: true,
            since: NOW - 5000,
            ..StreamStatus::default()
        };
        let peers = vec![
            PeerStatus {
                domain: "peer.example".into(),
                state: "connected".into(),
                streams: vec![stream],
                ..PeerStatus::default()
            },
            PeerStatus {
                domain: "far.example".into(),
                state: "waiting".into(),
                queue_stanzas: 3,
                queue_bytes: 1500,
                queue_kept: 2,
                retry_at: Some(NOW + 30_000),
                last_error: Some(LastError { at: NOW - 1000, text: "no route\u{1b}[31m".into() }),
                ..PeerStatus::default()
            },
        ];
        let text = human(&Outcome::Federation(FederationStatus { open: true, peers }), NOW);
        assert!(text.contains("example.org <-> 192.0.2.1:5269 TLS 1.3, they proved by external, we by dialback, acknowledged, for 5 s"));
        assert!(text.contains("3 (1.5 kB), 2 on disk  next attempt in 30 s"));
        assert!(text.contains("last error, 1 s ago: no route"));
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn what_is_seen_of_peers() {
        let summary = DomainSummary {
            domain: "south.example".into(),
            state: "connected".into(),
            first_seen: NOW - 90_000_000,
            stanzas_in: 12,
            refused: 3,
            ..DomainSummary::default()
        };
        let text = human(&Outcome::Domains { domains: vec![summary.clone()], total: 7 }, NOW);
        assert!(
            text.contains("south.example  connected  1 day 1 h")
                && text.contains("1 of 7; more with --offset")
        );
        let detail = DomainDetail {
            summary,
            counters: [("message-in".to_owned(), 12), ("held".to_owned(), 0)].into(),
            acknowledged_after: Some((1.0, 22.63)),
            queue_age: None,
            certificate: vec!["subject: CN=south\u{1b}".into()],
            authentication: Some("dialback".into()),
            reputation_reasons: vec![(-5, "two reports".into())],
            sanctions: Vec::new(),
            contacts: Vec::new(),
            last_error: None,
        };
        let text = human(&Outcome::Domain(Box::new(detail)), NOW);
        for part in ["dialback", "-5 two reports", "99 of 100 within 22.63 ms", "message-in: 12"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(!text.contains("held: 0") && !text.contains('\u{1b}'));
        let points: Vec<HistoryPoint> = (0..80)
            .map(|n| HistoryPoint { at: NOW + n * 60_000, stanzas_in: 1, ..HistoryPoint::default() })
            .collect();
        let text = human(&Outcome::History { step: 60_000, points }, NOW);
        assert_eq!(text.lines().count(), 42);
        assert!(text.contains("Each line is 2 min 0 s."));
        let now =
            NowView { inside: 1.25, refused: [("peer-rate".to_owned(), 4)].into(), ..NowView::default() };
        let text = human(&Outcome::Now(Box::new(now)), NOW);
        assert!(text.contains("1.2 stanzas/s") && text.contains("peer-rate: 4") && text.contains("normal"));
    }

    #[test]
    fn reports_and_lists() {
        let report = ReportView {
            id: 7,
            at: NOW,
            reporter: "juliet@example.org".into(),
            origin: "user".into(),
            affiliation: "member".into(),
            about: "spammer@bad.example".into(),
            reason: "spam".into(),
            text: "pills\u{1b}[2J".into(),
            stanza_ids: vec!["x1".into()],
            messages: vec!["<message/>".into()],
            may_forward: true,
            may_share: false,
            state: "open".into(),
            forwarded_to: None,
            actions: vec!["then: warned".into()],
        };
        let table = human(&Outcome::Reports { reports: vec![report.clone()], more: true }, NOW);
        assert_eq!(
            table,
            "ID  TIME                  ABOUT                REASON  REPORTER                     STATE\n\
             7   2023-11-14 22:13 UTC  spammer@bad.example  spam    juliet@example.org (member)  open\n\
             There are older ones: --before 7\n"
        );
        let text = human(&Outcome::Report(Box::new(report)), NOW);
        for part in [
            "may be forwarded  yes",
            "may be shared     no",
            "stanza            x1",
            "  then: warned\n",
            "  <message/>\n",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
        let list = ListView {
            name: "spam".into(),
            service: "lists.example".into(),
            node: "muc_bans_sha256".into(),
            action: Some(crate::control::rule::Action::Drop),
            entries: 3,
            state: "subscribed".into(),
            changed_at: Some(NOW - 5000),
            hits: 2,
        };
        let text = human(&Outcome::Lists { lists: vec![list] }, NOW);
        assert!(
            text.ends_with(
                "spam  lists.example  muc_bans_sha256  drop    3        2     5 s ago  subscribed\n"
            ),
            "{text}"
        );
        let subscribers = vec![Subscriber {
            address: "south.example".into(),
            node: "n".into(),
            host: "north.example".into(),
            since: NOW - 2000,
            until: NOW + 5000,
        }];
        assert_eq!(
            human(&Outcome::ListSubscribers { subscribers }, NOW),
            "ADDRESS        NODE  OF             SINCE    ENDS IN\n\
             south.example  n     north.example  2 s ago  5 s\n"
        );
        let items = vec![ListEntry { entry: "bad.example".into(), reason: "why".into() }];
        assert_eq!(human(&Outcome::ListItems { items, more: false }, NOW), "bad.example  why\n");
    }

    #[test]
    fn reloads() {
        let reload = Reload { applied: vec!["log.level".into()], needs_restart: vec!["web.listen".into()] };
        let text = human(&Outcome::Reloaded { reload }, NOW);
        assert_eq!(text, "applied: log.level\nneeds a restart: web.listen\n");
    }
}
