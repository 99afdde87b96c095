"""The contrastive modules: the functions' values, a temperature that learns, options that are seen and saved."""

from __future__ import annotations

import copy
import inspect
import math

import pytest
import torch
import torch.nn.functional as F

import avfast
from avfast import nn as modules

N, D = 12, 7


def pairs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=g), torch.randn(N, D, generator=g)


LABELS = torch.arange(N) % 4
QUEUE = F.normalize(torch.randn(30, D, generator=torch.Generator().manual_seed(5)), dim=1)
MAPS = [x.T.reshape(1, D, N) for x in pairs(3)]
MATCH = torch.arange(N).flip(0)[None]
WARM = {"temperature": 0.3}
SAME = {
    "InfoNCE": (lambda m: m(*pairs()), lambda o: avfast.info_nce(*pairs(), **o), WARM | {"distance": "l2"}),
    "NTXent": (lambda m: m(*pairs()), lambda o: avfast.nt_xent(*pairs(), **o), WARM | {"reduction": "sum"}),
    "SupCon": (lambda m: m(pairs()[0], LABELS), lambda o: avfast.sup_con(pairs()[0], LABELS, **o), WARM),
    "SigmoidContrastive": (
        lambda m: m(*pairs()), lambda o: avfast.sigmoid_contrastive(*pairs(), **o),
        {"scale": 5.0, "bias": -2.0, "normalize": True},
    ),
    "QueueInfoNCE": (
        lambda m: m(*pairs(), QUEUE), lambda o: avfast.queue_info_nce(*pairs(), QUEUE, **o),
        {"temperature": 0.3, "reduction": "none"},
    ),
    "DenseContrastive": (
        lambda m: m(*MAPS, QUEUE, MATCH), lambda o: avfast.dense_contrastive(*MAPS, QUEUE, MATCH, **o),
        {"temperature": 0.3, "normalize": False},
    ),
}  # fmt: skip
FUNCTIONS = {
    "InfoNCE": avfast.info_nce, "NTXent": avfast.nt_xent, "SupCon": avfast.sup_con,
    "SigmoidContrastive": avfast.sigmoid_contrastive, "QueueInfoNCE": avfast.queue_info_nce,
    "DenseContrastive": avfast.dense_contrastive,
}  # fmt: skip
TEMPERED = ("InfoNCE", "NTXent", "SupCon")


@pytest.mark.parametrize("name", SAME)
def test_a_module_is_its_function(name):
    by_module, by_function, options = SAME[name]
    module = getattr(modules, name)(**options)
    torch.testing.assert_close(by_module(module), by_function(options), rtol=1e-6, atol=0)
    for option, value in options.items():
        if option not in ("scale", "bias", "temperature"):
            assert f"{option}={value!r}" in repr(module)


@pytest.mark.parametrize("name", SAME)
def test_arguments_have_the_names_and_defaults_of_the_function(name):
    """What a module does not take is what its call takes; what it has beyond is about learning."""
    of_function = inspect.signature(FUNCTIONS[name]).parameters
    of_module = inspect.signature(getattr(modules, name)).parameters
    of_call = inspect.signature(getattr(modules, name).forward).parameters
    beyond = set(of_module) - set(of_function)
    assert beyond <= {"learnable_temperature", "min_temperature", "learnable"}
    assert set(of_function) <= set(of_module) | set(of_call)
    for option in set(of_module) & set(of_function) - {"scale", "bias"}:
        assert of_module[option].default == of_function[option].default, option


@pytest.mark.parametrize("name", TEMPERED)
def test_a_learned_temperature_gets_the_gradient_of_its_logarithm(name):
    call = SAME[name][0]
    module = getattr(modules, name)(0.2, learnable_temperature=True).double()
    call(module).backward()
    step, base = 1e-3, math.log(0.2)
    high, low = (call(getattr(modules, name)(math.exp(base + s))).item() for s in (step, -step))
    assert module.log_temperature.grad.item() == pytest.approx((high - low) / (2 * step), rel=1e-3)
    assert "0.2 (learned)" in repr(module)


def test_a_temperature_learns_and_is_saved():
    torch.manual_seed(0)
    module = modules.InfoNCE(0.5, learnable_temperature=True)
    z = torch.randn(64, 16)
    a, b = z, z + 0.1 * torch.randn(64, 16)  # pairs that are easily told: a lower temperature is better
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    before = module(a, b).item()
    for _ in range(20):
        optimiser.zero_grad()
        module(a, b).backward()
        optimiser.step()
    assert module(a, b).item() < before and module.temperature.item() < 0.5
    other = modules.InfoNCE(0.5, learnable_temperature=True)
    other.load_state_dict(copy.deepcopy(module.state_dict()))
    assert other(a, b).item() == module(a, b).item()


def test_a_learned_temperature_is_printed(recwarn):
    module = modules.NTXent(0.07, learnable_temperature=True)
    assert repr(module).startswith("NTXent(temperature=0.07 (learned), normalize=True")
    assert not recwarn.list


def test_the_bound_holds_and_lets_go():
    """Below the bound the loss is that of the bound, and the gradient still says which way."""
    module = modules.InfoNCE(0.05, learnable_temperature=True, min_temperature=0.01)
    with torch.no_grad():
        module.log_temperature.fill_(math.log(0.001))
    a, b = pairs()  # unrelated pairs: the temperature should rise
    loss = module(a, b)
    torch.testing.assert_close(loss, avfast.info_nce(a, b, temperature=0.01))
    loss.backward()
    assert module.log_temperature.grad.item() < 0


def test_siglip_starts_where_the_paper_does():
    module = modules.SigmoidContrastive()
    assert module.scale.item() == pytest.approx(10) and module.bias.item() == -10
    assert sorted(name for name, _ in module.named_parameters()) == ["bias", "log_scale"]
    module(*pairs()).backward()
    assert module.bias.grad.item() != 0 and module.log_scale.grad.item() != 0
    frozen = modules.SigmoidContrastive(learnable=False)
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("name", SAME)
def test_modules_compile_whole(name):
    call, _, options = SAME[name]
    module = getattr(modules, name)(**options)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(call(compiled), call(module))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: modules.InfoNCE(0), "InfoNCE: temperature: expected a finite number > 0, got 0"),
        (lambda: modules.NTXent(float("nan")), "NTXent: temperature: expected a finite number > 0, got nan"),
        (
            lambda: modules.SupCon(0.1, min_temperature=0.01),
            "SupCon: min_temperature: expected None, or a number up to 0.1 with learnable_temperature=True, got 0.01",
        ),
        (
            lambda: modules.SigmoidContrastive(scale=-1),
            "SigmoidContrastive: scale: expected a finite number > 0, got -1",
        ),
        (lambda: modules.QueueInfoNCE(-0.2), "QueueInfoNCE: temperature: expected a finite number > 0, got -0.2"),
        (lambda: modules.DenseContrastive(0.0), "DenseContrastive: temperature: expected a finite number > 0, got 0.0"),
    ],
)
def test_mistakes_are_named_when_the_module_is_made(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == f"avfast.{message}"
