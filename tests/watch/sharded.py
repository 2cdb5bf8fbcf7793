"""Two processes that train one model together: ``python -m tests.watch.sharded KIND FOLDER STORE FAULT``."""

import sys

import torch
import torch.multiprocessing
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import rlloss


def train(rank, kind, folder, store, fault):
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    if kind == "fsdp2":
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    else:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with rlloss.watch(model, optimizer, folder, snapshot_every=1):
        for step in range(1, 5):
            optimizer.zero_grad()
            model(torch.ones(3, 4) * (rank + 1)).pow(2).sum().backward()
            if step == 3 and fault == str(rank):
                parameter = list(model.parameters())[2]
                getattr(parameter.grad, "_local_tensor", parameter.grad).mul_(1.5)
            optimizer.step()
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(train, tuple(sys.argv[1:]), nprocs=2)
