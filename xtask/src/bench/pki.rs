//! One certificate authority for a run, and ECDSA P-256 certificates for the servers. By `openssl`, which is installed
//! for the tests anyway: a library of ours for this would have to be built before any `cargo xtask`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::ours::run;

const P256: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

/// The authority, and where its certificate and those it issued are.
#[derive(Debug)]
pub(super) struct Authority {
    directory: PathBuf,
}

/// PEM files of one server.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
    /// Both in one file, as ejabberd likes it.
    pub(super) both: PathBuf,
}

impl Authority {
    pub(super) fn new(directory: &Path) -> Result<Authority, String> {
        fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let authority = Authority { directory: directory.to_owned() };
        // An empty configuration, so that the system's adds no extensions.
        let empty = directory.join("empty.cnf");
        write(&empty, "[req]\ndistinguished_name = name\n[name]\n")?;
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-days", "30", "-subj", "/CN=Benchmark CA", "-config"]).arg(&empty);
        command.args(P256).args(["-addext", "basicConstraints=critical,CA:TRUE,pathlen:0"]);
        command.args(["-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
        command.args(["-addext", "subjectKeyIdentifier=hash"]);
        run(command.arg("-keyout").arg(authority.key()).arg("-out").arg(authority.file()), "")?;
        Ok(authority)
    }

    /// The authority's own certificate.
    pub(super) fn file(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    fn key(&self) -> PathBuf {
        self.directory.join("ca.key")
    }

    pub(super) fn issue(&self, domain: &str) -> Result<Certificate, String> {
        let file = |end: &str| self.directory.join(format!("{domain}.{end}"));
        let files = Certificate { chain: file("crt"), key: file("key"), both: file("pem") };
        let (request, extensions) = (file("csr"), file("ext"));
        let text = format!(
            "subjectAltName=DNS:{domain},DNS:*.{domain}\nextendedKeyUsage=serverAuth,clientAuth\n\
             basicConstraints=critical,CA:FALSE\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        );
        write(&extensions, &text)?;
        let mut command = Command::new("openssl");
        command.args(["req", "-new", "-subj", &format!("/CN={domain}")]).args(P256);
        command.arg("-config").arg(self.directory.join("empty.cnf"));
        run(command.arg("-keyout").arg(&files.key).arg("-out").arg(&request), "")?;
        let mut command = Command::new("openssl");
        command.args(["x509", "-req", "-days", "30", "-CAcreateserial", "-CA"]).arg(self.file());
        command.arg("-CAkey").arg(self.key()).arg("-in").arg(&request).arg("-extfile").arg(&extensions);
        run(command.arg("-out").arg(&files.chain), "")?;
        let read =
            |file: &Path| fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()));
        write(&files.both, &(read(&files.chain)? + &read(&files.key)?))?;
        Ok(files)
    }
}

/// What is written may be a key.
fn write(file: &Path, text: &str) -> Result<(), String> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(file);
    let failed = |error| format!("{}: {error}", file.display());
    std::io::Write::write_all(&mut opened.map_err(failed)?, text.as_bytes()).map_err(failed)?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).map_err(failed)
}
