//! Certificates: readable, of the right key, for the right names, not over, and trusted by others.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::super::output::span;
use super::Finding;
use crate::config::Config;
use crate::net::tls::read_chain;
use crate::net::{CertInfo, CertSource, CertStore, TlsError, TrustRoots, Verdict, verify_peer};

const TOPIC: &str = "certificate";
/// Automatic renewal has happened long before this is left.
const SOON: i64 = 14 * 86_400_000;

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
    let shown = certificate.display().to_string();
    // Exactly what the server does with them at its start.
    let source = CertSource { domains: Vec::new(), chain: certificate.to_owned(), key: key.to_owned() };
    let mut findings = Vec::new();
    if let Err(error) = CertStore::load(&[source]) {
        let todo = match &error {
            TlsError::Read { .. } => "correct the path, or make the file readable for the server's user",
            TlsError::Mismatch { .. } => "put certificate and key of the same issue there",
            TlsError::EncryptedKey { .. } => "`openssl pkey -in KEY -out NEWKEY` takes the passphrase off",
            _ => "it must be PEM; get a new one if it is",
        };
        findings.push(Finding::fail(TOPIC, error.to_string(), todo));
    }
    let Ok(chain) = read_chain(certificate) else { return findings };
    let info = match CertInfo::read(&chain[0]) {
        Ok(info) => info,
        Err(reason) => {
            findings.push(Finding::fail(TOPIC, format!("{shown}: {reason}"), "get a new one"));
            return findings;
        }
    };
    findings.push(validity(&shown, &info, now));
    findings.extend(domains.iter().map(|domain| name(&shown, &info, domain)));
    findings.push(trust(&shown, &chain, domains, now));
    if let Ok((_, parsed)) = X509Certificate::from_der(&chain[0])
        && let Ok(Some(usage)) = parsed.extended_key_usage()
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

fn validity(shown: &str, info: &CertInfo, now: Timestamp) -> Finding {
    let left = info.not_after.as_millisecond() - now.as_millisecond();
    let until_start = info.not_before.as_millisecond() - now.as_millisecond();
    let renew = "renew it, then `trunkline reload`";
    if until_start > 0 {
        let text = format!("{shown} is valid only in {}", span(until_start));
        return Finding::fail(
            TOPIC,
            text,
            "check this machine's clock; if it is right, wait or get another one",
        );
    }
    if left <= 0 {
        Finding::fail(TOPIC, format!("{shown} ended {} ago", span(-left)), renew)
    } else if left < SOON {
        let text = format!("{shown} ends in {}", span(left));
        Finding::warn(TOPIC, text, format!("{renew}; let a timer do both from now on"))
    } else {
        Finding::ok(TOPIC, format!("{shown} is valid for {} more", span(left)))
    }
}

fn name(shown: &str, info: &CertInfo, domain: &str) -> Finding {
    if info.covers_dns(domain) {
        return Finding::ok(TOPIC, format!("{shown} covers {domain}"));
    }
    if info.covers(domain) {
        let text = format!("{shown} covers {domain} by a name for XMPP only, which many clients don't know");
        return Finding::warn(TOPIC, text, format!("get one with the DNS name {domain}"));
    }
    let names: Vec<String> = info.names.iter().map(ToString::to_string).collect();
    let text = format!("{shown} does not cover {domain}, only: {}", names.join(", "));
    Finding::fail(
        TOPIC,
        text,
        format!("get one with the name {domain} (the XMPP domain itself, not the machine's name)"),
    )
}

/// Whether others will trust it: judged with this system's own root certificates.
fn trust(shown: &str, chain: &[CertificateDer<'_>], domains: &[&str], now: Timestamp) -> Finding {
    let roots = match TrustRoots::system(None) {
        Ok(roots) if !roots.is_empty() => roots,
        _ => {
            let text =
                "this system has no root certificates: trust was not checked, and no other server's can be";
            return Finding::warn(TOPIC, text, "apt install ca-certificates");
        }
    };
    let domain = domains.first().copied().unwrap_or_default();
    match verify_peer(chain, domain, now, &roots) {
        Verdict::SelfSigned => Finding::warn(
            TOPIC,
            format!("{shown} is self-signed"),
            "fine for tests; clients warn about it and other servers accept it by dialback only",
        ),
        Verdict::UnknownIssuer { issuer } => Finding::warn(
            TOPIC,
            format!("{shown}, issued by \"{issuer}\", does not lead to a root certificate of this system"),
            "if a public authority issued it, the intermediate certificates are missing: use the file with the full chain",
        ),
        // Names and times have findings of their own.
        Verdict::Valid | Verdict::WrongName { .. } => {
            Finding::ok(TOPIC, format!("{shown} is trusted by this system's root certificates"))
        }
        other => Finding::note(TOPIC, format!("{shown}: another server would say: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Level, worst};
    use super::*;
    use crate::net::pki::{self, Leaf};

    struct Issued {
        directory: tempfile::TempDir,
    }

    impl Issued {
        fn new(names: &[&str], days: std::ops::Range<i64>) -> Issued {
            let directory = tempfile::tempdir().unwrap();
            let day = |days: i64| Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
            let domains = names.iter().map(|name| (*name).to_owned()).collect();
            let leaf = Leaf { domains, valid: (day(days.start), day(days.end)), ..Leaf::new("x", 1) };
            let pem = pki::self_signed(&leaf).unwrap();
            pem.write(&directory.path().join("c.pem"), &directory.path().join("k.pem")).unwrap();
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
        let findings = Issued::new(&["example.org"], -1..90).check("example.org");
        has(&findings, Level::Ok, "covers example.org");
        has(&findings, Level::Ok, "is valid for 8");
        has(&findings, Level::Warn, "self-signed");
        assert_eq!(worst(&findings), Level::Warn);
        has(&Issued::new(&["b.example"], -1..90).check("x.b.example"), Level::Ok, "covers");
        has(
            &Issued::new(&["www.example.org"], -1..90).check("example.org"),
            Level::Fail,
            "only: www.example.org, *.www.example.org",
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
        has(&issued.check("example.org"), Level::Fail, "the key is not the certificate's");
        std::fs::write(issued.directory.path().join("c.pem"), "nothing").unwrap();
        has(&issued.check("example.org"), Level::Fail, "contains no certificate");
        std::fs::remove_file(issued.directory.path().join("k.pem")).unwrap();
        assert_eq!(worst(&issued.check("example.org")), Level::Fail);
    }
}
