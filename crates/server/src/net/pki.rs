//! Certificates we make ourselves: self-signed ones for development, and a small authority for the demonstration and
//! the tests. Real domains get theirs from a public authority.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use rustls_pki_types::CertificateDer;

use super::cert::{ip_literal, to_ascii};

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Pem {
    /// Own certificate first, then the authority's.
    pub chain: String,
    /// PKCS #8.
    pub key: String,
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pem").field("chain", &self.chain).finish_non_exhaustive()
    }
}

impl Pem {
    /// Writes both files, the key readable by its owner only.
    pub fn write(&self, chain: &Path, key: &Path) -> io::Result<()> {
        write_private(key, self.key.as_bytes())?;
        std::fs::write(chain, &self.chain)
    }
}

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Not a domain.
    #[error("{0} is not a domain that a certificate can name")]
    BadDomain(String),
    /// The library refused.
    #[error("the certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// What a certificate is to be like. [`Leaf::new`] gives a proper one; tests spoil it.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The domains it names, each with a wildcard for the services below it.
    pub domains: Vec<String>,
    /// Add the clientAuth purpose; public authorities no longer do.
    pub client_auth: bool,
    /// Add the serverAuth purpose.
    pub server_auth: bool,
    /// Add a purpose that has nothing to do with servers: e-mail.
    pub other_purpose: bool,
    /// First and last moment of validity.
    pub valid: (Timestamp, Timestamp),
    /// Names to add in the form of RFC 6120, id-on-xmppAddr.
    pub xmpp_addrs: Vec<String>,
}

impl Leaf {
    /// A proper certificate for `domain`, valid from a day ago for `days`.
    pub fn new(domain: &str, days: i64) -> Leaf {
        let hour = jiff::SignedDuration::from_hours(1);
        let now = Timestamp::now();
        Leaf {
            domains: vec![domain.to_owned()],
            client_auth: true,
            server_auth: true,
            other_purpose: false,
            valid: (now - hour * 24, now + hour * 24 * i32::try_from(days).unwrap_or(i32::MAX / 24)),
            xmpp_addrs: Vec::new(),
        }
    }

    fn params(&self) -> Result<CertificateParams, PkiError> {
        let mut params = CertificateParams::default();
        let name = self.domains.first().or(self.xmpp_addrs.first()).cloned().unwrap_or_default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        for domain in &self.domains {
            params.subject_alt_names.extend(alt_names(domain)?);
        }
        for addr in &self.xmpp_addrs {
            let id_on_xmpp_addr = vec![1, 3, 6, 1, 5, 5, 7, 8, 5];
            params.subject_alt_names.push(SanType::OtherName((id_on_xmpp_addr, addr.as_str().into())));
        }
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + after_epoch(self.valid.0);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + after_epoch(self.valid.1);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if self.server_auth {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if self.client_auth {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        if self.other_purpose {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::EmailProtection);
        }
        Ok(params)
    }
}

/// A self-signed certificate, for development.
pub fn self_signed(leaf: &Leaf) -> Result<Pem, PkiError> {
    let key = KeyPair::generate()?;
    let cert = leaf.params()?.self_signed(&key)?;
    Ok(Pem { chain: cert.pem(), key: key.serialize_pem() })
}

/// A small authority of our own. Its key lives in memory only.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// A new authority, valid for ten years.
    pub fn new(name: &str) -> Result<Authority, PkiError> {
        Authority::make(name, None)
    }

    /// A new authority that may only speak for `domain` and what is below it (RFC 5280 s.4.2.1.10).
    pub fn constrained(name: &str, domain: &str) -> Result<Authority, PkiError> {
        let permitted_subtrees = vec![GeneralSubtree::DnsName(domain.to_owned())];
        Authority::make(name, Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() }))
    }

    fn make(name: &str, name_constraints: Option<NameConstraints>) -> Result<Authority, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.name_constraints = name_constraints;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let (from, to) = Leaf::new("", 3650).valid;
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + after_epoch(from);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + after_epoch(to);
        Ok(Authority { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// The root certificate: what others put into `federation.trust`.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// The root certificate.
    pub fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// Issues a certificate.
    pub fn issue(&self, leaf: &Leaf) -> Result<Pem, PkiError> {
        let key = KeyPair::generate()?;
        let cert = leaf.params()?.signed_by(&key, &self.issuer)?;
        Ok(Pem { chain: cert.pem(), key: key.serialize_pem() })
    }
}

fn alt_names(domain: &str) -> Result<Vec<SanType>, PkiError> {
    let bad = || PkiError::BadDomain(domain.to_owned());
    if let Some(ip) = ip_literal(domain) {
        return Ok(vec![SanType::IpAddress(ip)]);
    }
    let ascii = to_ascii(domain).ok_or_else(bad)?;
    let dns =
        |name: String| rcgen::string::Ia5String::try_from(name).map(SanType::DnsName).map_err(|_| bad());
    Ok(vec![dns(ascii.clone())?, dns(format!("*.{ascii}"))?])
}

/// To whole seconds; before 1970 becomes 1970.
fn after_epoch(time: Timestamp) -> std::time::Duration {
    std::time::Duration::from_secs(time.as_second().max(0).unsigned_abs())
}

/// Writes a file that only its owner can read, also when it existed before with other permissions.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    file.write_all(content)?;
    file.sync_all()
}
