"""Files of `torch.save`, as an archive (since PyTorch 1.6) and as pickles in a row (before): small ones, to
be read, and one that names what is no part of a tensor.

    python tests/golden/make_torch_files.py        (torch 2.11)
"""

import collections
import os
import pathlib

import torch

HERE = pathlib.Path(__file__).parent

base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
state = collections.OrderedDict(
    full=base,
    transposed=base.t(),
    rows=base[1:3],
    columns=base[:, 2:5],
    expanded=base[:1].expand(3, 6),
    parameter=torch.nn.Parameter(torch.tensor([0.5, -1.5])),
    half=torch.tensor([[1.0, 2.5]], dtype=torch.float16),
    brain=torch.tensor([3.0, -0.125], dtype=torch.bfloat16),
    counts=torch.tensor([1, -2, 1 << 40]),
    flag=torch.tensor(True),
    empty=torch.zeros(0, 3),
)
state._metadata = collections.OrderedDict(version=1)
torch.save(state, HERE / "torch_archive.bin")
torch.save(state, HERE / "torch_legacy.bin", _use_new_zipfile_serialization=False)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/evil",)


for name, new in [("torch_evil_archive.bin", True), ("torch_evil_legacy.bin", False)]:
    evil = {"weight": torch.zeros(2), "extra": Evil()}
    torch.save(evil, HERE / name, _use_new_zipfile_serialization=new)
