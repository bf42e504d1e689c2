//! Files of blocked domains: CSV for people and other programs, JSON for programs. Read as a whole or not at all.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::policy::Format;
use super::rule;

/// Domains that can be blocked one by one.
pub const MOST_BLOCKS: usize = 50_000;
/// Errors of a file that are told.
const MOST_ERRORS: usize = 20;
const COLUMNS: [&str; 4] = ["domain", "subdomains", "reason", "until"];

/// A blocked domain, as files and faces show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// The domain.
    pub domain: String,
    /// What is below it too.
    #[serde(default)]
    pub subdomains: bool,
    /// Local users read it.
    #[serde(default)]
    pub reason: String,
    /// When it ends: milliseconds since 1970. `None`: never.
    #[serde(default)]
    pub until: Option<i64>,
}

impl Block {
    /// In canonical form.
    ///
    /// # Errors
    /// What the one who wrote it has to mend.
    pub fn checked(mut self) -> Result<Block, String> {
        self.domain = rule::domain(&self.domain)?;
        rule::short(&self.reason).map_err(|text| format!("reason: {text}"))?;
        if self.until.is_some_and(|until| until <= 0) {
            return Err("until: not a time".into());
        }
        Ok(self)
    }
}

/// Writes a file.
pub fn write(blocks: &[Block], format: Format) -> String {
    match format {
        Format::Json => serde_json::to_string_pretty(blocks).unwrap_or_default() + "\n",
        Format::Csv => {
            let mut out = COLUMNS.join(",") + "\r\n";
            for block in blocks {
                let until = block.until.map(date).unwrap_or_default();
                let subdomains = if block.subdomains { "true" } else { "false" };
                let fields = [block.domain.as_str(), subdomains, &block.reason, &until];
                out.push_str(&fields.map(quoted).join(","));
                out.push_str("\r\n");
            }
            out
        }
    }
}

/// Reads a file. The error has a line for each problem, with the line of the file (or the
/// number of the entry).
///
/// # Errors
/// What is wrong, for the one who wrote it.
pub fn read(text: &str, format: Format) -> Result<Vec<Block>, String> {
    let (place, rows) = match format {
        Format::Json => ("entry", read_json(text)?),
        Format::Csv => ("line", read_csv(text)?),
    };
    let mut blocks: Vec<Block> = Vec::new();
    let mut errors = Vec::new();
    let mut seen = std::collections::HashMap::new();
    for (line, row) in rows {
        match row.and_then(Block::checked) {
            Ok(block) => match seen.insert(block.domain.clone(), line) {
                Some(first) => {
                    errors.push(format!("{place} {line}: {} stands in {place} {first} already", block.domain))
                }
                None => blocks.push(block),
            },
            Err(error) => errors.push(format!("{place} {line}: {error}")),
        }
    }
    if blocks.len() > MOST_BLOCKS {
        errors.push(format!("more than {MOST_BLOCKS} domains"));
    }
    if errors.is_empty() {
        return Ok(blocks);
    }
    let more = errors.len().saturating_sub(MOST_ERRORS);
    errors.truncate(MOST_ERRORS);
    if more > 0 {
        errors.push(format!("and {more} more"));
    }
    Err(errors.join("\n"))
}

type Numbered = Vec<(usize, Result<Block, String>)>;

fn read_json(text: &str) -> Result<Numbered, String> {
    let blocks: Vec<Block> = serde_json::from_str(text).map_err(|error| {
        let text = error.to_string();
        format!("line {}: {}", error.line(), text.split(" at line ").next().unwrap_or(&text))
    })?;
    Ok(blocks.into_iter().enumerate().map(|(index, block)| (index + 1, Ok(block))).collect())
}

/// RFC 4180. The first line may name the columns; otherwise they come in the usual order, and the later ones may be
/// missing: a plain list of domains is a file too.
fn read_csv(text: &str) -> Result<Numbered, String> {
    let mut columns: Vec<usize> = (0..COLUMNS.len()).collect();
    let mut rows = Vec::new();
    for (index, (line, fields)) in records(text)?.into_iter().enumerate() {
        let first = fields.first().map_or("", |field| field.trim().trim_start_matches('#').trim());
        if index == 0 && first.eq_ignore_ascii_case("domain") {
            columns = header(line, &fields)?;
            continue;
        }
        rows.push((line, row(&fields, &columns)));
    }
    Ok(rows)
}

fn header(line: usize, fields: &[String]) -> Result<Vec<usize>, String> {
    let mut columns = Vec::new();
    for field in fields {
        let name = field.trim().trim_start_matches('#').trim().to_ascii_lowercase();
        let Some(column) = COLUMNS.iter().position(|column| *column == name) else {
            return Err(format!(
                "line {line}: there is no column \"{name}\"; possible are {}",
                COLUMNS.join(", ")
            ));
        };
        if columns.contains(&column) {
            return Err(format!("line {line}: the column \"{name}\" stands there twice"));
        }
        columns.push(column);
    }
    Ok(columns)
}

fn row(fields: &[String], columns: &[usize]) -> Result<Block, String> {
    if fields.len() > columns.len() {
        return Err(format!("{} fields, but {} columns", fields.len(), columns.len()));
    }
    let mut block = Block { domain: String::new(), subdomains: false, reason: String::new(), until: None };
    for (field, column) in fields.iter().zip(columns) {
        match COLUMNS[*column] {
            "domain" => block.domain.clone_from(field),
            "subdomains" => {
                block.subdomains = match field.trim().to_ascii_lowercase().as_str() {
                    "true" | "yes" | "1" => true,
                    "" | "false" | "no" | "0" => false,
                    other => return Err(format!("subdomains: \"{other}\" is neither true nor false")),
                }
            }
            "reason" => block.reason.clone_from(field),
            _ => block.until = time(field.trim())?,
        }
    }
    Ok(block)
}

/// A date (RFC 3339), or milliseconds since 1970.
pub(crate) fn time(text: &str) -> Result<Option<i64>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(millis) = text.parse::<i64>() {
        return Ok(Some(millis));
    }
    let stamp: jiff::Timestamp =
        text.parse().map_err(|_| format!("until: \"{text}\" is not a time such as 2026-12-31T00:00:00Z"))?;
    Ok(Some(stamp.as_millisecond()))
}

/// A time as people and files have it; what is out of the calendar stays a number.
pub(crate) fn date(millis: i64) -> String {
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| millis.to_string(), |stamp| stamp.to_string())
}

fn quoted(field: &str) -> String {
    // A spreadsheet takes what begins with one of these for a formula.
    let formula = field.starts_with(['=', '+', '-', '@', '\'']);
    let field = if formula { format!("'{field}") } else { field.to_owned() };
    let plain = !field.contains([',', '"', '\r', '\n']) && field.trim() == field;
    if plain { field } else { format!("\"{}\"", field.replace('"', "\"\"")) }
}

/// The records with the line each begins in; lines without anything are none.
fn records(text: &str) -> Result<Vec<(usize, Vec<String>)>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut records = Vec::new();
    let mut chars = text.chars().peekable();
    let mut line = 1;
    while chars.peek().is_some() {
        let began = line;
        let mut fields = vec![String::new()];
        let mut quoted = false;
        loop {
            let Some(c) = chars.next() else {
                if quoted {
                    return Err(format!("line {began}: a quotation mark is not closed"));
                }
                break;
            };
            let field = fields.last_mut().expect("invariant: there is always one");
            match c {
                '"' if quoted && chars.peek() == Some(&'"') => {
                    chars.next();
                    field.push('"');
                }
                '"' if quoted => quoted = false,
                '"' if field.is_empty() => quoted = true,
                ',' if !quoted => fields.push(String::new()),
                '\r' if !quoted && chars.peek() == Some(&'\n') => {}
                '\n' if !quoted => {
                    line += 1;
                    break;
                }
                c => {
                    line += usize::from(c == '\n');
                    field.push(c);
                }
            }
        }
        if fields.iter().any(|field| !field.trim().is_empty()) {
            let plain = |field: String| match field.strip_prefix('\'') {
                Some(rest) if rest.starts_with(['=', '+', '-', '@', '\'']) => rest.to_owned(),
                _ => field,
            };
            records.push((began, fields.into_iter().map(plain).collect()));
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block() -> impl Strategy<Value = Block> {
        let reason = "[^\\p{Cc}]{0,40}";
        (
            "[a-z]{1,8}(\\.[a-z]{2,5}){1,2}",
            any::<bool>(),
            reason,
            proptest::option::of(1i64..4_000_000_000_000),
        )
            .prop_map(|(domain, subdomains, reason, until)| Block {
                domain,
                subdomains,
                reason,
                until,
            })
    }

    proptest! {
        #[test]
        fn what_is_exported_is_what_is_imported(blocks in proptest::collection::vec(block(), 0..20)) {
            let mut blocks = blocks;
            blocks.sort_by(|a, b| a.domain.cmp(&b.domain));
            blocks.dedup_by(|a, b| a.domain == b.domain);
            for format in [Format::Csv, Format::Json] {
                let file = write(&blocks, format);
                prop_assert_eq!(read(&file, format).unwrap(), blocks.clone(), "{}", file);
            }
        }

        #[test]
        fn no_file_makes_us_panic(text in "\\PC{0,80}", quotes in "[\",\n\r'#a.0]{0,80}") {
            for format in [Format::Csv, Format::Json] {
                let _ = read(&text, format);
                let _ = read(&quotes, format);
            }
        }
    }

    #[test]
    fn errors_have_their_lines_and_nothing_is_taken() {
        let file = "domain,subdomains,reason,until\r\nbad.example,true,\"two\nlines, \"\"quoted\"\"\",\n";
        assert!(
            read(file, Format::Csv).unwrap_err().contains("line 2: reason: contains control"),
            "a line break"
        );
        let file = "domain,subdomains,reason,until\ngood.example,,,\n\nb a d,,,\ngood.example,,,\nc.example,maybe,,\nd.example,,,soon\n";
        let error = read(file, Format::Csv).unwrap_err();
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(lines.len(), 4, "{error}");
        for (line, says) in [
            (0, "line 4: \"b a d\""),
            (1, "line 5: good.example stands in line 2"),
            (2, "line 6: subdomains"),
            (3, "line 7: until"),
        ] {
            assert!(lines[line].starts_with(says), "{}", lines[line]);
        }
        assert!(read("domain,colour\n", Format::Csv).unwrap_err().starts_with("line 1: there is no column"));
        assert!(read("\"open", Format::Csv).unwrap_err().starts_with("line 1:"));
        let error = read("[\n {\"domain\": \"a.example\"},\n {\"domain\": \"a.example\"}\n]", Format::Json)
            .unwrap_err();
        assert_eq!(error, "entry 2: a.example stands in entry 1 already");
        let error = read("[\n {\"domain\": \"a.example\", \"colour\": 1}\n]", Format::Json).unwrap_err();
        assert!(error.starts_with("line 2: unknown field `colour`"), "{error}");
    }

    #[test]
    fn a_plain_list_is_a_file_too() {
        let blocks = read("# domain\nBad.Example\nworse.example\n", Format::Csv).unwrap();
        assert_eq!(
            blocks.iter().map(|block| block.domain.as_str()).collect::<Vec<_>>(),
            ["bad.example", "worse.example"]
        );
    }

    #[test]
    fn no_formula_reaches_a_spreadsheet() {
        let block =
            Block { domain: "a.example".into(), subdomains: false, reason: "=1+1".into(), until: None };
        assert!(write(std::slice::from_ref(&block), Format::Csv).contains(",'=1+1,"));
        assert_eq!(read(&write(std::slice::from_ref(&block), Format::Csv), Format::Csv).unwrap(), [block]);
    }
}
