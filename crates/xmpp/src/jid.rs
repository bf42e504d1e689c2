//! RFC 6122 addresses, and the part of RFC 7622 that both can share.
//!
//! There is one canonical form: nodeprep'd local part, domain in U-labels without a trailing dot, resourceprep'd
//! resource. Two addresses are equal when their canonical strings are.
//!
//! Where RFC 6122 and today's domain registries (IDNA2008) disagree about a label, as for `straße`, which nameprep
//! would turn into the domain of somebody else, the label is kept in its A-form (`xn--strae-oqa`): stable,
//! unambiguous and right for DNS.

use std::borrow::{Borrow, Cow};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::Arc;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use precis_profiles::UsernameCaseMapped;
use precis_profiles::precis_core::profile::Profile as _;

use crate::prep::{PrepError, Profile, Unassigned, prepare};

/// RFC 6122 s.2.1: bytes a part may have after preparation.
pub const MAX_PART: usize = 1023;
/// RFC 6122 s.2.1: bytes an address may have.
pub const MAX_JID: usize = 3 * MAX_PART + 2;

/// An XMPP address in canonical form. Cloning and taking the bare or domain part copy no text.
#[derive(Clone)]
pub struct Jid {
    /// The address this one is a section of, `start..end`. A bare JID shares the text of its full JID.
    text: Arc<str>,
    start: u16,
    /// Where the domain begins: `start`, or one behind the `@`.
    domain: u16,
    /// Where the domain ends: `end`, or the place of the `/`.
    slash: u16,
    end: u16,
}

/// One of the three parts of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Before the `@`.
    Local,
    /// The server.
    Domain,
    /// Behind the first `/`.
    Resource,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Local => "local part",
            Part::Domain => "domain",
            Part::Resource => "resource",
        })
    }
}

/// Why a string is not an address. Always the fault of who wrote the string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JidError {
    /// A separator stands there, but the part does not; or nothing is left of it after preparation.
    #[error("the {0} is empty")]
    Empty(Part),
    /// Longer than 1023 bytes, or a label of the domain longer than 63.
    #[error("the {0} is too long")]
    TooLong(Part),
    /// A character that the part must not contain.
    #[error("the {part} must not contain U+{:04X}", *ch as u32)]
    Prohibited {
        /// Where.
        part: Part,
        /// Which, after normalization.
        ch: char,
    },
    /// RFC 3454 s.6: left-to-right and right-to-left characters mixed in one part.
    #[error("the {0} mixes writing directions")]
    Bidi(Part),
    /// The prepared form is not a fixed point (characters newer than Unicode 3.2).
    #[error("the {0} has no canonical form")]
    Unstable(Part),
    /// Neither a domain name nor an IP literal.
    #[error("the domain is not a domain name")]
    Domain,
}

impl Jid {
    /// Parses and canonicalises an address. RFC 7622 s.3.1: the resource begins at the first `/`; the local part
    /// ends at the first `@` before that.
    pub fn parse(s: &str) -> Result<Jid, JidError> {
        let (rest, resource) = match s.split_once('/') {
            Some((rest, resource)) => (rest, Some(resource)),
            None => (s, None),
        };
        let (local, domain) = match rest.split_once('@') {
            Some((local, domain)) => (Some(local), domain),
            None => (None, rest),
        };
        Jid::from_parts(local, domain, resource)
    }

    /// Builds an address of its parts, each of which is canonicalised.
    pub fn from_parts(local: Option<&str>, domain: &str, resource: Option<&str>) -> Result<Jid, JidError> {
        let local = local.map(|l| prepare_part(l, Part::Local, Unassigned::Allow)).transpose()?;
        let domain = prepare_domain(domain)?;
        let resource = resource.map(|r| prepare_part(r, Part::Resource, Unassigned::Allow)).transpose()?;
        Ok(Jid::assemble(local.as_deref(), &domain, resource.as_deref()))
    }

    /// Parts must be canonical.
    fn assemble(local: Option<&str>, domain: &str, resource: Option<&str>) -> Jid {
        let mut text = String::with_capacity(
            local.map_or(0, |l| l.len() + 1) + domain.len() + resource.map_or(0, |r| r.len() + 1),
        );
        if let Some(local) = local {
            text.push_str(local);
            text.push('@');
        }
        let at = text.len();
        text.push_str(domain);
        let slash = text.len();
        if let Some(resource) = resource {
            text.push('/');
            text.push_str(resource);
        }
        let offset = |n: usize| u16::try_from(n).expect("invariant: three parts of at most 1023 bytes");
        Jid { start: 0, domain: offset(at), slash: offset(slash), end: offset(text.len()), text: text.into() }
    }

    /// The canonical string.
    pub fn as_str(&self) -> &str {
        self.slice(self.start, self.end)
    }

    /// The part before the `@`.
    pub fn local(&self) -> Option<&str> {
        (self.domain > self.start).then(|| self.slice(self.start, self.domain - 1))
    }

    /// The domain, in U-labels.
    pub fn domain(&self) -> &str {
        self.slice(self.domain, self.slash)
    }

    /// The domain in A-labels, as DNS and certificates have it.
    pub fn domain_ascii(&self) -> Cow<'_, str> {
        domain_to_ascii(self.domain())
    }

    /// The part behind the `/`.
    pub fn resource(&self) -> Option<&str> {
        (self.end > self.slash).then(|| self.slice(self.slash + 1, self.end))
    }

    /// The address without its resource, as text.
    pub fn bare_str(&self) -> &str {
        self.slice(self.start, self.slash)
    }

    /// The address without its resource.
    pub fn bare(&self) -> Jid {
        Jid { end: self.slash, ..self.clone() }
    }

    /// The address of the server: the domain alone.
    pub fn domain_jid(&self) -> Jid {
        Jid { start: self.domain, end: self.slash, ..self.clone() }
    }

    /// The same account or room with another resource.
    pub fn with_resource(&self, resource: &str) -> Result<Jid, JidError> {
        let resource = prepare_part(resource, Part::Resource, Unassigned::Allow)?;
        Ok(Jid::assemble(self.local(), self.domain(), Some(&resource)))
    }

    /// `local@domain`, as of an account or a room.
    pub fn is_bare(&self) -> bool {
        self.local().is_some() && self.resource().is_none()
    }

    /// Has a resource. (`domain/resource` counts as full.)
    pub fn is_full(&self) -> bool {
        self.resource().is_some()
    }

    /// The domain alone, as of a server. Each address is exactly one of bare, full and domain.
    pub fn is_domain(&self) -> bool {
        self.local().is_none() && self.resource().is_none()
    }

    /// Equal but for the resource.
    pub fn same_bare(&self, other: &Jid) -> bool {
        self.bare_str() == other.bare_str()
    }

    /// Whether a *new* account or room may have this local part: RFC 6122 and RFC 7622 (PRECIS
    /// UsernameCaseMapped) must agree about its canonical form, and every character must be known to both. Else two
    /// peers could take one address for two, or two for one (`straße` and `strasse`).
    pub fn new_local_part_ok(local: &str) -> bool {
        let Ok(stringprep) = prepare_part(local, Part::Local, Unassigned::Refuse) else { return false };
        UsernameCaseMapped::new().enforce(local).is_ok_and(|precis| precis == stringprep)
    }

    fn slice(&self, from: u16, to: u16) -> &str {
        &self.text[usize::from(from)..usize::from(to)]
    }
}

/// A domain in A-labels, as DNS and certificates have it. What is not a domain name comes back as it is.
pub fn domain_to_ascii(domain: &str) -> Cow<'_, str> {
    if domain.is_ascii() {
        return Cow::Borrowed(domain);
    }
    Uts46::new()
        .to_ascii(domain.as_bytes(), DENIED, Hyphens::CheckFirstLast, DnsLength::Ignore)
        .unwrap_or(Cow::Borrowed(domain))
}

fn prepare_part(s: &str, part: Part, unassigned: Unassigned) -> Result<Cow<'_, str>, JidError> {
    // Also bounds the work: a longer string could become short enough only by characters that map to nothing.
    if s.len() > MAX_JID {
        return Err(JidError::TooLong(part));
    }
    let profile = if part == Part::Local { Profile::Node } else { Profile::Resource };
    let prepared = prepare(s, profile, unassigned).map_err(|e| match e {
        PrepError::Prohibited(ch) => JidError::Prohibited { part, ch },
        PrepError::Bidi => JidError::Bidi(part),
        PrepError::Unstable => JidError::Unstable(part),
    })?;
    match prepared.len() {
        0 => Err(JidError::Empty(part)),
        1..=MAX_PART => Ok(prepared),
        _ => Err(JidError::TooLong(part)),
    }
}

/// RFC 6122 s.2.2 wants UseSTD3ASCIIRules, which is letters, digits and hyphen. The underscore is allowed beyond
/// that: services with it in their name exist, and refusing to talk with them protects nobody.
const DENIED: AsciiDenyList = AsciiDenyList::new(true, "!\"#$%&'()*+,/:;<=>?@[\\]^`{|}~");

fn prepare_domain(s: &str) -> Result<Cow<'_, str>, JidError> {
    if s.len() > MAX_JID {
        return Err(JidError::TooLong(Part::Domain));
    }
    if let Some(literal) = s.strip_prefix('[') {
        return ipv6_literal(literal);
    }
    // RFC 7622 s.3.2: a trailing dot is stripped before anything else.
    let s = s.strip_suffix('.').unwrap_or(s);
    if s.is_empty() {
        return Err(JidError::Empty(Part::Domain));
    }
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    let domain = if s.bytes().all(plain) && s.split('.').all(|label| !label.starts_with("xn--")) {
        check_labels(s)?;
        Cow::Borrowed(s)
    } else {
        Cow::Owned(international_domain(s)?)
    };
    if domain.len() > MAX_PART { Err(JidError::TooLong(Part::Domain)) } else { Ok(domain) }
}

fn ipv6_literal(literal: &str) -> Result<Cow<'_, str>, JidError> {
    let address = literal.strip_suffix(']').ok_or(JidError::Domain)?;
    let address: Ipv6Addr = address.parse().map_err(|_| JidError::Domain)?;
    Ok(Cow::Owned(format!("[{address}]")))
}

/// `ascii` is a whole domain in A-labels.
fn check_labels(ascii: &str) -> Result<(), JidError> {
    for label in ascii.split('.') {
        match label.as_bytes() {
            [] | [b'-', ..] | [.., b'-'] => return Err(JidError::Domain),
            // RFC 3490 s.4.1, step 8.
            label if label.len() > 63 => return Err(JidError::TooLong(Part::Domain)),
            _ => {}
        }
    }
    Ok(())
}

fn international_domain(s: &str) -> Result<String, JidError> {
    let uts46 = Uts46::new();
    let (unicode, valid) = uts46.to_unicode(s.as_bytes(), DENIED, Hyphens::CheckFirstLast);
    valid.map_err(|_| JidError::Domain)?;
    let ascii = uts46
        .to_ascii(s.as_bytes(), DENIED, Hyphens::CheckFirstLast, DnsLength::Ignore)
        .map_err(|_| JidError::Domain)?;
    // The other label separators of IDNA (U+3002 and its like) are dots by now.
    let unicode = unicode.strip_suffix('.').unwrap_or(&unicode);
    let ascii = ascii.strip_suffix('.').unwrap_or(&ascii);
    if unicode.is_empty() {
        return Err(JidError::Empty(Part::Domain));
    }
    check_labels(ascii)?;
    let mut domain = String::with_capacity(unicode.len());
    for (u_label, a_label) in unicode.split('.').zip(ascii.split('.')) {
        if !domain.is_empty() {
            domain.push('.');
        }
        let agreed =
            prepare(u_label, Profile::Name, Unassigned::Refuse).is_ok_and(|prepared| prepared == u_label);
        domain.push_str(if agreed { u_label } else { a_label });
    }
    Ok(domain)
}

impl FromStr for Jid {
    type Err = JidError;
    fn from_str(s: &str) -> Result<Jid, JidError> {
        Jid::parse(s)
    }
}

impl TryFrom<&str> for Jid {
    type Error = JidError;
    fn try_from(s: &str) -> Result<Jid, JidError> {
        Jid::parse(s)
    }
}

impl fmt::Display for Jid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Jid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl PartialEq for Jid {
    fn eq(&self, other: &Jid) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Jid {}

impl PartialEq<str> for Jid {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Jid {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialOrd for Jid {
    fn partial_cmp(&self, other: &Jid) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Jid {
    fn cmp(&self, other: &Jid) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Hash for Jid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Borrow<str> for Jid {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for Jid {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

#[cfg(test)]
#[path = "jid_tests.rs"]
mod tests;
