"""Example inputs and outputs get the names that the module itself uses."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from workbench.errors import ExportError
from workbench.models import signature


class Two(nn.Module):
    def forward(self, left, right=None, *, scale=None):
        return left if right is None else left + right


class Many(nn.Module):
    def forward(self, first, *rest):
        return first + sum(rest)


ONE = torch.ones(1, 3)
TWO = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("module", "example", "names", "positions", "keywords"),
    [
        (Two(), ONE, ["left"], ("left",), ()),
        (Two(), [ONE, TWO], ["left", "right"], ("left", "right"), ()),
        (Two(), (ONE, None), ["left"], ("left", None), ()),
        (Two(), {"right": ONE, "left": TWO}, ["right", "left"], (), ("right", "left")),
        (Two(), {"left": TWO, "scale": None}, ["left"], (), ("left",)),
        (Many(), [ONE, TWO, TWO], ["first", "rest_0", "rest_1"], ("first", "rest_0", "rest_1"), ()),
    ],
)
def test_inputs_are_named_after_forward_s_parameters(module, example, names, positions, keywords):
    call = signature.bind(module, example)
    assert (list(call.tensors), call.positions, call.keywords) == (names, positions, keywords)
    call.run(module, list(call.tensors.values()))


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (None, "without example inputs"),
        ([], "missing a required argument"),
        ([ONE, ONE, ONE], "do not fit Two.forward"),
        ({"middle": ONE}, r"do not fit Two\.forward\(left, right=None, \*, scale=None\)"),
        (3, "are a int"),
        ([[ONE]], "Example input 'left' is a list"),
        ([None], "There are no example inputs"),
    ],
)
def test_example_inputs_that_do_not_fit_are_refused(example, words):
    with pytest.raises(ExportError, match=words):
        signature.bind(Two(), example)


Pair = namedtuple("Pair", ["mean", "spread"])


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        (ONE, ["output"]),
        ([ONE], ["output"]),
        ((ONE, TWO), ["output_0", "output_1"]),
        ({"logits": ONE, "cache": None}, ["logits"]),
        ({"logits": ONE, "hidden": [ONE, TWO]}, ["logits", "hidden_0", "hidden_1"]),
        (Pair(ONE, TWO), ["mean", "spread"]),
        ((ONE, {"a": TWO}), ["output_0", "output_1_a"]),
        ({"left": ONE}, ["output_left"]),
    ],
)
def test_outputs_are_named_after_their_structure(outputs, names):
    assert list(signature.name_outputs(outputs, {"left"})) == names


@pytest.mark.parametrize(("outputs", "words"), [(None, "returned no tensor"), ({"a": 3}, "Output a is a int")])
def test_outputs_that_are_no_tensors_are_refused(outputs, words):
    with pytest.raises(ExportError, match=words):
        signature.name_outputs(outputs, set())


def test_dynamic_axes_are_the_batch_or_as_named():
    call = signature.bind(Two(), [ONE, torch.tensor(2.0)])
    assert signature.dynamic_axes(call, True) == {"left": {0: "batch"}}
    assert signature.dynamic_axes(call, False) == {}
    assert signature.dynamic_axes(call, {"left": {1: "width"}, "right": {}}) == {"left": {1: "width"}}


@pytest.mark.parametrize(
    ("dynamic", "words"),
    [({"lefft": {0: "batch"}}, "Did you mean 'left'"), ({"left": {2: "depth"}}, "axis 2 of 'left', which has shape")],
)
def test_dynamic_axes_that_are_not_there_are_refused(dynamic, words):
    with pytest.raises(ExportError, match=words):
        signature.dynamic_axes(signature.bind(Two(), [ONE]), dynamic)


def test_a_batch_of_one_is_doubled_only_where_all_agree():
    alone = signature.bind(Two(), [ONE])
    assert [tuple(t.shape) for t in signature.widen(alone, {"left": {0: "batch"}})] == [(2, 3)]
    broadcast = signature.bind(Two(), [ONE, TWO])
    axes = {"left": {0: "batch"}, "right": {0: "batch"}}
    assert [tuple(t.shape) for t in signature.widen(broadcast, axes)] == [(1, 3), (2, 3)]
