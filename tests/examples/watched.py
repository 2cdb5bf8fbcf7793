"""Trainings of one's own, watched: ``python tests/examples/watched.py FOLDER``, each with a loss of LOSSES."""

import sys

import torch

import rlloss


def ppo(logp, old_logp, advantages):
    ratio = torch.exp(logp - old_logp)
    return -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)


def weight(logp, old_logp, advantages):
    ratio = torch.exp(logp - old_logp).detach()
    return torch.where(ratio * advantages > ratio.clamp(0.8, 1.2) * advantages, 0.0, ratio)


def matched(logp, old_logp, advantages):
    return -((weight(logp, old_logp, advantages) * logp) * advantages)


def textbook(logp, old_logp, advantages):
    return -((weight(logp, old_logp, advantages) * advantages) * logp)


LOSSES = {"ppo": ppo, "matched": matched, "textbook": textbook}


def train(folder, form):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    with rlloss.watch(model, optimizer, folder, config={"loss": form}, trace=1, overwrite=True) as watched:
        for _ in range(50):
            states, actions, advantages = torch.randn(100, 8), torch.randint(4, (100, 1)), torch.randn(100)
            old_logp = torch.randn(100) / 10 - 1.4
            logp = model(states).log_softmax(-1).gather(-1, actions).squeeze(-1)
            loss = LOSSES[form](logp, old_logp, advantages).mean()
            optimizer.zero_grad()
            loss.backward()
            watched.log(loss=loss)
            optimizer.step()

    return f"{form} {loss:.4f}"


if __name__ == "__main__":
    print("the last of 50 losses:", ", ".join(train(f"{sys.argv[1]}/{form}", form) for form in LOSSES))
