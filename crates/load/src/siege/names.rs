//! A name server for the attackers' zone: every domain in it leads to their own server, except for those that are
//! made to be trouble.
//!
//! | domain | what the server learns |
//! |---|---|
//! | `d7.ZONE` | where the attackers' server is |
//! | `d7.liar.ZONE` | the same; that server never answers about this domain |
//! | `d7.void.ZONE` | there is no such domain |
//! | `d7.mute.ZONE` | nothing: the query is not answered |

use std::net::{IpAddr, SocketAddr};

use tokio::net::UdpSocket;

const A: u16 = 1;
const SRV: u16 = 33;

/// Answers for ever.
pub(super) async fn serve(socket: UdpSocket, zone: String, server: SocketAddr) {
    let mut query = [0; 512];
    loop {
        let Ok((length, sender)) = socket.recv_from(&mut query).await else { continue };
        if let Some(answer) = answer(&query[..length], &zone, server) {
            // Who asked has gone.
            let _ = socket.send_to(&answer, sender).await;
        }
    }
}

/// `None` for what is not answered.
fn answer(query: &[u8], zone: &str, server: SocketAddr) -> Option<Vec<u8>> {
    let (name, end) = name(query)?;
    let kind = u16::from_be_bytes([*query.get(end)?, *query.get(end + 1)?]);
    let question = query.get(12..end + 4)?;
    if name.ends_with(&format!(".mute.{zone}")) {
        return None;
    }
    let known = (name.ends_with(zone) && !name.ends_with(&format!(".void.{zone}")))
        || name == server.ip().to_string();
    let mut data = Vec::new();
    let service = name.strip_prefix("_xmpp-server._tcp.");
    match (server.ip(), service) {
        (IpAddr::V4(address), None) if known && kind == A && !name.starts_with('_') => {
            data.extend(address.octets());
        }
        (_, Some(domain)) if known && kind == SRV => {
            let [high, low] = server.port().to_be_bytes();
            data.extend([0, 5, 0, 5, high, low]);
            for label in domain.split('.') {
                data.push(label.len() as u8);
                data.extend(label.bytes());
            }
            data.push(0);
        }
        _ => {}
    }
    let count = u8::from(!data.is_empty());
    let code = if known { 0x80 } else { 0x83 };
    let mut text = vec![query[0], query[1], 0x85, code, 0, 1, 0, count, 0, 0, 0, 0];
    text.extend(question);
    if count == 1 {
        text.extend([0xc0, 12, 0, kind as u8, 0, 1, 0, 0, 0, 1, 0, data.len() as u8]);
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
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn ask(name: &str, kind: u8) -> Option<Vec<u8>> {
        let mut query = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        answer(&query, "siege.test", "127.0.0.9:4711".parse().unwrap())
    }

    #[test]
    fn each_kind_of_domain_gets_its_answer() {
        let service = ask("_xmpp-server._tcp.d7.siege.test", 33).unwrap();
        assert_eq!(service[2..8], [0x85, 0x80, 0, 1, 0, 1]);
        let [high, low] = 4711_u16.to_be_bytes();
        assert!(
            service.ends_with(&[b"\0\x05\0\x05", &[high, low][..], b"\x02d7\x05siege\x04test\0"].concat())
        );
        assert!(ask("d7.siege.test", 1).unwrap().ends_with(&[0, 4, 127, 0, 0, 9]));
        assert!(ask("d7.liar.siege.test", 1).unwrap().ends_with(&[127, 0, 0, 9]));
        assert_eq!(ask("d7.siege.test", 28).unwrap()[3..8], [0x80, 0, 1, 0, 0], "no such record");
        assert_eq!(ask("d7.void.siege.test", 1).unwrap()[3..8], [0x83, 0, 1, 0, 0], "no such name");
        assert_eq!(ask("example.org", 1).unwrap()[3], 0x83, "not of the zone");
        assert_eq!(ask("d7.mute.siege.test", 1), None);
    }
}
