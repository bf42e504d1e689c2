//! The console's files, embedded when the server is built.
//!
//! `web/` is built by npm (`cargo xtask web`), `build.rs` lists what came of it. The page does not depend on its path:
//! addresses inside the console are behind `#`.

/// One file.
#[derive(Clone, Copy, Debug)]
pub struct Asset {
    /// Its MIME type.
    pub media_type: &'static str,
    /// What is in it.
    pub bytes: &'static [u8],
    /// Changes when it changes.
    pub etag: &'static str,
}

/// By path, in order.
const FILES: &[(&str, Asset)] = include!(concat!(env!("OUT_DIR"), "/console.rs"));

/// What stands in the page's place in a server that was built without npm.
const ABSENT: Asset =
    Asset { media_type: "text/html; charset=utf-8", bytes: include_bytes!("console.html"), etag: "absent" };

/// The file that answers a path of the console's listener.
pub fn file(path: &str) -> Option<Asset> {
    find(FILES, path)
}

/// The console is in this build.
pub fn is_built() -> bool {
    find(FILES, "/").is_some_and(|page| page.etag != ABSENT.etag)
}

fn find(files: &[(&str, Asset)], path: &str) -> Option<Asset> {
    let path = if path == "/" { "/index.html" } else { path };
    let found = files.iter().find(|(name, _)| *name == path).map(|(_, asset)| *asset);
    found.or_else(|| (path == "/index.html").then_some(ABSENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asset(bytes: &'static [u8]) -> Asset {
        Asset { media_type: "text/plain", bytes, etag: "x" }
    }

    #[test]
    fn a_build_without_the_console_says_how_to_build_it() {
        let page = find(&[], "/").unwrap();
        let text = std::str::from_utf8(page.bytes).unwrap();
        assert!(text.contains("cargo xtask web"), "{text}");
        assert!(
            !text.contains("<script") && !text.contains("style"),
            "the policy of the listener forbids both"
        );
        assert!(find(&[], "/assets/index.js").is_none());
    }

    #[test]
    fn only_files_of_the_list_are_found() {
        let files = [("/index.html", asset(b"page")), ("/assets/a.js", asset(b"script"))];
        assert_eq!(find(&files, "/").unwrap().bytes, b"page");
        assert_eq!(find(&files, "/assets/a.js").unwrap().bytes, b"script");
        for path in ["", "/assets/", "/assets/../index.html", "/assets/a.js/", "//index.html", "/etc/passwd"]
        {
            assert!(find(&files, path).is_none(), "{path}");
        }
    }

    #[test]
    fn what_is_embedded_is_a_whole_console_or_none() {
        if !is_built() {
            assert!(FILES.is_empty());
            return;
        }
        let page = std::str::from_utf8(file("/").unwrap().bytes).unwrap();
        let mut named = 0;
        for part in page.split(['"', '\'']) {
            if let Some(path) = part.strip_prefix("./") {
                assert!(file(&format!("/{path}")).is_some(), "the page names {path}");
                named += 1;
            }
        }
        assert!(named >= 3, "icon, script and style: {page}");
        assert!(file("/NOTICE.txt").is_some(), "the licences of what is embedded");
    }
}
