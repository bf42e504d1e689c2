//! What a peer's certificate is worth. The handshake is open to everybody; this verdict chooses between SASL EXTERNAL,
//! dialback and a refusal by name.

use std::fmt;

use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, RequiredEkuNotFoundContext,
    VerifiedPath,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::cert::{CertInfo, CertName, to_ascii};
use super::tls::TrustRoots;

/// The outcome of [`verify_peer`], with words for people (`Display`) and a label for counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Trusted, in time, and for this domain.
    Valid,
    /// Out of date.
    Expired {
        /// Since when.
        since: Timestamp,
    },
    /// Not valid yet, or our clock is wrong.
    NotYetValid {
        /// From when on.
        from: Timestamp,
    },
    /// Trusted, but issued for others.
    WrongName {
        /// The domain asked for.
        wanted: String,
        /// The names it has instead.
        presented: Vec<String>,
    },
    /// No path to a root we trust.
    UnknownIssuer {
        /// The issuer that the certificate names.
        issuer: String,
    },
    /// Issued by itself, and not in the operator's list.
    SelfSigned,
    /// Its issuer took it back, or it is on the list of distrusted keys.
    Revoked,
    /// A signature in the chain is wrong.
    BadSignature,
    /// Issued for neither servers nor clients.
    WrongPurpose,
    /// The peer presented no certificate.
    Missing,
    /// Anything else, in words.
    Other(String),
}

impl Verdict {
    /// Whether the peer may be taken for its domain.
    pub fn is_valid(&self) -> bool {
        *self == Verdict::Valid
    }

    /// A short name for counters.
    pub fn label(&self) -> &'static str {
        match self {
            Verdict::Valid => "valid",
            Verdict::Expired { .. } => "expired",
            Verdict::NotYetValid { .. } => "not-yet-valid",
            Verdict::WrongName { .. } => "wrong-name",
            Verdict::UnknownIssuer { .. } => "unknown-issuer",
            Verdict::SelfSigned => "self-signed",
            Verdict::Revoked => "revoked",
            Verdict::BadSignature => "bad-signature",
            Verdict::WrongPurpose => "wrong-purpose",
            Verdict::Missing => "missing",
            Verdict::Other(_) => "other",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Valid => f.write_str("certificate valid"),
            Verdict::Expired { since } => write!(f, "certificate expired on {}", day(*since)),
            Verdict::NotYetValid { from } => write!(f, "certificate is valid only from {} on", day(*from)),
            Verdict::WrongName { wanted, presented } if presented.is_empty() => {
                write!(f, "certificate names no domain at all, {wanted} was wanted")
            }
            Verdict::WrongName { wanted, presented } => {
                write!(f, "certificate is for {}, not for {wanted}", presented.join(", "))
            }
            Verdict::UnknownIssuer { issuer } => {
                write!(f, "certificate issued by \"{issuer}\", which is not trusted")
            }
            Verdict::SelfSigned => f.write_str("certificate is self-signed and not trusted"),
            Verdict::Revoked => f.write_str("certificate was revoked"),
            Verdict::BadSignature => f.write_str("certificate chain has a wrong signature"),
            Verdict::WrongPurpose => f.write_str("certificate was issued for neither servers nor clients"),
            Verdict::Missing => f.write_str("no certificate presented"),
            Verdict::Other(text) => write!(f, "certificate not acceptable: {text}"),
        }
    }
}

/// Judges the `chain` (own certificate first) of a peer that says it serves `domain` (A- or U-labels).
pub fn verify_peer(
    chain: &[CertificateDer<'_>],
    domain: &str,
    now: Timestamp,
    roots: &TrustRoots,
) -> Verdict {
    let Some(leaf) = chain.first() else { return Verdict::Missing };
    let info = match CertInfo::read(leaf) {
        Ok(info) => info,
        Err(reason) => return Verdict::Other(reason),
    };
    let Some(wanted) = to_ascii(domain) else {
        return Verdict::Other(format!("{domain} cannot stand in a certificate"));
    };
    let names = match trusted_names(chain, &info, now, roots) {
        Ok(names) => names,
        Err(verdict) => return verdict,
    };
    if names.iter().any(|name| name.stands_for(&wanted)) {
        return Verdict::Valid;
    }
    // A certificate may carry hundreds of names; the text ends up in logs and status pages.
    let presented = info.names.iter().take(8).map(CertName::to_string).collect();
    Verdict::WrongName { wanted, presented }
}

/// The names for which the chain can be trusted, or why it can't.
fn trusted_names(
    chain: &[CertificateDer<'_>],
    info: &CertInfo,
    now: Timestamp,
    roots: &TrustRoots,
) -> Result<Vec<CertName>, Verdict> {
    let leaf = &chain[0];
    // The operator put this very certificate into his trust file: no chain is needed, dates and names still count.
    if roots.is_pinned(leaf) {
        if now < info.not_before {
            return Err(Verdict::NotYetValid { from: info.not_before });
        }
        if now > info.not_after {
            return Err(Verdict::Expired { since: info.not_after });
        }
        return Ok(info.names.clone());
    }
    let end = EndEntityCert::try_from(leaf).map_err(|e| refusal(&e, info))?;
    let time =
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_second().max(0).unsigned_abs()));
    let path = end
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            roots.anchors(),
            &chain[1..],
            time,
            EitherPurpose,
            None,
            None,
        )
        .map_err(|e| refusal(&e, info))?;
    if !constrained(&path) {
        return Ok(info.names.clone());
    }
    // RFC 5280 s.4.2.1.10: constraints on DNS names bind dNSName only. An authority that was let loose on one domain
    // could still write any domain into an otherName, so those don't count.
    let usual = |name: &&CertName| matches!(name, CertName::Dns(_) | CertName::Ip(_));
    Ok(info.names.iter().filter(usual).cloned().collect())
}

fn constrained(path: &VerifiedPath<'_>) -> bool {
    let constrains = |der: &[u8]| match X509Certificate::from_der(der) {
        Ok((_, cert)) => !matches!(cert.name_constraints(), Ok(None)),
        Err(_) => true,
    };
    path.anchor().name_constraints.is_some()
        || path.intermediate_certificates().any(|cert| constrains(&cert.der()))
}

fn refusal(error: &webpki::Error, info: &CertInfo) -> Verdict {
    use webpki::Error;
    match error {
        Error::CertExpired { .. } => Verdict::Expired { since: info.not_after },
        Error::CertNotValidYet { .. } => Verdict::NotYetValid { from: info.not_before },
        Error::UnknownIssuer | Error::CaUsedAsEndEntity if info.self_signed => Verdict::SelfSigned,
        Error::UnknownIssuer => Verdict::UnknownIssuer { issuer: info.issuer.clone() },
        Error::CertRevoked | Error::CertDistrusted => Verdict::Revoked,
        Error::InvalidSignatureForPublicKey => Verdict::BadSignature,
        Error::RequiredEkuNotFoundContext(_) => Verdict::WrongPurpose,
        other => Verdict::Other(other.to_string()),
    }
}

/// Public authorities stopped issuing certificates with the clientAuth purpose, and between servers each side is both:
/// either purpose suffices, and none at all means all.
#[derive(Debug)]
struct EitherPurpose;

impl ExtendedKeyUsageValidator for EitherPurpose {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        // id-kp-serverAuth, id-kp-clientAuth, anyExtendedKeyUsage.
        const ACCEPTED: [&[u8]; 3] = [
            &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01],
            &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02],
            &[0x55, 0x1d, 0x25, 0x00],
        ];
        let mut present = Vec::new();
        for purpose in purposes {
            let purpose = purpose?;
            if ACCEPTED.iter().any(|accepted| KeyPurposeId::new(accepted) == purpose) {
                return Ok(());
            }
            present.push(purpose.to_decoded_oid());
        }
        if present.is_empty() {
            return Ok(());
        }
        let required = webpki::KeyUsage::server_auth();
        Err(webpki::Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext { required, present }))
    }
}

fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M UTC").to_string()
}
