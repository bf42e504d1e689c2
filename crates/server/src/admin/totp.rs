//! RFC 6238 TOTP: the second factor of a sign-in to the console. Six digits, SHA-1, 30 seconds: what every
//! authenticator app does.

use aws_lc_rs::{constant_time, hmac};
use trunkline_store::{Batch, Db, Lane, Statement, StoreError, sql};
use trunkline_xmpp::jid::Jid;

/// Milliseconds that a code is good for.
const STEP: i64 = 30_000;
/// Steps before and after this one whose codes are taken: clocks differ, people are slow.
const SLACK: i64 = 1;
/// RFC 4226 s.4: "RECOMMENDED shared secret length of 160 bits".
const SECRET: usize = 20;

/// A secret that an app and the server share.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// A new one.
    pub fn random() -> Secret {
        let mut bytes = vec![0; SECRET];
        getrandom::fill(&mut bytes).expect("invariant: the operating system gives randomness");
        Secret(bytes)
    }

    /// As people type it into an app (RFC 4648 s.6, without padding).
    pub fn base32(&self) -> String {
        const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let mut text = String::new();
        for chunk in self.0.chunks(5) {
            let bits =
                chunk.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte)) << (8 * (5 - chunk.len()));
            let letters = (chunk.len() * 8).div_ceil(5);
            text.extend((0..letters).map(|n| char::from(ALPHABET[(bits >> (35 - 5 * n) & 31) as usize])));
        }
        text
    }

    /// What a QR code says.
    pub fn uri(&self, address: &Jid) -> String {
        let label =
            address.as_str().replace('%', "%25").replace(' ', "%20").replace('#', "%23").replace('?', "%3F");
        format!("otpauth://totp/Trunkline:{label}?secret={}&issuer=Trunkline", self.base32())
    }

    /// The code of one step.
    fn code(&self, step: i64) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &self.0);
        let tag = hmac::sign(&key, &step.to_be_bytes());
        let tag = tag.as_ref();
        // RFC 4226 s.5.3: dynamic truncation.
        let at = usize::from(tag[19] & 15);
        let word = u32::from_be_bytes([tag[at], tag[at + 1], tag[at + 2], tag[at + 3]]) & 0x7fff_ffff;
        format!("{:06}", word % 1_000_000)
    }

    /// The step that `code` belongs to, if it is good at `now` (milliseconds since 1970).
    pub fn check(&self, code: &str, now: i64) -> Option<i64> {
        let code: String = code.chars().filter(|c| !c.is_whitespace()).collect();
        let step = now.div_euclid(STEP);
        // All are computed, so that the time says nothing.
        let steps: Vec<i64> = (step - SLACK..=step + SLACK)
            .filter(|step| {
                let wanted = self.code(*step);
                constant_time::verify_slices_are_equal(wanted.as_bytes(), code.as_bytes()).is_ok()
            })
            .collect();
        steps.last().copied()
    }
}

/// Binds `?1` and `?2`.
fn of(statement: Statement, account: &Jid) -> Statement {
    statement.bind(account.domain()).bind(account.local().unwrap_or_default())
}

/// The secret of an account that has enrolled.
pub async fn enrolled(db: &Db, account: &Jid) -> Result<Option<Secret>, StoreError> {
    let statement = sql("SELECT totp.secret FROM totp JOIN accounts ON accounts.id = totp.account \
         JOIN hosts ON hosts.id = accounts.host_id WHERE hosts.name = ?1 AND accounts.local = ?2");
    let rows = db.read(of(statement, account)).await?;
    Ok(rows.first().map(|row| Secret(row.blob(0).to_vec())))
}

/// From now on the account needs codes of this secret. `step` is that of the code that confirmed it.
pub async fn enrol(
    db: &Db,
    account: &Jid,
    secret: &Secret,
    (step, now): (i64, i64),
    audit: Statement,
) -> Result<(), StoreError> {
    let statement = sql("INSERT INTO totp (account, secret, enrolled_at, last_step) \
         SELECT accounts.id, ?3, ?4, ?5 FROM accounts JOIN hosts ON hosts.id = accounts.host_id \
         WHERE hosts.name = ?1 AND accounts.local = ?2");
    let statement = of(statement, account).bind(secret.0.clone()).bind(now).bind(step).must_change();
    db.run(Batch::new(Lane::Inside).with(statement).with(audit)).await.map(drop)
}

/// Uses a code up: false when it, or a later one, was used before (RFC 6238 s.5.2).
pub async fn spend(db: &Db, account: &Jid, step: i64) -> Result<bool, StoreError> {
    let statement = sql("UPDATE totp SET last_step = ?3 WHERE last_step < ?3 AND account = \
         (SELECT accounts.id FROM accounts JOIN hosts ON hosts.id = accounts.host_id \
          WHERE hosts.name = ?1 AND accounts.local = ?2)");
    let statement = of(statement, account).bind(step).must_change();
    match db.run(Batch::new(Lane::Inside).with(statement)).await {
        Ok(_) => Ok(true),
        Err(StoreError::Conflict) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes the second factor off an account. False: it had none.
pub async fn reset(db: &Db, account: &Jid, audit: Statement) -> Result<bool, StoreError> {
    let statement = sql("DELETE FROM totp WHERE account = \
         (SELECT accounts.id FROM accounts JOIN hosts ON hosts.id = accounts.host_id \
          WHERE hosts.name = ?1 AND accounts.local = ?2)");
    let batch = Batch::new(Lane::Inside).with(of(statement, account).must_change()).with(audit);
    match db.run(batch).await {
        Ok(_) => Ok(true),
        Err(StoreError::Conflict) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What an app that knows the secret shows.
#[cfg(test)]
pub(crate) fn code_of(base32: &str, now: i64) -> String {
    let (mut bits, mut count, mut bytes) = (0u64, 0, Vec::new());
    for letter in base32.bytes() {
        let value = if letter.is_ascii_uppercase() { letter - b'A' } else { letter - b'2' + 26 };
        bits = bits << 5 | u64::from(value);
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Secret(bytes).code(now.div_euclid(STEP))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6238 appendix B, SHA-1, the last six of the eight digits.
    #[test]
    fn the_vectors_of_the_rfc() {
        let secret = Secret(b"12345678901234567890".to_vec());
        for (seconds, code) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            let now = seconds * 1000;
            assert_eq!(secret.code(now / STEP), code);
            assert_eq!(secret.check(code, now), Some(now / STEP));
            assert_eq!(secret.check(code, now + STEP), Some(now / STEP), "one step late");
            assert_eq!(secret.check(code, now + 2 * STEP), None);
            assert_eq!(secret.check(code, now - 2 * STEP), None);
        }
        assert_eq!(secret.check("", 59_000), None);
        assert_eq!(secret.check(" 287 082 ", 59_000), Some(1));
    }

    /// RFC 4648 s.10.
    #[test]
    fn base32() {
        for (bytes, text) in [
            ("f", "MY"),
            ("fo", "MZXQ"),
            ("foo", "MZXW6"),
            ("foob", "MZXW6YQ"),
            ("fooba", "MZXW6YTB"),
            ("foobar", "MZXW6YTBOI"),
        ] {
            assert_eq!(Secret(bytes.as_bytes().to_vec()).base32(), text);
        }
        assert_eq!(Secret::random().base32().len(), 32);
    }
}
