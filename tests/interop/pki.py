"""The harness's own certificate authority, and the certificates a federation meets in the wild.

One key is shared by all certificates of a run: the checks are about names, dates and issuers, and keys
are slow to make.
"""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VARIANTS = ("good", "expired", "wrong-name", "self-signed", "no-client-auth")


class Pki:
    """A certificate authority in a directory; `issue` writes `NAME-VARIANT.crt` and `.key` there."""

    def __init__(self, directory: Path):
        self.dir = directory
        self.dir.mkdir(parents=True, exist_ok=True)
        self.now = datetime.datetime.now(datetime.timezone.utc)
        self.ca_key = ec.generate_private_key(ec.SECP256R1())
        self.ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Interop Test CA")])
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
            key_encipherment=False, data_encipherment=False, key_agreement=False,
            encipher_only=False, decipher_only=False)
        ca = (
            self._builder(self.ca_name, self.ca_name, self.ca_key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self.ca_key, hashes.SHA256()))
        self.ca_file = self.dir / "ca.crt"
        self.ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        self.key = ec.generate_private_key(ec.SECP256R1())

    def _builder(self, subject, issuer, key, start=None, end=None):
        day = datetime.timedelta(days=1)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start or self.now - day)
            .not_valid_after(end or self.now + 30 * day)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False))

    def issue(self, domain: str, variant: str = "good") -> tuple[Path, Path]:
        """Certificate and key files for `domain`, in one of `VARIANTS`."""
        assert variant in VARIANTS, variant
        day = datetime.timedelta(days=1)
        names = ["wrong.example"] if variant == "wrong-name" else [domain, f"*.{domain}"]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        start, end = (self.now - 30 * day, self.now - day) if variant == "expired" else (None, None)
        own = variant == "self-signed"
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH]
        if variant != "no-client-auth":
            purposes.append(ExtendedKeyUsageOID.CLIENT_AUTH)
        certificate = (
            self._builder(subject, subject if own else self.ca_name, self.key, start, end)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self.key if own else self.ca_key, hashes.SHA256()))
        stem = self.dir / f"{domain}-{variant}"
        crt, key = Path(f"{stem}.crt"), Path(f"{stem}.key")
        crt.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key.write_bytes(self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        key.chmod(0o600)
        return crt, key
