//! What DNS tells clients and other servers about our domains (RFC 6120 s.3.2, XEP-0368).

use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::config::Config;
use crate::net::cert::to_ascii;
use crate::net::dns::{Answer, DnsError, Resolver, Srv};

use super::Finding;

/// Whom to ask.
pub(super) struct Eyes<'a> {
    /// Public DNS.
    pub(super) resolver: &'a dyn Resolver,
    /// Whether an address is this machine's.
    pub(super) is_ours: fn(IpAddr) -> bool,
}

impl Eyes<'_> {
    async fn srv(&self, name: &str) -> Result<Vec<Srv>, DnsError> {
        records(self.resolver.srv(name).await)
    }

    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, DnsError> {
        records(self.resolver.addresses(name).await)
    }
}

/// That there is nothing is an answer too.
fn records<T>(answer: Result<Answer<T>, DnsError>) -> Result<Vec<T>, DnsError> {
    match answer {
        Ok(answer) => Ok(answer.records),
        Err(error) if error.is_answer() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whether an address is this machine's: only an own address can be bound; nothing is sent.
pub(super) fn is_ours(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// What others find about one domain and one service.
struct Service<'a> {
    /// Such as `_xmpp-client._tcp`.
    name: &'static str,
    what: &'static str,
    listeners: &'a [SocketAddr],
    key: &'static str,
    /// The port others try without a record; direct TLS has none.
    fallback: Option<u16>,
}

pub(super) async fn check(config: &Config, eyes: &Eyes<'_>) -> Vec<Finding> {
    let services = [
        Service {
            name: "_xmpp-client._tcp",
            what: "clients",
            listeners: &config.clients.listen,
            key: "clients.listen",
            fallback: Some(5222),
        },
        Service {
            name: "_xmpps-client._tcp",
            what: "clients with direct TLS",
            listeners: &config.clients.listen_tls,
            key: "clients.listen_tls",
            fallback: None,
        },
        Service {
            name: "_xmpp-server._tcp",
            what: "other servers",
            listeners: &config.federation.listen,
            key: "federation.listen",
            fallback: Some(5269),
        },
        Service {
            name: "_xmpps-server._tcp",
            what: "other servers with direct TLS",
            listeners: &config.federation.listen_tls,
            key: "federation.listen_tls",
            fallback: None,
        },
    ];
    let local =
        services.iter().flat_map(|service| service.listeners).all(|address| address.ip().is_loopback());
    let mut findings = Vec::new();
    for domain in config.domains() {
        if local || is_special(domain) {
            let text = format!("{domain} was not looked up: it is for this machine only");
            findings.push(Finding::note("dns", text));
            continue;
        }
        let Some(domain) = to_ascii(domain) else {
            let text = format!("{domain} has no form that DNS could know");
            findings.push(Finding::fail("dns", text, "choose another domain"));
            continue;
        };
        for service in &services {
            match check_service(&domain, service, eyes).await {
                Ok(found) => findings.extend(found),
                Err(error) => {
                    let text = format!("{}.{domain}: {error}", service.name);
                    findings.push(Finding::warn(
                        "dns",
                        text,
                        "check this machine's resolver (/etc/resolv.conf)",
                    ));
                    // The others would wait for their time-outs too.
                    break;
                }
            }
        }
    }
    findings
}

/// RFC 6761 and RFC 6762: names that public DNS does not have.
fn is_special(domain: &str) -> bool {
    let last = domain.rsplit('.').next().unwrap_or(domain);
    ["localhost", "local", "test", "invalid", "internal"].contains(&last) || domain.parse::<IpAddr>().is_ok()
}

async fn check_service(
    domain: &str,
    service: &Service<'_>,
    eyes: &Eyes<'_>,
) -> Result<Vec<Finding>, DnsError> {
    let name = format!("{}.{domain}", service.name);
    let records = eyes.srv(&name).await?;
    let ports: Vec<u16> = service.listeners.iter().map(SocketAddr::port).collect();
    if records.is_empty() {
        return without_records(domain, service, &ports, eyes).await;
    }
    let mut findings = Vec::new();
    for record in &records {
        let shown = format!("{name} -> {}:{}", record.host, record.port);
        // RFC 2782: "." means: not offered here.
        if record.host.is_empty() {
            findings.push(if ports.is_empty() {
                Finding::ok("dns", format!("{name} says that there is no such service"))
            } else {
                let text = format!("{name} says that there is no such service, but {} has one", service.key);
                Finding::fail("dns", text, record_for(domain, service, &ports))
            });
            continue;
        }
        if ports.is_empty() {
            let text = format!("{shown}, but {} is empty", service.key);
            findings.push(Finding::fail("dns", text, "remove the record, or listen there"));
            continue;
        }
        if !ports.contains(&record.port) {
            let text = format!("{shown}, but {} has no port {}", service.key, record.port);
            findings.push(Finding::warn(
                "dns",
                text,
                "correct one of them, unless a router changes the port",
            ));
        }
        findings.push(target(&shown, &record.host, eyes).await?);
    }
    Ok(findings)
}

async fn without_records(
    domain: &str,
    service: &Service<'_>,
    ports: &[u16],
    eyes: &Eyes<'_>,
) -> Result<Vec<Finding>, DnsError> {
    if ports.is_empty() {
        return Ok(Vec::new());
    }
    let name = format!("{}.{domain}", service.name);
    let Some(fallback) = service.fallback else {
        let text = format!("{name} has no record, so {} can't find {}", service.what, service.key);
        return Ok(vec![Finding::warn("dns", text, record_for(domain, service, ports))]);
    };
    if !ports.contains(&fallback) {
        let text = format!(
            "{name} has no record and {} has no port {fallback}: {} find nothing",
            service.key, service.what
        );
        return Ok(vec![Finding::fail("dns", text, record_for(domain, service, ports))]);
    }
    let shown = format!("{name} has no record; {} try {domain}:{fallback} then, and {domain}", service.what);
    Ok(vec![target(&shown, domain, eyes).await?])
}

/// Whether a name leads here.
async fn target(shown: &str, name: &str, eyes: &Eyes<'_>) -> Result<Finding, DnsError> {
    let addresses = eyes.addresses(name).await?;
    let list = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Ok(if addresses.is_empty() {
        let text = format!("{shown} has no address");
        Finding::fail("dns", text, format!("add A and AAAA records for {name}"))
    } else if addresses.iter().any(|address| (eyes.is_ours)(*address)) {
        Finding::ok("dns", format!("{shown} is this machine ({list})"))
    } else {
        let text = format!("{shown} is {list}, which is not an address of this machine");
        Finding::warn(
            "dns",
            text,
            "right behind a router or load balancer that forwards to this machine; else correct the record",
        )
    })
}

fn record_for(domain: &str, service: &Service<'_>, ports: &[u16]) -> String {
    let port = ports.first().copied().unwrap_or_default();
    format!("add to the zone:  {}.{domain}. 3600 IN SRV 5 0 {port} {domain}.", service.name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::super::{Level, worst};
    use super::*;
    use crate::net::dns::Boxed;

    #[derive(Debug, Default)]
    struct Zone {
        srv: BTreeMap<&'static str, Vec<Srv>>,
        addresses: BTreeMap<&'static str, Vec<IpAddr>>,
        broken: bool,
    }

    impl Zone {
        fn answer<T: Clone>(&self, found: Option<&Vec<T>>) -> Result<Answer<T>, DnsError> {
            match found {
                _ if self.broken => Err(DnsError::Timeout),
                Some(records) => Ok(Answer { records: records.clone(), secure: None }),
                None => Err(DnsError::NoSuchName),
            }
        }
    }

    impl Resolver for Zone {
        fn srv<'a>(&'a self, name: &'a str) -> Boxed<'a, Result<Answer<Srv>, DnsError>> {
            Box::pin(async move { self.answer(self.srv.get(name)) })
        }
        fn addresses<'a>(&'a self, host: &'a str) -> Boxed<'a, Result<Answer<IpAddr>, DnsError>> {
            Box::pin(async move { self.answer(self.addresses.get(host)) })
        }
    }

    const OURS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn zone(srv: &[(&'static str, &str, u16)], addresses: &[(&'static str, &str)]) -> Zone {
        let mut zone = Zone::default();
        for (name, target, port) in srv {
            zone.srv.entry(name).or_default().push(Srv {
                priority: 5,
                weight: 0,
                host: (*target).into(),
                port: *port,
            });
        }
        for (name, address) in addresses {
            zone.addresses.entry(name).or_default().push(address.parse().unwrap());
        }
        zone
    }

    async fn look(rest: &str, zone: Zone) -> Vec<Finding> {
        let text = format!("domain = \"example.org\"\n{rest}");
        let eyes = Eyes { resolver: &zone, is_ours: |address| address == OURS };
        check(&Config::parse(&text, Path::new("trunkline.toml")).unwrap(), &eyes).await
    }

    fn has(findings: &[Finding], level: Level, part: &str) {
        let found = findings.iter().any(|finding| finding.level == level && finding.text.contains(part));
        assert!(found, "{part} is missing in {findings:#?}");
    }

    #[tokio::test]
    async fn all_records_right() {
        let names = [
            "_xmpp-client._tcp.example.org",
            "_xmpps-client._tcp.example.org",
            "_xmpp-server._tcp.example.org",
            "_xmpps-server._tcp.example.org",
        ];
        let srv: Vec<_> = names
            .into_iter()
            .zip([5222, 5223, 5269, 5270])
            .map(|(name, port)| (name, "xmpp.example.org", port))
            .collect();
        let findings = look("", zone(&srv, &[("xmpp.example.org", "192.0.2.1")])).await;
        assert_eq!(worst(&findings), Level::Ok, "{findings:#?}");
        assert_eq!(findings.len(), 4);
    }

    #[tokio::test]
    async fn no_records() {
        let findings = look("", zone(&[], &[("example.org", "192.0.2.1")])).await;
        has(&findings, Level::Ok, "try example.org:5222 then, and example.org is this machine");
        has(&findings, Level::Warn, "_xmpps-server._tcp.example.org has no record");
        let findings = look("[clients]\nlisten = \"[::]:15222\"\n", zone(&[], &[])).await;
        has(&findings, Level::Fail, "clients.listen has no port 5222");
        assert!(findings[0].todo.as_ref().unwrap().contains("IN SRV 5 0 15222 example.org."));
        has(&findings, Level::Fail, "has no address");
    }

    #[tokio::test]
    async fn wrong_records() {
        let srv = [
            ("_xmpp-client._tcp.example.org", "xmpp.example.org", 5299),
            ("_xmpp-server._tcp.example.org", "", 0),
            ("_xmpps-server._tcp.example.org", "xmpp.example.org", 5270),
        ];
        let rest = "[federation]\nlisten_tls = []\n";
        let findings = look(rest, zone(&srv, &[("xmpp.example.org", "198.51.100.7")])).await;
        has(&findings, Level::Warn, "clients.listen has no port 5299");
        has(&findings, Level::Warn, "198.51.100.7, which is not an address of this machine");
        has(&findings, Level::Fail, "says that there is no such service, but federation.listen has one");
        has(&findings, Level::Fail, "federation.listen_tls is empty");
    }

    #[tokio::test]
    async fn special_domains_are_not_looked_up() {
        let text = "domain = \"north.localhost\"";
        let config = Config::parse(text, Path::new("trunkline.toml")).unwrap();
        let zone = Zone { broken: true, ..Zone::default() };
        let findings = check(&config, &Eyes { resolver: &zone, is_ours }).await;
        assert_eq!((findings.len(), findings[0].level), (1, Level::Note));
        let findings = look("", Zone { broken: true, ..Zone::default() }).await;
        assert_eq!((findings.len(), findings[0].level), (1, Level::Warn));
    }
}
