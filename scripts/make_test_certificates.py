"""Write tests/golden/tls/: authorities, a server's and a client's certificate, for tests only.

    python scripts/make_test_certificates.py        # needs the openssl command

They are valid for 100 years and name localhost; the keys are public, so never use them elsewhere.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "tls"
DAYS = "36500"
CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def authority(name: str) -> None:
    """Write <name>.pem and <name>.key of an authority that signs itself."""
    openssl("req", "-x509", *CURVE, "-days", DAYS, "-subj", f"/CN={name}",
            "-keyout", str(OUT / f"{name}.key"), "-out", str(OUT / f"{name}.pem"))


def signed(name: str, by: str, extension: str) -> None:
    """Write <name>.pem and <name>.key, signed by an authority."""
    with tempfile.TemporaryDirectory() as work:
        request, extra = Path(work) / "request", Path(work) / "extra"
        extra.write_text(extension)
        openssl("req", *CURVE, "-subj", f"/CN={name}", "-keyout", str(OUT / f"{name}.key"),
                "-out", str(request))
        openssl("x509", "-req", "-in", str(request), "-CA", str(OUT / f"{by}.pem"),
                "-CAkey", str(OUT / f"{by}.key"), "-CAcreateserial", "-days", DAYS,
                "-extfile", str(extra), "-out", str(OUT / f"{name}.pem"))
        (OUT / f"{by}.srl").unlink(missing_ok=True)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    authority("ca")
    authority("other-ca")
    signed("server", "ca", "subjectAltName=DNS:localhost,DNS:models.example")
    signed("client", "ca", "extendedKeyUsage=clientAuth")
    for name in ("ca.key", "other-ca.key"):
        (OUT / name).unlink()


if __name__ == "__main__":
    main()
