"""What a client needs of a bundle: the manifest and the tokenizer, wherever they are."""

from __future__ import annotations

from twinspire._arguments import as_whole
from twinspire._dims import cut_space, shown_dims
from twinspire.bundle.manifest import Manifest
from twinspire.bundle.settings import AudioSettings, ImageSettings, TextSettings, Tower
from twinspire.contract import TensorSpec
from twinspire.errors import InputError


class BundleDescription:
    """A model's manifest and tokenizer, without its engines: enough to prepare inputs and to check a server.

    `Bundle` has them from a folder; `Client.connect(url)` reads them from the server. `location` is the folder's path
    or the server's address, for messages.
    """

    def __init__(self, manifest: Manifest, *, tokenizer_json: bytes | None, location: str) -> None:
        self.manifest = manifest
        self.location = location
        self._tokenizer_json = tokenizer_json

    @property
    def name(self) -> str:
        """The model's name; Triton serves it as `{name}_image` and `{name}_text`."""
        return self.manifest.name

    @property
    def space(self) -> str:
        """The id of the model's embedding space: vectors are comparable within it only."""
        return self.manifest.space

    @property
    def dim(self) -> int:
        """The embedding's length D."""
        return self.manifest.dim

    @property
    def dims(self) -> tuple[int, ...]:
        """The lengths that embeddings may have, ascending, `dim` the last; `dim` alone where they may not be cut."""
        return self.manifest.dims or (self.dim,)

    def space_of(self, dim: int | None) -> str:
        """Return the space of embeddings of `dim` numbers, None for whole ones.

        Raises InputError, which names `dims`, for a length that the model was not trained for.
        """
        if dim is None or as_whole(dim, "dim", minimum=1) == self.dim:
            return self.space
        if dim not in self.dims:
            remedy = (
                "Pass one of them, or no dim for whole embeddings"
                if len(self.dims) > 1
                else "It does not say that its embeddings may be cut: pass no dim, or, if the model was trained for "
                f"shorter ones (Matryoshka), export it with --dims {dim}"
            )
            raise InputError(
                f"dim {dim}: the embeddings of the bundle {self.name!r} at {self.location} have "
                f"{shown_dims(self.dims)} numbers. {remedy}",
                option="dim",
            )
        return cut_space(self.space, dim)

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The towers that the model has, in the order of `Tower`."""
        return self.manifest.towers.present

    @property
    def vectors_per_item(self) -> int:
        """Q, how many vectors an image has. Where it is above 1, the best of them scores; texts have one vector."""
        return self.manifest.vectors_per_item

    @property
    def image(self) -> ImageSettings:
        """How images are prepared. Raises BundleError where the model has no image tower."""
        return self.manifest.image

    @property
    def text(self) -> TextSettings:
        """How texts are prepared. Raises BundleError where the model has no text tower."""
        return self.manifest.text

    @property
    def audio(self) -> AudioSettings:
        """How sounds are prepared. Raises BundleError where the model has no audio tower."""
        return self.manifest.audio

    def input_spec(self, tower: Tower) -> TensorSpec:
        """Return the input of a tower's engines; texts have any length where padding may be left out."""
        return self.manifest.tower(tower).input

    def output_spec(self, tower: Tower) -> TensorSpec:
        """Return the output of a tower's engines."""
        return self.manifest.tower(tower).output

    def tokenizer_json(self) -> bytes:
        """Return the content of tokenizer.json. Raises BundleError where the model has no text tower."""
        self.manifest.tower(Tower.TEXT)
        assert self._tokenizer_json is not None
        return self._tokenizer_json

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r}, name={self.name!r}, space={self.space[:12]}…)"
