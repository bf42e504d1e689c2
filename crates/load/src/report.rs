//! What a run says at its end: one JSON object, and a table for people.

use std::io::{self, Write};
use std::path::Path;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::crew::Measured;
use crate::error::LoadError;
use crate::usage::Source;

/// Results in the making.
#[derive(Debug)]
pub(crate) struct Report {
    work: &'static str,
    parameters: Map<String, Value>,
    results: Map<String, Value>,
    rows: Vec<(String, String)>,
}

impl Report {
    pub(crate) fn new(work: &'static str) -> Report {
        Report { work, parameters: Map::new(), results: Map::new(), rows: Vec::new() }
    }

    pub(crate) fn parameter(&mut self, name: &str, value: impl Into<Value>) -> &mut Report {
        self.parameters.insert(name.to_owned(), value.into());
        self
    }

    /// Something for programs only.
    pub(crate) fn result(&mut self, name: &str, value: impl Into<Value>) -> &mut Report {
        self.results.insert(name.to_owned(), value.into());
        self
    }

    /// Something for people only.
    pub(crate) fn row(&mut self, label: &str, text: String) -> &mut Report {
        self.rows.push((label.to_owned(), text));
        self
    }

    /// How much was done: `what` in the plural (`messages`), `one` in the singular.
    pub(crate) fn throughput(&mut self, what: &str, one: &str, measured: &Measured) -> &mut Report {
        let Measured { seconds, count, .. } = *measured;
        let rate = count as f64 / seconds;
        self.result(what, count)
            .result("seconds", round(seconds))
            .result(&format!("{what}_per_second"), round(rate));
        self.row(what, format!("{count} in {seconds:.2} s, {rate:.0} a second"));
        let each = |cpu: std::time::Duration| cpu.as_secs_f64() * 1e6 / count.max(1) as f64;
        let own = each(measured.own_cpu);
        if let Some((cpu, source)) = measured.server_cpu {
            let server = each(cpu);
            self.result(&format!("server_cpu_us_per_{one}"), round(server));
            self.result("server_cpu_percent", round(cpu.as_secs_f64() * 100.0 / seconds));
            let source = match source {
                Source::Schedstat => "",
                Source::Stat => ", counted in hundredths of a second",
            };
            let busy = cpu.as_secs_f64() * 100.0 / seconds;
            self.row("server CPU", format!("{server:.2} us per {one} ({busy:.0} % of a processor{source})"));
        } else {
            self.row("server CPU", "not measured: give --server-pid".into());
        }
        self.result(&format!("load_cpu_us_per_{one}"), round(own));
        self.row("our own CPU", format!("{own:.2} us per {one}"))
    }

    /// Percentiles.
    pub(crate) fn latency(&mut self, label: &str, histogram: &Histogram<u64>) -> &mut Report {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e3;
        let (p50, p99, p999) = (at(0.5), at(0.99), at(0.999));
        let max = if histogram.is_empty() { 0.0 } else { histogram.max() as f64 / 1e3 };
        self.result(
            "latency_us",
            json!({"p50": round(p50), "p99": round(p99), "p999": round(p999), "max": round(max)}),
        );
        self.row(label, format!("p50 {p50:.0}   p99 {p99:.0}   p99.9 {p999:.0}   max {max:.0} us"))
    }

    fn json(&self) -> Value {
        json!({
            "tool": "trunkline-load",
            "version": env!("CARGO_PKG_VERSION"),
            "work": self.work,
            "parameters": self.parameters,
            "results": self.results,
        })
    }

    fn table(&self) -> String {
        let parameters: Vec<_> = self
            .parameters
            .iter()
            .filter(|(_, value)| !matches!(value, Value::Null | Value::Bool(false)))
            .map(|(name, value)| match value {
                Value::Bool(true) => name.replace('_', "-"),
                Value::String(text) => format!("{} {text}", name.replace('_', "-")),
                other => format!("{} {other}", name.replace('_', "-")),
            })
            .collect();
        let width = self.rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
        let mut text = format!("{}: {}\n", self.work, parameters.join(", "));
        for (label, row) in &self.rows {
            text.push_str(&format!("  {label:width$}  {row}\n"));
        }
        text
    }

    /// Writes both where they are wanted.
    pub(crate) fn publish(&self, json: Option<&Path>) -> Result<(), LoadError> {
        let table = self.table();
        let failed = |error: io::Error| LoadError::Machine(format!("writing the results: {error}"));
        match json {
            Some(path) if path.as_os_str() == "-" => {
                io::stderr().write_all(table.as_bytes()).map_err(failed)?;
                writeln!(io::stdout(), "{}", self.json()).map_err(failed)
            }
            Some(path) => {
                io::stdout().write_all(table.as_bytes()).map_err(failed)?;
                std::fs::write(path, format!("{}\n", self.json()))
                    .map_err(|error| LoadError::Usage(format!("--json {}: {error}", path.display())))
            }
            None => io::stdout().write_all(table.as_bytes()).map_err(failed),
        }
    }
}

/// Three digits behind the point: beyond that is noise.
pub(crate) fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn measured() -> Measured {
        let mut latency = Histogram::new_with_bounds(1_000, 600_000_000_000, 3).expect("fine bounds");
        for microseconds in 1..=1000u64 {
            latency.saturating_record(microseconds * 1_000);
        }
        Measured {
            seconds: 2.0,
            count: 1000,
            server_cpu: Some((Duration::from_millis(50), Source::Schedstat)),
            own_cpu: Duration::from_millis(10),
            latency,
        }
    }

    #[test]
    fn keys_and_units() {
        let measured = measured();
        let mut report = Report::new("chat");
        report.parameter("pairs", 3).throughput("messages", "message", &measured);
        report.latency("latency", &measured.latency);
        let json = report.json();
        assert_eq!((&json["tool"], &json["work"]), (&json!("trunkline-load"), &json!("chat")));
        assert_eq!(json["parameters"]["pairs"], 3);
        let results = &json["results"];
        assert_eq!(results["messages"], 1000);
        assert_eq!(results["messages_per_second"], 500.0);
        assert_eq!(results["server_cpu_us_per_message"], 50.0);
        assert_eq!(results["load_cpu_us_per_message"], 10.0);
        let table = report.table();
        assert!(table.starts_with("chat: pairs 3\n"), "{table}");
        assert!(table.contains("1000 in 2.00 s, 500 a second"), "{table}");
        assert!(table.contains("50.00 us per message (2 % of a processor)"), "{table}");
    }

    #[test]
    fn percentiles_are_within_a_thousandth() {
        let mut report = Report::new("chat");
        report.latency("latency", &measured().latency);
        for (name, expected) in [("p50", 500.0), ("p99", 990.0), ("p999", 999.0), ("max", 1000.0)] {
            let value = report.results["latency_us"][name].as_f64().unwrap_or(0.0);
            assert!((value - expected).abs() <= expected / 1000.0 + 0.001, "{name}: {value}");
        }
        let mut empty = Report::new("chat");
        empty.latency("latency", &Histogram::new(3).expect("fine bounds"));
        assert_eq!(empty.results["latency_us"]["max"], 0.0);
    }
}
