"""Each lossless rewrite, alone and together with the others, against transformers' own `CLIPModel`."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import pytest

pytest.importorskip("torch", reason="the export needs torch")

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from twinspire.bundle import ImageSettings
from twinspire.errors import InputError
from twinspire_export.families.clip import image_tower, text_tower
from twinspire_export.random_checkpoints import randomize_weights
from twinspire_export.rewrite import ALL, REWRITES, apply_rewrites, check_rewrites, select_rewrites
from twinspire_export.towers import ImageTower, TextTower, TransformerTower
from twinspire_export.transformer import Linear

TOLERANCE = 1e-5  # of components of unit vectors
VOCABULARY, CONTEXT, END = 60, 20, 59

SETTINGS = ImageSettings.centre_crop(
    32,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
BATCHES, LENGTHS = (1, 3, 8), (1, 2, 7, CONTEXT)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Let torch work alone: on towers this small, threads wait for each other more than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def clip(seed: int = 0, eos_id: int = END, activation: str = "quick_gelu", layers: int = 3) -> CLIPModel:
    """Make a small `CLIPModel` whose every parameter is drawn, those of norms and biases too. Not to be changed."""
    tower = {"hidden_size": 32, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": layers}
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": END - 1,
            "eos_token_id": eos_id,
            "hidden_act": activation,
        },
        vision_config={**tower, "image_size": SETTINGS.size, "patch_size": 8, "hidden_act": activation},
        projection_dim=24,
    )
    model = CLIPModel(config).eval()
    randomize_weights(model, seed=seed)
    return model


def pictures(batch: int) -> Tensor:
    """Draw (batch, S, S, 3) uint8."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(0, 256, (batch, SETTINGS.size, SETTINGS.size, 3), generator=generator).to(torch.uint8)


def captions(batch: int, length: int) -> Tensor:
    """Draw (batch, length) int32 with the end token at any place, and any ids right of it, further end tokens too."""
    generator = torch.Generator().manual_seed(100 * batch + length)
    ids = torch.randint(3, END, (batch, length), generator=generator)
    for row, end in enumerate(torch.randint(0, length, (batch,), generator=generator).tolist()):
        ids[row, end] = END
        ids[row, end + 2 :: 3] = END
    return ids.to(torch.int32)


def reference_images(model: CLIPModel, image: Tensor) -> Tensor:
    """Encode by transformers, pixels normalised as its image processor does: (N, D), L2-normalised."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (SETTINGS.mean, SETTINGS.std))
    pixels = (image.permute(0, 3, 1, 2).float() / 255 - mean) / std
    return torch.nn.functional.normalize(model.get_image_features(pixel_values=pixels), dim=-1)


def reference_texts(model: CLIPModel, ids: Tensor) -> Tensor:
    """Encode by transformers: (N, D), L2-normalised."""
    return torch.nn.functional.normalize(model.get_text_features(input_ids=ids.long()), dim=-1)


@torch.inference_mode()
def assert_equal(image: ImageTower, text: TextTower, model: CLIPModel) -> None:
    """Compare both towers with `model` over several batch sizes and lengths."""
    differences = {}
    for batch in BATCHES:
        pixels = pictures(batch)
        differences[f"{batch} pictures"] = (unit(image(pixels)) - reference_images(model, pixels)).abs().max().item()
        for length in LENGTHS:
            ids = captions(batch, length)
            difference = (unit(text(ids)) - reference_texts(model, ids)).abs().max().item()
            differences[f"{batch} texts of {length}"] = difference
    case, largest = max(differences.items(), key=lambda item: item[1])
    assert largest <= TOLERANCE, f"{case}: largest difference {largest}"
    print(f"largest difference {largest:.1e} ({case})")


def unit(vectors: Tensor) -> Tensor:
    """Give the rows of (N, D) the length 1."""
    return torch.nn.functional.normalize(vectors, dim=-1)


def towers(model: CLIPModel) -> tuple[ImageTower, TextTower]:
    """Make both towers as they come from a checkpoint."""
    return image_tower(model, SETTINGS).eval(), text_tower(model).eval()


def apply_in_order(tower: TransformerTower, names: Iterable[str]) -> None:
    """Apply the rewrites that are for this tower, in the order in which they are named."""
    for name in names:
        if isinstance(tower, REWRITES[name].tower):
            REWRITES[name].apply(tower)


def test_towers_as_made_are_those_of_transformers() -> None:
    """Without any rewrite the towers give what transformers gives, L2-normalised."""
    model = clip()
    image, text = towers(model)
    assert_equal(image, text, model)
    with torch.inference_mode():
        lengths = torch.cat([image(pictures(3)).norm(dim=-1), text(captions(3, 7)).norm(dim=-1)])
    assert (lengths - 1).abs().max() < 1e-6


VARIANTS = {
    "quick_gelu": {},
    "gelu": {"activation": "gelu"},
    "legacy end token": {"eos_id": 2},
    "another seed": {"seed": 7},
    "one layer": {"layers": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ALL)
def test_one_rewrite(name: str, variant: str) -> None:
    """Each rewrite, alone but for those that it needs, leaves the embeddings of both towers as they are."""
    model = clip(**VARIANTS[variant])
    image, text = towers(model)
    for tower in (image, text):
        apply_in_order(tower, (*REWRITES[name].requires, name))
    assert_equal(image, text, model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_rewrites(variant: str) -> None:
    """All of them together leave the embeddings as they are, and of unit length."""
    model = clip(**VARIANTS[variant])
    image, text = towers(model)
    assert apply_rewrites(image) is image
    apply_rewrites(text)
    assert_equal(image, text, model)
    with torch.inference_mode():
        lengths = torch.cat([image(pictures(3)).norm(dim=-1), text(captions(3, 7)).norm(dim=-1)])
    assert (lengths - 1).abs().max() < 1e-6


def subsets(kind: type[TransformerTower]) -> list[tuple[str, ...]]:
    """List the subsets of the rewrites for towers of class `kind` that have what they need."""
    names = [name for name in ALL if issubclass(kind, REWRITES[name].tower)]
    every = itertools.chain.from_iterable(itertools.combinations(names, count) for count in range(len(names) + 1))
    return [chosen for chosen in every if all(need in chosen for name in chosen for need in REWRITES[name].requires)]


@torch.inference_mode()
def test_every_subset() -> None:
    """Every subset that has what it needs leaves the embeddings as they are."""
    model = clip(layers=2)
    pixels, ids = pictures(2), captions(4, 7)
    assert (len(subsets(ImageTower)), len(subsets(TextTower))) == (48, 64)
    for kind, given, expected in (
        (ImageTower, pixels, reference_images(model, pixels)),
        (TextTower, ids, reference_texts(model, ids)),
    ):
        for chosen in subsets(kind):
            tower = next(tower for tower in towers(model) if isinstance(tower, kind))
            apply_in_order(tower, chosen)
            difference = (unit(tower(given)) - expected).abs().max().item()
            assert difference <= TOLERANCE, f"{kind.__name__} {chosen}: largest difference {difference}"


@pytest.mark.parametrize("seed", range(12))
def test_any_order(seed: int) -> None:
    """Applied in another order, as far as needs allow, they leave the embeddings as they are."""
    order = list(ALL)
    random.Random(seed).shuffle(order)
    for name in ALL:  # what another one needs goes in front of it
        for need in REWRITES[name].requires:
            if order.index(need) > order.index(name):
                order.remove(need)
                order.insert(order.index(name), need)
    model = clip()
    image, text = towers(model)
    apply_in_order(image, order)
    apply_in_order(text, order)
    assert_equal(image, text, model)


def test_the_checkpoint_is_not_changed() -> None:
    """Rewriting leaves every parameter and setting of the model that was given as it was."""
    model = clip(seed=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = model.config.to_json_string()
    for tower in towers(model):
        apply_rewrites(tower)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert [name for name, tensor in after.items() if not torch.equal(tensor, before[name])] == []
    assert model.config.to_json_string() == settings


def test_what_stands_right_of_the_end_never_matters() -> None:
    """A text has the same embedding at its own length and with anything behind its end token."""
    _, text = towers(clip())
    apply_rewrites(text)
    ids = captions(1, 9)
    ids[0, :5] = torch.tensor([END - 1, 4, 5, 6, END])
    with torch.inference_mode():
        difference = (text(ids) - text(ids[:, :5])).abs().max().item()
    assert difference <= 1e-6, f"largest difference {difference}"


def test_pixels_are_normalised_by_the_weights() -> None:
    """After `normalisation` the image tower holds neither mean nor std, and its patches take 0 to 255."""
    image, _ = towers(clip())
    assert {"patches.mean", "patches.std"} <= dict(image.named_buffers()).keys()
    apply_in_order(image, ["normalisation"])
    assert [buffer for buffer in image.buffers() if buffer is not None] == []


def test_norms_keep_no_weights() -> None:
    """After `norms` only the norm in front of the first block has weights of its own."""
    for tower in towers(clip()):
        apply_in_order(tower, ["norms"])
        named = {name for name, _ in tower.named_parameters() if "norm" in name}
        assert named == ({"norm.weight", "norm.bias"} if isinstance(tower, ImageTower) else set())


def test_three_products_become_one() -> None:
    """After `qkv` each block reads its tokens once; the block for the pooled token makes keys and values by one."""
    for tower in towers(clip()):
        apply_in_order(tower, ["qkv"])
        assert [len(block.attention.input_layers()) for block in tower.all_blocks()] == [1, 1, 1]
    for order in (["qkv", "pooled"], ["pooled", "qkv"]):
        for tower in towers(clip()):
            apply_in_order(tower, order)
            assert [len(block.attention.input_layers()) for block in tower.all_blocks()] == [1, 1, 2]


def test_the_last_block_works_on_the_pooled_token_alone() -> None:
    """After `pooled` the last block's queries, output and MLP get one token a row; keys and values get all."""
    rows: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: rows.__setitem__(name, inputs[0].shape[1])

    for tower, given, length in zip(towers(clip()), (pictures(2), captions(2, 7)), (17, 7), strict=True):
        apply_in_order(tower, ["pooled"])
        assert tower.pooled_block is not None
        for name, module in tower.pooled_block.named_modules():
            if isinstance(module, Linear):
                module.register_forward_hook(note(name))
        with torch.inference_mode():
            tower(given)
        expected = {"attention.query": 1, "attention.output": 1, "mlp.up": 1, "mlp.down": 1}
        assert rows == {**expected, "attention.project.linears.0": length, "attention.project.linears.1": length}
        rows.clear()


def test_the_mask_is_finite_in_half_precision() -> None:
    """After `mask` no masked logit is infinite in float16, and the exp of one is 0 all the same."""
    _, text = towers(clip())
    assert text.mask(5).half().isinf().any()
    apply_in_order(text, ["mask"])
    mask = text.mask(5)
    assert mask.shape == (5, 5)
    assert mask.half().isfinite().all()
    assert torch.equal(mask.softmax(dim=-1).triu(1), torch.zeros(5, 5))


def test_order_is_that_of_the_registry() -> None:
    """A choice is put in the registry's order, each once."""
    assert check_rewrites(["qkv", "norms", "qkv"]) == ("norms", "qkv")
    assert check_rewrites([]) == ()
    assert check_rewrites(ALL) == ALL == tuple(REWRITES)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("all", ALL),
        ("none", ()),
        ("qkv", ("qkv",)),
        (" qkv, norms ", ("norms", "qkv")),
    ],
)
def test_choice_of_a_user(choice: str, names: tuple[str, ...]) -> None:
    """`all`, `none` and names with commas between them are choices."""
    assert select_rewrites(choice) == names


@pytest.mark.parametrize("choice", ["qvk", "", "qkv,", "all,qkv", "none,none"])
def test_choice_that_is_none(choice: str) -> None:
    """Anything else is an InputError that lists the known names."""
    with pytest.raises(InputError) as caught:
        select_rewrites(choice)
    assert all(name in str(caught.value) for name in ALL)


def test_rewrite_that_needs_another() -> None:
    """A rewrite without the one that it needs is an InputError that names both."""
    with pytest.raises(InputError, match="'normalisation'") as caught:
        check_rewrites(["patches"])
    assert "'patches'" in str(caught.value)
