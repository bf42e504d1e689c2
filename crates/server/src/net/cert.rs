//! Reading certificates: the names in them, their dates, and which of them stands for a domain
//! (RFC 6125, RFC 6120 s.13.7.1.2).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::der_parser::asn1_rs::{Any, FromDer, Tag, TaggedExplicit};
use x509_parser::der_parser::oid;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{
    OID_PKCS1_MD5WITHRSAENC, OID_PKCS1_SHA1WITHRSA, OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA,
    OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ECDSA_WITH_SHA512,
    Oid,
};
use x509_parser::prelude::X509Certificate;
use x509_parser::signature_algorithm::SignatureAlgorithm;

use super::tls::{TlsError, read_chain};

/// A name that a certificate speaks for. Domains are in A-label form and lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertName {
    /// dNSName, possibly with a wildcard as its leftmost label.
    Dns(String),
    /// id-on-dnsSRV (RFC 4985): service (`_xmpp-server`) and domain.
    Srv(String, String),
    /// id-on-xmppAddr: a whole address; for servers a domain.
    Xmpp(String),
    /// iPAddress.
    Ip(IpAddr),
}

impl CertName {
    /// Whether a server of `domain` (A-labels) may call itself so towards another server.
    pub fn stands_for(&self, domain: &str) -> bool {
        match self {
            CertName::Dns(name) => dns_matches(name, domain),
            CertName::Srv(service, name) => service == "_xmpp-server" && dns_matches(name, domain),
            CertName::Xmpp(name) => name == domain,
            CertName::Ip(ip) => ip_literal(domain) == Some(*ip),
        }
    }
}

impl fmt::Display for CertName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CertName::Dns(name) | CertName::Xmpp(name) => f.write_str(name),
            CertName::Srv(service, name) => write!(f, "{service}.{name}"),
            CertName::Ip(ip) => write!(f, "{ip}"),
        }
    }
}

/// What a certificate says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertInfo {
    /// Everything in subjectAltName that XMPP can use. The common name is not among them: RFC 6125 retired it.
    pub names: Vec<CertName>,
    /// Valid from.
    pub not_before: Timestamp,
    /// Valid until.
    pub not_after: Timestamp,
    /// Who issued it, as a distinguished name.
    pub issuer: String,
    /// For whom it was issued, as a distinguished name.
    pub subject: String,
    /// Issued by itself.
    pub self_signed: bool,
}

impl CertInfo {
    /// Reads one certificate.
    pub fn read(cert: &CertificateDer<'_>) -> Result<CertInfo, String> {
        let (rest, cert) =
            X509Certificate::from_der(cert).map_err(|e| format!("not an X.509 certificate: {e}"))?;
        if !rest.is_empty() {
            return Err("bytes follow the certificate".into());
        }
        Ok(CertInfo {
            names: names(&cert)?,
            not_before: timestamp(cert.validity().not_before.timestamp()),
            not_after: timestamp(cert.validity().not_after.timestamp()),
            issuer: cert.issuer().to_string(),
            subject: cert.subject().to_string(),
            self_signed: cert.issuer().as_raw() == cert.subject().as_raw(),
        })
    }

    /// Whether it stands for `domain` (A- or U-labels).
    pub fn covers(&self, domain: &str) -> bool {
        to_ascii(domain).is_some_and(|domain| self.names.iter().any(|name| name.stands_for(&domain)))
    }

    /// Like [`covers`](CertInfo::covers), by a dNSName or address only: what clients of all kinds accept.
    pub fn covers_dns(&self, domain: &str) -> bool {
        let usual = |name: &&CertName| matches!(name, CertName::Dns(_) | CertName::Ip(_));
        to_ascii(domain)
            .is_some_and(|domain| self.names.iter().filter(usual).any(|name| name.stands_for(&domain)))
    }
}

/// Reads the first certificate of a PEM file: for an operator who wants to know what he has.
pub fn inspect(path: &Path) -> Result<CertInfo, TlsError> {
    let chain = read_chain(path)?;
    CertInfo::read(&chain[0]).map_err(|reason| TlsError::BadCertificate { path: path.into(), reason })
}

/// The A-label form in lower case, as certificates and DNS have it; IP literals (`[::1]` too) as their plain text.
/// None when `domain` is no domain.
pub fn to_ascii(domain: &str) -> Option<String> {
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    if let Some(ip) = ip_literal(domain) {
        return Some(ip.to_string());
    }
    let ascii = idna::domain_to_ascii(domain).ok()?;
    // Underscores occur in names of test machines: not a host name by the book, but harmless to look up.
    let usual = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(usual);
    (ascii.len() <= 253 && ascii.split('.').all(label)).then_some(ascii)
}

/// `domain` as an address, if it is one: RFC 6120 allows `192.0.2.1` and `[2001:db8::1]` as domains.
pub fn ip_literal(domain: &str) -> Option<IpAddr> {
    let inner = domain.strip_prefix('[').and_then(|d| d.strip_suffix(']')).unwrap_or(domain);
    inner.parse().ok()
}

/// RFC 6125 s.6.4: case-insensitive, and a wildcard is the whole leftmost label and stands for exactly one label.
pub fn dns_matches(pattern: &str, domain: &str) -> bool {
    match pattern.strip_prefix("*.") {
        // `*.org` would speak for everyone: two labels at least must be spelt out.
        Some(parent) if parent.contains('.') && !parent.contains('*') => domain
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent)),
        Some(_) => false,
        None => !pattern.contains('*') && pattern.eq_ignore_ascii_case(domain),
    }
}

/// RFC 5929 s.4.1 (`tls-server-end-point`): the certificate, hashed with the hash function of its signature, MD5 and
/// SHA-1 replaced by SHA-256. None where that is not defined (Ed25519).
pub fn end_point(cert: &CertificateDer<'_>) -> Option<Vec<u8>> {
    use aws_lc_rs::digest::{SHA256, SHA384, SHA512, digest};
    let (_, parsed) = X509Certificate::from_der(cert).ok()?;
    let algorithm = &parsed.signature_algorithm;
    let hash = if let Ok(SignatureAlgorithm::RSASSA_PSS(params)) = SignatureAlgorithm::try_from(algorithm) {
        pss_hash(params.hash_algorithm_oid())?
    } else {
        let sha256 = [
            OID_PKCS1_MD5WITHRSAENC,
            OID_PKCS1_SHA1WITHRSA,
            OID_PKCS1_SHA256WITHRSA,
            OID_SIG_ECDSA_WITH_SHA256,
            oid!(1.2.840.10045.4.1),
        ];
        match &algorithm.algorithm {
            oid if sha256.contains(oid) => &SHA256,
            oid if *oid == OID_PKCS1_SHA384WITHRSA || *oid == OID_SIG_ECDSA_WITH_SHA384 => &SHA384,
            oid if *oid == OID_PKCS1_SHA512WITHRSA || *oid == OID_SIG_ECDSA_WITH_SHA512 => &SHA512,
            _ => return None,
        }
    };
    Some(digest(hash, cert).as_ref().to_vec())
}

fn pss_hash(oid: &Oid<'_>) -> Option<&'static aws_lc_rs::digest::Algorithm> {
    use aws_lc_rs::digest::{SHA256, SHA384, SHA512};
    let known = [
        (oid!(1.3.14.3.2.26), &SHA256),
        (oid!(2.16.840.1.101.3.4.2.1), &SHA256),
        (oid!(2.16.840.1.101.3.4.2.2), &SHA384),
        (oid!(2.16.840.1.101.3.4.2.3), &SHA512),
    ];
    known.iter().find(|(known, _)| known == oid).map(|(_, hash)| *hash)
}

fn names(cert: &X509Certificate<'_>) -> Result<Vec<CertName>, String> {
    let found = cert.subject_alternative_name().map_err(|e| format!("bad subjectAltName: {e}"))?;
    let Some(found) = found else { return Ok(Vec::new()) };
    Ok(found.value.general_names.iter().filter_map(name).collect())
}

fn name(name: &GeneralName<'_>) -> Option<CertName> {
    match name {
        GeneralName::DNSName(name) => Some(CertName::Dns(name.to_ascii_lowercase())),
        GeneralName::IPAddress(octets) => {
            let v4 = <[u8; 4]>::try_from(*octets).map(|o| IpAddr::from(Ipv4Addr::from(o)));
            let v6 = || <[u8; 16]>::try_from(*octets).map(|o| IpAddr::from(Ipv6Addr::from(o)));
            v4.or_else(|_| v6()).ok().map(CertName::Ip)
        }
        // id-on-xmppAddr, RFC 6120 s.13.7.1.4: a UTF8String.
        GeneralName::OtherName(oid, value) if *oid == oid!(1.3.6.1.5.5.7.8.5) => {
            // With a local part it is an account's certificate, and speaks for no domain: kept as it is.
            let text = string(value)?;
            Some(CertName::Xmpp(if text.contains(['@', '/']) { text } else { to_ascii(&text)? }))
        }
        // id-on-dnsSRV, RFC 4985: an IA5String `_service.domain`; some issuers write a UTF8String.
        GeneralName::OtherName(oid, value) if *oid == oid!(1.3.6.1.5.5.7.8.7) => {
            let text = string(value)?.to_ascii_lowercase();
            let (service, domain) = text.split_once('.')?;
            Some(CertName::Srv(service.into(), domain.into()))
        }
        _ => None,
    }
}

fn string(value: &[u8]) -> Option<String> {
    let (_, tagged) =
        TaggedExplicit::<Any<'_>, x509_parser::der_parser::asn1_rs::Error, 0>::from_der(value).ok()?;
    let any = tagged.into_inner();
    matches!(any.tag(), Tag::Utf8String | Tag::Ia5String).then_some(())?;
    std::str::from_utf8(any.data).ok().map(str::to_owned)
}

fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX })
}
