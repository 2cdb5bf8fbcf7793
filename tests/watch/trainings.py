"""A small training that is watched, in which something may happen before or after a step."""

import torch
from torch import nn

import rlloss
from rlloss.runs import RunFolder

STEPS = 12


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def backward(model):
    model.zero_grad()
    model(torch.ones(3, 4)).pow(2).sum().backward()


def training(folder, steps=STEPS, *, before=lambda k, model: None, after=lambda k, model: None, **options):
    """A few steps of Adam on noise, watched; ``before`` and ``after`` each step something may happen to the model."""
    torch.manual_seed(1)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with rlloss.watch(model, optimizer, folder, **options):
        for k in range(1, steps + 1):
            optimizer.zero_grad()
            model(torch.randn(8, 4, generator=torch.Generator().manual_seed(k))).pow(2).mean().backward()
            before(k, model)
            optimizer.step()
            after(k, model)
    return RunFolder(folder)


def an_ulp(tensor):
    with torch.no_grad():
        tensor.view(-1)[-1] = torch.nextafter(tensor.view(-1)[-1], torch.tensor(9.0))


def rows(folder, *columns):
    return RunFolder(folder).metrics[list(columns)].to_numpy().tolist()
