"""
PyTorch elastic: the processes are started again when the group changes, and go on from the last
checkpoint::

    wherry run --processes 2 -- torchrun torch_elastic.py
    wherry run --workers 1:2 --restarts 2 -- torchrun torch_elastic.py
"""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.parallel import DistributedDataParallel

EPOCHS = int(os.environ.get("EPOCHS", 30))
folder = Path(os.environ.get("WHERRY_CHECKPOINT_DIR", "checkpoints"))
folder.mkdir(parents=True, exist_ok=True)
last = folder / "last.pt"

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
X, y = load_digits(return_X_y=True)
parts = train_test_split(X / 16, y, test_size=0.2, random_state=0, stratify=y)
X, X_test = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
y, y_test = (torch.tensor(part) for part in parts[2:])

net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
model, optimizer, first = DistributedDataParallel(net), torch.optim.Adam(net.parameters(), 0.01), 0
if last.exists():
    state = torch.load(last)
    net.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    first = state["epoch"] + 1
print(f"rank {rank} of {world_size} starts at epoch {first}", flush=True)

for epoch in range(first, EPOCHS):
    for batch in torch.arange(rank, len(X), world_size).split(128):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(X[batch]), y[batch]).backward()
        optimizer.step()
    if rank == 0:  # written beside it, then renamed: a checkpoint is whole or not there
        state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(state, folder / "next.pt")
        os.replace(folder / "next.pt", last)
    dist.barrier()

accuracy = (net(X_test).argmax(1) == y_test).float().mean()
print(f"rank {rank} of {world_size}: accuracy={accuracy:.3f}")
dist.destroy_process_group()
