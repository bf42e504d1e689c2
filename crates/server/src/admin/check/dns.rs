//! What DNS tells clients and other servers about our domains (RFC 6120 s.3.2, XEP-0368).

use std::future::Future;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::{RData, RecordType};
use trunkline_xmpp::jid::domain_to_ascii;

use super::Finding;
use crate::config::Config;

/// One SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Srv {
    pub(super) target: String,
    pub(super) port: u16,
}

/// Asks DNS: the error is for the operator; no records are no error.
pub(super) trait Lookup {
    fn srv(&self, name: &str) -> impl Future<Output = Result<Vec<Srv>, String>>;
    fn addresses(&self, name: &str) -> impl Future<Output = Result<Vec<IpAddr>, String>>;
    fn is_ours(&self, address: IpAddr) -> bool;
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

pub(super) async fn check(config: &Config, lookup: &impl Lookup) -> Vec<Finding> {
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
        let domain = domain_to_ascii(domain);
        for service in &services {
            match check_service(&domain, service, lookup).await {
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
    lookup: &impl Lookup,
) -> Result<Vec<Finding>, String> {
    let name = format!("{}.{domain}", service.name);
    let records = lookup.srv(&name).await?;
    let ports: Vec<u16> = service.listeners.iter().map(SocketAddr::port).collect();
    if records.is_empty() {
        return without_records(domain, service, &ports, lookup).await;
    }
    let mut findings = Vec::new();
    for record in &records {
        let shown = format!("{name} -> {}:{}", record.target, record.port);
        // RFC 2782: "." means: not offered here.
        if record.target == "." || record.target.is_empty() {
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
        findings.push(target(&shown, &record.target, lookup).await?);
    }
    Ok(findings)
}

async fn without_records(
    domain: &str,
    service: &Service<'_>,
    ports: &[u16],
    lookup: &impl Lookup,
) -> Result<Vec<Finding>, String> {
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
    Ok(vec![target(&shown, domain, lookup).await?])
}

/// Whether a name leads here.
async fn target(shown: &str, name: &str, lookup: &impl Lookup) -> Result<Finding, String> {
    let addresses = lookup.addresses(name).await?;
    let list = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Ok(if addresses.is_empty() {
        let text = format!("{shown} has no address");
        Finding::fail("dns", text, format!("add A and AAAA records for {name}"))
    } else if addresses.iter().any(|address| lookup.is_ours(*address)) {
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

/// This machine's resolver.
pub(super) struct System(Result<TokioResolver, String>);

impl System {
    pub(super) fn new() -> System {
        let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build());
        System(resolver.map_err(|error| error.to_string()))
    }

    async fn records<T>(
        &self,
        name: &str,
        kind: RecordType,
        read: impl Fn(&RData) -> Option<T>,
    ) -> Result<Vec<T>, String> {
        let resolver = self.0.as_ref().map_err(Clone::clone)?;
        // With the final dot: the search list of /etc/resolv.conf is not for this.
        let question = resolver.lookup(format!("{}.", name.trim_end_matches('.')), kind);
        match tokio::time::timeout(Duration::from_secs(8), question).await {
            Err(_) => Err("no answer from DNS".into()),
            Ok(Err(error)) if error.is_no_records_found() || error.is_nx_domain() => Ok(Vec::new()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(found)) => Ok(found.answers().iter().filter_map(|record| read(&record.data)).collect()),
        }
    }
}

impl Lookup for System {
    async fn srv(&self, name: &str) -> Result<Vec<Srv>, String> {
        self.records(name, RecordType::SRV, |data| match data {
            RData::SRV(srv) => {
                Some(Srv { target: srv.target.to_string().trim_end_matches('.').to_owned(), port: srv.port })
            }
            _ => None,
        })
        .await
    }

    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        let mut addresses = self
            .records(name, RecordType::AAAA, |data| match data {
                RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                _ => None,
            })
            .await?;
        let v4 = self.records(name, RecordType::A, |data| match data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            _ => None,
        });
        addresses.extend(v4.await?);
        Ok(addresses)
    }

    fn is_ours(&self, address: IpAddr) -> bool {
        // Only an own address can be bound; nothing is sent.
        UdpSocket::bind((address, 0)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::super::{Level, worst};
    use super::*;

    #[derive(Default)]
    struct Zone {
        srv: BTreeMap<&'static str, Vec<Srv>>,
        addresses: BTreeMap<&'static str, Vec<IpAddr>>,
        broken: bool,
    }

    impl Lookup for Zone {
        async fn srv(&self, name: &str) -> Result<Vec<Srv>, String> {
            if self.broken {
                Err("no answer".into())
            } else {
                Ok(self.srv.get(name).cloned().unwrap_or_default())
            }
        }
        async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, String> {
            Ok(self.addresses.get(name).cloned().unwrap_or_default())
        }
        fn is_ours(&self, address: IpAddr) -> bool {
            address == OURS
        }
    }

    const OURS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn zone(srv: &[(&'static str, &str, u16)], addresses: &[(&'static str, &str)]) -> Zone {
        let mut zone = Zone::default();
        for (name, target, port) in srv {
            zone.srv.entry(name).or_default().push(Srv { target: (*target).into(), port: *port });
        }
        for (name, address) in addresses {
            zone.addresses.entry(name).or_default().push(address.parse().unwrap());
        }
        zone
    }

    async fn look(rest: &str, zone: Zone) -> Vec<Finding> {
        let text = format!("domain = \"example.org\"\n{rest}");
        check(&Config::parse(&text, Path::new("trunkline.toml")).unwrap(), &zone).await
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
            ("_xmpp-server._tcp.example.org", ".", 0),
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
        let findings = check(&config, &Zone { broken: true, ..Zone::default() }).await;
        assert_eq!((findings.len(), findings[0].level), (1, Level::Note));
        let findings = look("", Zone { broken: true, ..Zone::default() }).await;
        assert_eq!((findings.len(), findings[0].level), (1, Level::Warn));
    }
}
