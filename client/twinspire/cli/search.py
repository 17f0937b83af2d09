"""`twinspire search`: find images, texts and sounds by text, image and sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire._arguments import as_finite, as_whole
from twinspire.cli.client_options import ClientOptions, open_client, with_client_options
from twinspire.cli.output import CsvOption, Results, SheetOption, check_output, show
from twinspire.cli.shared import JsonOption, completing, printable
from twinspire.errors import IndexReplacedError, InputError

if TYPE_CHECKING:
    from twinspire.search import Query, SearchResponse

TemplatesOption = Annotated[
    Path | None,
    typer.Option(
        "--templates", help="A file with prompt templates, such as: a photo of {}; their vectors are averaged."
    ),
]


@with_client_options
def search(
    index: Annotated[
        str, typer.Argument(metavar="INDEX", help="Folder of the index, or URI of another store.", show_default=False)
    ],
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="The query: a text or a sum.", show_default=False)
    ] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", "-i", help="Search by this image.")] = None,
    audio: Annotated[list[Path] | None, typer.Option("--audio", "-a", help="Search by this sound file.")] = None,
    add: Annotated[
        list[str] | None, typer.Option(help="Add a text, image or sound to the query: 'snow', '0.5 * a.jpg'.")
    ] = None,
    minus: Annotated[list[str] | None, typer.Option(help="Subtract a text, image or sound from the query.")] = None,
    k: Annotated[int, typer.Option("-k", help="Number of hits.")] = 10,
    offset: Annotated[int, typer.Option(help="Number of best hits to skip, for the next page.")] = 0,
    where: Annotated[
        str | None, typer.Option(help="Only items that match this filter: \"year >= 2020 and camera = 'X'\".")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="Only items of this kind: image, text or audio.", autocompletion=completing("image", "text", "audio")
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="vector, keyword (BM25), hybrid, or auto: by the query.",
            autocompletion=completing("auto", "vector", "keyword", "hybrid"),
        ),
    ] = "auto",
    boost: Annotated[
        list[str] | None, typer.Option(help='Add to the scores of items that match: "in_stock = true:0.1".')
    ] = None,
    pin: Annotated[list[str] | None, typer.Option(help="Put the items that match this filter first.")] = None,
    diversify: Annotated[
        float | None, typer.Option(help="0 to 1: trade relevance for hits unlike each other (MMR).")
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="Minimum similarity of a hit, -1 to 1, in every mode; the part `vector` in --json."),
    ] = None,
    group: Annotated[
        bool, typer.Option("--group", help="Show one of each group of near-equal hits, with the ids of the others.")
    ] = False,
    group_threshold: Annotated[
        float | None,
        typer.Option(help="Minimum cosine of two near-equal hits, 0 to 1; default 0.98. Implies --group."),
    ] = None,
    rerank: Annotated[
        int | None, typer.Option(help="Reorder this many of the first hits with the bundle's reranker, such as 20.")
    ] = None,
    templates: TemplatesOption = None,
    synonyms: Annotated[
        Path | None, typer.Option(help="A file with synonyms for keyword search: car, automobile; tv => television.")
    ] = None,
    *,
    options: ClientOptions,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    sheet: SheetOption = None,
) -> None:
    """Search by TEXT, by --image, by --audio, or by a sum: '"a beach" + photo.jpg - "people"'.

    Texts also search captions and file names by keyword; a "quoted phrase" must occur there. Filters, boosts and pins
    are over metadata and kind, uri, caption, id, added_at, changed_at; a time is 2026-05-01 or 2026-05-01T10:00Z. On a
    terminal the hits are a list to read, in a pipe lines of score, tab, path.
    """
    as_whole(k, "-k", minimum=1)
    as_whole(offset, "--offset", minimum=0)
    if group_threshold is not None:
        as_finite(group_threshold, "--group-threshold", minimum=0, maximum=1)
    check_output(as_json=as_json, as_csv=as_csv, sheet=sheet)
    query = _query(text, image or [], audio or [], add or [], minus or [])
    from twinspire.search import Searcher, SearchRequest, Synonyms, Templates
    from twinspire.stores import open_index

    make_request: Callable[..., SearchRequest] = SearchRequest  # which parses filters and names
    request = make_request(
        query,
        k=k,
        offset=offset,
        kind=kind,
        where=where,
        mode=mode,
        boosts=boost or (),
        pins=pin or (),
        diversify=diversify,
        min_score=min_score,
        group=group if group_threshold is None else group_threshold,
        rerank=rerank,
    )
    prompts = Templates.read(templates) if templates is not None else None
    alternatives = Synonyms.read(synonyms) if synonyms is not None else None

    def run() -> tuple[str, SearchResponse]:
        with open_index(index) as store:
            if len(store) == 0:
                raise InputError(f"the index {printable(index)} is empty: add items with `twinspire index add`")
            with open_client(options, store) as client:
                searcher = Searcher(client, store, templates=prompts, synonyms=alternatives, cache=False)
                return store.uri, searcher.run(request)

    try:
        uri, response = run()
    except IndexReplacedError:  # `index migrate` has switched it since it was opened
        uri, response = run()
    for note in response.notes:
        typer.echo(f"note: {printable(note)}", err=True)
    results = Results(uri, _title(query), request, response, image=next(iter(_image_paths(query)), None))
    show(results, as_json=as_json, as_csv=as_csv, sheet=sheet)


def _query(
    text: str | None, images: Sequence[Path], sounds: Sequence[Path], add: Sequence[str], minus: Sequence[str]
) -> Query:
    """Return the sum of all arguments. Raises `InputError` for what cannot work, before anything is loaded."""
    from twinspire.search import Query

    if text is None and not images and not sounds and not add:
        raise InputError("no query: pass TEXT, --image FILE, --audio FILE or --add")
    terms = [Query.parse(text, images=_file)] if text is not None else []
    terms += [Query.image(_file(path)) for path in images]
    terms += [Query.audio(_file(path)) for path in sounds]
    terms += [Query.term(term, images=_file) for term in add]
    terms += [-Query.term(term, images=_file) for term in minus]
    query = terms[0]
    for term in terms[1:]:
        query = query + term
    return query


def _file(name: str | Path) -> Path:
    """Return the path of an image or sound: whoever types a command may read any of their files."""
    path = Path(name)
    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "the file does not exist"
        raise InputError(f"no image or sound at {printable(path)}: {found}; expected the path of a file", path=path)
    return path.absolute()


def _image_paths(query: Query) -> list[Path]:
    return [part.image for part in query.parts if isinstance(part.image, Path)]


def _title(query: Query) -> str:
    """Return the query as text, images and sounds by the names of their files."""
    from dataclasses import replace

    parts = [
        replace(
            part,
            image=part.image.name if isinstance(part.image, Path) else part.image,
            audio=part.audio.name if isinstance(part.audio, Path) else part.audio,
        )
        for part in query.parts
    ]
    return printable(str(type(query)(tuple(parts))))
