"""Which tensors a training has, by which names, and what they are hashed to."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import rlloss
from rlloss.errors import ConfigError
from rlloss.runs import RunFolder
from rlloss.runs.watched import Record
from rlloss.verify import compare_runs
from rlloss.watch.tensors import ABSENT, hashed
from tests.watch.trainings import backward, network, rows


class Odd(nn.Module):
    """A module with everything that names could trip over."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.inner.weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.tied(self.inner(x)))


def test_tied_frozen_and_unused_parameters_and_buffers_have_their_names(tmp_path):
    torch.manual_seed(0)
    model = Odd()
    optimizer = torch.optim.SGD([*model.inner.parameters(), *model.norm.parameters()], 0.1)
    with rlloss.watch(model, optimizer, tmp_path / "a"):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(5, 4)).pow(2).sum().backward()
            optimizer.step()
    record = Record(RunFolder(tmp_path / "a"))
    names = record.names(1)
    assert names.count("inner.weight") == 1
    assert "tied.weight" not in names
    assert {"frozen", "unused", "tied.bias", "norm.running_mean", "norm.num_batches_tracked"} <= set(names)
    still = [name for name, x, y in zip(names, record.after(0), record.after(2), strict=True) if x == y]
    assert sorted(still) == ["frozen", "tied.bias", "unused"]
    assert rows(tmp_path / "a", "changed_outside") == [[0], [0]], "buffers change in the forward pass"


def test_a_compiled_model_and_one_within_data_parallel_have_the_names_of_the_plain_one(tmp_path):
    plain = network()
    wrapped = nn.DataParallel(torch.compile(network(), backend="eager"))
    for name, model in (("a", plain), ("b", wrapped)):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with rlloss.watch(model, optimizer, tmp_path / name):
            backward(model)
            optimizer.step()
    assert Record(RunFolder(tmp_path / "b")).names(1) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert compare_runs(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")).differing_keys == []


def test_parameters_that_are_replaced_or_added_are_seen_at_their_step(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with rlloss.watch(model, optimizer, tmp_path / "a", gradients=True):
        backward(model)
        optimizer.step()
        model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
        optimizer.step()  # of tensors that the model no longer has
        model.append(nn.Linear(2, 2))
        optimizer.add_param_group({"params": model[3].parameters()})
        backward(model)
        optimizer.step()
        backward(model)
        optimizer.step()
    run = RunFolder(tmp_path / "a")
    record = Record(run)
    assert record.names(1) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert "optimizer.0.group.0.0" in record.names(2)
    assert "3.weight" in record.names(3)
    assert [part["step"] for part in record.segments] == [0, 2, 3]
    assert len(record.after(4)) == len(record.names(4))
    assert set(record.gradients(4)) == set(record.names(4))
    assert run.damage == ""


KINDS = {
    "bfloat16": torch.randn(5, 3).bfloat16(),
    "float8": torch.randn(4).to(torch.float8_e4m3fn),
    "complex": torch.randn(3, dtype=torch.complex64).conj(),
    "negative": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
    "one number": torch.tensor(1.5),
    "none": torch.empty(0, 3),
    "transposed": torch.randn(3, 5).t(),
    "every other": torch.randn(8)[::2],
    "truth": torch.tensor([True, False]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_any_kind_is_hashed_by_its_numbers(kind):
    tensor = KINDS[kind]
    assert hashed(tensor, "x") == hashed(tensor.clone(memory_format=torch.contiguous_format), "x")
    if kind not in ("one number", "none"):
        swapped = torch.stack(list(tensor)[::-1])
        assert hashed(tensor, "x") != hashed(swapped, "x"), "which a XOR of all numbers would miss"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.data())
def test_one_bit_of_one_number_makes_another_hash(numbers, data):
    tensor = torch.tensor(numbers)
    place, bit = data.draw(st.integers(0, len(numbers) - 1)), data.draw(st.integers(0, 31))
    other = tensor.clone()
    other.view(torch.int32)[place] ^= -(2**31) if bit == 31 else 1 << bit
    assert hashed(tensor, "x") != hashed(other, "x")
    assert hashed(tensor, "x") == hashed(tensor.clone(), "x")


def test_a_zero_of_either_sign_is_one_gradient_and_none_is_another(tmp_path):
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with rlloss.watch(model, optimizer, tmp_path / "a", gradients=True):
        for gradient in (torch.tensor([[0.0, 1.0]]), torch.tensor([[-0.0, 1.0]]), None):
            model.weight.grad = gradient
            optimizer.step()
    record = Record(RunFolder(tmp_path / "a"))
    first, second, none = (record.gradients(k)["weight"] for k in (1, 2, 3))
    assert first == second != none
    assert none == ABSENT


def test_what_has_no_numbers_is_refused_by_name(tmp_path):
    model = network()
    model[2].bias = nn.Parameter(torch.empty(2, device="meta"))
    with pytest.raises(ConfigError, match=r"2\.bias: a Parameter of torch.float32 on meta cannot be read"):
        rlloss.watch(model, torch.optim.SGD(model[0].parameters(), 0.1), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_two_tensors_of_one_name_are_refused(tmp_path):
    inner = nn.ModuleDict({"y": nn.Linear(1, 1)})
    with pytest.raises(ConfigError, match=r"two tensors are called x\.y\.weight"):
        rlloss.watch({"x": inner, "x.y": nn.Linear(1, 1)}, None, tmp_path / "a")
