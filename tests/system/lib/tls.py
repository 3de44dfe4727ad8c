"""A certificate authority of one test, made by openssl's own program."""

import subprocess

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def _openssl(*args):
    p = subprocess.run(["openssl", *args], capture_output=True, text=True, check=False)
    assert p.returncode == 0, p.stderr


class Authority:
    """Its own certificate is in `path`."""

    def __init__(self, folder, name="Test Authority"):
        self.folder = folder
        folder.mkdir()
        self.path = folder / "ca.crt"
        self.key = folder / "ca.key"
        _openssl("req", "-x509", *KEY, "-keyout", self.key, "-out", self.path, "-days", "2", "-subj", f"/CN={name}")

    def issue(self, name, *hosts):
        """(certificate, key): files of a certificate for CN `name`, valid for the hosts."""
        stem = self.folder / name
        request, cert, key = (stem.with_suffix(s) for s in (".csr", ".crt", ".key"))
        more = ["-addext", "subjectAltName=" + ",".join(f"DNS:{h}" for h in hosts)] if hosts else []
        _openssl("req", *KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}", *more)
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.path, "-CAkey", self.key, "-CAcreateserial",
            "-copy_extensions", "copy", "-days", "2", "-out", cert,
        )  # fmt: skip
        key.chmod(0o600)
        return cert, key
