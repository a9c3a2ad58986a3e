"""The modules that hold low-bit weights and tables."""

from typing import ClassVar, NamedTuple

import torch
from torch.nn import functional

from taut import registry
from taut.formats import LowbitWeight
from taut.ops._call import call
from taut.ops.activation import bias_activation
from taut.ops.dense_gemm import pack_weight, packed_linear
from taut.ops.lowbit_gemm import operands_of
from taut.ops.norm import layer_norm
from taut.ops.quantize import kronecker, layer_norm_quantize, quantize_per_token
from taut.packed_module import PackedModule, state_of
from taut.reference.quantize import hadamard_transform

_LINEAR = registry.OPS["lowbit_linear"]
_LINEAR_QUANTIZE = registry.OPS["lowbit_linear_quantize"]
_LINEAR_LAYER_NORM = registry.OPS["lowbit_linear_layer_norm"]


class LowbitEmbedding(PackedModule):
    """A table whose rows are integers of 8 bits: value = scale * code.

    Args:
        codes: (rows, columns), int8.
        scale: (rows, 1), fp32; it stays fp32 with `.to(dtype)`.
    """

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    @classmethod
    def from_float(cls, table: torch.Tensor) -> "LowbitEmbedding":
        """Each row rounded to 127 steps of its largest magnitude."""
        return cls(*quantize_per_token(table.detach().float()))


class _Facts(NamedTuple):
    """What every call asks of a `LowbitLinear`, gathered once: small batches would wait for it."""

    bias: torch.Tensor | None  # made with it: `functional_call` puts another in its place
    operands: tuple  # of the ops, between x_scale and the epilogue
    adds: bool  # sparse or low-rank parts
    kronecker: bool  # is applied to a floating-point x, which is then
    direct: bool  # an argument of the ops as it is
    quantizes_groups: bool  # of columns, and nothing else
    migrates: bool  # channel_scale is there
    x_zero_point: float
    takes_integers: bool


class LowbitLinear(PackedModule):
    """A linear layer over a low-bit weight; for inference.

    Before its activations are quantized, an input x becomes

        h = ((x (left kron right)) - channel_shift) * channel_scale, rotated by Hadamard blocks

    each step where it is wanted, and the weight must have been folded for it. What the module holds
    are buffers in the logical packing; the order that the kernels read is made at first use, so
    buffers are replaced, not written to. None of them changes its dtype with `.to(dtype)`.

    Args:
        weight: the quantized weight.
        bias: (out_features,) or None.
        activation_bits: 8, 4, 3 or 2 bits per token, or 0: as they are.
        grid: of the activations, as in `taut.quantize_per_token`.
        activation_group_size: columns of a token that share a scale: group_size of the weight, or
            0 for all.
        hadamard: rotate, as `taut.quantize_per_token` does.
        channel_scale, channel_shift: (in_features,), fp32.
        kronecker: left and right as in `taut.kronecker`.
        sparse: (out_features, in_features), sparse CSR: added to the weight (SqueezeLLM).
        low_rank: (out_features, rank) and (rank, in_features): their product is added to the weight
            (LQ-LoRA). Both additions see x as it came, and are computed in fp32.
    """

    MADE_AT_FIRST_USE: ClassVar[dict] = {
        "_weight": None,
        "_facts_found": None,
        "_low_rank": None,
        "_migrated": (None, None, None),
    }

    def __init__(
        self,
        weight: LowbitWeight,
        bias: torch.Tensor | None = None,
        *,
        activation_bits: int = 8,
        grid: str = "absmax",
        activation_group_size: int = 0,
        hadamard: bool = False,
        channel_scale: torch.Tensor | None = None,
        channel_shift: torch.Tensor | None = None,
        kronecker: tuple[torch.Tensor, torch.Tensor] | None = None,
        sparse: torch.Tensor | None = None,
        low_rank: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.bits, self.group_size = weight.bits, weight.group_size
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self.activation_bits, self.grid, self.hadamard = activation_bits, grid, hadamard
        self.activation_group_size = activation_group_size
        left, right = kronecker or (None, None)
        up, down = low_rank or (None, None)
        parts = (None, None, None)
        if sparse is not None:
            parts = (sparse.crow_indices(), sparse.col_indices(), sparse.values())
        buffers = {
            "codes": weight.codes,
            "scale": weight.scale,
            "zero_point": weight.zero_point,
            "codebook": weight.codebook,
            "bias": None if bias is None else bias.detach(),
            "channel_scale": channel_scale,
            "channel_shift": channel_shift,
            "kronecker_left": left,
            "kronecker_right": right,
            **dict(zip(("sparse_crow", "sparse_column", "sparse_value"), parts, strict=True)),
            "low_rank_up": up,
            "low_rank_down": down,
        }
        for name, value in buffers.items():
            self.register_buffer(name, None if value is None else value.contiguous())

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, bits={self.bits}, group_size={self.group_size}, "
            f"activation_bits={self.activation_bits}"
        )

    def settings(self) -> dict:
        """What is needed to build the module again around its buffers; see `from_settings`."""
        names = (
            "bits", "in_features", "group_size", "activation_bits", "grid",
            "activation_group_size", "hadamard",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_settings(cls, settings: dict, buffers: dict[str, torch.Tensor]) -> "LowbitLinear":
        """The module that had these settings and buffers."""
        options = dict(settings)
        packing = (options.pop(name) for name in ("bits", "in_features", "group_size"))
        held = (buffers.get(name) for name in ("codes", "scale", "zero_point", "codebook"))
        module = cls(LowbitWeight(*held, *packing), **options)
        for name in buffers:
            setattr(module, name, buffers[name])
        return module

    @property
    def weight(self) -> LowbitWeight:
        """The quantized weight, without the sparse and low-rank additions."""
        if self._weight is None:
            self._weight = LowbitWeight(
                self.codes, self.scale, self.zero_point, self.codebook, self.bits,
                self.in_features, self.group_size,
            )  # fmt: skip
        return self._weight

    @property
    def _facts(self) -> _Facts:
        found, bias = self._facts_found, self._buffers["bias"]
        if found is None or found.bias is not bias:
            adds = self.sparse_value is not None or self.low_rank_up is not None
            kronecker = self.kronecker_left is not None
            turned = self.hadamard or kronecker
            moved = self.channel_scale is not None or self.channel_shift is not None
            absmax = self.grid == "absmax"
            grouped = self.activation_group_size > 0
            common = absmax and self.activation_bits in (4, 8) and not (moved or self.hadamard)
            direct = common and not grouped if self.activation_bits else not (moved or turned)
            activation = {0: "none", 8: "int8"}.get(self.activation_bits, "int4")
            self._facts_found = found = _Facts(
                bias=bias,
                operands=operands_of(self.weight, None if adds else bias, activation),
                adds=adds,
                kronecker=kronecker and self.activation_bits > 0,
                direct=direct,
                quantizes_groups=common and grouped and not kronecker,
                migrates=self.channel_scale is not None,
                x_zero_point=-0.5 if self.grid == "midrise" else 0.0,
                takes_integers=self.activation_bits == 8 and absmax and not (turned or adds),
            )
        return found

    @property
    def takes_integers(self) -> bool:
        """Whether a layer before it may hand it 8-bit integers, migrated by channel_scale and
        channel_shift, in place of floats."""
        return self._facts.takes_integers

    @property
    def direct(self) -> bool:
        """Whether a floating-point x goes to the ops as it comes."""
        return self._facts.direct and not self._facts.kronecker

    @property
    def quantizes_groups(self) -> bool:
        """Whether a floating-point x becomes integers by groups of columns, and nothing else."""
        return self._facts.quantizes_groups

    @property
    def quantizes_first(self) -> bool:
        """Whether a floating-point x becomes integers before the ops."""
        return self.activation_bits > 0 and not self._facts.direct

    @property
    def operands(self) -> tuple | None:
        """What the ops take between x_scale and the epilogue, always the same object; None where
        the layer is more than one of them."""
        facts = self._facts
        return None if facts.adds or facts.x_zero_point else facts.operands

    @property
    def migrates(self) -> bool:
        """Whether integers that it takes must be migrated."""
        return self._facts.migrates

    def migrated(self, norm: torch.nn.LayerNorm) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Scale and shift that make `norm` give this layer's h, if they differ from its own."""
        if not self._facts.migrates:
            return None, None
        if torch.compiler.is_compiling():  # the compiler cannot follow the cache
            return self._migrate(norm)
        kept = (norm.weight, norm.bias)  # so that no others come to lie where they are
        made_from = tuple(map(state_of, kept))
        found = self._migrated
        if found[0] != made_from:
            self._migrated = found = (made_from, self._migrate(norm), kept)
        return found[1]

    def _migrate(self, norm: torch.nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
        weight, shift = norm.weight, -self.channel_shift
        if weight is None:
            raise ValueError("LowbitLinear: the LayerNorm before it must have a weight, got none")
        if norm.bias is not None:
            shift = norm.bias.float() + shift
        affine = (weight.float() * self.channel_scale, shift * self.channel_scale)
        return tuple(t.to(weight.dtype) for t in affine)

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """h of a float x, not quantized, fp32 (see the class)."""
        x = x.float()
        if self.kronecker_left is not None:
            x = kronecker(x, self.kronecker_left, self.kronecker_right)
        if self.channel_shift is not None:
            x = x - self.channel_shift
        if self.channel_scale is not None:
            x = x * self.channel_scale
        return hadamard_transform(x.contiguous()) if self.hadamard else x

    def operand(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A float x and None as the low-bit ops take them, or integers and their scales."""
        facts = self._facts
        if facts.kronecker:
            x = kronecker(x, self.kronecker_left.to(x.dtype), self.kronecker_right.to(x.dtype))
        if facts.direct:
            return x, None
        if self.activation_bits == 0:
            return self.prepare(x).to(x.dtype), None
        return quantize_per_token(
            x,
            self.activation_bits,
            grid=self.grid,
            channel_scale=self.channel_scale,
            channel_shift=self.channel_shift,
            hadamard=self.hadamard,
            group_size=self.activation_group_size,
        )

    def _additions(self, x: torch.Tensor) -> torch.Tensor:
        """What the sparse and low-rank parts add, fp32; a row's result never depends on others."""
        x = x.float()
        total = x.new_zeros((x.shape[0], self.out_features))
        if self.low_rank_up is not None:
            factors = (self.low_rank_down.float(), self.low_rank_up.float())
            if x.is_cpu:  # torch's products change with the number of rows
                if self._low_rank is None:
                    self._low_rank = [(pack_weight(t), t.shape[0]) for t in factors]
                inner = x
                for packed, width in self._low_rank:
                    inner = packed_linear(inner, packed, out_features=width)
                total = inner
            else:
                total = functional.linear(functional.linear(x, factors[0]), factors[1])
        if self.sparse_value is not None and x.shape[0]:
            products = x.T[self.sparse_column] * self.sparse_value.float()[:, None]
            sums = torch.segment_reduce(products, "sum", offsets=self.sparse_crow, initial=0)
            total = total + sums.T
        return total

    def forward(
        self,
        x: torch.Tensor,
        activation: str = "none",
        *,
        x_scale: torch.Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """activation(x @ weight.T + bias) for x (total_tokens, in_features), floating point; or
        int8, prepared and quantized before, with x_scale and the dtype to give."""
        facts, given = self._facts, x
        dtype = x.dtype if x_scale is None else out_dtype
        if x_scale is None:
            x, x_scale = self.operand(x)
        epilogue = "none" if facts.adds else activation
        out = call(_LINEAR, x, x_scale, *facts.operands, epilogue, None, facts.x_zero_point, dtype)
        if not facts.adds:
            return out
        bias = None if self.bias is None else self.bias.to(dtype)
        out = (out.float() + self._additions(given)).to(dtype)
        return bias_activation(out, bias, activation)

    def quantized_forward(
        self,
        x: torch.Tensor,
        activation: str,
        consumer: "LowbitLinear",
        x_scale: torch.Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `forward` gives, quantized for `consumer`, which must take integers without
        migration: q int8 and scale."""
        facts, group_size = self._facts, consumer.activation_group_size
        if facts.adds or facts.x_zero_point:
            out = self(x, activation, x_scale=x_scale, out_dtype=out_dtype)
            return quantize_per_token(out, group_size=group_size)
        if x_scale is None:
            x, x_scale = self.operand(x)
        return call(_LINEAR_QUANTIZE, x, x_scale, *facts.operands, activation, 8, group_size)

    def residual_layer_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        norm: torch.nn.LayerNorm,
        dropout: float = 0.0,
        *,
        x_scale: torch.Tensor | None = None,
        consumer: "LowbitLinear | None" = None,
    ):
        """norm(x @ weight.T + bias + residual); with a consumer that takes integers also q int8 and
        scale for it. There is no dropout: nothing here is trained."""
        facts = self._facts
        affine = (None, None) if consumer is None else consumer.migrated(norm)
        scale, shift = norm.weight, norm.bias
        if facts.adds or facts.x_zero_point:
            out = self(x, x_scale=x_scale, out_dtype=residual.dtype)
            shared = {"residual": residual, "eps": norm.eps}
            if consumer is None:
                return layer_norm(out, scale, shift, **shared)
            return layer_norm_quantize(
                out, scale, shift, quant_weight=affine[0], quant_bias=affine[1], **shared
            )
        if x_scale is None:
            x, x_scale = self.operand(x)
        result = call(
            _LINEAR_LAYER_NORM,
            *(x, x_scale, *facts.operands, residual, scale, shift, norm.eps),
            *(consumer is not None, *affine),
        )
        return result[0] if consumer is None else result
