import copy
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from autoreg.errors import ConfigError
from autoreg.network.config import Size, network_config
from autoreg.network.network import Network
from autoreg.network.orderings import RASTER_ORDERINGS, Ordering
from autoreg.train.acceleration import accelerate

ORDERINGS = RASTER_ORDERINGS[0], RASTER_ORDERINGS[6]


def make_network(variant: str = "F2", **options: Any) -> Network:
    torch.manual_seed(0)
    return Network(network_config(variant, Size(4, 3, "double", 8, 2), bands=2, classes=3, **options)).train()


def one_step(network: Network, orderings: tuple[Ordering, ...] = ORDERINGS) -> tuple[Tensor, list[Tensor]]:
    """Logits of a seeded batch, and the gradient of a seeded function of them."""
    torch.manual_seed(1)
    images = torch.randn(4, 2, 16, 16)
    logits = network(images, orderings)
    weights = torch.randn(logits.shape)
    return logits.detach(), list(torch.autograd.grad((logits * weights).sum(), list(network.parameters())))


def saved_bytes(network: Network) -> int:
    """What a step keeps for its backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.randn(4, 2, 32, 32), ORDERINGS)
    return sum(kept.values())


@pytest.mark.parametrize(
    ("variant", "options"),
    [("F2", {"attention": True, "dropout": 0.3}), ("F3", {}), ("F4", {"dropout": 0.3}), ("F5", {})],
    ids=str,
)
def test_checkpointing_changes_nothing_but_the_memory(variant: str, options: dict[str, Any]) -> None:
    plain = make_network(variant, **options)
    again = copy.deepcopy(plain)
    accelerate(plain, compiler=None, checkpointing=False)
    accelerate(again, compiler=None, checkpointing=True)
    (logits, gradients), (other_logits, other_gradients) = one_step(plain), one_step(again)
    assert torch.equal(logits, other_logits)
    assert all(torch.equal(first, second) for first, second in zip(gradients, other_gradients, strict=True))
    # The batch norms have seen the batch once, though it was computed twice.
    states = plain.state_dict(), again.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert saved_bytes(again) < 0.6 * saved_bytes(plain)


# The compiler itself hides this warning, unless warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    """As if nothing was compiled before."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_network_is_the_same_under_the_same_names(checkpointing: bool) -> None:
    plain = make_network(dropout=0.0)
    compiled = copy.deepcopy(plain)
    accelerate(compiled, compiler="aot_eager", checkpointing=checkpointing)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    (logits, gradients), (other_logits, other_gradients) = one_step(plain), one_step(compiled)
    torch.testing.assert_close(other_logits, logits, rtol=1e-5, atol=1e-5)
    for gradient, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_fresh_compiler")
def test_what_is_compiled_is_compiled_once_whatever_the_orderings() -> None:
    network = make_network()
    accelerate(network, compiler="aot_eager", checkpointing=False)
    one_step(network)
    with torch.compiler.set_stance("fail_on_recompile"):
        for orderings in itertools.permutations(RASTER_ORDERINGS[:4], 2):
            one_step(network, orderings)
        with torch.no_grad():
            network.eval()(torch.randn(3, 2, 16, 16))  # nor for looking at the network


def test_without_a_compiler_it_says_so_before_the_first_step() -> None:
    message = r"compile is on, but nothing can be compiled for cpu here .*: install a C\+\+ compiler .* or leave compile out"
    with pytest.raises(ConfigError, match=message):
        accelerate(make_network(), compiler="none_such", checkpointing=False)


def test_an_option_without_effect_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    network = Network(network_config("sift", Size(4, 3, "double", 8, 2), bands=2, classes=3))
    with caplog.at_level(logging.WARNING, logger="autoreg"):
        accelerate(network, compiler="aot_eager", checkpointing=True)
    assert "compile has no effect" in caplog.text
    assert "checkpointing has no effect" in caplog.text
