//! Certificates: readable, of the right key, for the right names, not over, and trusted by others.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use trunkline_xmpp::jid::domain_to_ascii;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::super::output::span;
use super::Finding;
use crate::config::Config;

const TOPIC: &str = "certificate";
/// Automatic renewal has happened long before this is left.
const SOON: i64 = 14 * 86_400;

pub(super) fn check(config: &Config, now: Timestamp) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut domains: BTreeMap<(&Path, &Path), Vec<&str>> = BTreeMap::new();
    for domain in config.domains() {
        match config.certificate(domain) {
            Some(files) => domains.entry(files).or_default().push(domain),
            None => findings.push(Finding::fail(
                TOPIC,
                format!("{domain} has none"),
                "set tls.certificate and tls.key, or certificate and key in its [hosts] table",
            )),
        }
    }
    for ((certificate, key), domains) in domains {
        findings.extend(check_one(certificate, key, &domains, now));
    }
    findings
}

fn check_one(certificate: &Path, key: &Path, domains: &[&str], now: Timestamp) -> Vec<Finding> {
    let shown = certificate.display();
    let fail = |text: String, todo: &str| vec![Finding::fail(TOPIC, text, todo)];
    let chain =
        match CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            Ok(chain) if !chain.is_empty() => chain,
            Ok(_) => {
                return fail(
                    format!("{shown} has no certificate in it"),
                    "it must be PEM: -----BEGIN CERTIFICATE-----",
                );
            }
            Err(error) => {
                return fail(
                    format!("{shown} can't be read: {error}"),
                    "it must be PEM and readable for the server",
                );
            }
        };
    let private = match PrivateKeyDer::from_pem_file(key) {
        Ok(private) => private,
        Err(error) => {
            return fail(
                format!("the key {} can't be read: {error}", key.display()),
                "it must be PEM, without a passphrase, and readable for the server",
            );
        }
    };
    let mut findings = Vec::new();
    if let Err(error) = CertifiedKey::from_der(chain.clone(), private, &default_provider()) {
        let text = format!("{} is not the key of {shown} ({error})", key.display());
        findings.push(Finding::fail(TOPIC, text, "put certificate and key of the same issue there"));
    }
    let Ok((_, parsed)) = X509Certificate::from_der(&chain[0]) else {
        return fail(format!("{shown} is not an X.509 certificate"), "get a new one");
    };
    findings.push(validity(&shown.to_string(), &parsed, now));
    findings.extend(names(&shown.to_string(), &chain[0], domains));
    findings.push(trust(&shown.to_string(), &parsed, &chain, domains));
    if let Ok(Some(usage)) = parsed.extended_key_usage()
        && !usage.value.client_auth
        && !usage.value.any
    {
        let text = format!(
            "{shown} is for TLS servers only, as public authorities issue them now; servers that insist on client certificates will use dialback with you"
        );
        findings.push(Finding::note(TOPIC, text));
    }
    findings
}

fn validity(shown: &str, parsed: &X509Certificate<'_>, now: Timestamp) -> Finding {
    let (start, end) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let now = now.as_second();
    let renew = "renew it, then `trunkline reload`";
    if now < start {
        let text = format!("{shown} is valid only in {}", span((start - now) * 1000));
        return Finding::fail(
            TOPIC,
            text,
            "check this machine's clock; if it is right, wait or get another one",
        );
    }
    match end - now {
        left if left <= 0 => Finding::fail(TOPIC, format!("{shown} ended {} ago", span(-left * 1000)), renew),
        left if left < SOON => {
            let text = format!("{shown} ends in {}", span(left * 1000));
            Finding::warn(TOPIC, text, "renew it, then `trunkline reload`; let a timer do both from now on")
        }
        left => Finding::ok(TOPIC, format!("{shown} is valid for {} more", span(left * 1000))),
    }
}

fn names(shown: &str, leaf: &CertificateDer<'_>, domains: &[&str]) -> Vec<Finding> {
    let Ok(leaf) = webpki::EndEntityCert::try_from(leaf) else {
        return vec![Finding::fail(
            TOPIC,
            format!("{shown} can't be used for TLS (X.509 version 3 is needed)"),
            "get a new one",
        )];
    };
    let check = |domain: &&str| {
        let ascii = domain_to_ascii(domain);
        let covered = ServerName::try_from(ascii.as_ref())
            .is_ok_and(|name| leaf.verify_is_valid_for_subject_name(&name).is_ok());
        if covered {
            Finding::ok(TOPIC, format!("{shown} covers {domain}"))
        } else {
            let names: Vec<&str> = leaf.valid_dns_names().collect();
            let text = format!("{shown} does not cover {domain}, only: {}", names.join(", "));
            Finding::fail(
                TOPIC,
                text,
                format!("get one with the name {ascii} (the XMPP domain itself, not the machine's name)"),
            )
        }
    };
    domains.iter().map(check).collect()
}

/// Whether others will trust it: judged with this system's own root certificates.
fn trust(
    shown: &str,
    parsed: &X509Certificate<'_>,
    chain: &[CertificateDer<'_>],
    domains: &[&str],
) -> Finding {
    if parsed.issuer() == parsed.subject() {
        let text = format!("{shown} is self-signed");
        return Finding::warn(
            TOPIC,
            text,
            "fine for tests; clients warn about it and other servers accept it by dialback only",
        );
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Finding::note(
            TOPIC,
            "this system has no root certificates: trust was not checked (install ca-certificates)",
        );
    }
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::new(default_provider()),
    )
    .build();
    let domain = domains.first().map(|domain| domain_to_ascii(domain).into_owned()).unwrap_or_default();
    let (Ok(verifier), Ok(name)) = (verifier, ServerName::try_from(domain)) else {
        return Finding::note(TOPIC, format!("{shown}: trust was not checked"));
    };
    match verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now()) {
        Ok(_) => Finding::ok(TOPIC, format!("{shown} is trusted by this system's root certificates")),
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => Finding::warn(
            TOPIC,
            format!("{shown} does not lead to a root certificate of this system"),
            "if a public authority issued it, the intermediate certificates are missing: use the file with the full chain",
        ),
        // Names and times have findings of their own.
        Err(error) => {
            Finding::note(TOPIC, format!("{shown} was not accepted by a trial verification: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Level, worst};
    use super::*;

    struct Issued {
        directory: tempfile::TempDir,
    }

    impl Issued {
        fn new(names: &[&str], days: std::ops::Range<i64>) -> Issued {
            let directory = tempfile::tempdir().unwrap();
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = rcgen::CertificateParams::new(names).unwrap();
            let day = |days: i64| {
                let date = jiff::Zoned::now().date() + jiff::Span::new().days(days);
                rcgen::date_time_ymd(i32::from(date.year()), date.month() as u8, date.day() as u8)
            };
            (params.not_before, params.not_after) = (day(days.start), day(days.end));
            let key = rcgen::KeyPair::generate().unwrap();
            std::fs::write(directory.path().join("c.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
            std::fs::write(directory.path().join("k.pem"), key.serialize_pem()).unwrap();
            Issued { directory }
        }

        fn check(&self, domain: &str) -> Vec<Finding> {
            let path = |name: &str| self.directory.path().join(name);
            check_one(&path("c.pem"), &path("k.pem"), &[domain], Timestamp::now())
        }
    }

    fn has(findings: &[Finding], level: Level, part: &str) {
        let found = findings.iter().any(|finding| finding.level == level && finding.text.contains(part));
        assert!(found, "{part} is missing in {findings:#?}");
    }

    #[test]
    fn names_and_times() {
        let findings = Issued::new(&["example.org", "*.b.example"], -1..90).check("example.org");
        has(&findings, Level::Ok, "covers example.org");
        has(&findings, Level::Ok, "is valid for 8");
        has(&findings, Level::Warn, "self-signed");
        assert_eq!(worst(&findings), Level::Warn);
        has(&Issued::new(&["*.b.example"], -1..90).check("x.b.example"), Level::Ok, "covers");
        has(
            &Issued::new(&["www.example.org"], -1..90).check("example.org"),
            Level::Fail,
            "only: www.example.org",
        );
        has(&Issued::new(&["example.org"], -90..-1).check("example.org"), Level::Fail, "ended");
        has(&Issued::new(&["example.org"], -90..5).check("example.org"), Level::Warn, "ends in");
        has(&Issued::new(&["example.org"], 5..9).check("example.org"), Level::Fail, "valid only in");
    }

    #[test]
    fn key_and_files() {
        let issued = Issued::new(&["example.org"], -1..90);
        let other = Issued::new(&["example.org"], -1..90);
        std::fs::copy(other.directory.path().join("k.pem"), issued.directory.path().join("k.pem")).unwrap();
        has(&issued.check("example.org"), Level::Fail, "is not the key of");
        std::fs::write(issued.directory.path().join("c.pem"), "nothing").unwrap();
        has(&issued.check("example.org"), Level::Fail, "no certificate in it");
        std::fs::remove_file(issued.directory.path().join("k.pem")).unwrap();
        assert_eq!(worst(&issued.check("example.org")), Level::Fail);
    }
}
