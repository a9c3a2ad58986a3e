"""Modules that hold weights the way the kernels want them."""

import weakref

import torch
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook

from taut.lowbit_nn import LowbitLinear as LowbitLinear
from taut.ops.activation import bias_activation
from taut.ops.dense_gemm import pack_weight, packed_linear, packed_linear_layer_norm
from taut.ops.norm import layer_norm

PACKED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_optimizer_steps = 0  # of any optimizer: fused ones change weights without torch counting it


def _count_step(*_) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)


class Linear(torch.nn.Module):
    """A linear layer: the plain parameter while training, a packed copy of it for inference on CPU.

    The packed copy is made at the first inference and again when the parameter has changed. It is
    no part of the state dict. Changes that torch does not count, such as writing through
    `weight.data`, are not seen: write to `weight` under `torch.no_grad()`. Under torch.autocast the
    copy has its dtype.

    Args:
        in_features, out_features: sizes; weight is (out_features, in_features).
        bias: whether there is a bias (out_features,).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features))
        self.bias = torch.nn.Parameter(torch.zeros(out_features)) if bias else None
        torch.nn.init.normal_(self.weight, std=0.02)
        self._forget_packed()

    def _forget_packed(self) -> None:
        self._packed, self._packed_from, self._packed_weight = None, None, None

    def __getstate__(self) -> dict:
        forgotten = dict.fromkeys(("_packed", "_packed_from", "_packed_weight"))
        return {**super().__getstate__(), **forgotten}

    def extra_repr(self) -> str:
        """What printing the layer shows of it."""
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"

    def _packed_for(self, x: torch.Tensor, weight: torch.Tensor, *others: torch.Tensor | None):
        """The packed weight if these can go with it: on the CPU, without gradients; else None."""
        if not x.is_cpu or torch.compiler.is_compiling():
            return None  # the compiler cannot follow the cache
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else weight.dtype
        if dtype not in PACKED_DTYPES:
            return None
        if torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (x, weight, *others)
        ):
            return None
        return self.packed_of(weight, dtype)

    def _apply(self, fn, recurse=True):
        self._forget_packed()  # a moved weight may come back to its old address
        return super()._apply(fn, recurse)

    def packed_of(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The packed copy of `weight`, which must be this layer's, in dtype."""
        if weight.is_inference():  # torch does not count their changes
            return pack_weight(weight.to(dtype))
        made_from = (weight.data_ptr(), weight._version, weight.dtype, dtype, _optimizer_steps)
        # Another weight may lie where one of `functional_call` has lain.
        known = self._packed_weight
        if self._packed_from != made_from or known is None or known() is not weight:
            with torch.inference_mode(False), torch.no_grad():
                self._packed = pack_weight(weight.to(dtype))
            self._packed_from, self._packed_weight = made_from, weakref.ref(weight)
        return self._packed

    def packed(self) -> torch.Tensor:
        """The packed copy of `weight` as it is now (layout: `taut.pack_weight`)."""
        return self.packed_of(self.weight, self.weight.dtype)

    def forward(self, x: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """activation(x @ weight.T + bias) for x (total_tokens, in_features)."""
        weight, bias = self.weight, self.bias
        packed = self._packed_for(x, weight, bias)
        if packed is not None:
            return packed_linear(
                x, packed, bias, out_features=self.out_features, activation=activation
            )
        if activation == "none":
            return functional.linear(x, weight, bias)
        return bias_activation(functional.linear(x, weight), bias, activation)

    def residual_layer_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        norm: torch.nn.LayerNorm,
        dropout: float = 0.0,
    ) -> torch.Tensor:
        """norm(dropout(x @ weight.T + bias) + residual) for residual (total_tokens, out_features)."""
        scale, shift = norm.weight, norm.bias
        if dropout > 0:
            dropped = functional.dropout(self(x), dropout)
            return layer_norm(dropped, scale, shift, residual=residual, eps=norm.eps)
        weight, bias = self.weight, self.bias
        packed = self._packed_for(x, weight, bias, residual, scale, shift)
        if packed is not None:
            return packed_linear_layer_norm(x, packed, bias, residual, scale, shift, norm.eps)
        out = functional.linear(x, weight)
        return layer_norm(out, scale, shift, residual=residual, bias=bias, eps=norm.eps)
