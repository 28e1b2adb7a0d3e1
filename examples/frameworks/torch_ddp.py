"""
PyTorch ``DistributedDataParallel``, on one process or on many::

    wherry run torch_ddp.py
    wherry run --workers 2 torch_ddp.py
    wherry run --workers 2 --processes 2 -- torchrun torch_ddp.py
"""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
torch.manual_seed(0)

X, y = load_digits(return_X_y=True)
parts = train_test_split(X / 16, y, test_size=0.2, random_state=0, stratify=y)
X, X_test = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
y, y_test = (torch.tensor(part) for part in parts[2:])

model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
train, sampler = TensorDataset(X, y), None
if world_size > 1:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(model)
    sampler = DistributedSampler(train)

batches = DataLoader(train, 64 // world_size, sampler=sampler, shuffle=sampler is None)
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
for epoch in range(15):
    if sampler:
        sampler.set_epoch(epoch)
    for images, labels in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

with torch.no_grad():
    accuracy = (model(X_test).argmax(1) == y_test).float().mean()
print(f"rank {rank} of {world_size}: accuracy={accuracy:.3f}")
if world_size > 1:
    dist.destroy_process_group()
