"""One precedence, every origin told, nothing unknown taken; and where a server may listen."""

from __future__ import annotations

import ssl
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from insula.errors import ConfigError
from insula.server.exposure import check_exposure, check_tls, is_open_without_keys
from insula.server.settings import ServerSettings, load, to_toml


@pytest.fixture
def home(tmp_path):
    (tmp_path / "insula.toml").write_text('[server]\nport = 1\nhost = "::1"\nbody = "2M"\n')
    return {"INSULA_HOME": str(tmp_path)}


class TestPrecedence:
    def test_flags_environment_file_defaults(self, home, tmp_path):
        file = str(tmp_path / "insula.toml")
        loaded = load({}, env=home)
        assert (loaded.settings.port, loaded.origins["port"]) == (1, file)
        loaded = load({"port": None}, env={**home, "INSULA_SERVER_PORT": "2"})
        assert (loaded.settings.port, loaded.origins["port"]) == (2, "INSULA_SERVER_PORT")
        loaded = load({"port": 3}, env={**home, "INSULA_SERVER_PORT": "2"})
        assert (loaded.settings.port, loaded.origins["port"]) == (3, "--port")
        assert (loaded.settings.host, loaded.settings.body) == ("::1", 2 << 20)
        assert (loaded.settings.auth, loaded.origins["auth"]) == ("auto", "default")

    def test_the_file_that_was_named_must_be_there(self, home, tmp_path):
        other = tmp_path / "other.toml"
        with pytest.raises(ConfigError, match="no such file"):
            load(env=home, file=other)
        other.write_text("[server]\nport = 7\n")
        assert load(env=home, file=other).settings.port == 7
        assert load(env={**home, "INSULA_CONFIG": str(other)}).settings.port == 7
        assert load(env={"INSULA_HOME": str(tmp_path / "none")}).settings == ServerSettings()

    def test_lists_and_words(self, home):
        env = {
            **home,
            "INSULA_SERVER_ALLOWED_HOSTS": "a.example, b.example,",
            "INSULA_SERVER_KEEP_ALIVE": "-1",
            "INSULA_SERVER_ONLY": "yes",
        }
        found = load({"models": ["m", "n"], "memory": "1.5G"}, env=env).settings
        assert found.allowed_hosts == ("a.example", "b.example")
        assert found.models == ("m", "n")
        assert (found.keep_alive, found.only, found.memory) == (None, True, 3 << 29)
        for written, seconds in (("5m", 300), (90, 90), ("forever", None), (1.5, 1.5)):
            assert load({"keep_alive": written}, env=home).settings.keep_alive == seconds


class TestErrors:
    @pytest.mark.parametrize(
        ("content", "match"),
        [
            ("port = 1", "port: is not known here; allowed is the table .server."),
            ("[serve]", "serve: is not known here"),
            ("server = 1", "server: is not known"),
            ("[server]\nprot = 1", r"prot: is not a setting; allowed: host, port"),
            ("[server]\nport = 70000", "port: found '70000'; allowed is a whole number from 0"),
            ('[server]\nport = "http"', "port: found 'http'"),
            ("[server]\nport = true", "port: found 'True'"),
            ("[server]\nport = 1.5", "port: found '1.5'"),
            ('[server]\nauth = "off"', "auth: found 'off'; allowed is auto, required"),
            ('[server]\nmodels = "m"', "models: found 'm'; allowed is a list"),
            ("[server]\nmodels = [1]", "models: found '1'; allowed is a text"),
            ('[server]\nbody = "big"', "body: found 'big'; allowed is a size"),
            ("[server]\nbody = 1.5", "body: found '1.5'"),
            ("[server]\nhead_seconds = inf", "head_seconds: found 'inf'"),
            ("[server]\ngrace = nan", "grace: found 'nan'"),
            ('[server]\nonly = "maybe"', "only: found 'maybe'; allowed is true or false"),
            ('[server]\nallowed_origins = ["*"]', "allowed_origins: found '\\*'"),
            ('[server]\nallowed_origins = ["https://a/b"]', "allowed_origins"),
            ('[server]\nhost = ""', "host"),
            ('[server]\ntls_cert = "c.pem"', "tls_key: is missing"),
            ("[server", "is not TOML"),
            ("\x00", "is not TOML"),
            (
                '[server]\nkeep_alive = "soon"',
                "keep_alive: found 'soon'; allowed is a time such as",
            ),
            ("[server]\nkeep_alive = true", "keep_alive: found 'True'"),
        ],
    )
    def test_a_file_that_cannot_be_used(self, tmp_path, content, match):
        file = tmp_path / "insula.toml"
        file.write_text(content)
        with pytest.raises(ConfigError, match=match) as raised:
            load(env={"INSULA_HOME": str(tmp_path)})
        if "missing" not in match:
            assert str(file) in str(raised.value)

    def test_files_that_are_none(self, tmp_path):
        (tmp_path / "insula.toml").mkdir()
        with pytest.raises(ConfigError, match="is no file"):
            load(env={"INSULA_HOME": str(tmp_path)})

    def test_the_place_is_named(self, home):
        with pytest.raises(ConfigError, match=r"^--port: found '99999'"):
            load({"port": 99999}, env=home)
        with pytest.raises(ConfigError, match=r"^INSULA_SERVER_PORT: found 'x'"):
            load(env={**home, "INSULA_SERVER_PORT": "x"})
        with pytest.raises(ConfigError, match=r"^INSULA_SERVER_PROT: is not a setting"):
            load(env={**home, "INSULA_SERVER_PROT": "1"})


def test_what_is_printed_is_a_file_that_says_the_same(home, tmp_path):
    loaded = load(
        {"models": ['a"b\\', "ñ"], "keep_alive": "forever", "memory": 5},
        env={**home, "INSULA_SERVER_LOG": "json"},
    )
    printed = to_toml(loaded)
    assert "port = 1  # {}".format(tmp_path / "insula.toml") in printed
    assert 'log = "json"  # INSULA_SERVER_LOG' in printed
    assert "memory = 5  # --memory" in printed
    assert "body_seconds = 30.0  # default" in printed
    assert "# tls_cert is not set" in printed
    file = tmp_path / "again.toml"
    file.write_text(printed)
    assert load(env={"INSULA_HOME": "/nowhere"}, file=file).settings == loaded.settings
    assert set(tomllib.loads(printed)["server"]) <= {*vars(loaded.settings)}


def make_certificate(folder: Path, days: int = 365, name: str = "cert") -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=400))
        .not_valid_after(now + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    files[1].chmod(0o600)
    return files


class TestTls:
    def test_files_that_belong_together(self, tmp_path):
        cert, key = make_certificate(tmp_path)
        assert check_tls(ServerSettings(tls_cert=cert, tls_key=key)) == []
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)

    def test_files_that_do_not(self, tmp_path):
        cert, key = make_certificate(tmp_path)
        _, other = make_certificate(tmp_path, name="other")
        for bad_cert, bad_key, match in (
            (cert, other, "tls_key: .* is not the key of"),
            (cert, tmp_path / "none", "tls_key: .* no file that can be read"),
            (tmp_path, key, "tls_cert: .* no file"),
            (key, key, "tls_cert: .* cannot be used"),
        ):
            with pytest.raises(ConfigError, match=match):
                check_tls(ServerSettings(tls_cert=bad_cert, tls_key=bad_key))

    @pytest.mark.skipif(sys.platform == "win32", reason="no such modes there")
    def test_a_key_that_others_can_read_and_a_certificate_that_ends(self, tmp_path):
        cert, key = make_certificate(tmp_path, days=3)
        key.chmod(0o644)
        loose, soon = check_tls(ServerSettings(tls_cert=cert, tls_key=key))
        assert "chmod 600" in loose
        assert "expires on" in soon
        cert, key = make_certificate(tmp_path, days=-1)
        assert "has expired" in check_tls(ServerSettings(tls_cert=cert, tls_key=key))[0]


class TestExposure:
    def test_a_network_needs_keys(self):
        for host in ("0.0.0.0", "::", "192.168.1.5", "office"):
            found = ServerSettings(host=host)
            with pytest.raises(ConfigError, match="insula keys create NAME"):
                check_exposure(found, has_keys=False)
            (warning,) = check_exposure(found, has_keys=True)
            assert "without TLS" in warning
            assert not is_open_without_keys(found)

    def test_the_override_is_said_and_warned_of(self):
        found = ServerSettings(host="0.0.0.0", allow_open=True)
        assert "everybody" in check_exposure(found, has_keys=False)[0]
        assert is_open_without_keys(found)

    def test_loopback_is_quiet(self):
        assert check_exposure(ServerSettings(), has_keys=False) == []
        assert is_open_without_keys(ServerSettings())
        assert not is_open_without_keys(ServerSettings(auth="required"))


def test_settings_are_light():
    program = (
        "import sys; import insula.server.settings; "
        "print(sorted({'fastapi', 'apsw', 'uvicorn', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
