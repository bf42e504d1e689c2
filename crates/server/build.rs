//! Lists the files of the console and of the web chat, so that `admin/console.rs` and `http/chat.rs` can embed them.
//! Without them, and without npm, the server builds all the same; its pages then say how to build them.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or(io::ErrorKind::NotFound)?);
    let dist = here.join("../../web/dist");
    // Only if it is there: for a path that is missing, cargo builds everything anew each time.
    if dist.exists() {
        println!("cargo::rerun-if-changed={}", dist.display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    fs::write(out.join("chat.rs"), chat(&dist.join("chat"))?)?;
    let site = dist.join("site");
    let mut files = Vec::new();
    collect(&site, &mut files)?;
    files.sort();
    let mut list = String::from("&[\n");
    for file in files {
        let file = file.canonicalize()?;
        let path = file.strip_prefix(site.canonicalize()?).map_err(io::Error::other)?;
        let path = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?.replace('\\', "/");
        let Some(media_type) = media_type(&path) else {
            println!("cargo::warning=web/dist/site/{path} has no media type in build.rs: left out");
            continue;
        };
        let mut hasher = DefaultHasher::new();
        hasher.write(&fs::read(&file)?);
        let etag = format!("{:016x}", hasher.finish());
        writeln!(
            list,
            "    (\"/{path}\", Asset {{ media_type: \"{media_type}\", bytes: include_bytes!({file:?}), etag: \"{etag}\" }}),"
        )
        .map_err(io::Error::other)?;
    }
    list.push_str("]\n");
    fs::write(out.join("console.rs"), list)
}

/// The web chat's files, for `http/chat.rs`. Beside each that gets smaller lie `.br` and `.gz`.
fn chat(site: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    collect(site, &mut files)?;
    files.sort();
    let mut list = String::from("&[\n");
    for file in files {
        let file = file.canonicalize()?;
        let path = file.strip_prefix(site.canonicalize()?).map_err(io::Error::other)?;
        let path = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?.replace('\\', "/");
        if path.ends_with(".br") || path.ends_with(".gz") {
            continue;
        }
        let Some(media_type) = media_type(&path) else {
            println!("cargo::warning=web/dist/chat/{path} has no media type in build.rs: left out");
            continue;
        };
        let mut hasher = DefaultHasher::new();
        hasher.write(&fs::read(&file)?);
        let etag = format!("{:016x}", hasher.finish());
        let beside = |ending: &str| {
            let path = PathBuf::from(format!("{}{ending}", file.display()));
            if path.exists() { format!("Some(include_bytes!({path:?}))") } else { "None".to_owned() }
        };
        let (brotli, gzip) = (beside(".br"), beside(".gz"));
        writeln!(
            list,
            "    (\"/{path}\", Asset {{ media_type: \"{media_type}\", bytes: include_bytes!({file:?}), \
             brotli: {brotli}, gzip: {gzip}, etag: \"{etag}\" }}),"
        )
        .map_err(io::Error::other)?;
    }
    list.push_str("]\n");
    Ok(list)
}

fn media_type(path: &str) -> Option<&'static str> {
    Some(match path.rsplit_once('.')?.1 {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "txt" => "text/plain; charset=utf-8",
        "json" => "application/json",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "ttf" => "font/ttf",
        "woff2" => "font/woff2",
        "mp3" => "audio/mpeg",
        "ogg" => "audio/ogg",
        "wasm" => "application/wasm",
        _ => return None,
    })
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
