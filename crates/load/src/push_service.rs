//! A stand-in for the push service of an app (XEP-0357): a component (XEP-0114) that takes publishes and prints each as
//! one line of JSON. It wakes nobody; with `--answer` it refuses, or says nothing at all, as broken ones do.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::{Map, Value, json};
use trunkline_xml::{Event, Limits, Node, Scanner, Writer};
use trunkline_xmpp::error::{Condition, StanzaError};
use trunkline_xmpp::forms::Submission;
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::{IqType, Kind, Stanza};

use crate::error::LoadError;
use crate::options::PushService;

const COMPONENT: &str = "jabber:component:accept";

/// What is answered to a publish.
enum Answer {
    Result,
    Silence,
    Error(StanzaError),
}

/// Serves until the server closes the stream or `--count` publishes have come.
pub(crate) fn run(options: &PushService) -> Result<(), LoadError> {
    let answer = match options.answer.as_str() {
        "result" => Answer::Result,
        "silence" => Answer::Silence,
        name => {
            let condition = Condition::parse(name).ok_or_else(|| {
                LoadError::Usage(format!(
                    "--answer {name}: `result`, `silence` or a condition of RFC 6120 s.8.3.3"
                ))
            })?;
            Answer::Error(StanzaError::new(condition))
        }
    };
    let who = options.domain.clone();
    let failed = |error| LoadError::Io { who: who.clone(), error };
    let mut stream = TcpStream::connect(&options.component).map_err(failed)?;
    let open = format!(
        "<stream:stream to='{}' xmlns='{COMPONENT}' xmlns:stream='http://etherx.jabber.org/streams'>",
        trunkline_xml::escape_attr(&options.domain)
    );
    stream.write_all(open.as_bytes()).map_err(failed)?;
    let mut scanner = Scanner::new(Limits::default());
    let mut buffer = [0; 16 * 1024];
    let mut published = 0;
    loop {
        let read = stream.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            return Err(LoadError::Closed { who: who.clone(), while_: "as a push service" });
        }
        let mut rest = &buffer[..read];
        while let Some(event) =
            scanner.next(&mut rest).map_err(|error| unexpected(&who, &error.to_string()))?
        {
            let element = match event {
                Event::Whitespace => continue,
                Event::Close => return Err(LoadError::Closed { who, while_: "as a push service" }),
                Event::Open(header) => {
                    let id = header.root().attr("id").unwrap_or_default().into_owned();
                    stream.write_all(handshake(&id, &options.secret).as_bytes()).map_err(failed)?;
                    continue;
                }
                Event::Element(element) => element,
            };
            let root = element.root();
            if root.is(ns::STREAMS, "error") {
                let condition = root.first_child().map_or("nothing", |child| child.name()).to_owned();
                return Err(LoadError::StreamError { who, condition });
            }
            if root.name() == "handshake" {
                say(&json!({ "connected": options.domain }));
                continue;
            }
            let Ok(stanza) = Stanza::from_element(element, COMPONENT, None) else { continue };
            let Some(line) = publication(&stanza) else {
                send(&mut stream, stanza.error(&StanzaError::new(Condition::ServiceUnavailable)))
                    .map_err(failed)?;
                continue;
            };
            say(&line);
            match &answer {
                Answer::Result => send(&mut stream, Some(stanza.reply().done())).map_err(failed)?,
                Answer::Error(error) => send(&mut stream, stanza.error(error)).map_err(failed)?,
                Answer::Silence => {}
            }
            published += 1;
            if options.count.is_some_and(|count| published >= count) {
                return Ok(());
            }
        }
    }
}

fn unexpected(who: &str, got: &str) -> LoadError {
    LoadError::Unexpected { who: who.to_owned(), expected: "XML", got: got.to_owned() }
}

/// XEP-0114 s.3.
fn handshake(id: &str, secret: &str) -> String {
    let algorithm = &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY;
    let hash = aws_lc_rs::digest::digest(algorithm, format!("{id}{secret}").as_bytes());
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut w = Writer::new();
    w.text_element("handshake", &hex);
    String::from_utf8_lossy(&w.finish()).into_owned()
}

fn send(stream: &mut TcpStream, stanza: Option<Stanza>) -> std::io::Result<()> {
    let Some(stanza) = stanza else { return Ok(()) };
    let mut out = Vec::new();
    stanza.write(&mut out);
    stream.write_all(&out)
}

fn say(line: &Value) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more: the next write to the server will tell.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// What a publish says (XEP-0357 s.7); `None`: it is none.
fn publication(stanza: &Stanza) -> Option<Value> {
    if stanza.head.kind != Kind::Iq(IqType::Set) {
        return None;
    }
    let pubsub = stanza.child(ns::PUBSUB, "pubsub")?;
    let publish = pubsub.child(ns::PUBSUB, "publish")?;
    let notification = publish.child(ns::PUBSUB, "item")?.child(ns::PUSH, "notification")?;
    let options = pubsub.child(ns::PUBSUB, "publish-options").and_then(|it| it.child(ns::DATA_FORMS, "x"));
    Some(json!({
        "from": stanza.head.from.as_ref().map(|from| from.as_str()),
        "node": publish.attr("node"),
        "summary": notification.child(ns::DATA_FORMS, "x").map(fields),
        "encrypted": notification.child(ns::PUSH_ENCRYPT, "encrypted").is_some(),
        "options": options.map(fields),
    }))
}

fn fields(form: Node<'_>) -> Value {
    let Ok(form) = Submission::parse(form) else { return Value::Null };
    let named = form.names().filter(|name| *name != "FORM_TYPE");
    let object: Map<String, Value> =
        named.map(|name| (name.to_owned(), form.value(name).unwrap_or_default().into())).collect();
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_is_told_from_other_requests() {
        let form = "<x xmlns='jabber:x:data'><field var='FORM_TYPE'><value>t</value></field>\
                    <field var='message-count'><value>2</value></field></x>";
        let xml = format!(
            "<iq type='set' from='a.example' to='p.example' id='1'><pubsub xmlns='{}'><publish node='n'><item>\
             <notification xmlns='urn:xmpp:push:0'>{form}</notification></item></publish></pubsub></iq>",
            ns::PUBSUB
        );
        let line = publication(&Stanza::parse(xml.as_bytes()).unwrap()).unwrap();
        assert_eq!((line["node"].as_str(), line["from"].as_str()), (Some("n"), Some("a.example")));
        assert_eq!(line["summary"], json!({ "message-count": "2" }));
        assert_eq!(line["encrypted"], false);
        for other in [xml.replace("'set'", "'get'"), xml.replace("urn:xmpp:push:0", "urn:x")] {
            assert!(publication(&Stanza::parse(other.as_bytes()).unwrap()).is_none());
        }
    }

    #[test]
    fn the_handshake_is_the_one_of_the_specification() {
        // printf 3BF96D32test | sha1sum
        let shown = "<handshake>aaee83c26aeeafcbabeabfcbcd50df997e0a2a1e</handshake>";
        assert_eq!(handshake("3BF96D32", "test"), shown);
    }
}
