//! The PROXY protocol, version 2 (HAProxy's `proxy-protocol.txt`, s.2.2): a proxy tells in front of the connection's own
//! bytes where the connection came from. It is read from addresses that the operator has named, and there it must be;
//! from anywhere else it is bytes like any other, which no protocol of ours begins with.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// s.2.2: what every header begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Of the addresses and whatever else the proxy tells; a certificate's names fit.
const MOST_BYTES: usize = 2048;

/// An address, or all that share its first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Not an address, nor one with a number of bits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an address: write \"192.0.2.7\", \"10.0.0.0/8\" or \"2001:db8::/32\"")]
pub struct NotANetwork(String);

impl Network {
    /// Whether `address` belongs to it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let same = |a: u128, b: u128, width: u32| {
            let shift = width - u32::from(self.bits);
            a.checked_shr(shift).unwrap_or(0) == b.checked_shr(shift).unwrap_or(0)
        };
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Network, NotANetwork> {
        let wrong = || NotANetwork(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address = address.parse::<IpAddr>().map_err(|_| wrong())?.to_canonical();
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(wrong)?,
        };
        Ok(Network { address, bits })
    }
}

impl TryFrom<String> for Network {
    type Error = NotANetwork;

    fn try_from(text: String) -> Result<Network, NotANetwork> {
        text.parse()
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// What is wrong with a proxy's header. The proxy's fault, or that of who named it a proxy.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Other bytes.
    #[error("the connection does not begin with a PROXY header of version 2")]
    Signature,
    /// Version, command, family or length that s.2.2 does not know or we do not take.
    #[error("a PROXY header that is not understood")]
    Unknown,
    /// It ended before its time.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads the header, and no byte more. `None`: the proxy speaks for itself, as for a health check.
///
/// # Errors
/// What is wrong with it: the connection must be closed.
pub async fn read_header<R: AsyncRead + Unpin>(from: &mut R) -> Result<Option<SocketAddr>, HeaderError> {
    let mut head = [0; 16];
    from.read_exact(&mut head).await?;
    let length = length(&head)?;
    let mut rest = vec![0; length];
    from.read_exact(&mut rest).await?;
    source(&head, &rest)
}

fn length(head: &[u8; 16]) -> Result<usize, HeaderError> {
    let (signature, rest) = head.split_at(SIGNATURE.len());
    if signature != SIGNATURE {
        return Err(HeaderError::Signature);
    }
    let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
    if length > MOST_BYTES { Err(HeaderError::Unknown) } else { Ok(length) }
}

/// The address that the connection came from.
fn source(head: &[u8; 16], rest: &[u8]) -> Result<Option<SocketAddr>, HeaderError> {
    let port = |at: usize| Some(u16::from_be_bytes([*rest.get(at)?, *rest.get(at + 1)?]));
    match (head[12], head[13]) {
        // LOCAL: whatever stands in it is to be skipped.
        (0x20, _) => Ok(None),
        // PROXY, unspecified: it does not know.
        (0x21, 0x00) => Ok(None),
        // TCP over IPv4: two addresses, two ports.
        (0x21, 0x11) => {
            let address: Option<[u8; 4]> = rest.get(..4).and_then(|bytes| bytes.try_into().ok());
            match (address, port(8)) {
                (Some(address), Some(port)) if rest.len() >= 12 => {
                    Ok(Some(SocketAddr::new(Ipv4Addr::from(address).into(), port)))
                }
                _ => Err(HeaderError::Unknown),
            }
        }
        // TCP over IPv6.
        (0x21, 0x21) => {
            let address: Option<[u8; 16]> = rest.get(..16).and_then(|bytes| bytes.try_into().ok());
            match (address, port(32)) {
                (Some(address), Some(port)) if rest.len() >= 36 => {
                    Ok(Some(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(address)).to_canonical(), port)))
                }
                _ => Err(HeaderError::Unknown),
            }
        }
        _ => Err(HeaderError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<(Option<SocketAddr>, usize), HeaderError> {
        let mut left = bytes;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let source = runtime.block_on(read_header(&mut left))?;
        Ok((source, left.len()))
    }

    #[test]
    fn the_source_is_read_and_what_follows_is_left() {
        let v4 = [192, 0, 2, 7, 203, 0, 113, 1, 0x30, 0x39, 0x14, 0x66];
        let mut bytes = header(0x21, 0x11, &v4);
        bytes.extend(b"<?xml");
        assert_eq!(read(&bytes).unwrap(), (Some("192.0.2.7:12345".parse().unwrap()), 5));
        // Further fields behind the addresses are skipped.
        let mut long = v4.to_vec();
        long.extend([0x01, 0, 2, b'h', b'2']);
        assert_eq!(read(&header(0x21, 0x11, &long)).unwrap().0, Some("192.0.2.7:12345".parse().unwrap()));
        let mut v6 = Ipv6Addr::LOCALHOST.octets().to_vec();
        v6.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        v6.extend([0, 80, 0, 90]);
        assert_eq!(read(&header(0x21, 0x21, &v6)).unwrap().0, Some("[::1]:80".parse().unwrap()));
    }

    #[test]
    fn a_proxy_that_speaks_for_itself_names_nobody() {
        assert_eq!(read(&header(0x20, 0x11, &[9; 12])).unwrap().0, None);
        assert_eq!(read(&header(0x20, 0x00, &[])).unwrap().0, None);
        assert_eq!(read(&header(0x21, 0x00, &[])).unwrap().0, None);
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for (bytes, why) in [
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "another protocol"),
            (b"PROXY TCP4 192.0.2.7 203.0.113.1 1 2\r\n".to_vec(), "version 1"),
            (header(0x11, 0x11, &[0; 12]), "another version"),
            (header(0x22, 0x11, &[0; 12]), "another command"),
            (header(0x21, 0x12, &[0; 12]), "datagrams"),
            (header(0x21, 0x31, &[0; 216]), "a Unix socket"),
            (header(0x21, 0x11, &[0; 11]), "addresses cut short"),
            (header(0x21, 0x21, &[0; 35]), "addresses cut short"),
            (header(0x21, 0x11, &[0; MOST_BYTES + 1]), "too long"),
            (SIGNATURE.to_vec(), "an end too early"),
        ] {
            assert!(read(&bytes).is_err(), "{why}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_no_panic(command in any::<u8>(), family in any::<u8>(), rest in proptest::collection::vec(any::<u8>(), 0..64), cut in 0usize..80) {
            let mut bytes = header(command, family, &rest);
            bytes.truncate(cut);
            if let Ok((Some(_), _)) = read(&bytes) {
                prop_assert!(command == 0x21 && (family == 0x11 || family == 0x21));
            }
        }
    }

    #[test]
    fn networks() {
        let contains = |network: &str, address: &str| {
            network.parse::<Network>().unwrap().contains(address.parse().unwrap())
        };
        assert!(contains("10.0.0.0/8", "10.255.3.4") && !contains("10.0.0.0/8", "11.0.0.0"));
        assert!(contains("192.0.2.7", "192.0.2.7") && !contains("192.0.2.7", "192.0.2.6"));
        assert!(contains("127.0.0.1", "::ffff:127.0.0.1"));
        assert!(contains("2001:db8::/32", "2001:db8:1::1") && !contains("2001:db8::/32", "2001:db9::"));
        assert!(contains("0.0.0.0/0", "203.0.113.9") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("::/0", "::1"));
        for wrong in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "example.org", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
