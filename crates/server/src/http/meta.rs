//! XEP-0156 Discovering Alternative XMPP Connection Methods 1.4.0 and XEP-0487 Host Meta 2 0.1.0: where else this server
//! is reached, generated from its listeners.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use trunkline_xml::Writer;

use crate::config::Config;

const WEBSOCKET: &str = "urn:xmpp:alt-connections:websocket";
const BOSH: &str = "urn:xmpp:alt-connections:xbosh";
/// Seconds that XEP-0487's document may be kept.
const LIFETIME: u64 = 3600;

/// The two addresses of this listener for browsers.
pub(super) struct Links {
    websocket: String,
    bosh: String,
}

impl Links {
    /// From the base that the operator names, or from what is listened on.
    pub(super) fn of(config: &Config, domain: &str) -> Links {
        let base = match &config.http.url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => match config.http.listen_tls.first().map(SocketAddr::port) {
                None | Some(443) => format!("https://{domain}"),
                Some(port) => format!("https://{domain}:{port}"),
            },
        };
        // http becomes ws, https becomes wss.
        let websocket = base.strip_prefix("http").map_or_else(|| base.clone(), |rest| format!("ws{rest}"));
        Links { websocket: format!("{websocket}/xmpp-websocket"), bosh: format!("{base}/http-bind") }
    }

    /// RFC 6415 s.3: XML.
    pub(super) fn xrd(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.open("XRD").attr("xmlns", "http://docs.oasis-open.org/ns/xri/xrd-1.0");
        for (rel, href) in [(WEBSOCKET, &self.websocket), (BOSH, &self.bosh)] {
            w.open("Link").attr("rel", rel).attr("href", href).close();
        }
        let mut out = b"<?xml version='1.0' encoding='utf-8'?>\n".to_vec();
        out.extend_from_slice(&w.finish());
        out
    }

    /// RFC 6415 appendix A: JSON. With `http.addresses` it is XEP-0487's too, which wants addresses in every link.
    pub(super) fn jrd(&self, config: &Config, domain: &str) -> Value {
        let addresses: &[IpAddr] = &config.http.addresses;
        if addresses.is_empty() {
            // XEP-0487 s.3.2: without "xmpp" the rules are XEP-0156's.
            return json!({ "links": [
                { "rel": WEBSOCKET, "href": self.websocket },
                { "rel": BOSH, "href": self.bosh },
            ] });
        }
        let with = |mut link: Value, priority: u16, sni: &str| {
            link["ips"] = json!(addresses);
            link["priority"] = json!(priority);
            link["weight"] = json!(50);
            link["sni"] = json!(sni);
            link
        };
        let web = name_of(&self.bosh).unwrap_or(domain);
        let mut links = Vec::new();
        for (rel, listeners) in [
            ("urn:xmpp:alt-connections:tls", &config.clients.listen_tls),
            ("urn:xmpp:alt-connections:s2s-tls", &config.federation.listen_tls),
        ] {
            // Whoever listens on loopback alone is reached through something else, whose port we don't know.
            let port = listeners.iter().find(|address| !address.ip().is_loopback()).map(SocketAddr::port);
            if let Some(port) = port {
                links.push(with(json!({ "rel": rel, "port": port }), 10, domain));
            }
        }
        links.push(with(json!({ "rel": WEBSOCKET, "href": self.websocket }), 20, web));
        links.push(with(json!({ "rel": BOSH, "href": self.bosh }), 30, web));
        json!({ "xmpp": { "ttl": LIFETIME }, "links": links })
    }
}

/// The host's name in a URL.
fn name_of(url: &str) -> Option<&str> {
    let rest = url.split_once("://")?.1;
    let authority = rest.split('/').next()?;
    Some(match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => authority,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(http: &str) -> Config {
        let text = format!("domain = \"a.example\"\n[tls]\ncertificate = \"x\"\nkey = \"y\"\n[http]\n{http}");
        Config::parse(&text, Path::new("t.toml")).unwrap()
    }

    #[test]
    fn links_come_from_the_listeners() {
        let links = |http: &str| {
            let links = Links::of(&config(http), "a.example");
            (links.websocket, links.bosh)
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            links("listen_tls = \"[::]:5443\""),
            pair("wss://a.example:5443/xmpp-websocket", "https://a.example:5443/http-bind")
        );
        assert_eq!(
            links("listen_tls = \"[::]:443\""),
            pair("wss://a.example/xmpp-websocket", "https://a.example/http-bind")
        );
        assert_eq!(
            links("listen = \"127.0.0.1:5282\""),
            pair("wss://a.example/xmpp-websocket", "https://a.example/http-bind"),
            "behind a proxy"
        );
        assert_eq!(
            links("url = \"https://chat.a.example/x/\""),
            pair("wss://chat.a.example/x/xmpp-websocket", "https://chat.a.example/x/http-bind")
        );
    }

    #[test]
    fn the_documents() {
        let plain = config("url = \"https://chat.a.example\"");
        let links = Links::of(&plain, "a.example");
        assert_eq!(
            String::from_utf8(links.xrd()).unwrap(),
            "<?xml version='1.0' encoding='utf-8'?>\n<XRD xmlns='http://docs.oasis-open.org/ns/xri/xrd-1.0'>\
             <Link rel='urn:xmpp:alt-connections:websocket' href='wss://chat.a.example/xmpp-websocket'/>\
             <Link rel='urn:xmpp:alt-connections:xbosh' href='https://chat.a.example/http-bind'/></XRD>"
        );
        let old = links.jrd(&plain, "a.example");
        assert!(old.get("xmpp").is_none(), "without addresses it is no Host Meta 2");
        assert_eq!(old["links"].as_array().unwrap().len(), 2);
        let full = config("url = \"https://chat.a.example\"\naddresses = [\"192.0.2.7\", \"2001:db8::7\"]");
        let new = links.jrd(&full, "a.example");
        assert_eq!(new["xmpp"]["ttl"], 3600);
        let links = new["links"].as_array().unwrap();
        assert_eq!(links[0]["rel"], "urn:xmpp:alt-connections:tls");
        assert_eq!((&links[0]["port"], &links[0]["sni"]), (&json!(5223), &json!("a.example")));
        assert_eq!(links[1]["rel"], "urn:xmpp:alt-connections:s2s-tls");
        assert_eq!(links[2]["sni"], "chat.a.example");
        for link in links {
            assert_eq!(link["ips"], json!(["192.0.2.7", "2001:db8::7"]));
            assert!(link["priority"].is_u64() && link["weight"].is_u64());
        }
    }
}
