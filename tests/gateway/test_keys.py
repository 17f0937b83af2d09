"""Keys and rates."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.live_gateway import BODY, EMBEDDINGS, Gateway, serving
from twinspire.errors import InputError
from twinspire_server.gateway.safety.keys import VARIABLE, KeyStore, TokenBucket, parse_keys

ALICE, BOB = "a" * 32, "b" * 32


def bearer(key: str) -> dict[str, str]:
    """Return the header of a key."""
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that knows two keys, one of them by its hash, and writes a log."""
    folder = tmp_path_factory.mktemp("keys")
    digest = hashlib.sha256(BOB.encode()).hexdigest()
    (folder / "keys").write_text(f"# who may\n\n{ALICE} alice\nsha256:{digest} bob of sales\n")
    with serving(keys=folder / "keys", access_log=folder / "access.log") as found:
        yield found


@pytest.mark.parametrize("key", [ALICE, BOB])
def test_a_known_key_is_let_in(gateway: Gateway, key: str) -> None:
    """A key of the file is accepted, whether it stands there itself or as its hash."""
    assert gateway.post(headers=bearer(key)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("c" * 32),
        bearer(ALICE[:-1]),
        bearer(ALICE + "a"),
        bearer(hashlib.sha256(BOB.encode()).hexdigest()),
        bearer("sha256:" + hashlib.sha256(BOB.encode()).hexdigest()),
        {"Authorization": "Bearer"},
        {"Authorization": ALICE},
        {"Authorization": f"Basic {ALICE}"},
        {"Authorization": f"Bearer {ALICE} {BOB}"},
        [("Authorization", f"Bearer {ALICE}"), ("Authorization", "Bearer x")],
        {"X-API-Key": ALICE},
        {"Cookie": f"key={ALICE}"},
    ],
)
def test_other_keys_are_401(gateway: Gateway, headers: dict[str, str] | list[tuple[str, str]]) -> None:
    """No key, another one, parts, the hash itself and other headers are 401 in the dialect's form."""
    answer = gateway.post(headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"
    assert ALICE not in answer.text


def test_a_key_in_the_address_does_not_count(gateway: Gateway) -> None:
    """Query strings end up in logs: a key there is not looked at."""
    assert httpx.post(f"{gateway.url}{EMBEDDINGS}?key={ALICE}&api_key={ALICE}", json=BODY).status_code == 401


def test_everything_but_health_and_the_page_needs_a_key(gateway: Gateway) -> None:
    """Every route of the application, and paths that lead nowhere, are 401 without a key."""
    paths = {path for path in gateway.app.openapi()["paths"] if "{" not in path}
    closed = {path for path in paths if httpx.get(gateway.url + path).status_code == 401}
    health = {"/livez", "/readyz", "/health", "/ping", "/v1/health/live", "/v1/health/ready"}
    assert paths - closed <= health | {"/.well-known/live", "/.well-known/ready", "/"}
    assert "/v1/models" in closed
    for path in ("/openapi.json", "/nowhere", "/livez/", "/livez/../v1/models", "//livez", "/page/../v1/models"):
        assert httpx.get(gateway.url + path).status_code in (401, 404), path


def test_the_log_names_keys_and_does_not_show_them(gateway: Gateway, tmp_path: Path) -> None:
    """A line has the name of the key; neither a key nor a text of a request is in the log."""
    gateway.post({"model": "scenes", "input": "a very secret text"}, headers=bearer(BOB))
    gateway.post(headers=bearer("wrong-key-" + "x" * 20))
    log = gateway.app.state.settings.safety.access_log.read_text()
    assert '"key": "bob of sales"' in log
    assert ALICE not in log
    assert BOB not in log
    assert "wrong-key" not in log
    assert "secret text" not in log


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """A new key is let in and an old one no more, without a restart."""
    path = tmp_path / "keys"
    path.write_text(f"{ALICE} alice\n")
    keys = KeyStore(path)
    assert keys.find(ALICE.encode()) is not None
    path.write_text(f"{BOB} bob\n")
    keys.reload()
    assert keys.find(ALICE.encode()) is None
    found = keys.find(BOB.encode())
    assert found is not None
    assert found.name == "bob"


def test_a_file_that_became_unusable_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bad line or a missing file neither lets everybody in nor shuts everybody out; the log says why."""
    path = tmp_path / "keys"
    path.write_text(f"{ALICE}\n")
    keys = KeyStore(path)
    for damage in (lambda: path.write_text("short\n"), lambda: path.write_text(""), path.unlink):
        damage()
        with caplog.at_level(logging.ERROR, "twinspire"):
            keys.reload()
        assert keys.find(ALICE.encode()) is not None
        assert keys.find(b"short") is None
        assert "keys stay" in caplog.text
        caplog.clear()


def test_the_environment_has_keys_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """TWINSPIRE_GATEWAY_KEYS has the same lines as a file."""
    monkeypatch.setenv(VARIABLE, f"{ALICE} alice\n{BOB} bob")
    with serving() as gateway:
        assert gateway.post().status_code == 401
        assert gateway.post(headers=bearer(BOB)).status_code == 200


def test_an_empty_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that was set to nothing, by mistake, does not open the gateway."""
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(InputError) as raised, serving():
        pass
    assert VARIABLE in str(raised.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("short alice", 1),
        (f"{ALICE} alice\nsha256:abcd bob", 2),
        (f"sha256:{'g' * 64}", 1),
        ("ä" * 20, 1),
        (f"{ALICE} a\tb", 1),
        (f"{ALICE} {'n' * 65}", 1),
        ("# nothing", None),
    ],
)
def test_bad_keys_are_named_by_their_line(text: str, line: int | None) -> None:
    """An error has the line and not the key."""
    with pytest.raises(InputError) as raised:
        parse_keys(text, source="keys")
    assert raised.value.line == line
    assert raised.value.option == "--keys"
    assert ALICE not in str(raised.value)
    assert "short" not in str(raised.value)


def test_a_bucket_refills_at_its_rate() -> None:
    """A burst of one second passes; then as much as the rate gives; the wait that is told is the one it takes."""
    now = [0.0]
    bucket = TokenBucket(4, clock=lambda: now[0])
    assert [bucket.take(1) for _ in range(4)] == [0] * 4
    wait_s = bucket.take(1)
    assert wait_s == pytest.approx(0.25)
    now[0] += wait_s
    assert bucket.take(1) == 0
    now[0] += 100
    assert sum(bucket.take(1) == 0 for _ in range(10)) == 4


def test_a_large_batch_is_paid_for_afterwards() -> None:
    """A batch above the rate passes when nothing is owed, and the next waits until it is paid."""
    now = [0.0]
    bucket = TokenBucket(10, clock=lambda: now[0])
    assert bucket.take(100) == 0
    assert bucket.take(1) == pytest.approx(9.1)
    now[0] = 9.2
    assert bucket.take(1) == 0


def test_rates_are_each_keys_own(tmp_path: Path) -> None:
    """A key beyond its requests per second is 429 with Retry-After while another's are served; inputs count too."""
    (tmp_path / "keys").write_text(f"{ALICE} alice\n{BOB} bob\n")
    with serving(keys=tmp_path / "keys", rate=2.0, input_rate=1000.0) as gateway:
        answers = [gateway.post(headers=bearer(ALICE)) for _ in range(6)]
        assert gateway.post(headers=bearer(BOB)).status_code == 200
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert int(refused[0].headers["Retry-After"]) >= 1
        assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
        assert gateway.metric("twinspire_gateway_refusals_total", reason="rate_limit_exceeded") == len(refused)


def test_inputs_are_counted_by_their_number() -> None:
    """One batch uses up the inputs of many single requests, and single and batch are refused alike."""
    with serving(input_rate=10.0) as gateway:
        many = {"model": "scenes", "input": ["a"] * 500}
        assert gateway.post(many).status_code == 200
        for body in (many, BODY):
            answer = gateway.post(body)
            assert answer.status_code == 429
            assert int(answer.headers["Retry-After"]) > 30
        assert gateway.metric("twinspire_gateway_inputs_total", dialect="openai") == 500


def test_the_file_is_looked_at_without_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request a second after the change sees it."""
    path = tmp_path / "keys"
    path.write_text(f"{ALICE} alice\n")
    keys = KeyStore(path)
    now = [0.0]
    monkeypatch.setattr("twinspire_server.gateway.safety.keys.time.monotonic", lambda: now[0])
    assert keys.find(BOB.encode()) is None
    replacement = tmp_path / "new"
    replacement.write_text(f"{BOB} bob\n")
    replacement.replace(path)
    now[0] += 2
    assert keys.find(BOB.encode()) is not None
