use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::net::cert::{CertName, dns_matches};
use crate::net::pki::{Authority, Leaf, Pem, self_signed};
use crate::net::{TrustRoots, Verdict, verify_peer};

fn chain(pem: &Pem) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.chain.as_bytes()).collect::<Result<_, _>>().unwrap()
}

struct World {
    authority: Authority,
    roots: TrustRoots,
}

impl World {
    fn new() -> World {
        let authority = Authority::new("Demo authority").unwrap();
        let roots = TrustRoots::certificates(vec![authority.der()]).unwrap();
        World { authority, roots }
    }

    fn judge(&self, leaf: &Leaf, domain: &str) -> Verdict {
        let chain = chain(&self.authority.issue(leaf).unwrap());
        verify_peer(&chain, domain, Timestamp::now(), &self.roots)
    }
}

#[test]
fn good_certificates_are_valid_for_their_domains() {
    let world = World::new();
    let leaf = Leaf::new("north.example", 30);
    assert_eq!(world.judge(&leaf, "north.example"), Verdict::Valid);
    assert_eq!(world.judge(&leaf, "North.Example."), Verdict::Valid);
    assert_eq!(world.judge(&leaf, "rooms.north.example"), Verdict::Valid);
    let books = Leaf::new("bücher.example", 30);
    assert_eq!(world.judge(&books, "bücher.example"), Verdict::Valid);
    assert_eq!(world.judge(&books, "xn--bcher-kva.example"), Verdict::Valid);
    assert_eq!(world.judge(&Leaf::new("192.0.2.1", 30), "192.0.2.1"), Verdict::Valid);
    assert_eq!(world.judge(&Leaf::new("2001:db8::1", 30), "[2001:db8::1]"), Verdict::Valid);
}

#[test]
fn either_purpose_suffices_and_another_does_not() {
    let world = World::new();
    let leaf = Leaf::new("north.example", 30);
    for (server_auth, client_auth) in [(true, false), (false, true), (false, false)] {
        let leaf = Leaf { server_auth, client_auth, ..leaf.clone() };
        assert_eq!(world.judge(&leaf, "north.example"), Verdict::Valid, "{server_auth} {client_auth}");
    }
    let mail = Leaf { server_auth: false, client_auth: false, other_purpose: true, ..leaf };
    assert_eq!(world.judge(&mail, "north.example"), Verdict::WrongPurpose);
}

#[test]
fn each_fault_has_its_name_and_words() {
    let world = World::new();
    let leaf = Leaf::new("north.example", 30);
    let now = Timestamp::now();
    let hour = SignedDuration::from_hours(1);

    let expired =
        world.judge(&Leaf { valid: (now - hour * 48, now - hour), ..leaf.clone() }, "north.example");
    assert!(matches!(expired, Verdict::Expired { .. }));
    assert!(expired.to_string().starts_with("certificate expired on 20"), "{expired}");

    let early = world.judge(&Leaf { valid: (now + hour, now + hour * 48), ..leaf.clone() }, "north.example");
    assert!(matches!(early, Verdict::NotYetValid { .. }));

    let wrong = world.judge(&leaf, "south.example");
    assert_eq!(wrong.label(), "wrong-name");
    assert_eq!(wrong.to_string(), "certificate is for north.example, *.north.example, not for south.example");
    assert_eq!(world.judge(&leaf, "a.b.north.example").label(), "wrong-name");
    assert_eq!(world.judge(&leaf, "example").label(), "wrong-name");

    let foreign = Authority::new("Foreign authority").unwrap().issue(&leaf).unwrap();
    let verdict = verify_peer(&chain(&foreign), "north.example", now, &world.roots);
    assert_eq!(verdict, Verdict::UnknownIssuer { issuer: "CN=Foreign authority".into() });

    // The same name as the trusted authority, but another key.
    let forged = Authority::new("Demo authority").unwrap().issue(&leaf).unwrap();
    let verdict = verify_peer(&chain(&forged), "north.example", now, &world.roots);
    assert!(matches!(verdict, Verdict::BadSignature | Verdict::UnknownIssuer { .. }), "{verdict:?}");

    let own = self_signed(&Leaf::new("north.example", 30)).unwrap();
    assert_eq!(verify_peer(&chain(&own), "north.example", now, &world.roots), Verdict::SelfSigned);
    assert_eq!(verify_peer(&[], "north.example", now, &world.roots), Verdict::Missing);
    let rubbish = [CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])];
    assert_eq!(verify_peer(&rubbish, "north.example", now, &world.roots).label(), "other");
    let root = [world.authority.der()];
    assert!(!verify_peer(&root, "north.example", now, &TrustRoots::default()).is_valid());
}

#[test]
fn a_certificate_that_the_operator_trusts_needs_no_authority() {
    let own = chain(&self_signed(&Leaf::new("north.example", 30)).unwrap());
    let roots = TrustRoots::certificates(own.clone()).unwrap();
    let now = Timestamp::now();
    assert_eq!(verify_peer(&own, "north.example", now, &roots), Verdict::Valid);
    assert_eq!(verify_peer(&own, "south.example", now, &roots).label(), "wrong-name");
    let later = now + SignedDuration::from_hours(24 * 400);
    assert_eq!(verify_peer(&own, "north.example", later, &roots).label(), "expired");
    // Nor does its key speak for others: a certificate issued by it is not trusted for its own name.
    let other = chain(&self_signed(&Leaf::new("south.example", 30)).unwrap());
    assert_eq!(verify_peer(&other, "south.example", now, &roots), Verdict::SelfSigned);
}

#[test]
fn xmpp_addresses_stand_for_domains_but_accounts_do_not() {
    let world = World::new();
    let leaf = |addr: &str| Leaf {
        domains: Vec::new(),
        xmpp_addrs: vec![addr.into()],
        ..Leaf::new("ignored.example", 30)
    };
    assert_eq!(world.judge(&leaf("bücher.example"), "bücher.example"), Verdict::Valid);
    assert_eq!(world.judge(&leaf("north.example"), "rooms.north.example").label(), "wrong-name");
    assert_eq!(world.judge(&leaf("romeo@north.example"), "north.example").label(), "wrong-name");
}

#[test]
fn an_authority_bound_to_one_domain_cannot_speak_for_another_by_other_names() {
    let bound = Authority::constrained("Bound authority", "north.example").unwrap();
    let roots = TrustRoots::certificates(vec![bound.der()]).unwrap();
    let judge = |leaf: &Leaf, domain: &str| {
        verify_peer(&chain(&bound.issue(leaf).unwrap()), domain, Timestamp::now(), &roots)
    };
    assert_eq!(judge(&Leaf::new("north.example", 30), "north.example"), Verdict::Valid);
    assert!(!judge(&Leaf::new("south.example", 30), "south.example").is_valid());
    let sly = Leaf { xmpp_addrs: vec!["south.example".into()], ..Leaf::new("north.example", 30) };
    assert_eq!(judge(&sly, "south.example").label(), "wrong-name");
    assert_eq!(judge(&sly, "north.example"), Verdict::Valid);
}

#[test]
fn names_match_by_the_book() {
    for (pattern, domain, expected) in [
        ("north.example", "NORTH.example", true),
        ("*.north.example", "a.north.example", true),
        ("*.north.example", "north.example", false),
        ("*.north.example", ".north.example", false),
        ("*.north.example", "a.b.north.example", false),
        ("a*.north.example", "ab.north.example", false),
        ("*.*.example", "a.b.example", false),
        ("*.example", "north.example", false),
        ("*", "example", false),
        ("*.", "a.", false),
    ] {
        assert_eq!(dns_matches(pattern, domain), expected, "{pattern} for {domain}");
    }
    let srv = |service: &str| CertName::Srv(service.into(), "north.example".into());
    assert!(srv("_xmpp-server").stands_for("north.example"));
    assert!(!srv("_xmpp-client").stands_for("north.example"));
}
