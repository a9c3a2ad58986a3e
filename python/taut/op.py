"""What a row of the registry is, and what torch's dispatcher is told of it."""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch

from taut._native import libraries

library = torch.library.Library("taut", "DEF")
_triton_library = torch.library.Library("taut_triton", "DEF")  # see register_gpu


@dataclass(frozen=True)
class Op:
    """One row: what the dispatcher needs to know, and where the rest is found."""

    name: str
    stem: str
    schema: str
    triton: bool = True  # triton_kernels/<stem>.py has a launcher of this name
    autocast: bool = False  # torch.autocast casts its tensors: see _register_autocast
    refuses_grad: str = ""  # why no tensor may require grad while gradients are enabled
    has_gradient: bool = field(init=False, default=False)  # set by registry.register_autograd

    @functools.cached_property
    def fake(self) -> Callable:
        return getattr(importlib.import_module(f"taut.fakes.{self.stem}"), self.name)

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
        first, like = next(iter(found.items()), (None, None))
        for name, t in found.items():
            if t.layout != torch.strided:
                raise ValueError(f"{self.name}: {name} must be strided, got {t.layout}")
            if t.device != like.device:
                wanted = f"on {like.device} like {first}"
                raise ValueError(f"{self.name}: {name} must be {wanted}, got {t.device}")
        return found


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
        return op.fake(*op.complete(args))

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

    library.impl(op.name, run, key.name)


def define(op: Op) -> None:
    """Give the dispatcher the op, its reference and fake."""
    library.define(op.name + op.schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(op.name, _reference_with_warning(op), "CompositeExplicitAutograd")
    torch.library.register_fake(f"taut::{op.name}", _checked_fake(op), lib=library)
    if op.autocast:
        for device_type in ("cpu", "cuda"):
            _register_autocast(op, device_type)
    # Now: torch.compile cannot trace a cached_property's first use.
    _ = op.overload, op.entry


def register_gpu(op: Op) -> str:
    """Who serves `op` on a GPU: "native" where libtaut_cuda has registered a kernel, "triton", or
    "reference". A native kernel hands what it does not serve, fp32 and GPUs before sm_80, on to
    taut_triton::<name>."""
    is_native = torch._C._dispatch_has_kernel_for_dispatch_key(f"taut::{op.name}", "CUDA")
    chosen = _triton_library if is_native else library
    if is_native and op.triton:
        chosen.define(op.name + op.schema)
    if op.triton and _TRITON_SERVES_GPU:
        chosen.impl(op.name, lambda *args: op.triton_launcher(*op.complete(args)), "CUDA")
    elif is_native and op.triton:
        chosen.impl(op.name, _reference_with_warning(op), "CUDA")
    if is_native:
        return "native"
    return "triton" if op.triton and _TRITON_SERVES_GPU else "reference"
