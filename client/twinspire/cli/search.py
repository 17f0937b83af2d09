"""`twinspire search`: words and images find images and texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.cli.client_options import ClientOptions, open_client, with_client_options
from twinspire.cli.output import CsvOption, Results, SheetOption, check_output, show
from twinspire.cli.shared import JsonOption, completing, printable
from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.search import Query, SearchHit, SearchResponse

TemplatesOption = Annotated[
    Path | None, typer.Option("--templates", help="A file of sentences such as: a photo of {}, averaged.")
]


@with_client_options
def search(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of the index.", show_default=False)],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to look for.", show_default=False)] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", "-i", help="Look for what is like this one.")] = None,
    add: Annotated[
        list[str] | None, typer.Option(help="Also look for a text or picture: 'snow', '0.5 * a.jpg'.")
    ] = None,
    minus: Annotated[list[str] | None, typer.Option(help="Look away from a text or picture.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many hits.")] = 10,
    offset: Annotated[int, typer.Option(help="How many hits before these to leave out: the next page.")] = 0,
    where: Annotated[str | None, typer.Option(help="Only what this keeps: \"year >= 2020 and camera = 'X'\".")] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only image or text.", autocompletion=completing("image", "text"))
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="vector, words, hybrid, or auto: by the query.",
            autocompletion=completing("auto", "vector", "words", "hybrid"),
        ),
    ] = "auto",
    boost: Annotated[list[str] | None, typer.Option(help='Add to a score: "in_stock = true:0.1".')] = None,
    pin: Annotated[list[str] | None, typer.Option(help="Put what this filter keeps first.")] = None,
    diversify: Annotated[float | None, typer.Option(help="0 to 1: trade relevance for unlike hits.")] = None,
    min_score: Annotated[
        float | None, typer.Option(help="Leave out less similar hits: -1 to 1 in every mode, `vector` in --json.")
    ] = None,
    templates: TemplatesOption = None,
    synonyms: Annotated[
        Path | None, typer.Option(help="A file of words for one another: car, automobile; tv => television.")
    ] = None,
    *,
    options: ClientOptions,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    sheet: SheetOption = None,
) -> None:
    """Find images and texts by TEXT, by --image, or by a sum: '"a beach" + photo.jpg - "people"'.

    Words also look in captions and file names; a "quoted phrase" must be there. Filters, boosts and pins are over
    metadata and kind, uri, caption, id, added_at, changed_at; a time is written as 2026-05-01 or 2026-05-01T10:00Z. On
    a terminal the hits come as a list to read, in a pipe as lines of score, tab, path.
    """
    _check_number(k, offset)
    check_output(as_json=as_json, as_csv=as_csv, sheet=sheet)
    query = _query(text, image or [], add or [], minus or [])
    from twinspire.index import Index
    from twinspire.search import Boost, Filter, Searcher, Synonyms, Templates
    from twinspire.stores.validation import checked_kind

    wanted = checked_kind(kind)
    kept = Filter.parse(where) if where is not None else None
    boosts = [Boost.parse(each) for each in boost or []]
    pins = [Filter.parse(each) for each in pin or []]
    said = Templates.read(templates) if templates is not None else None
    alike = Synonyms.read(synonyms) if synonyms is not None else None
    with Index.open(index) as opened:
        if len(opened) == 0:
            raise InputError(f"the index {printable(index)} is empty: add pictures with `twinspire index add`")
        with open_client(options, opened) as client:
            searcher = Searcher(client, opened, templates=said, synonyms=alike, cache=False)
            answer = searcher.search(
                query,
                k,
                offset=offset,
                kind=wanted,
                where=kept,
                mode=mode,
                boosts=boosts,
                pins=pins,
                diversify=diversify,
                min_score=min_score,
            )
    for note in answer.notes:
        typer.echo(f"note: {printable(note)}", err=True)
    show(_results(index, query, k, where, answer), as_json=as_json, as_csv=as_csv, sheet=sheet)


def _check_number(k: int, offset: int) -> None:
    if k < 1:
        raise InputError(f"-k is the number of hits, 1 or more, got {k}")
    if offset < 0:
        raise InputError(f"--offset is a number of hits, 0 or more, got {offset}")


def _query(text: str | None, images: Sequence[Path], add: Sequence[str], minus: Sequence[str]) -> Query:
    """Make one sum of what came. Refuses what cannot work before anything is loaded."""
    from twinspire.search import Query

    if text is None and not images and not add:
        raise InputError("a search needs something to look for: TEXT, --image FILE or --add, none came")
    terms = [Query.parse(text, files=_image_file)] if text is not None else []
    terms += [Query.image(_image_file(path)) for path in images]
    terms += [Query.term(each, files=_image_file) for each in add]
    terms += [-Query.term(each, files=_image_file) for each in minus]
    query = terms[0]
    for term in terms[1:]:
        query = query + term
    return query


def _image_file(name: str | Path) -> Path:
    """Return the path of an image: whoever types a command may read any file of theirs."""
    path = Path(name)
    if not path.is_file():
        raise InputError(f"there is no picture file {printable(path)}")
    return path


def _results(index: Path, query: Query, k: int, where: str | None, answer: SearchResponse) -> Results:
    more: dict[str, object] = {"mode": answer.mode.value, "offset": answer.offset}
    if where is not None:
        more["where"] = where
    if answer.notes:
        more["notes"] = list(answer.notes)
    pictures = [Path(part.picture) for part in query.parts if isinstance(part.picture, str | Path)]
    hits = [_shown(hit) for hit in answer.hits]
    picture = next(iter(pictures), None)
    return Results(
        index, _title(query), _document(query), k, answer.searched, hits, picture, more, offset=answer.offset
    )


def _shown(hit: SearchHit) -> SearchHit:
    """Leave out the part that is the score itself."""
    from dataclasses import replace

    return replace(hit, parts={name: value for name, value in hit.parts.items() if value != hit.score})


def _title(query: Query) -> str:
    """Return the query in words, images by their file's name."""
    from dataclasses import replace

    parts = [
        replace(part, picture=Path(part.picture).name) if isinstance(part.picture, str | Path) else part
        for part in query.parts
    ]
    return printable(str(type(query)(tuple(parts))))


def _document(query: Query) -> dict[str, object]:
    parts: list[dict[str, object]] = [
        {"text": part.text} if part.text is not None else {"image": printable(Path(str(part.picture)).absolute())}
        for part in query.parts
    ]
    if len(parts) == 1 and query.parts[0].weight == 1:
        return parts[0]
    return {"sum": [each | {"weight": part.weight} for each, part in zip(parts, query.parts, strict=True)]}
