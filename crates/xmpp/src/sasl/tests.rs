use proptest::prelude::*;

use super::client::{Binding, ClientError, Scram, external, plain};
use super::*;

fn keys(hash: Hash, password: &str) -> ScramKeys {
    ScramKeys::derive(hash, password, b"sixteen bytes ok", 4096).unwrap()
}

fn tls() -> ChannelBindings {
    ChannelBindings {
        exporter: Some(b"exported".to_vec()),
        server_end_point: Some(b"certificate".to_vec()),
        unique: None,
    }
}

/// RFC 5802 s.5 and RFC 7677 s.3: one whole conversation each, both sides. The one with SHA-512 and channel binding
/// was computed with the hashlib of Python.
#[test]
fn rfc_vectors() {
    struct Vector {
        mechanism: &'static str,
        hash: Hash,
        binding: Binding,
        nonces: (&'static str, &'static str),
        salt: &'static str,
        messages: [&'static str; 4],
    }
    let vectors = [
        Vector {
            mechanism: "SCRAM-SHA-1",
            hash: Hash::Sha1,
            binding: Binding::Unsupported,
            nonces: ("fyko+d2lbbFgONRv9qkxdawL", "3rfcNHYJY1ZVvWVs7j"),
            salt: "QSXCR+Q6sek8bf92",
            messages: [
                "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
                "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
                "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
                "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
            ],
        },
        Vector {
            mechanism: "SCRAM-SHA-256",
            hash: Hash::Sha256,
            binding: Binding::Unsupported,
            nonces: ("rOprNGfwEbeRWgbNEkqO", "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"),
            salt: "W22ZaJ0SNY7soEsUEjb6gQ==",
            messages: [
                "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
                "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
                "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
                "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
            ],
        },
        Vector {
            mechanism: "SCRAM-SHA-512-PLUS",
            hash: Hash::Sha512,
            binding: bound("tls-exporter", "exported"),
            nonces: ("rOprNGfwEbeRWgbNEkqO", "3rfcNHYJY1ZVvWVs7j"),
            salt: "W22ZaJ0SNY7soEsUEjb6gQ==",
            messages: [
                "p=tls-exporter,,n=user,r=rOprNGfwEbeRWgbNEkqO",
                "r=rOprNGfwEbeRWgbNEkqO3rfcNHYJY1ZVvWVs7j,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=10000",
                "c=cD10bHMtZXhwb3J0ZXIsLGV4cG9ydGVk,r=rOprNGfwEbeRWgbNEkqO3rfcNHYJY1ZVvWVs7j,p=1GTQW8rLhvjyQI3M4PVxOEWLvOmr509tNIX3TNXQ0ggaCn6AL8tVOK4YcFYqHmvP7yQwzhc24r5txZCrfCC6OQ==",
                "v=Kxzc/Pyg3+1XywIVxTXzDMFXQP4ajbnzTbIb0bA1KIzMZE+B/zGARFdHYpi/vlbHBPyDi5aRiUbZkBOwpG+20w==",
            ],
        },
    ];
    for vector in vectors {
        let [first, challenge, last, verifier] = vector.messages.map(encode);
        let nonce = vector.nonces.0.to_owned();
        let mut client = Scram::with_nonce(vector.hash, ("user", "pencil"), vector.binding, nonce).unwrap();
        assert_eq!(client.initial(), first);
        assert_eq!(client.respond(&challenge).as_ref(), Ok(&last));
        assert_eq!(client.verify(&verifier), Ok(()));

        let offer = Offer::new(true, &tls());
        let mut server = Server::start(vector.mechanism, &first, &offer, &tls()).unwrap();
        assert_eq!(server.step(), Step::NeedCredentials { user: "user".into(), hash: vector.hash });
        let iterations = if vector.hash == Hash::Sha512 { 10_000 } else { 4096 };
        let salt = decode(vector.salt).unwrap();
        let keys = ScramKeys::derive(vector.hash, "pencil", &salt, iterations).unwrap();
        server.credentials_with_nonce(keys, vector.nonces.1);
        assert_eq!(server.step(), Step::Challenge(challenge));
        server.response(&last);
        assert_eq!(server.step(), Step::Done { user: "user".into(), data: Some(verifier) });
    }
}

/// Plays a SCRAM login; `None` for an unknown user.
fn login(
    mechanism: Mechanism,
    (user, password): (&str, &str),
    binding: Binding,
    stored: Option<ScramKeys>,
) -> Result<String, Failure> {
    let Mechanism::Scram { hash, .. } = mechanism else { panic!("not SCRAM") };
    let bindings = tls();
    let mut client = Scram::new(hash, user, password, binding).unwrap();
    let mut server =
        Server::start(mechanism.name(), &client.initial(), &Offer::new(true, &bindings), &bindings)?;
    let mut stored = Some(stored);
    loop {
        match server.step() {
            Step::NeedCredentials { .. } => server.credentials(stored.take().expect("asked once")),
            Step::Challenge(challenge) => server.response(&client.respond(&challenge).unwrap()),
            Step::Failed(failure) => return Err(failure),
            Step::Done { user, data } => {
                client.verify(&data.unwrap()).unwrap();
                return Ok(user);
            }
        }
    }
}

fn bound(name: &str, data: &str) -> Binding {
    Binding::Bound { name: name.into(), data: data.into() }
}

#[test]
fn scram_with_all_hashes_and_bindings() {
    let who = ("Rom=eo,", "pass\u{A0}wörd \u{1F408}");
    for hash in Hash::ALL {
        let stored = || Some(keys(hash, "pass wörd \u{1F408}"));
        let unbound = Mechanism::Scram { hash, plus: false };
        let plus = Mechanism::Scram { hash, plus: true };
        assert_eq!(login(unbound, who, Binding::Unsupported, stored()), Ok("Rom=eo,".into()));
        assert_eq!(login(plus, who, bound("tls-exporter", "exported"), stored()), Ok("Rom=eo,".into()));
        assert_eq!(
            login(plus, who, bound("tls-server-end-point", "certificate"), stored()),
            Ok("Rom=eo,".into())
        );

        let refused = Err(Failure::NotAuthorized);
        assert_eq!(login(unbound, (who.0, "wrong"), Binding::Unsupported, stored()), refused);
        assert_eq!(login(unbound, who, Binding::Unsupported, None), refused);
        // RFC 5802 s.6: we did offer channel binding.
        assert_eq!(login(unbound, who, Binding::NotOffered, stored()), Err(Failure::Downgrade));
        assert_eq!(login(plus, who, bound("tls-exporter", "mitm"), stored()), Err(Failure::BindingMismatch));
        assert_eq!(login(plus, who, bound("tls-unique", "x"), stored()), Err(Failure::BindingUnsupported));
        assert_eq!(login(plus, who, Binding::Unsupported, stored()), Err(Failure::MalformedRequest));
        assert_eq!(
            login(unbound, who, bound("tls-exporter", "exported"), stored()),
            Err(Failure::MalformedRequest)
        );
        // Keys of another hash, or damaged ones, are as good as none.
        let damaged = ScramKeys { stored_key: vec![0; 3], ..keys(hash, who.1) };
        assert_eq!(login(unbound, who, Binding::Unsupported, Some(damaged)), refused);
    }
}

#[test]
fn y_is_right_where_no_binding_was_offered() {
    let none = ChannelBindings::default();
    let mut client = Scram::new(Hash::Sha1, "romeo", "secret", Binding::NotOffered).unwrap();
    let mut server =
        Server::start("SCRAM-SHA-1", &client.initial(), &Offer::new(false, &none), &none).unwrap();
    server.step();
    server.credentials(Some(keys(Hash::Sha1, "secret")));
    let Step::Challenge(challenge) = server.step() else { panic!("no challenge") };
    server.response(&client.respond(&challenge).unwrap());
    assert!(matches!(server.step(), Step::Done { .. }));
}

fn challenge_for(user: &str, decoys: &Decoys) -> String {
    let none = ChannelBindings::default();
    let offer = Offer::new(true, &none).decoys(decoys.clone());
    let first = encode(format!("n,,n={user},r=abc"));
    let mut server = Server::start("SCRAM-SHA-256", &first, &offer, &none).unwrap();
    server.step();
    server.credentials(None);
    let Step::Challenge(challenge) = server.step() else { panic!("no challenge") };
    let challenge = decode_text(&challenge).unwrap();
    challenge.split_once(",s=").unwrap().1.to_owned()
}

#[test]
fn unknown_users_look_like_known_ones() {
    let decoys = Decoys::new(b"secret", 4711);
    let salt = challenge_for("nobody", &decoys);
    assert_eq!(salt, challenge_for("nobody", &decoys));
    assert_eq!(salt, challenge_for("NoBody", &decoys), "case does not matter to known users either");
    assert_ne!(salt, challenge_for("nobody2", &decoys));
    assert_ne!(salt, challenge_for("nobody", &Decoys::new(b"other", 4711)));
    assert!(salt.ends_with(",i=4711"));
    let known = ScramKeys::new(Hash::Sha256, "x", 4711).unwrap();
    assert_eq!(salt.len(), format!("{},i=4711", encode(known.salt)).len());
}

#[test]
fn unknown_users_have_the_iteration_counts_of_known_ones() {
    let before = Decoys::new(b"secret", 9000).among(&[(4096, 300), (10_000, 100)]);
    let after = Decoys::new(b"secret", 9000).among(&[(4096, 200), (10_000, 200)]);
    let (mut old, mut moved) = (0, 0);
    for n in 0..400 {
        let (a, b) = (challenge_for(&format!("u{n}"), &before), challenge_for(&format!("u{n}"), &after));
        assert!(a.ends_with(",i=4096") || a.ends_with(",i=10000"), "{a}");
        old += usize::from(a.ends_with(",i=4096"));
        if a != b {
            assert!(a.ends_with(",i=4096") && b.ends_with(",i=10000"), "only as known ones do: {a} {b}");
            assert_ne!(a.split_once(','), b.split_once(','), "with a new salt");
            moved += 1;
        }
    }
    assert!((270..330).contains(&old), "{old}");
    assert!((70..130).contains(&moved), "{moved}");
    let none = Decoys::new(b"secret", 9000).among(&[(0, 1), (5, 0)]);
    assert!(challenge_for("u1", &none).ends_with(",i=9000"));
}

fn plain_step(initial: &str, stored: Option<ScramKeys>) -> Step {
    let offer = Offer::new(true, &tls()).domain("verona.example");
    let mut server = match Server::start("PLAIN", initial, &offer, &tls()) {
        Ok(server) => server,
        Err(failure) => return Step::Failed(failure),
    };
    match server.step() {
        Step::NeedCredentials { hash, .. } => {
            assert_eq!(hash, Hash::Sha256);
            server.credentials(stored);
            server.step()
        }
        other => other,
    }
}

#[test]
fn plain_passwords() {
    let stored = || Some(keys(Hash::Sha256, "secret"));
    let done = |user: &str| Step::Done { user: user.into(), data: None };
    assert_eq!(plain_step(&plain("romeo", "secret"), stored()), done("romeo"));
    for authzid in ["romeo", "romeo@verona.example", "Romeo@VERONA.example"] {
        assert_eq!(
            plain_step(&encode(format!("{authzid}\0romeo\0secret")), stored()),
            done("romeo"),
            "{authzid}"
        );
    }
    for (message, failure) in [
        ("\0romeo\0wrong", Failure::NotAuthorized),
        ("juliet\0romeo\0secret", Failure::InvalidAuthzid),
        ("romeo@mantua.example\0romeo\0secret", Failure::InvalidAuthzid),
        ("\0romeo", Failure::MalformedRequest),
        ("\0romeo\0secret\0", Failure::MalformedRequest),
        ("\0\0secret", Failure::MalformedRequest),
        ("\0romeo\0", Failure::MalformedRequest),
        ("romeo", Failure::MalformedRequest),
    ] {
        assert_eq!(plain_step(&encode(message), stored()), Step::Failed(failure), "{message:?}");
    }
    assert_eq!(plain_step(&plain("romeo", "secret"), None), Step::Failed(Failure::NotAuthorized));
    assert_eq!(plain_step("=", stored()), Step::Failed(Failure::MalformedRequest));
    assert_eq!(plain_step("!!", stored()), Step::Failed(Failure::IncorrectEncoding));
    assert_eq!(plain_step("YQ==\n", stored()), Step::Failed(Failure::IncorrectEncoding));
    assert_eq!(plain_step(&encode([0xFF, 0, 0xFE]), stored()), Step::Failed(Failure::MalformedRequest));
    assert_eq!(plain_step(&encode("x".repeat(MAX_MESSAGE + 1)), stored()), Step::Failed(Failure::TooLong));
}

#[test]
fn no_initial_response_is_asked_for() {
    let mut server = Server::start("PLAIN", "", &Offer::new(true, &tls()), &tls()).unwrap();
    assert_eq!(server.step(), Step::Challenge(String::new()));
    server.response(&plain("romeo", "secret"));
    assert_eq!(server.user(), Some("romeo"));
    assert_eq!(server.step(), Step::NeedCredentials { user: "romeo".into(), hash: Hash::Sha256 });
    // Out of turn.
    server.response("YQ==");
    assert_eq!(server.step(), Step::Failed(Failure::MalformedRequest));
    server.credentials(Some(keys(Hash::Sha256, "secret")));
    assert_eq!(server.step(), Step::Failed(Failure::MalformedRequest));
}

#[test]
fn offers() {
    let none = ChannelBindings::default();
    assert_eq!(
        Offer::new(true, &tls()).names().join(" "),
        "SCRAM-SHA-512-PLUS SCRAM-SHA-256-PLUS SCRAM-SHA-1-PLUS SCRAM-SHA-512 SCRAM-SHA-256 SCRAM-SHA-1 PLAIN"
    );
    assert_eq!(Offer::new(false, &none).names().join(" "), "SCRAM-SHA-512 SCRAM-SHA-256 SCRAM-SHA-1");
    assert_eq!(tls().types(), ["tls-exporter", "tls-server-end-point"]);
    let start = |name, offer: &Offer| Server::start(name, "", offer, &none).map(|_| ());
    assert_eq!(start("PLAIN", &Offer::new(false, &none)), Err(Failure::EncryptionRequired));
    assert_eq!(start("SCRAM-SHA-1-PLUS", &Offer::new(true, &none)), Err(Failure::InvalidMechanism));
    assert_eq!(start("EXTERNAL", &Offer::new(true, &none)), Err(Failure::InvalidMechanism));
    assert_eq!(start("X-OAUTH2", &Offer::new(true, &none)), Err(Failure::InvalidMechanism));
    assert_eq!(known("SCRAM-SHA-512-PLUS"), Some("SCRAM-SHA-512-PLUS"));
    assert_eq!(known("scram-sha-1"), None);
}

#[test]
fn external_asks_for_what_the_certificate_proves() {
    let none = ChannelBindings::default();
    let offer = Offer::none().external(vec!["mantua.example".into(), "chat.mantua.example".into()]);
    assert_eq!(offer.names(), ["EXTERNAL"]);
    for (asked, expected) in [
        ("=".to_owned(), Ok("mantua.example")),
        (external(""), Ok("mantua.example")),
        (external("chat.mantua.example"), Ok("chat.mantua.example")),
        (external("Mantua.Example."), Ok("mantua.example")),
        (external("verona.example"), Err(Failure::InvalidAuthzid)),
    ] {
        let step = Server::start("EXTERNAL", &asked, &offer, &none).unwrap().step();
        match expected {
            Ok(user) => assert_eq!(step, Step::Done { user: user.into(), data: None }),
            Err(failure) => assert_eq!(step, Step::Failed(failure)),
        }
    }
    assert!(Offer::none().external(Vec::new()).names().is_empty(), "nothing proved, nothing offered");
}

#[test]
fn anonymous_users_get_names_of_their_own() {
    let none = ChannelBindings::default();
    let offer = Offer::none().anonymous();
    let name = || match Server::start("ANONYMOUS", "=", &offer, &none).unwrap().step() {
        Step::Done { user, .. } => user,
        other => panic!("{other:?}"),
    };
    let (one, other) = (name(), name());
    assert_ne!(one, other);
    assert!(crate::Jid::new_local_part_ok(&one));
}

#[test]
fn scram_grammar() {
    let none = ChannelBindings::default();
    let offer = Offer::new(true, &none);
    for (first, failure) in [
        ("", Failure::MalformedRequest),
        ("n", Failure::MalformedRequest),
        ("n,", Failure::MalformedRequest),
        ("n,,", Failure::MalformedRequest),
        ("x,,n=romeo,r=a", Failure::MalformedRequest),
        ("n,romeo,n=romeo,r=a", Failure::MalformedRequest),
        ("n,a=,n=romeo,r=a", Failure::MalformedRequest),
        ("n,,r=a,n=romeo", Failure::MalformedRequest),
        ("n,,n=,r=a", Failure::MalformedRequest),
        ("n,,n=romeo,r=", Failure::MalformedRequest),
        ("n,,n=romeo,r=\u{E4}", Failure::MalformedRequest),
        ("n,,n=ro=meo,r=a", Failure::MalformedRequest),
        ("n,,n=ro=2cmeo,r=a", Failure::MalformedRequest),
        ("n,,n=romeo=,r=a", Failure::MalformedRequest),
        ("n,,n=ro=\u{E4}meo,r=a", Failure::MalformedRequest),
        ("n,,n=romeo,r=a,", Failure::MalformedRequest),
        ("n,,n=\u{7}romeo,r=a", Failure::MalformedRequest),
        ("n,,m=1,n=romeo,r=a", Failure::UnknownExtension),
        ("n,a=juliet,n=romeo,r=a", Failure::InvalidAuthzid),
        ("p=,,n=romeo,r=a", Failure::MalformedRequest),
    ] {
        let initial = if first.is_empty() { "=".to_owned() } else { encode(first) };
        let step = Server::start("SCRAM-SHA-1", &initial, &offer, &none).unwrap().step();
        assert_eq!(step, Step::Failed(failure), "{first:?}");
    }
    for last in [
        "",
        "c=biws",
        "c=biws,r=aX,p=",
        "c=biws,r=aX,p=AA==",
        "c=biws,r=a,p=AA==",
        "c=eSws,r=aX,p=AA==",
        "r=aX,c=biws,p=AA==",
        "c=biws,r=aX,p=AA==,x=1",
        "c=b!ws,r=aX,p=AA==",
        "c=biws,r=aX,m=1,p=AA==",
    ] {
        let mut server = Server::start("SCRAM-SHA-1", &encode("n,,n=romeo,r=a"), &offer, &none).unwrap();
        server.step();
        server.credentials_with_nonce(keys(Hash::Sha1, "secret"), "X");
        assert!(matches!(server.step(), Step::Challenge(_)));
        server.response(&encode(last));
        assert!(matches!(server.step(), Step::Failed(_)), "{last:?}");
    }
}

#[test]
fn kept_keys_answer_as_the_password_does_and_are_made_anew_for_another_salt() {
    let client = || {
        Scram::with_nonce(Hash::Sha1, ("user", "pencil"), Binding::Unsupported, "abc".into())
            .expect("a password")
    };
    let mut kept = None;
    for challenge in ["r=abcd,s=QSXCR+Q6sek8bf92,i=4096", "r=abcd,s=QSXCR+Q6sek8bf93,i=4096"].map(encode) {
        let expected = client().respond(&challenge);
        assert_eq!(client().respond_with(&challenge, &mut kept), expected, "made");
        assert_eq!(client().respond_with(&challenge, &mut kept), expected, "kept");
    }
}

#[test]
fn a_client_trusts_no_server() {
    let client = || {
        Scram::with_nonce(Hash::Sha1, ("user", "pencil"), Binding::Unsupported, "abc".into())
            .expect("a password")
    };
    for (challenge, error) in [
        ("r=abcd,s=QSXCR+Q6sek8bf92,i=1", ClientError::Iterations(1)),
        ("r=abcd,s=QSXCR+Q6sek8bf92,i=4000000000", ClientError::Iterations(4_000_000_000)),
        ("r=abcd,s=QSXCR+Q6sek8bf92,i=0", ClientError::Malformed),
        ("r=abcd,s=QSXCR+Q6sek8bf92,i=-4096", ClientError::Malformed),
        ("r=abc,s=QSXCR+Q6sek8bf92,i=4096", ClientError::Nonce),
        ("r=xyz,s=QSXCR+Q6sek8bf92,i=4096", ClientError::Nonce),
        ("m=1,r=abcd,s=QSXCR+Q6sek8bf92,i=4096", ClientError::Malformed),
        ("", ClientError::Malformed),
    ] {
        assert_eq!(client().respond(&encode(challenge)), Err(error), "{challenge}");
    }
    let mut early = client();
    assert_eq!(early.verify(&encode("v=AAAA")), Err(ClientError::Malformed));
    let mut fooled = client();
    fooled.respond(&encode("r=abcd,s=QSXCR+Q6sek8bf92,i=4096")).unwrap();
    assert_eq!(fooled.verify(&encode("v=rmF9pqV8S7suAoZWja4dJRkFsKQ=")), Err(ClientError::ServerSignature));
}

#[test]
fn passwords() {
    assert_eq!(ScramKeys::derive(Hash::Sha1, "", b"salt", 1), Err(PasswordError::Empty));
    assert_eq!(ScramKeys::derive(Hash::Sha1, "\u{AD}", b"salt", 1), Err(PasswordError::Empty));
    assert_eq!(ScramKeys::derive(Hash::Sha1, "a\u{7}", b"salt", 1), Err(PasswordError::Characters));
    assert_eq!(ScramKeys::derive(Hash::Sha1, &"x".repeat(1024), b"salt", 1), Err(PasswordError::TooLong));
    let keys = ScramKeys::new(Hash::Sha512, "I\u{AD}X", 4096).unwrap();
    assert!(keys.verify_password("IX") && keys.verify_password("\u{2168}") && !keys.verify_password("ix"));
    assert_ne!(keys.salt, ScramKeys::new(Hash::Sha512, "IX", 4096).unwrap().salt);
    assert!(!format!("{keys:?}").contains("key"), "keys stay out of logs");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_message_is_too_odd(
        mechanism in prop::sample::select(&Mechanism::ALL[..]),
        initial in message(),
        responses in prop::collection::vec(message(), 0..4),
    ) {
        let offer = Offer::new(true, &tls()).external(vec!["a.example".into()]).anonymous();
        let Ok(mut server) = Server::start(mechanism.name(), &initial, &offer, &tls()) else { return Ok(()) };
        for response in &responses {
            match server.step() {
                Step::Done { .. } => {
                    prop_assert!(matches!(mechanism, Mechanism::External | Mechanism::Anonymous), "guessed");
                }
                Step::NeedCredentials { hash, .. } => {
                    // Cheap keys: the test is about grammar.
                    server.credentials(ScramKeys::derive(hash, "secret", b"salt", 1).ok());
                }
                _ => server.response(response),
            }
        }
    }

    #[test]
    fn base64_round_trip(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
        prop_assert_eq!(decode(&encode(&bytes)), Ok(bytes));
    }
}

fn message() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        prop::collection::vec(any::<u8>(), 0..60).prop_map(encode),
        "[nyp],?(a=[a-z=,]{0,4})?,n=[a-z=23CD,\u{E4}]{0,6},r=[!-~]{0,6}(,[a-z]=[a-z]{0,3})?".prop_map(encode),
        "c=(biws|[a-zA-Z=]{0,8}),r=[!-~]{0,6}(,[a-z]=)?,p=[a-zA-Z0-9=]{0,8}".prop_map(encode),
        "[a-z]{0,4}\u{0}?[a-z]{0,4}\u{0}[a-z]{0,4}".prop_map(encode),
    ]
}

#[test]
fn what_was_announced_is_signed() {
    // The example of XEP-0474 s.5.3.
    let mechanisms = ["SCRAM-SHA-1-PLUS", "SCRAM-SHA-1"];
    let types = ["tls-server-end-point", "tls-exporter"];
    assert_eq!(announcement(Hash::Sha1, &mechanisms, &types), "G6k/rBLDqgOhRRaCuuatSDFkJ08=");
    let bindings = tls();
    let offer = Offer::new(true, &bindings).protected();
    let run = |names: &[&str], types: &[&str]| {
        let scram = client::Scram::new(Hash::Sha256, "user", "pencil", client::Binding::Unsupported).unwrap();
        let mut scram = scram.announced(names, types);
        let mut server = Server::start("SCRAM-SHA-256", &scram.initial(), &offer, &bindings).unwrap();
        assert!(matches!(server.step(), Step::NeedCredentials { .. }));
        server.credentials(Some(keys(Hash::Sha256, "pencil")));
        let Step::Challenge(challenge) = server.step() else { panic!("no challenge") };
        let response = scram.respond(&challenge)?;
        server.response(&response);
        let Step::Done { data: Some(data), .. } = server.step() else { panic!("not done") };
        scram.verify(&data)
    };
    let (names, kinds) = (offer.names(), bindings.types());
    assert_eq!(run(&names, &kinds), Ok(()));
    // Somebody has taken the bound mechanisms away, or all types but one that nobody knows.
    let unbound: Vec<&str> = names.iter().copied().filter(|name| !name.ends_with("-PLUS")).collect();
    assert_eq!(run(&unbound, &kinds), Err(client::ClientError::Downgrade));
    assert_eq!(run(&names, &["tls-dummy"]), Err(client::ClientError::Downgrade));
}

#[test]
fn keys_of_a_salted_password_are_those_of_the_password() {
    let salt = Salt::new(4096).unwrap();
    for hash in Hash::ALL {
        let salted = client::salted_password(hash, "pencil", &salt.text(), salt.iterations()).unwrap();
        let keys = ScramKeys::upgraded(hash, &salt, &salted).unwrap();
        assert!(keys.verify_password("pencil") && !keys.verify_password("pen"));
        assert_eq!(keys.iterations, 4096);
    }
    assert_eq!(ScramKeys::upgraded(Hash::Sha512, &salt, "AAAA").err(), Some(Failure::MalformedRequest));
    assert_eq!(ScramKeys::upgraded(Hash::Sha512, &salt, "?").err(), Some(Failure::IncorrectEncoding));
}
