"""The description of what a server serves: the manifest and tokenizer of each bundle, from its model `twinspire`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from twinspire._arguments import printable
from twinspire.bundle import TOKENIZER_NAME, BundleDescription, Manifest, Tower
from twinspire.contract import BUNDLE, DESCRIPTION_MODEL, MANIFEST, NAMES, SPACES, TOKENIZER
from twinspire.errors import BundleError, InputError, ServerError, ServerRefusedError, ServerUnavailableError
from twinspire.towers.triton.options import OPENING_S, TlsOptions, checked_addresses, checked_deadline

_LARGEST_BYTES = 256 * 2**20
"""The most bytes of a description that are accepted: the largest tokenizers known have 35 MB."""
_SHOWN_CHARACTERS = 400


def describe_server(
    url: str | Sequence[str],
    *,
    name: str | None = None,
    space: str | None = None,
    deadline_s: float = 30.0,
    tls: TlsOptions | None = None,
) -> BundleDescription:
    """Read the description of a bundle that a Triton Inference Server at `url` serves, host:port of its gRPC service.

    Of several addresses the first that answers is asked. `name` is the bundle's; without it the server must serve one
    bundle alone, or one alone of `space` where that is given. The manifest and the digest of the tokenizer are checked.
    Connecting is tried for 10 seconds at most.

    Raises InputError for an unusable argument and, with the names that are served, where no bundle or several fit;
    ServerUnavailableError where the server does not answer, ServerRefusedError where it has no description,
    ServerError where it is damaged, BundleError where it needs a later version of twinspire.
    """
    addresses = checked_addresses(url)
    limit_s = min(checked_deadline(deadline_s), OPENING_S) / len(addresses)
    for address in addresses[:-1]:
        with suppress(ServerUnavailableError):
            return _describe(address, name, space, limit_s, tls)
    return _describe(addresses[-1], name, space, limit_s, tls)


def _describe(
    address: str, name: str | None, space: str | None, limit_s: float, tls: TlsOptions | None
) -> BundleDescription:
    from twinspire.towers.triton.channel import ThreadChannel
    from twinspire.towers.triton.exchange import Question, ask
    from twinspire.towers.triton.retries import Deadline, RetryPolicy
    from twinspire.towers.triton.runners import ThreadRunner

    runner, deadline = ThreadRunner(), Deadline.after(limit_s)
    channel = ThreadChannel(address, tls, max_response_bytes=_LARGEST_BYTES, closed=runner.closed)
    policy = RetryPolicy(address, deadline, max_retries=None)

    def outputs_of(bundle: str, *outputs: str) -> Mapping[str, list[bytes]]:
        question = Question("ModelInfer", _request(bundle, outputs, timeout_s=deadline.left_s))
        (response,) = runner.run(policy.run(lambda: ask(channel, [question], deadline)))
        return _read(response, outputs, address)

    try:
        listed = outputs_of("", NAMES, SPACES)
        served = dict(zip(_texts(listed[NAMES]), _texts(listed[SPACES]), strict=True))
        chosen = _choose(served, name, space, address)
        answer = outputs_of(chosen, MANIFEST, TOKENIZER)
    except ServerRefusedError as error:
        if error.code != "NOT_FOUND":
            raise
        raise ServerRefusedError(
            f"the server at {address} has no model {DESCRIPTION_MODEL!r}, which describes what it serves: pass the "
            "bundle, or build its repository again with `twinspire build` and restart it",
            address=address,
            model=DESCRIPTION_MODEL,
            code=error.code,
        ) from error
    finally:
        runner.closed.set()
        channel.channel.close()
    return _description(chosen, served[chosen], answer[MANIFEST][0], answer[TOKENIZER][0], address)


def _choose(served: Mapping[str, str], name: str | None, space: str | None, address: str) -> str:
    """Return the name of the bundle that is meant. Raises InputError where it is not one."""
    fitting = [known for known in served if name in (None, known) and space in (None, served[known])]
    if len(fitting) == 1:
        return fitting[0]
    listed = printable(", ".join(served), limit=_SHOWN_CHARACTERS)
    meant = "a bundle" if name is None else f"the bundle {name!r}"
    meant += "" if space is None else f" of the space {space[:12]}"
    if not fitting:
        raise InputError(f"the server at {address} does not serve {meant}: it serves {listed}", option="name")
    raise InputError(
        f"the server at {address} serves {len(fitting)} bundles: name one of {listed} (--model on the command line, "
        "name=... in Python)",
        option="name",
    )


def _description(name: str, space: str, manifest_json: bytes, tokenizer: bytes, address: str) -> BundleDescription:
    """Check a description and return it. `space` is what the server's list says."""
    where = f"the description of {name!r} on {address}"
    try:
        manifest = Manifest.from_json(manifest_json.decode())
    except (BundleError, UnicodeDecodeError) as error:
        raise BundleError(f"{where} cannot be read: {error}") from error
    problem = None
    if (manifest.name, manifest.space) != (name, space):
        problem = f"it is of {manifest.name!r} in the space {manifest.space[:12]}, expected the space {space[:12]}"
    elif Tower.TEXT in manifest.towers.present:
        record = manifest.files[TOKENIZER_NAME]
        if (len(tokenizer), hashlib.sha256(tokenizer).hexdigest()) != (record.size_bytes, record.sha256):
            problem = f"its tokenizer has {len(tokenizer)} bytes and another sha256 than its manifest says"
    if problem is not None:
        raise ServerError(
            f"{where} is damaged: {problem}. Build the repository again with `twinspire build` and restart the server",
            address=address,
            model=DESCRIPTION_MODEL,
        )
    return BundleDescription(manifest, tokenizer_json=tokenizer, location=address)


def _request(bundle: str, outputs: tuple[str, ...], *, timeout_s: float) -> Any:  # noqa: ANN401 - protobuf's messages
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=DESCRIPTION_MODEL)
    request.inputs.add(name=BUNDLE, datatype="BYTES", shape=[1]).contents.bytes_contents.append(bundle.encode())
    for output in outputs:
        request.outputs.add(name=output)
    request.parameters["timeout"].int64_param = max(1, int(timeout_s * 1e6))
    return request


def _read(response: Any, outputs: tuple[str, ...], address: str) -> dict[str, list[bytes]]:  # noqa: ANN401 - as above
    """Return the strings of each output. Raises ServerError where one is missing or its strings are cut off."""
    found = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        strings, start = list[bytes](), 0
        while start + 4 <= len(raw):
            end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
            strings.append(raw[start + 4 : end])
            start = end
        if start == len(raw) and len(strings) == (output.shape[0] if output.shape else 0):
            found[output.name] = strings
    missing = [name for name in outputs if not found.get(name)]
    if missing or len({len(found[name]) for name in outputs}) != 1:
        raise ServerError(
            f"the model {DESCRIPTION_MODEL!r} on {address} returned no {' and '.join(missing or outputs)}: expected "
            "the description that `twinspire build` makes",
            address=address,
            model=DESCRIPTION_MODEL,
        )
    return found


def _texts(strings: list[bytes]) -> list[str]:
    return [string.decode(errors="backslashreplace") for string in strings]
