"""Migrating an index to another model: everything is encoded again, then the index switches in one step.

Images and sounds are read from their files, texts from their captions. The index answers and takes changes meanwhile;
what has changed is encoded before the switch, and only then other writers are kept out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from twinspire.bundle import Tower
from twinspire.errors import BundleError, IndexLockedError, InputError
from twinspire.index import BundleReference, Index, ItemKind
from twinspire.index.ann.family import parse_choice
from twinspire.index.migration import Staging, discard, kept_old, staged_keys
from twinspire.ingest.files import looks_the_same
from twinspire.ingest.kinds import FILE_KINDS
from twinspire.migration.reencoding import LostItem, Reencoder, content_key, why_lost

if TYPE_CHECKING:
    from twinspire.client import Client

_TOWERS = {ItemKind.IMAGE: Tower.IMAGE, ItemKind.TEXT: Tower.TEXT, ItemKind.AUDIO: Tower.AUDIO}


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What a migration did, or with `dry_run` would do.

    The index holds `items`; `encoded` were encoded now, `already` by earlier runs. `changed` files have another content
    than their items, which take it. `lost` items cannot be encoded again: the index has not switched, or has `dropped`
    them. `switched` says whether the index is of the new space now.
    """

    items: int
    encoded: int = 0
    already: int = 0
    changed: int = 0
    lost: list[LostItem] = field(default_factory=list)
    dropped: int = 0
    switched: bool = False


def migrate(
    path: str | os.PathLike[str],
    client: Client,
    *,
    bundle: BundleReference | None = None,
    spec: str | None = None,
    drop_missing: bool = False,
    keep_old: str | os.PathLike[str] | None = None,
    restart: bool = False,
    dry_run: bool = False,
    on_progress: Callable[[int, int], None] = lambda _, __: None,
) -> MigrationReport:
    """Give the index at `path` the vectors of the client's model, for all items, in one step.

    What is encoded is durable batch by batch: after an interruption the same call continues, and after the switch it
    does nothing. Items whose file is gone or cannot be read, and texts without a caption, cannot be encoded again: the
    index does not switch then, unless `drop_missing`, which removes them with the switch. A file that has other content
    than its item is encoded as it is now. Ids, captions and metadata stay.

    `bundle` is recorded as the origin of the vectors. `spec` is what is built for searches before the switch, as
    `Index.build` takes it; by default what they use now. `keep_old` is a path for the index as it was. `restart`
    discards what an earlier call has encoded. `dry_run` only looks at the files. `on_progress` is called, from the
    calling thread, with how many items are done, and of how many.

    Raises `InputError` where a migration to another space was begun, where no file at all can be read, and for a spec
    that does not suit the vectors; `BundleError` for a model without the tower of an item; `IndexLockedError` beside
    another migration and, when all is encoded, beside a process that writes to the index. Else as `add_images` does.
    """
    old = None if keep_old is None else _free_path(keep_old)
    with ExitStack() as stack:
        index = stack.enter_context(Index.open(path))
        if index.space == client.space:
            if not dry_run:
                _finish(index.path, old)
            return MigrationReport(len(index), already=len(index), switched=True)
        _check_towers(index, client)
        spec = spec or _spec_of(index)
        parsed = parse_choice(spec)
        if parsed is not None:
            parsed.check(client.dim)
            parsed.family.require()
        if dry_run:
            return _preview(index, client.space)
        if restart:
            discard(index.path)
        staging = Staging.open(
            index, space=client.space, dim=client.dim, vectors_per_item=client.vectors_per_item, bundle=bundle
        )
        stack.callback(staging.close)
        already = len(staging)
        reencoder = Reencoder(client, staging, on_progress)

        def report(items: int, *, switched: bool = False) -> MigrationReport:
            lost = [reencoder.lost[number] for number in sorted(reencoder.lost)]
            dropped = len(lost) if switched else 0
            return MigrationReport(items, reencoder.encoded, already, staging.changed, lost, dropped, switched)

        reencoder.run(index)
        if reencoder.lost and not drop_missing:
            return report(len(index))
        _require_files(index, reencoder)
        staging.build(spec)
        writer = stack.enter_context(_opened_for_writing(index.path))
        reencoder.run(writer)  # what has changed since
        if reencoder.lost and not drop_missing:
            return report(len(writer))
        items = staging.switch(writer, reencoder.changed(), reencoder.lost, keep_old=old is not None)
        _finish(index.path, old)
        return report(items, switched=True)


def _finish(path: Path, old: Path | None) -> None:
    """Move what is kept of the old index to `old`, and remove what the migration has left."""
    if old is not None:
        kept_old(path, old)
    discard(path)
    with suppress(IndexLockedError):  # then that writer has done the same
        Index.open(path, mode="write").close()  # reads all vectors, and removes stale files


def _free_path(path: str | os.PathLike[str]) -> Path:
    old = Path(path).absolute()
    if os.path.lexists(old) or not old.parent.is_dir():
        problem = "it exists" if os.path.lexists(old) else "its folder does not exist"
        raise InputError(f"the old index cannot be kept at {old}: {problem}", option="--keep-old", path=old)
    return old


def _check_towers(index: Index, client: Client) -> None:
    for kind, count in index.stats().items_by_kind.items():
        if count and _TOWERS[kind] not in client.bundle.towers:
            raise BundleError(
                f"the index {index.path} has {count:,} items of kind {kind}, and the bundle {client.bundle.name!r} has "
                f"no tower for them: migrate to a model that has one, or remove them first (`twinspire index remove "
                f"INDEX --where \"kind = '{kind}'\"`)"
            )


def _spec_of(index: Index) -> str:
    snapshot = index.stats().snapshot
    return "flat" if snapshot is None else snapshot.spec


def _opened_for_writing(path: Path) -> Index:
    try:
        return Index.open(path, mode="write")
    except IndexLockedError as error:
        raise IndexLockedError(
            f"every item is encoded, and the switch waits for another process: {error}. Run the same command then: it "
            "goes on here"
        ) from error


def _require_files(index: Index, reencoder: Reencoder) -> None:
    """Raise `InputError` where no file can be read: a disk that is not mounted looks the same."""
    counts = index.stats().items_by_kind
    files = sum(counts[kind] for kind in FILE_KINDS)
    lost = [lost for lost in reencoder.lost.values() if lost.kind in FILE_KINDS]
    if lost and len(lost) >= files:
        raise InputError(
            f"none of the {files:,} files of the index {index.path} can be read, such as {lost[0].uri}: is their disk "
            "mounted? Nothing was dropped. If they are gone for good, remove the items: `twinspire index remove`"
        )


def _preview(index: Index, space: str) -> MigrationReport:
    """Return what a migration would do, as far as names, sizes and times of the files tell."""
    staged = staged_keys(index.path, space)
    encoded, already, changed, lost = 0, 0, 0, []
    for item in index.items():
        if staged.get(item.id) == content_key(item):
            already += 1
        elif (cause := why_lost(item)) is not None:
            lost.append(LostItem(item.id, item.uri, item.kind, cause))
        else:
            encoded += 1
            changed += item.kind in FILE_KINDS and item.content_hash is not None and not looks_the_same(item)
    return MigrationReport(len(index), encoded, already, changed, lost)
