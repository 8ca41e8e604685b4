"""Matrices that are multiplied with the same input, kept as one.

Owns: the memory of their weights, and the views by which each is filled under its published name. Knows nothing of what
they mean. One product instead of three reads its input once and starts once.

    weight [rows of all, inputs]      | q_proj          |
                                      | k_proj | v_proj |    rows, one below the other
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from reference_impl.model.packed import PackedMatrix, can_be_packed


class Linear:
    """y = x W^T + b for several published matrices at once.

    rows: published name -> rows of that matrix, in the order of the output. The weights are whatever the memory held
    until they are filled; `fold` and `pack` end the filling.
    """

    def __init__(
        self,
        inputs: int,
        rows: Mapping[str, int],
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        weight: Tensor | None = None,
    ) -> None:
        """weight: memory of somebody else to share, [rows of all, inputs]."""
        self.rows = dict(rows)
        outputs = sum(rows.values())
        self.weight = torch.empty(outputs, inputs, dtype=dtype, device=device) if weight is None else weight
        self.bias = torch.empty(outputs, dtype=dtype, device=device) if bias else None
        self._packed: PackedMatrix | None = None
        self.is_folded = False
        """Whether the weights of a norm before it are in the matrix."""

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """[tokens, inputs] -> [tokens, rows of all]; in `out`, of that shape and the weights' type, if it is there."""
        if self._packed is not None:
            product = self._packed.product(x, self.bias)
            return product if out is None else out.copy_(product)
        if out is None:
            return functional.linear(x, self.weight, self.bias)
        if self.bias is None:
            return torch.mm(x, self.weight.t(), out=out)
        return torch.addmm(self.bias, x, self.weight.t(), out=out)

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        """residual += x W^T + b in place, [tokens, rows of all]."""
        if self._packed is not None:
            residual.add_(self._packed.product(x, self.bias))
            return
        if self.bias is not None:
            residual.add_(self.bias)
        residual.addmm_(x, self.weight.t())

    def fold(self, factors: Tensor) -> None:
        """Multiply each input by its own of `factors` [inputs] from now on: W diag(factors), rounded once."""
        self.weight.mul_(factors)
        self.is_folded = True

    def pack(self) -> bool:
        """Lay the matrix out for this CPU and let go of the plain one, which ends filling. False: it stays as it is."""
        if self._packed is not None or not can_be_packed(self.weight):
            return False
        self._packed = PackedMatrix(self.weight)
        self.weight = torch.empty(0)
        return True

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Published name -> a view of its part, to be filled. Raises: RuntimeError once it is folded or packed."""
        if self._packed is not None or self.is_folded:
            raise RuntimeError(f"{', '.join(self.rows)}: packed, there is nothing to fill any more")
        sizes = list(self.rows.values())
        for name, view in zip(self.rows, torch.split(self.weight, sizes), strict=True):
            yield f"{name}.weight", view
        if self.bias is not None:
            for name, view in zip(self.rows, torch.split(self.bias, sizes), strict=True):
                yield f"{name}.bias", view
