//! The web chat's files, embedded when the server is built: converse.js and the page around it.
//!
//! `web/chat/` is built by npm (`cargo xtask web`), `build.rs` lists what came of it. Each file is there compressed too,
//! where that makes it smaller; nothing is compressed while somebody waits.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

/// One file.
#[derive(Clone, Copy, Debug)]
struct Asset {
    /// Its MIME type.
    media_type: &'static str,
    bytes: &'static [u8],
    brotli: Option<&'static [u8]>,
    gzip: Option<&'static [u8]>,
    /// Changes when it changes.
    etag: &'static str,
}

/// By path, in order.
const FILES: &[(&str, Asset)] = include!(concat!(env!("OUT_DIR"), "/chat.rs"));

/// What stands in the page's place in a server that was built without npm.
const ABSENT: Asset = Asset {
    media_type: "text/html; charset=utf-8",
    bytes: include_bytes!("chat.html"),
    brotli: None,
    gzip: None,
    etag: "absent",
};

/// What a browser may do with the pages: nothing that leads elsewhere. converse.js sets styles on its elements and its
/// emoji and sounds are files of ours; pictures that people send each other are not loaded from their servers.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; \
     style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self'; media-src 'self' blob:; \
     connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// The web chat is in this build.
pub fn is_built() -> bool {
    !FILES.is_empty()
}

/// The file that answers a path.
pub(super) fn answer(path: &str, asked: &HeaderMap) -> Response<Full<Bytes>> {
    let Some(asset) = find(FILES, path) else {
        let mut answer = Response::new(Full::from("There is nothing here.\n"));
        *answer.status_mut() = StatusCode::NOT_FOUND;
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        answer.headers_mut().insert(header::CONTENT_TYPE, plain);
        return answer;
    };
    let (encoding, bytes) = encoded(&asset, asked);
    let mut answer = Response::new(Full::default());
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    // RFC 9110 s.8.8.3: what is encoded otherwise is another representation.
    let etag =
        encoding.map_or_else(|| format!("\"{}\"", asset.etag), |it| format!("\"{}-{it}\"", asset.etag));
    if let Some(encoding) = encoding {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    if let Ok(value) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, value);
    }
    let known = asked.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    if known.is_some_and(|known| known.split(',').any(|known| known.trim() == etag)) {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        *answer.body_mut() = Full::from(bytes);
    }
    answer
}

/// The representation that the browser takes and that is smallest.
fn encoded(asset: &Asset, asked: &HeaderMap) -> (Option<&'static str>, &'static [u8]) {
    let takes = |coding: &str| {
        let values = asked.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|one| {
            let (name, weight) = one.split_once(';').unwrap_or((one, "q=1"));
            let refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
            name.trim().eq_ignore_ascii_case(coding) && !refused
        })
    };
    match (asset.brotli, asset.gzip) {
        (Some(bytes), _) if takes("br") => (Some("br"), bytes),
        (_, Some(bytes)) if takes("gzip") => (Some("gzip"), bytes),
        _ => (None, asset.bytes),
    }
}

/// What every answer carries.
pub(super) fn protect(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "geolocation=(), camera=(), microphone=()"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

fn find(files: &[(&str, Asset)], path: &str) -> Option<Asset> {
    let path = if path == "/" { "/index.html" } else { path };
    let found = files.iter().find(|(name, _)| *name == path).map(|(_, asset)| *asset);
    found.or_else(|| (path == "/index.html").then_some(ABSENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(encoding: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(encoding));
        headers
    }

    #[test]
    fn the_smallest_representation_that_is_taken() {
        let asset = Asset { bytes: b"plain", brotli: Some(b"b"), gzip: Some(b"gz"), ..ABSENT };
        for (accepted, encoding, bytes) in [
            ("gzip, deflate, br", Some("br"), &b"b"[..]),
            ("GZIP;q=0.5", Some("gzip"), b"gz"),
            ("br;q=0, gzip", Some("gzip"), b"gz"),
            ("identity", None, b"plain"),
            ("", None, b"plain"),
        ] {
            assert_eq!(encoded(&asset, &asking(accepted)), (encoding, bytes), "{accepted}");
        }
        let small = Asset { brotli: None, gzip: None, ..asset };
        assert_eq!(encoded(&small, &asking("br")), (None, &b"plain"[..]));
    }

    #[test]
    fn a_build_without_the_chat_says_how_to_build_it() {
        let page = find(&[], "/").unwrap();
        let text = std::str::from_utf8(page.bytes).unwrap();
        assert!(text.contains("cargo xtask web"), "{text}");
        assert!(!text.contains("<script"), "the policy forbids it");
        assert!(find(&[], "/converse.js").is_none());
    }

    #[test]
    fn what_has_not_changed_is_not_sent_again() {
        let first = answer("/", &HeaderMap::new());
        let etag = first.headers()[header::ETAG].clone();
        let mut asked = HeaderMap::new();
        asked.insert(header::IF_NONE_MATCH, etag);
        assert_eq!(answer("/", &asked).status(), StatusCode::NOT_MODIFIED);
        asked.insert(header::IF_NONE_MATCH, HeaderValue::from_static("\"older\""));
        assert_eq!(answer("/", &asked).status(), StatusCode::OK);
        assert_eq!(answer("/../etc/passwd", &asked).status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn what_is_embedded_is_a_whole_chat_or_none() {
        if !is_built() {
            return;
        }
        let page = std::str::from_utf8(find(FILES, "/").unwrap().bytes).unwrap();
        let named: Vec<&str> = page.split(['"', '\'']).filter_map(|part| part.strip_prefix("./")).collect();
        assert!(named.len() >= 3, "script, style and settings: {page}");
        for path in named {
            assert!(find(FILES, &format!("/{path}")).is_some(), "the page names {path}");
        }
        assert!(find(FILES, "/NOTICE.txt").is_some(), "the licences of what is embedded");
    }
}
