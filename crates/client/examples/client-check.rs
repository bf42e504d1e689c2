//! Tries the client on a running server: `client-check ADDRESS TLS-ADDRESS DOMAIN CA-FILE USER PASSWORD`.
//!
//! The interop suite runs it against Prosody, ejabberd and Trunkline.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use trunkline_client::{Client, ClientError, Login, Mechanism, Resumption, Security, Target, Trust};
use trunkline_xml::Element;

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, direct, domain, ca, user, password] = &arguments[..] else {
        return Err("usage: client-check ADDRESS TLS-ADDRESS DOMAIN CA-FILE USER PASSWORD".into());
    };
    let trust = Trust::pem_file(ca.as_ref())?;
    let target = Target::new(address.parse::<SocketAddr>()?, domain).trust(trust.clone());
    let direct =
        Target::new(direct.parse::<SocketAddr>()?, domain).trust(trust).security(Security::DirectTls);
    let login = Login::new(user, password);
    logins(&target, &direct, &login).await?;
    refusals(&target, user).await?;
    resumption(&target, &login).await?;
    expired_session(&target, &login).await?;
    Ok(())
}

/// Every mechanism, both kinds of TLS.
async fn logins(target: &Target, direct: &Target, login: &Login) -> Result<(), Box<dyn Error>> {
    for target in [target, direct] {
        for mechanism in Mechanism::ALL {
            match Client::connect(target, &login.clone().mechanism(mechanism)).await {
                Ok(mut client) => {
                    let answer = client.iq("get", target.domain(), "<ping xmlns='urn:xmpp:ping'/>").await?;
                    check(answer.root().attr("type").as_deref() == Some("result"), "an answer to a ping")?;
                    client.close().await?;
                }
                // Servers differ in what they offer; PLAIN within TLS and SCRAM-SHA-1 all have.
                Err(ClientError::NotOffered(_))
                    if !matches!(mechanism, Mechanism::Plain | Mechanism::ScramSha1) => {}
                Err(error) => return Err(format!("{}: {error}", mechanism.name()).into()),
            }
        }
    }
    Ok(())
}

async fn refusals(target: &Target, user: &str) -> Result<(), Box<dyn Error>> {
    let refused = Client::connect(target, &Login::new(user, "not the password")).await;
    let named =
        matches!(&refused, Err(ClientError::LoginRefused { condition, .. }) if condition == "not-authorized");
    check(named, "not-authorized for a wrong password")?;
    let untrusted = Client::connect(&target.clone().trust(Trust::none()), &Login::new(user, "x")).await;
    check(matches!(untrusted, Err(ClientError::Io(_))), "a refusal of an unknown certificate")
}

/// Cut the connection with stanzas in flight both ways; resume; nothing is missing and nothing comes twice.
async fn resumption(target: &Target, login: &Login) -> Result<(), Box<dyn Error>> {
    let mut romeo = Client::connect(target, login).await?;
    romeo.enable_acks().await?;
    romeo.send(b"<presence/>").await?;
    romeo.expect("own presence", PATIENCE, |it| it.root().name() == "presence").await?;
    romeo.all_acked(PATIENCE).await?;
    let to_self =
        |n: u32, jid: &str| format!("<message to='{jid}' type='chat' id='m{n}'><body>{n}</body></message>");
    for n in 0..50 {
        let jid = romeo.jid().to_owned();
        romeo.queue(to_self(n, &jid).as_bytes());
    }
    let jid = romeo.jid().to_owned();
    romeo.send(to_self(50, &jid).as_bytes()).await?;
    let mut seen = Vec::new();
    // Some come before the cut.
    for _ in 0..10 {
        seen.push(id(&romeo.expect("a message to oneself", PATIENCE, is_message).await?));
    }
    let session = romeo.cut().ok_or("no session to resume")?;
    let Resumption::Resumed(mut romeo) = Client::resume(target, login, session).await? else {
        return Err("the session was not resumed".into());
    };
    check(romeo.jid() == jid, "the old address")?;
    while seen.len() < 51 {
        seen.push(id(&romeo.expect("a message to oneself", PATIENCE, is_message).await?));
    }
    let all: Vec<String> = (0..51).map(|n| format!("m{n}")).collect();
    check(seen == all, &format!("every message once and in order, not {seen:?}"))?;
    romeo.all_acked(PATIENCE).await?;
    romeo.close().await?;
    Ok(())
}

/// A session that was closed can't be resumed: a fresh one comes instead.
async fn expired_session(target: &Target, login: &Login) -> Result<(), Box<dyn Error>> {
    let mut romeo = Client::connect(target, login).await?;
    romeo.enable_acks().await?;
    let mut session = romeo.cut().ok_or("no session to resume")?;
    session.acks.forget_id("no-such-session");
    match Client::resume(target, login, session).await? {
        Resumption::Fresh { mut client, .. } => {
            client.enable_acks().await?;
            client.close().await?;
            Ok(())
        }
        Resumption::Resumed(_) => Err("a session that does not exist was resumed".into()),
    }
}

fn is_message(element: &Element) -> bool {
    element.root().name() == "message"
}

fn id(element: &Element) -> String {
    element.root().attr("id").unwrap_or_default().into_owned()
}

fn check(holds: bool, expected: &str) -> Result<(), Box<dyn Error>> {
    if holds { Ok(()) } else { Err(format!("expected {expected}").into()) }
}
