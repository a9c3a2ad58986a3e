"""Where an encoder's layers run as one op, `encoder_layers`, and what that op is given."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch.nn.modules import module as hooks

from taut.nn import PACKED_DTYPES, LowbitLinear
from taut.ops.encoder_layer import encoder_layers
from taut.packed_module import state_of
from taut.prepared_layers import LayerParts, PreparedLayer

LINEARS = ("qkv", "out", "up", "down")
NORMS = ("attention_norm", "output_norm")
_NOTHING = ((), (), None)  # what a layer was made from as it compares, that, and the `Native`


class Native(NamedTuple):
    """A layer as `encoder_layers` takes it.

    Args:
        layer: its weights and settings.
        quantize_qkv: `qkv` takes integers that the op does not make of floats.
    """

    layer: PreparedLayer
    quantize_qkv: bool


def run_natively(
    layers: Sequence[torch.nn.Module],
    hidden: torch.Tensor,
    cu_seqlens: torch.Tensor,
    alibi_slopes: torch.Tensor | None,
    relative_bias: torch.Tensor | None,
) -> torch.Tensor | None:
    """All layers as one op; None where they must run one by one: where gradients are wanted, on
    GPUs, under torch.compile, tracing and autocast, with hooks, and where one is more than the op."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return None
    # What is recorded must name tensors: a layer's number means nothing elsewhere.
    if torch._C._is_tracing() or torch._C._len_torch_dispatch_stack():
        return None
    if torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PreDispatch):
        return None
    if not hidden.is_cpu or torch.is_autocast_enabled("cpu"):
        return None
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        return None
    found = []
    for layer in layers:
        native = layer.native() if isinstance(layer, NativeLayer) else None
        if native is None:
            return None
        if found and native.quantize_qkv and not found[-1].layer.parts.quantize:
            return None
        found.append(native)
    if not found:
        return None
    q = scale = None
    if found[0].quantize_qkv:
        q, scale = layers[0].qkv.operand(hidden)
    return encoder_layers(
        hidden,
        cu_seqlens,
        [native.layer for native in found],
        q=q,
        scale=scale,
        alibi_slopes=alibi_slopes,
        relative_bias=relative_bias,
    )


def takes_rows_of_integers(consumer) -> bool:
    """Whether a LayerNorm may give it integers, with one scale per row."""
    return (
        isinstance(consumer, LowbitLinear)
        and consumer.takes_integers
        and not consumer.activation_group_size
    )


def hands_integers_on(up, down) -> bool:
    """Whether `up` may give `down` integers."""
    chained = isinstance(up, LowbitLinear) and isinstance(down, LowbitLinear)
    return chained and down.takes_integers and not down.migrates


def _is_plain(module: torch.nn.Module) -> bool:
    """Whether calling it is nothing but its class's forward."""
    own = module.__dict__
    hooked = own["_forward_hooks"] or own["_forward_pre_hooks"]
    return not (hooked or "forward" in own or "_compiled_call_impl" in own)


class NativeLayer(torch.nn.Module):
    """A layer with `qkv`, `out`, `up`, `down`, `attention_norm` and `output_norm`, and the settings
    `heads`, `activation` and `glu`. LINEAR_KINDS, which a class must define for itself, are the
    classes of linear layers for which its forward is what the op computes."""

    LINEAR_KINDS: ClassVar[tuple] = ()

    def __init__(self) -> None:
        super().__init__()
        self._made: tuple = _NOTHING
        self._next: tuple = ()  # the projection that takes its integers; no module of this one

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_made": _NOTHING}

    def _apply(self, fn, recurse=True):
        self._made = _NOTHING
        return super()._apply(fn, recurse)

    def native(self) -> Native | None:
        """The layer for inference; None where its linear layers are more than a product."""
        kinds = type(self).__dict__.get("LINEAR_KINDS", ())  # a subclass computes something else
        if self.training or not _is_plain(self):
            return None
        modules = self.__dict__["_modules"]  # attributes of a Module cost a third of a microsecond
        kept, numbers = [], [self.heads, self.activation, self.glu]
        for name in LINEARS:
            linear = modules[name]
            kind = type(linear)
            if kind not in kinds or not _is_plain(linear):
                return None
            if kind is LowbitLinear:
                kept.append(linear.operands)
                continue
            parameters = linear.__dict__["_parameters"]
            weight = parameters.get("weight")
            if weight is None or weight.dtype not in PACKED_DTYPES or weight.is_inference():
                return None
            kept.append(linear.packed_of(weight, weight.dtype))
            kept.append(parameters["bias"] if "bias" in parameters else linear.bias)
        for name in NORMS:
            norm = modules[name]
            if type(norm) is not torch.nn.LayerNorm:
                return None
            parameters = norm.__dict__["_parameters"]
            if "weight" not in parameters or "bias" not in parameters:
                return None
            weight, bias = parameters["weight"], parameters["bias"]
            kept += weight, bias
            numbers.append(norm.eps)
            if LowbitLinear in kinds:  # of these norms others may be made
                numbers += state_of(weight), state_of(bias)
        consumer = self._next[0] if self._next else None
        kept.append(consumer.operands if isinstance(consumer, LowbitLinear) else None)
        made_from = (*map(id, kept), *numbers)
        if made_from != self._made[0]:
            # The tensors are kept so that nothing else takes their identities.
            self._made = made = made_from, kept, self._gather(consumer)
            return made[2]
        return self._made[2]

    def _gather(self, consumer) -> Native | None:
        linears = [self._modules[name] for name in LINEARS]
        qkv, _, up, down = linears
        low = [isinstance(linear, LowbitLinear) for linear in linears]
        quantize_up = low[1] and takes_rows_of_integers(up)
        chained = not self.glu and hands_integers_on(up, down)
        quantize = low[3] and takes_rows_of_integers(consumer)
        if low[0] and not (qkv.direct or qkv.quantizes_first):
            return None
        floats = (False, True, not quantize_up, not chained)  # what the op gives each
        for linear, given_floats in zip(linears, floats, strict=True):
            if not isinstance(linear, LowbitLinear):
                continue
            takes_floats = linear.direct or linear.quantizes_groups
            if linear.operands is None or given_floats and not takes_floats:
                return None
        norms = [self._modules[name] for name in NORMS]
        affine = up.migrated(norms[0]) if quantize_up else (None, None)
        next_affine = consumer.migrated(norms[1]) if quantize else (None, None)
        tensors, formats = zip(*map(_operands, linears), strict=True)
        parts = LayerParts(
            *tensors,
            formats=sum(formats, ()),
            attention_norm=(norms[0].weight, norms[0].bias, *affine),
            output_norm=(norms[1].weight, norms[1].bias, *next_affine),
            heads=self.heads,
            activation=self.activation,
            glu=self.glu,
            quantize_up=quantize_up,
            inner_group_size=down.activation_group_size if chained else -1,
            attention_eps=norms[0].eps,
            output_eps=norms[1].eps,
            quantize=quantize,
        )
        return Native(PreparedLayer(parts), low[0] and not (qkv.direct or qkv.quantizes_groups))


def _operands(linear) -> tuple[tuple, tuple]:
    """(packed, scale, zero_point, codebook, bias) and (out_features, bits, group_size, x_bits,
    x_group_size)."""
    if isinstance(linear, LowbitLinear):
        group_size = linear.activation_group_size if linear.activation_bits else 0
        return linear.operands[:5], (*linear.operands[5:], group_size)
    return (linear.packed(), None, None, None, linear.bias), (linear.out_features, 0, 0, 0, 0)
