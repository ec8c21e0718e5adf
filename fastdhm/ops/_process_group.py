"""The processes of a group, by its name: what ops send each other, as operations that need no torch.distributed.

Legend: R processes (ranks), B rows of all processes, L columns.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdhm.errors import UserError

WORDS = 16  # of what processes agree on: one that refuses sends as many
_ops = torch.ops._c10d_functional


class Group:
    """The group of that name: ``rank`` is this process's number in it, ``size`` the number of all."""

    def __init__(self, name: str):
        try:
            found = cast(Any, torch._C)._distributed_c10d._resolve_process_group(name)
        except (AttributeError, RuntimeError, TypeError) as error:  # a torch without processes; no such group; no name
            raise UserError(
                f"group is {name!r}: there is no such group of processes; give the name of one, such as "
                "torch.distributed.group.WORLD.group_name"
            ) from error
        self.name, self.rank, self.size = name, found.rank(), found.size()

    def sum(self, own: Tensor) -> Tensor:
        """The sum of what the processes have."""
        return _ops.wait_tensor(_ops.all_reduce(own, "sum", self.name))

    def maximum(self, own: Tensor) -> Tensor:
        """The largest of what the processes have, in each place; of NaN and a number either."""
        return _ops.wait_tensor(_ops.all_reduce(own, "max", self.name))

    def rows(self, own_BL: Tensor, rows_R: Sequence[int]) -> Tensor:
        """The rows of all processes, in the order of the ranks; each has so many."""
        most = max(rows_R)
        if most == 0:
            return own_BL
        all_BL = self._gathered(_padded(own_BL, most))
        if min(rows_R) == most:
            return all_BL
        return torch.cat([part[:rows] for part, rows in zip(all_BL.split(most), rows_R, strict=True)])

    def own_sums(self, all_BL: Tensor, rows_R: Sequence[int]) -> Tensor:
        """This process's rows of the sum of what the processes have for all rows: the way back of :meth:`rows`."""
        most = max(rows_R)
        if most == 0:
            return all_BL
        if min(rows_R) < most:
            all_BL = torch.cat([_padded(part, most) for part in all_BL.split(list(rows_R))])
        found = _ops.wait_tensor(_ops.reduce_scatter_tensor(all_BL, "sum", self.size, self.name))
        return found[: rows_R[self.rank]]

    def agree(self, own: Sequence[int], alike: Mapping[str, object], device: torch.device) -> list[list[int]]:
        """What each process has for the numbers ``own``; the host waits for it.

        Raises:
            ValueError: in every process, if one refuses, or has not the first one's values for what is ``alike``.
        """
        digests = [_digest(value) for value in alike.values()]
        said = self._said([0, *own, *(0 if isinstance(word, Tensor) else word for word in digests)], digests, device)
        for rank, (refuses, *_) in enumerate(said):
            if refuses:
                raise UserError(f"process {rank} of the group cannot take what it was given: it says why")
        for rank, words in enumerate(said):
            for n, (name, value) in enumerate(alike.items(), 1 + len(own)):
                if words[n] != said[0][n]:
                    here = "" if isinstance(value, Tensor) else f" (here: {value})"
                    raise UserError(
                        f"processes 0 and {rank} of the group differ in {name}{here}: all must have the same"
                    )
        return [[int(word) for word in words[1 : 1 + len(own)]] for words in said]

    def refuse(self, mistake: UserError, device: torch.device) -> UserError:
        """The mistake, once all processes know that there is one: the others wait in :meth:`agree`."""
        self._said([1], [], device)
        return mistake

    def _said(self, words: Sequence[float], digests: Sequence[int | Tensor], device: torch.device) -> list[list[float]]:
        sent = torch.tensor([*words, *[0.0] * (WORDS - len(words))], dtype=torch.float64).to(device, non_blocking=True)
        for n, digest in enumerate(digests, len(words) - len(digests)):
            if isinstance(digest, Tensor):
                sent[n] = digest  # the host has not read it
        return self._gathered(sent).view(self.size, WORDS).tolist()

    def _gathered(self, own: Tensor) -> Tensor:
        return _ops.wait_tensor(_ops.all_gather_into_tensor(own, self.size, self.name))


def _padded(own_BL: Tensor, rows: int) -> Tensor:
    return F.pad(own_BL, (0, 0, 0, rows - len(own_BL)))


def _digest(value: object) -> int | Tensor:
    """A number for a value, in all likelihood another one for another value."""
    if isinstance(value, Tensor):
        places = torch.arange(1, value.numel() + 1, device=value.device, dtype=torch.float64)
        return (value.detach().double().flatten() * places.sin()).sum().nan_to_num()
    return zlib.crc32(repr(value).encode())
