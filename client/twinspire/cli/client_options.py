"""Options of every command that encodes: the bundle, and whether a server or this process runs its engines.

A command takes them all as one parameter, `options: ClientOptions`, under `@with_client_options`, and opens its
client with `open_client(options, store)`; `with_options` does the same for other dataclasses of options. Imports
nothing heavy, so that `twinspire --help` is fast.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from twinspire._arguments import as_member, as_whole
from twinspire._decode_mode import DECODE_HELP, as_decode
from twinspire._dims import shown_dims, split_space
from twinspire.cli.shared import completing, printable
from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.bundle import BundleDescription
    from twinspire.client import Client
    from twinspire.images import ImageLimits
    from twinspire.stores import VectorStore
    from twinspire.towers import TlsOptions

_Description = TypeVar("_Description", bound="BundleDescription")
DEADLINE_S = 30.0
_PANEL = "Bundle, server and runtime"
_TLS = ("tls", "tls_ca", "tls_certificate", "tls_key")
_LOCAL = ("precision", "provider", "streams")


def _option(*names: str, help: str, **more: Any) -> Any:  # noqa: A002, ANN401 - as of typer.Option
    return typer.Option(*names, help=help, rich_help_panel=_PANEL, show_default=False, **more)


BundleOption = Annotated[
    Path | None,
    _option(
        "--bundle", "-b", help="Bundle of the model; default: that of the index, else the server's, else the sample."
    ),
]


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Where texts and images are encoded. None stands for an option that was not given.

    Raises `InputError` for options that exclude each other and for bad values, before anything is loaded.
    """

    bundle: BundleOption = None
    server: Annotated[
        str | None,
        _option(
            "--server",
            metavar="HOST:PORT[,...]",
            help="Encode on the Triton server at this gRPC address, or on the least busy of several.",
        ),
    ] = None
    fallback: Annotated[
        bool, _option("--fallback", help="Encode in this process while no server is available; with --server.")
    ] = False
    model: Annotated[
        str | None, _option("--model", metavar="NAME", help="Bundle to use of a server that has several.")
    ] = None
    deadline: Annotated[
        float | None,
        _option(
            "--deadline",
            metavar="SECONDS",
            help=f"Deadline of a call to the server, retries included; default {DEADLINE_S:g}.",
        ),
    ] = None
    tls: Annotated[bool, _option("--tls", help="Use TLS; verify the server by gRPC's root certificates.")] = False
    tls_ca: Annotated[
        Path | None, _option("--tls-ca", metavar="PEM", help="Use TLS; verify the server by these certificates.")
    ] = None
    tls_certificate: Annotated[
        Path | None, _option("--tls-certificate", metavar="PEM", help="Client certificate, with --tls-key.")
    ] = None
    tls_key: Annotated[
        Path | None, _option("--tls-key", metavar="PEM", help="Private key of the client certificate.")
    ] = None
    dim: Annotated[
        int | None,
        _option(
            "--dim",
            help="Cut embeddings to this many numbers, where the bundle allows it; default: as the index has them.",
        ),
    ] = None
    precision: Annotated[
        str | None,
        _option(
            "--precision",
            help="Precision of the engines run here: auto, fp32, fp16 or int8; default auto.",
            autocompletion=completing("auto", "fp32", "fp16", "int8"),
        ),
    ] = None
    provider: Annotated[
        str | None,
        _option(
            "--provider",
            help="onnxruntime provider that runs engines here: auto, cpu, openvino or cuda; default auto.",
            autocompletion=completing("auto", "cpu", "openvino", "cuda"),
        ),
    ] = None
    threads: Annotated[
        int | None, _option("--threads", help="Threads for decoding images and for inference here; default: all cores.")
    ] = None
    streams: Annotated[
        int | None,
        _option("--streams", help="Parts of a batch run in parallel on a CPU; the threads are divided among them."),
    ] = None
    decode: Annotated[
        str | None,
        _option(
            "--decode",
            help=DECODE_HELP,
            autocompletion=completing("exact", "scaled", "auto"),
        ),
    ] = None
    max_megapixels: Annotated[
        float | None, _option("--max-megapixels", help="Reject larger images, by their header; default 64.")
    ] = None

    def __post_init__(self) -> None:
        given = [
            name
            for name in (*_LOCAL, *_TLS, "deadline", "fallback", "model")
            if getattr(self, name) not in (None, False)
        ]
        if self.server is not None:
            for name in _LOCAL:
                if name in given:
                    raise _error(name, "excludes --server, which decides what runs its engines: leave one out")
        elif remote := [name for name in given if name not in _LOCAL]:
            raise _error(remote[0], "is for a connection: add --server HOST:PORT")
        if (self.tls_key is None) != (self.tls_certificate is None):
            raise _error("tls_key", "and --tls-certificate belong together: expected both or neither")
        if self.deadline is not None and not 0 < self.deadline <= 1e9:
            raise _error("deadline", f"{self.deadline:g}: expected a number of seconds above 0, at most 1e9")
        for name in ("threads", "streams", "dim"):
            value = getattr(self, name)
            if value is not None:
                as_whole(value, f"--{name}", minimum=1)
        if self.max_megapixels is not None and not 1e-6 <= self.max_megapixels <= 1e6:
            raise _error("max_megapixels", f"{self.max_megapixels:g}: expected millions of pixels, above 0")
        if self.server is not None:
            from twinspire.towers.triton.options import checked_addresses

            checked_addresses(self.servers())
        if (tls := self.tls_options()) is not None:
            tls.read()
        if self.precision not in (None, "auto"):
            from twinspire.bundle import Precision

            as_member(self.precision, Precision, "--precision", besides=["auto"])
        if self.provider not in (None, "auto"):
            from twinspire.towers import Provider

            as_member(self.provider, Provider, "--provider", besides=["auto"])
        if self.decode is not None:
            as_decode(self.decode, "--decode")

    def servers(self) -> list[str]:
        """Return the addresses of the servers, none without --server."""
        return [] if self.server is None else self.server.split(",")

    def image_limits(self) -> ImageLimits | None:
        """Return the limits of images to decode, None without --max-megapixels."""
        if self.max_megapixels is None:
            return None
        from twinspire.images import ImageLimits

        return ImageLimits(max_pixels=round(self.max_megapixels * 1e6))

    def tls_options(self) -> TlsOptions | None:
        """Return the TLS options of the connection, None without any."""
        if not any(getattr(self, name) for name in _TLS):
            return None
        from twinspire.towers import TlsOptions

        return TlsOptions(
            root_certificates=self.tls_ca, client_key=self.tls_key, client_certificate=self.tls_certificate
        )


def with_options(group: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that replaces a command's parameter of type `group`, a dataclass, by the options in it."""
    hints = get_type_hints(group, include_extras=True)
    fields = dataclasses.fields(group)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            if own[parameter.name] is not group:
                parameters.append(parameter.replace(annotation=own[parameter.name]))
                continue
            replaced, kind = parameter.name, parameter.kind
            parameters += [
                inspect.Parameter(field.name, kind, default=field.default, annotation=hints[field.name])
                for field in fields
            ]

        @functools.wraps(command)
        def run(**given: Any) -> None:  # noqa: ANN401 - as typer calls it
            options = group(**{field.name: given.pop(field.name) for field in fields})
            command(**given, **{replaced: options})

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


with_client_options = with_options(ClientOptions)


def open_client(options: ClientOptions, store: VectorStore | None = None) -> Client:
    """Open the bundle that was given, the bundle that made `store`, the servers', or the sample.

    Servers need no bundle here: theirs is used where none was given and that of `store` is not known or gone.

    Embeddings are cut as those of `store` are, unless a `dim` was given.

    Raises `BundleError` where the store's own bundle is gone, `SpaceMismatchError` for a bundle of another space or a
    `dim` that is not that of `store`.
    """
    from twinspire.cli.bundles import has_bundle, open_bundle
    from twinspire.client import Client

    space, own_dim = (None, None) if store is None else split_space(store.space)
    dim = options.dim if options.dim is not None else own_dim
    if options.server is not None:
        from twinspire.towers.triton import describe_server

        deadline_s = DEADLINE_S if options.deadline is None else options.deadline
        tls = options.tls_options()
        needs_bundle = options.fallback or options.bundle is not None or has_bundle(store)
        local = open_bundle(options.bundle, store) if needs_bundle else None
        bundle = local or describe_server(
            options.servers(), name=options.model, space=space, deadline_s=deadline_s, tls=tls
        )
        _of_store(bundle, dim, store)
        return Client.connect(
            options.servers(),
            bundle,
            dim=dim,
            name=options.model,
            deadline_s=deadline_s,
            tls=tls,
            fallback=local if options.fallback else None,
            threads=options.threads,
            decode=options.decode or "exact",
            limits=options.image_limits(),
        )
    return Client.local(
        _of_store(open_bundle(options.bundle, store), dim, store),
        dim=dim,
        precision=options.precision or "auto",
        provider=options.provider or "auto",
        threads=options.threads,
        streams=options.streams,
        decode=options.decode or "exact",
        limits=options.image_limits(),
    )


def _of_store(bundle: _Description, dim: int | None, store: VectorStore | None) -> _Description:
    """Return the bundle. Raises what `open_client` raises for a `dim` that it does not allow or `store` does not have.

    So that an option is refused before engines are opened.
    """
    try:
        space = bundle.space_of(dim)
    except InputError as error:
        if store is None or dim != split_space(store.space)[1]:
            raise
        raise InputError(
            f"the index {printable(store.uri)} has embeddings that are cut to {dim} numbers, and {bundle.name} at "
            f"{printable(bundle.location)} allows {shown_dims(bundle.dims, 'and')}: pass --bundle with one that allows "
            f"{dim}",
            option="--bundle",
        ) from error
    if store is not None:
        store.check_space(space)
    return bundle


def _error(name: str, problem: str) -> InputError:
    option = "--" + name.replace("_", "-")
    return InputError(f"{option} {problem}", option=option)
