"""Sampling steps that share deep features: what is computed, when, and what comes out."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from tiny_networks import CASES, TOKENS, WIDTH, awake
from torch import nn

from pelap.core.errors import ModelError
from pelap.models.deep_cache import DeepCache

UNETS = ("unet2d", "resnet_samplers", "conditional")


def three_levels() -> Any:
    levels = {"block_out_channels": (8, 8, 16), "norm_num_groups": 4, "layers_per_block": 2}
    blocks = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
    return awake(
        UNet2DModel(sample_size=8, in_channels=4, out_channels=4, attention_head_dim=8, **levels, **blocks)
    )


def unet_of(name: str) -> Any:
    return three_levels() if name == "three_levels" else CASES[name]().network


def latents(seed: int, rows: int = 2, side: int = 8) -> torch.Tensor:
    return torch.randn(rows, 4, side, side, generator=torch.Generator().manual_seed(seed))


def caller(name: str) -> Callable[..., torch.Tensor]:
    """A call of a network of this kind, with what else it takes."""
    more = (torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(7)),)

    @torch.no_grad()
    def call(network: nn.Module, sample: torch.Tensor, t: float) -> torch.Tensor:
        result: torch.Tensor = network(sample, t, *(more if name == "conditional" else ())).sample
        return result

    return call


class Counter:
    """How often modules are computed."""

    def __init__(self, unet: nn.Module, *names: str) -> None:
        self.counts = dict.fromkeys(names, 0)
        for name in names:
            unet.get_submodule(name).register_forward_hook(lambda *_, name=name: self._count(name))

    def _count(self, name: str) -> None:
        self.counts[name] += 1

    def since(self) -> tuple[int, ...]:
        """Of every name, since the last time this was asked."""
        found = tuple(self.counts.values())
        self.counts = dict.fromkeys(self.counts, 0)
        return found


@pytest.mark.parametrize(
    ("interval", "exact"), [(1, [True] * 5), (3, [True, False, False, True, False])], ids=["1", "3"]
)
@pytest.mark.parametrize("name", [*UNETS, "three_levels"])
def test_whole_steps_are_exact_and_the_others_are_close(name: str, interval: int, exact: list[bool]) -> None:
    unet, call = unet_of(name), caller(name)
    cached, start, away = DeepCache(unet, interval), latents(0), latents(1)
    found = []
    for step, t in enumerate((900, 895, 890, 885, 880)):
        sample = start + 0.02 * step * away
        ours, right = call(cached, sample, t), call(unet, sample, t)
        found.append(torch.equal(ours, right))
        if found[-1]:
            whole = ours
        else:  # closer than to give the last whole step's output again
            assert (ours - right).norm() < (whole - right).norm()
    assert found == exact
    cached.reset()
    assert torch.equal(call(cached, sample, 100), call(unet, sample, 100))


def test_what_is_computed_between() -> None:
    unet = three_levels()
    deep = ("down_blocks.0.downsamplers.0.conv", "down_blocks.1.resnets.0", "down_blocks.2.resnets.1",
            "mid_block.resnets.0", "up_blocks.0.resnets.0", "up_blocks.1.resnets.2",
            "up_blocks.1.upsamplers.0.conv")  # fmt: skip
    shallow = ("conv_in", "time_embedding.linear_1", "down_blocks.0.resnets.0", "down_blocks.0.resnets.1",
               "up_blocks.2.resnets.0", "up_blocks.2.resnets.2", "conv_norm_out", "conv_out")  # fmt: skip
    counter, cached, call = Counter(unet, *deep, *shallow), DeepCache(unet, 2), caller("")
    for step, t in enumerate((900, 700, 500, 300)):
        call(cached, latents(step), t)
        assert counter.since() == (int(step % 2 == 0),) * len(deep) + (1,) * len(shallow)


def test_steps_between_have_the_deep_features_of_the_whole_one() -> None:
    """By hand: the UNet with the last up block's input taken from the whole step."""
    unet, call = three_levels(), caller("")
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    def put(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return (seen[0], *args[1:]), kwargs

    cached = DeepCache(unet, 2)
    handle = unet.up_blocks[-1].register_forward_pre_hook(keep, with_kwargs=True)
    call(cached, latents(0), 900)
    handle.remove()
    ours = call(cached, latents(1), 400)
    handle = unet.up_blocks[-1].register_forward_pre_hook(put, with_kwargs=True)
    assert torch.equal(ours, call(unet, latents(1), 400))
    handle.remove()
    assert not torch.equal(ours, call(unet, latents(1), 400))


@pytest.mark.parametrize(
    ("sample", "t", "whole"),
    [
        (latents(1), 400, False),
        (latents(1), torch.tensor(400), False),
        (latents(1), torch.tensor([400, 400]), False),
        (latents(1), 500, True),  # the same time step
        (latents(1), 900, True),
        (latents(1, rows=3), 400, True),
        (latents(1, side=4), 400, True),
    ],
)
def test_other_calls_start_a_run(sample: torch.Tensor, t: Any, whole: bool) -> None:
    unet, call = three_levels(), caller("")
    cached = DeepCache(unet, 10)
    call(cached, latents(0), 700)
    call(cached, latents(0), 500)
    assert torch.equal(call(cached, sample, t), call(unet, sample, t)) == whole
    if whole:  # a run of its own: the next step takes from it
        counter = Counter(unet, "mid_block.resnets.0")
        call(cached, sample, t - 100)
        assert counter.since() == (0,)


def test_the_network_is_left_as_it_was_also_after_an_error() -> None:
    unet, call = three_levels(), caller("")
    cached = DeepCache(unet, 2)

    def same() -> bool:
        return not any("forward" in vars(module) for module in unet.modules())

    for t in (900, 800, 700):  # the last is a whole step, the next would take from it
        call(cached, latents(0), t)
        assert same()
    handle = unet.conv_out.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(cached, latents(0), 600)
    handle.remove()
    assert same()
    assert torch.equal(call(cached, latents(1), 500), call(unet, latents(1), 500))  # what was kept is gone
    own = unet.mid_block.forward
    unet.mid_block.forward = own  # as offloading does
    call(cached, latents(1), 400)
    assert vars(unet.mid_block)["forward"] is own


def test_weights_are_the_networks_own() -> None:
    unet = three_levels()
    cached = DeepCache(unet, 2)
    assert [id(weight) for weight in cached.parameters()] == [id(weight) for weight in unet.parameters()]
    assert cached.config is unet.config
    other = copy.deepcopy(cached)
    call = caller("")
    call(other, latents(0), 900)
    with torch.no_grad():
        for weight in unet.parameters():
            weight.zero_()
    assert call(other, latents(1), 800).abs().max() > 0
    assert call(cached, latents(1), 800).abs().max() == 0


@pytest.mark.parametrize("name", ["light", "dit", "plain"])
def test_other_networks_are_refused(name: str) -> None:
    network = CASES[name]().network
    words = rf"deep cache: {type(network).__name__} is no UNet2DModel.*; use one"
    with pytest.raises(ModelError, match=words):
        DeepCache(network, 2)


def test_a_single_level_is_refused() -> None:
    unet = UNet2DModel(block_out_channels=(8,), norm_num_groups=4, attention_head_dim=8,
                       down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))  # fmt: skip
    with pytest.raises(ModelError, match="no first level apart"):
        DeepCache(unet, 2)
    with pytest.raises(ValueError, match="at least 1"):
        DeepCache(three_levels(), 0)
