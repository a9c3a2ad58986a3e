"""The one table of ops. A reader starts here.

An op `taut::<name>` belongs to a stem, and the stem names its file in every room:

    reference/<stem>.py       what the op means, in plain torch: function <name>, and its argument
                              checks: function check_<name>
    ops/<stem>.py             the public function and its gradient
    csrc/cpu/<stem>.cpp       the CPU launcher, registered by the native library itself
    csrc/cuda/<stem>.cu       the CUDA launcher, likewise
    triton_kernels/<stem>.py  the Triton launcher: function <name>

Schemas are defined here and nowhere else. Where no library registers a kernel for a device, the
reference runs and says so once. Every fake below gives shapes and dtypes only.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from taut._native import libraries

_library = torch.library.Library("taut", "DEF")
_triton_library = torch.library.Library("taut_triton", "DEF")  # see _register_gpu

# Every argument costs about 0.2 us per call from Python; one left at its default costs nothing.
# A list at its default is copied and converted all the same: hence the window's two numbers.
_ATTENTION_OPTIONS = (
    "float? softmax_scale=None, Tensor? alibi_slopes=None, Tensor? relative_bias=None, "
    "bool causal=False, SymInt window_left=-1, SymInt window_right=-1, float softcap=0.0, "
    "float[]? clip=None, float dropout_p=0.0, SymInt dropout_seed=0, Tensor? plan=None"
)


@dataclass(frozen=True)
class Op:
    """One row: what the dispatcher needs to know, and where the rest is found."""

    name: str
    stem: str
    schema: str
    fake: Callable
    triton: bool = True  # triton_kernels/<stem>.py has a launcher of this name
    autocast: bool = False  # torch.autocast casts its tensors: see _register_autocast

    @functools.cached_property
    def reference(self) -> Callable:
        return getattr(importlib.import_module(f"taut.reference.{self.stem}"), self.name)

    @functools.cached_property
    def triton_launcher(self) -> Callable:
        return getattr(importlib.import_module(f"taut.triton_kernels.{self.stem}"), self.name)

    @functools.cached_property
    def check(self) -> Callable | None:
        """check_<name> of the reference: the op's arguments -> TypeError, ValueError or nothing."""
        module = importlib.import_module(f"taut.reference.{self.stem}")
        return getattr(module, f"check_{self.name}", None)

    @functools.cached_property
    def overload(self) -> torch._ops.OpOverload:
        return getattr(torch.ops.taut, self.name).default

    @functools.cached_property
    def entry(self) -> Callable:
        """The overload without its Python frame, for eager calls."""
        return self.overload._op

    def complete(self, args: tuple) -> tuple:
        """`args` with the schema's defaults behind them: the dispatcher drops those on the way to
        a kernel written in Python."""
        missing = self.overload._schema.arguments[len(args) :]
        return (*args, *(argument.default_value for argument in missing))

    def tensors(self, args: tuple) -> dict[str, torch.Tensor]:
        """The tensors among `args` by name. The dispatcher takes None for any of them, and tensors
        of any device and layout: TypeError and ValueError for those."""
        found = {}
        for argument, a in zip(self.overload._schema.arguments, args, strict=False):
            if isinstance(a, torch.Tensor):
                found[argument.name] = a
            elif a is None and isinstance(argument.type, torch.TensorType):
                raise TypeError(
                    f"{self.name}: {argument.name} must be a torch.Tensor, got NoneType"
                )
        first, like = next(iter(found.items()))
        for name, t in found.items():
            if t.layout != torch.strided:
                raise ValueError(f"{self.name}: {name} must be strided, got {t.layout}")
            if t.device != like.device:
                wanted = f"on {like.device} like {first}"
                raise ValueError(f"{self.name}: {name} must be {wanted}, got {t.device}")
        return found


def _rows(x, dtype=torch.float32):
    return x.new_empty((x.shape[0],), dtype=dtype)


def _fake_packing(x, *_):
    tokens = torch.library.get_ctx().new_dynamic_size()
    cu_seqlens = x.new_empty((x.shape[0] + 1,), dtype=torch.int32)
    return (
        cu_seqlens,
        x.new_empty((tokens,), dtype=torch.int32),
        x.new_empty((tokens,), dtype=torch.int32),
    )


def _fake_attention_plan(cu_seqlens_q, cu_seqlens_k, total_q, total_k):
    batch = cu_seqlens_q.shape[0] - 1
    return cu_seqlens_q.new_empty((4 + total_q // 64 + 2 * batch, 2))


def _fake_varlen_attention(q, k, v, *_):
    out = q.new_empty(q.shape)
    return out, q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


def _fake_option_gradients(alibi_slopes, relative_bias, like):
    def gradient(t):
        return like.new_empty((0,) if t is None else t.shape, dtype=torch.float32)

    return gradient(alibi_slopes), gradient(relative_bias)


def _fake_varlen_attention_backward(
    grad_out, q, k, v, out, lse, cu_q, cu_k=None, scale=None, slopes=None, rel=None, *_
):
    gradients = tuple(t.new_empty(t.shape) for t in (q, k, v))
    return (*gradients, *_fake_option_gradients(slopes, rel, q))


def _fake_varlen_attention_qkvpacked(qkv, *_):
    tokens, _three, heads, head_dim = qkv.shape
    out = qkv.new_empty((tokens, heads, head_dim))
    return out, qkv.new_empty((heads, tokens), dtype=torch.float32)


def _fake_varlen_attention_qkvpacked_backward(
    grad_out, qkv, bias, out, lse, cu_seqlens, scale=None, slopes=None, rel=None, *_
):
    dbias = qkv.new_empty((0,) if bias is None else bias.shape)
    return (qkv.new_empty(qkv.shape), dbias, *_fake_option_gradients(slopes, rel, qkv))


def _fake_layer_norm(x, residual, bias, weight, norm_bias, eps, return_sum):
    total = x.new_empty(x.shape if return_sum else (0,))
    return x.new_empty(x.shape), total, _rows(x), _rows(x)


def _fake_layer_norm_backward(grad_out, grad_sum, x, residual, bias, weight, mean, rstd):
    columns = x.new_empty((x.shape[1],))
    return x.new_empty(x.shape), columns, torch.empty_like(columns), torch.empty_like(columns)


def _fake_rms_norm(x, residual, bias, weight, eps, return_sum):
    total = x.new_empty(x.shape if return_sum else (0,))
    return x.new_empty(x.shape), total, _rows(x)


def _fake_rms_norm_backward(grad_out, grad_sum, x, residual, bias, weight, rstd):
    columns = x.new_empty((x.shape[1],))
    return x.new_empty(x.shape), columns, torch.empty_like(columns)


def _fake_bias_glu(x, bias, activation):
    return x.new_empty((x.shape[0], x.shape[1] // 2))


def _fake_activation_backward(grad_out, x, bias, activation):
    return x.new_empty(x.shape), x.new_empty((x.shape[1],))


def _fake_embed_layer_norm(input_ids, positions, token_type_ids, word, *_):
    rows = input_ids.shape[0]
    out = word.new_empty((rows, word.shape[1]))
    mean = word.new_empty((rows,), dtype=torch.float32)
    return out, mean, torch.empty_like(mean)


def _fake_embed_layer_norm_backward(
    grad_out, input_ids, positions, token_type_ids, word, position, token_type, weight, *_
):
    def gradient(t):
        return word.new_empty((0,) if t is None else t.shape)

    columns = word.new_empty((word.shape[1],))
    return (
        gradient(word),
        gradient(position),
        gradient(token_type),
        columns,
        torch.empty_like(columns),
    )


def _fake_pool(x, cu_seqlens, mode, normalize):
    return x.new_empty((cu_seqlens.shape[0] - 1, x.shape[1]))


PANEL = 64  # output channels per panel of a packed weight: see ops/dense_gemm.py


def _fake_pack_weight(weight):
    rows, columns = weight.shape
    panels = (rows + PANEL - 1) // PANEL
    if weight.dtype == torch.bfloat16:
        return weight.new_empty((panels, (columns + 1) // 2, PANEL, 2))
    return weight.new_empty((panels, columns, PANEL))


def _fake_unpack_weight(packed, out_features, in_features):
    return packed.new_empty((out_features, in_features))


def _fake_packed_linear(x, packed, bias, out_features, activation):
    return x.new_empty((x.shape[0], out_features))


def _fake_packed_linear_layer_norm(x, packed, bias, residual, weight, norm_bias, eps):
    return residual.new_empty(residual.shape)


OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op(
            "pack_mask",
            "packing",
            "(Tensor attention_mask) -> (Tensor cu_seqlens, Tensor indices, Tensor positions)",
            _fake_packing,
        ),
        Op(
            "pack_lengths",
            "packing",
            "(Tensor lengths, SymInt padded_length) "
            "-> (Tensor cu_seqlens, Tensor indices, Tensor positions)",
            _fake_packing,
        ),
        Op(
            "gather_rows",
            "packing",
            "(Tensor x, Tensor indices) -> Tensor",
            lambda x, indices: x.new_empty((indices.shape[0], *x.shape[1:])),
        ),
        Op(
            "scatter_rows",
            "packing",
            "(Tensor x, Tensor indices, SymInt rows) -> Tensor",
            lambda x, indices, rows: x.new_empty((rows, *x.shape[1:])),
        ),
        Op(
            "attention_plan",
            "attention",
            "(Tensor cu_seqlens_q, Tensor? cu_seqlens_k, SymInt total_q, SymInt total_k) -> Tensor",
            _fake_attention_plan,
            triton=False,  # it orders the work of native kernels
        ),
        Op(
            "varlen_attention",
            "attention",
            "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor? cu_seqlens_k=None, "
            f"{_ATTENTION_OPTIONS}) -> (Tensor out, Tensor logsumexp)",
            _fake_varlen_attention,
            autocast=True,
        ),
        Op(
            "varlen_attention_backward",
            "attention",
            "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, "
            f"Tensor cu_seqlens_q, Tensor? cu_seqlens_k=None, {_ATTENTION_OPTIONS}) "
            "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dslopes, Tensor drelative_bias)",
            _fake_varlen_attention_backward,
        ),
        Op(
            "varlen_attention_qkvpacked",
            "attention",
            f"(Tensor qkv, Tensor? bias, Tensor cu_seqlens, {_ATTENTION_OPTIONS}) "
            "-> (Tensor out, Tensor logsumexp)",
            _fake_varlen_attention_qkvpacked,
            autocast=True,
        ),
        Op(
            "varlen_attention_qkvpacked_backward",
            "attention",
            "(Tensor grad_out, Tensor qkv, Tensor? bias, Tensor out, Tensor logsumexp, "
            f"Tensor cu_seqlens, {_ATTENTION_OPTIONS}) "
            "-> (Tensor dqkv, Tensor dbias, Tensor dslopes, Tensor drelative_bias)",
            _fake_varlen_attention_qkvpacked_backward,
        ),
        Op(
            "layer_norm",
            "norm",
            "(Tensor x, Tensor? residual, Tensor? bias, Tensor? weight, Tensor? norm_bias, "
            "float eps, bool return_sum) -> (Tensor out, Tensor sum, Tensor mean, Tensor rstd)",
            _fake_layer_norm,
            autocast=True,
        ),
        Op(
            "layer_norm_backward",
            "norm",
            "(Tensor grad_out, Tensor? grad_sum, Tensor x, Tensor? residual, Tensor? bias, "
            "Tensor? weight, Tensor mean, Tensor rstd) "
            "-> (Tensor dx, Tensor dbias, Tensor dweight, Tensor dnorm_bias)",
            _fake_layer_norm_backward,
        ),
        Op(
            "rms_norm",
            "norm",
            "(Tensor x, Tensor? residual, Tensor? bias, Tensor? weight, float eps, "
            "bool return_sum) -> (Tensor out, Tensor sum, Tensor rstd)",
            _fake_rms_norm,
            autocast=True,
        ),
        Op(
            "rms_norm_backward",
            "norm",
            "(Tensor grad_out, Tensor? grad_sum, Tensor x, Tensor? residual, Tensor? bias, "
            "Tensor? weight, Tensor rstd) -> (Tensor dx, Tensor dbias, Tensor dweight)",
            _fake_rms_norm_backward,
        ),
        Op(
            "bias_activation",
            "activation",
            "(Tensor x, Tensor? bias, str activation) -> Tensor",
            lambda x, bias, activation: x.new_empty(x.shape),
            autocast=True,
        ),
        Op(
            "bias_activation_backward",
            "activation",
            "(Tensor grad_out, Tensor x, Tensor? bias, str activation) "
            "-> (Tensor dx, Tensor dbias)",
            _fake_activation_backward,
        ),
        Op(
            "bias_glu",
            "activation",
            "(Tensor x, Tensor? bias, str activation) -> Tensor",
            _fake_bias_glu,
            autocast=True,
        ),
        Op(
            "bias_glu_backward",
            "activation",
            "(Tensor grad_out, Tensor x, Tensor? bias, str activation) "
            "-> (Tensor dx, Tensor dbias)",
            _fake_activation_backward,
        ),
        Op(
            "embed_layer_norm",
            "embedding",
            "(Tensor input_ids, Tensor? positions, Tensor? token_type_ids, Tensor word, "
            "Tensor? position, Tensor? token_type, Tensor? weight, Tensor? norm_bias, float eps) "
            "-> (Tensor out, Tensor mean, Tensor rstd)",
            _fake_embed_layer_norm,
        ),
        Op(
            "embed_layer_norm_backward",
            "embedding",
            "(Tensor grad_out, Tensor input_ids, Tensor? positions, Tensor? token_type_ids, "
            "Tensor word, Tensor? position, Tensor? token_type, Tensor? weight, Tensor mean, "
            "Tensor rstd) -> (Tensor dword, Tensor dposition, Tensor dtoken_type, "
            "Tensor dweight, Tensor dnorm_bias)",
            _fake_embed_layer_norm_backward,
        ),
        Op(
            "pool",
            "pooling",
            "(Tensor x, Tensor cu_seqlens, str mode, bool normalize) -> Tensor",
            _fake_pool,
        ),
        Op(
            "pool_backward",
            "pooling",
            "(Tensor grad_out, Tensor x, Tensor cu_seqlens, str mode, bool normalize) -> Tensor",
            lambda grad_out, x, cu_seqlens, mode, normalize: x.new_empty(x.shape),
        ),
        Op("pack_weight", "dense_gemm", "(Tensor weight) -> Tensor", _fake_pack_weight, False),
        Op(
            "unpack_weight",
            "dense_gemm",
            "(Tensor packed, SymInt out_features, SymInt in_features) -> Tensor",
            _fake_unpack_weight,
            False,
        ),
        Op(
            "packed_linear",
            "dense_gemm",
            "(Tensor x, Tensor packed, Tensor? bias, SymInt out_features, str activation) "
            "-> Tensor",
            _fake_packed_linear,
            autocast=True,
        ),
        Op(
            "packed_linear_layer_norm",
            "dense_gemm",
            "(Tensor x, Tensor packed, Tensor? bias, Tensor residual, Tensor? weight, "
            "Tensor? norm_bias, float eps) -> Tensor",
            _fake_packed_linear_layer_norm,
            autocast=True,
        ),
    )
}


def _reference_with_warning(op: Op) -> Callable:
    def run(*args):
        device = next(iter(op.tensors(args).values())).device
        libraries.warn_reference(op.name, device.type)
        args = op.complete(args)
        if op.check is not None:
            op.check(*args)
        return op.reference(*args)

    return run


_TRITON_SERVES_GPU = (torch.version.cuda or torch.version.hip) and find_spec("triton")


def _checked_fake(op: Op) -> Callable:
    """One tensor on the meta device brings the whole call here, whatever the others are on."""

    def run(*args):
        op.tensors(args)
        return op.fake(*args)

    return run


_KEPT_BY_AUTOCAST = ("alibi_slopes", "relative_bias", "packed")


def _register_autocast(op: Op, device_type: str) -> None:
    """Under torch.autocast the op runs in autocast's dtype, or in that of its packed weight, whose
    layout goes by its dtype. Sums and norms are taken in fp32 inside in any case."""
    key = getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}")
    names = [argument.name for argument in op.overload._schema.arguments]

    def run(*args):
        named = dict(zip(names, args, strict=False))
        like = named.get("packed")
        dtype = torch.get_autocast_dtype(device_type) if like is None else like.dtype
        for name, a in named.items():
            is_float = isinstance(a, torch.Tensor) and a.is_floating_point()
            if is_float and a.dtype != torch.float64 and name not in _KEPT_BY_AUTOCAST:
                named[name] = a.to(dtype)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return op.overload(*named.values())

    _library.impl(op.name, run, key.name)


def _define(op: Op) -> None:
    _library.define(op.name + op.schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(op.name, _reference_with_warning(op), "CompositeExplicitAutograd")
    torch.library.register_fake(f"taut::{op.name}", _checked_fake(op), lib=_library)
    if op.autocast:
        for device_type in ("cpu", "cuda"):
            _register_autocast(op, device_type)
    _ = op.overload, op.entry  # now: torch.compile cannot trace a cached_property's first use


def _register_gpu(op: Op) -> str:
    """Who serves `op` on a GPU: "native" where libtaut_cuda has registered a kernel, "triton", or
    "reference". A native kernel hands what it does not serve, fp32 and GPUs before sm_80, on to
    taut_triton::<name>."""
    is_native = torch._C._dispatch_has_kernel_for_dispatch_key(f"taut::{op.name}", "CUDA")
    library = _triton_library if is_native else _library
    if is_native and op.triton:
        library.define(op.name + op.schema)
    if op.triton and _TRITON_SERVES_GPU:
        library.impl(op.name, lambda *args: op.triton_launcher(*op.complete(args)), "CUDA")
    elif is_native and op.triton:
        library.impl(op.name, _reference_with_warning(op), "CUDA")
    if is_native:
        return "native"
    return "triton" if op.triton and _TRITON_SERVES_GPU else "reference"


def register_autograd(name: str, backward: Callable, setup_context: Callable) -> None:
    """Give op `name` its gradient; called once, from ops/<stem>.py."""
    torch.library.register_autograd(
        f"taut::{name}", backward, setup_context=setup_context, lib=_library
    )
    if f"{name}_backward" in OPS:

        def refuse(ctx, *_):
            raise RuntimeError(f"{name}: second derivatives are not supported")

        torch.library.register_autograd(f"taut::{name}_backward", refuse, lib=_library)


for _op in OPS.values():
    _define(_op)
libraries.load()
GPU_KERNELS = {op.name: _register_gpu(op) for op in OPS.values()}
