//! XEP-0082 XMPP Date and Time Profiles 1.1.1.

use jiff::Timestamp;

/// A point in time that is not written as XEP-0082 s.3.2 wants. The peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a DateTime of XEP-0082")]
pub struct TimeError;

/// `2026-11-22T09:30:10.250Z`: in UTC, with milliseconds.
pub fn format(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// As [`format()`], of milliseconds since 1970. What lies outside the years -9999 to 9999 is moved to their edge.
pub fn format_millis(millis: i64) -> String {
    let edge = if millis < 0 { Timestamp::MIN } else { Timestamp::MAX };
    format(Timestamp::from_millisecond(millis).unwrap_or(edge))
}

/// Reads `CCYY-MM-DDThh:mm:ss[.sss]TZD`, where `TZD` is `Z` or `(+|-)hh:mm`.
pub fn parse(text: &str) -> Result<Timestamp, TimeError> {
    if !shaped(text.as_bytes()) {
        return Err(TimeError);
    }
    text.parse().map_err(|_| TimeError)
}

/// As [`parse()`], in milliseconds since 1970, rounded down.
pub fn parse_millis(text: &str) -> Result<i64, TimeError> {
    let time = parse(text)?;
    Ok(time.as_nanosecond().div_euclid(1_000_000).try_into().expect("invariant: four digits of a year"))
}

/// The parser below takes much more of ISO 8601 and RFC 9557 than XEP-0082 does.
fn shaped(text: &[u8]) -> bool {
    let fits = |text: &[u8], shape: &[u8]| {
        text.len() == shape.len()
            && text.iter().zip(shape).all(|(c, s)| if *s == b'0' { c.is_ascii_digit() } else { c == s })
    };
    let Some((moment, mut rest)) = text.split_at_checked(19) else { return false };
    if let [b'.', tail @ ..] = rest {
        let digits = tail.iter().take_while(|c| c.is_ascii_digit()).count();
        if digits == 0 || digits > 9 {
            return false;
        }
        rest = &tail[digits..];
    }
    fits(moment, b"0000-00-00T00:00:00") && (rest == b"Z" || fits(rest, b"+00:00") || fits(rest, b"-00:00"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn written_and_read() {
        assert_eq!(format_millis(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(format_millis(1_795_339_810_250), "2026-11-22T09:30:10.250Z");
        assert_eq!(format_millis(-1), "1969-12-31T23:59:59.999Z");
        // XEP-0082 s.3.2, examples 3 and 4: one moment.
        assert_eq!(parse("1969-07-21T02:56:15Z"), parse("1969-07-20T21:56:15-05:00"));
        assert_eq!(parse_millis("2026-11-22T09:30:10.2509Z"), Ok(1_795_339_810_250));
        assert_eq!(parse_millis("1969-12-31T23:59:59.9999Z"), Ok(-1));
    }

    #[test]
    fn refused() {
        for bad in [
            "",
            "Z",
            "20261122T09:30:10",
            "2026-11-22",
            "2026-11-22T09:30:10",
            "2026-11-22T09:30Z",
            "2026-11-22 09:30:10Z",
            "2026-13-22T09:30:10Z",
            "2026-02-30T09:30:10Z",
            "2026-11-22T09:30:10.Z",
            "2026-11-22T09:30:10+0100",
            "2026-11-22T09:30:10Z[UTC]",
            "-002026-11-22T09:30:10Z",
            "2026-11-22t09:30:10z",
            "2026-11-22T25:30:10Z",
        ] {
            assert_eq!(parse(bad), Err(TimeError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_time_comes_back(millis in -60_000_000_000_000i64..253_000_000_000_000) {
            prop_assert_eq!(parse_millis(&format_millis(millis)), Ok(millis));
        }

        #[test]
        fn no_text_is_too_odd(text in any::<String>(), near in "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{0,12})?(Z|[+-][0-9]{2}:[0-9]{2})") {
            let _ = parse_millis(&text);
            let _ = parse_millis(&near);
            let _ = format_millis(i64::from_le_bytes(std::array::from_fn(|i| text.as_bytes().get(i).copied().unwrap_or(i as u8))));
        }
    }
}
