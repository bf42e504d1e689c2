//! A name server on loopback for the servers' domains, so that they find each other and nothing of the machine's own
//! is changed.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

const A: u16 = 1;
const SRV: u16 = 33;

type Hosts = Arc<Mutex<HashMap<String, (Ipv4Addr, u16)>>>;

/// Where each domain's server-to-server port is. Ends with the process.
#[derive(Debug)]
pub(super) struct Dns {
    pub(super) address: SocketAddr,
    hosts: Hosts,
}

impl Dns {
    pub(super) fn start() -> Result<Dns, String> {
        let socket = UdpSocket::bind("127.0.0.1:0").map_err(|error| format!("name server: {error}"))?;
        let address = socket.local_addr().map_err(|error| format!("name server: {error}"))?;
        let hosts = Hosts::default();
        let known = Arc::clone(&hosts);
        thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, sender)) = socket.recv_from(&mut query) {
                let known = known.lock().map(|it| it.clone()).unwrap_or_default();
                if let Some(answer) = answer(&query[..length], &known) {
                    let _ = socket.send_to(&answer, sender);
                }
            }
        });
        Ok(Dns { address, hosts })
    }

    pub(super) fn announce(&self, domain: &str, at: (Ipv4Addr, u16)) {
        if let Ok(mut hosts) = self.hosts.lock() {
            hosts.insert(domain.to_owned(), at);
        }
    }
}

/// `None` for what is no query.
fn answer(query: &[u8], hosts: &HashMap<String, (Ipv4Addr, u16)>) -> Option<Vec<u8>> {
    let (name, end) = name(query)?;
    let kind = u16::from_be_bytes([*query.get(end)?, *query.get(end + 1)?]);
    let question = query.get(12..end + 4)?;
    let mut data = Vec::new();
    let mut known = false;
    for (domain, (address, port)) in hosts {
        let service = format!("_xmpp-server._tcp.{domain}");
        let literal = address.to_string();
        known |= name == *domain || name == literal || service.ends_with(&name);
        if kind == A && (name == *domain || name == literal) {
            data = address.octets().to_vec();
        } else if kind == SRV && name == service {
            // The target is the address itself: ejabberd asks us for services but the C library for addresses.
            let [high, low] = port.to_be_bytes();
            data = vec![0, 5, 0, 5, high, low];
            for label in literal.split('.') {
                data.push(label.len() as u8);
                data.extend(label.bytes());
            }
            data.push(0);
        }
    }
    let count = u8::from(!data.is_empty());
    // A missing name and an empty answer differ: the first is remembered for all below it.
    let code = if known { 0x80 } else { 0x83 };
    let mut text = vec![query[0], query[1], 0x85, code, 0, 1, 0, count, 0, 0, 0, 0];
    text.extend(question);
    if count == 1 {
        text.extend([0xc0, 12, 0, kind as u8, 0, 1, 0, 0, 1, 0, 0, data.len() as u8]);
        text.extend(data);
    }
    Some(text)
}

/// The name that is asked for, and where it ends.
fn name(query: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        let label = query.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(name: &str, kind: u8) -> Vec<u8> {
        let mut query = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        let hosts = HashMap::from([("a.bench".to_owned(), (Ipv4Addr::new(127, 0, 8, 2), 5269))]);
        answer(&query, &hosts).unwrap_or_default()
    }

    #[test]
    fn services_and_addresses() {
        let service = ask("_xmpp-server._tcp.A.bench", 33);
        assert_eq!(service[..8], [7, 9, 0x85, 0x80, 0, 1, 0, 1]);
        let tail =
            [&[0, 5, 0, 5, 0x14, 0x95, 3][..], b"127", &[1], b"0", &[1], b"8", &[1], b"2", &[0]].concat();
        assert!(service.ends_with(&tail), "{service:?}");
        assert_eq!(service[service.len() - tail.len() - 1], tail.len() as u8);
        assert!(ask("a.bench", 1).ends_with(&[0, 4, 127, 0, 8, 2]));
        assert!(ask("127.0.8.2", 1).ends_with(&[0, 4, 127, 0, 8, 2]));
    }

    #[test]
    fn what_is_not_there() {
        assert_eq!(ask("a.bench", 28)[3..8], [0x80, 0, 1, 0, 0], "no such record");
        assert_eq!(ask("b.bench", 1)[3..8], [0x83, 0, 1, 0, 0], "no such name");
        assert_eq!(answer(&[1, 2, 3], &HashMap::new()), None);
    }
}
