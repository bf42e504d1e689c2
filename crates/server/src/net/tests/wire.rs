//! The real resolver against a name server in this file: what goes over the wire means what we think.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

use crate::net::dns::{DnsError, SystemResolver};
use crate::net::{Resolver, TargetError, targets};

/// Answers by name; counts the questions.
async fn name_server() -> (Arc<dyn Resolver>, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address: SocketAddr = socket.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        let mut buf = [0; 1500];
        while let Ok((n, peer)) = socket.recv_from(&mut buf).await {
            count.fetch_add(1, Ordering::SeqCst);
            let reply = reply(Message::from_vec(&buf[..n]).unwrap());
            socket.send_to(&reply.to_vec().unwrap(), peer).await.unwrap();
        }
    });
    (Arc::new(SystemResolver::with_servers(&[address]).unwrap()), asked)
}

fn reply(question: Message) -> Message {
    let query = question.queries[0].clone();
    let mut reply = question.into_response();
    let name = |text: &str| Name::from_ascii(text).unwrap();
    let srv = |port: u16, host: &str| RData::SRV(SRV::new(10, 0, port, name(host)));
    let answers = match (query.name().to_ascii().to_ascii_lowercase().as_str(), query.query_type()) {
        ("_xmpp-server._tcp.peer.test.", RecordType::SRV) => vec![srv(5269, "xmpp.peer.test.")],
        ("_xmpps-server._tcp.peer.test.", RecordType::SRV) => vec![srv(5270, "xmpp.peer.test.")],
        ("_xmpp-server._tcp.closed.test.", RecordType::SRV) => vec![srv(0, ".")],
        ("xmpp.peer.test.", RecordType::A) => vec![RData::A(Ipv4Addr::new(192, 0, 2, 1).into())],
        ("xmpp.peer.test.", RecordType::AAAA) => vec![RData::AAAA(Ipv6Addr::LOCALHOST.into())],
        ("v4.test.", RecordType::A) => vec![RData::A(Ipv4Addr::new(192, 0, 2, 4).into())],
        ("v4.test." | "empty.test.", _) => vec![],
        ("ill.test.", _) => {
            reply.metadata.response_code = ResponseCode::ServFail;
            vec![]
        }
        ("refused.test.", _) => {
            reply.metadata.response_code = ResponseCode::Refused;
            vec![]
        }
        _ => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            vec![]
        }
    };
    for data in answers {
        reply.add_answer(Record::from_rdata(query.name().clone(), 60, data));
    }
    reply
}

#[tokio::test]
async fn answers_and_failures_mean_what_we_think() {
    let (dns, asked) = name_server().await;
    let found = targets(&dns, "peer.test", &|_| 0).await.unwrap();
    let ports: Vec<(u16, bool)> = found.iter().map(|t| (t.port, t.direct_tls)).collect();
    assert_eq!(ports, [(5270, true), (5269, false)]);
    assert_eq!(found[0].host, "xmpp.peer.test");
    let addresses: Vec<String> = found[0].addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["::1", "192.0.2.1"]);

    let before = asked.load(Ordering::SeqCst);
    targets(&dns, "peer.test", &|_| 0).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), before, "answers are kept for their time");

    let closed = targets(&dns, "closed.test", &|_| 0).await;
    assert_eq!(closed, Err(TargetError::NotOffered("closed.test".into())));
    assert_eq!(dns.addresses("v4.test").await.unwrap().records, [Ipv4Addr::new(192, 0, 2, 4)]);
    assert_eq!(dns.addresses("nowhere.test").await, Err(DnsError::NoSuchName));
    assert_eq!(dns.addresses("empty.test").await, Err(DnsError::NoRecords));
    assert_eq!(dns.addresses("ill.test").await, Err(DnsError::ServFail));
    assert_eq!(dns.addresses("refused.test").await, Err(DnsError::Refused));
    assert!(dns.addresses(&"x".repeat(70)).await.is_err());
}
