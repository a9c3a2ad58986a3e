"""What the Python twins of launchers share: parameter structures, and the memory of a call."""

import ctypes

from simt import build

POINTER, INT32, INT64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
FLOAT, DOUBLE, BOOL = ctypes.c_float, ctypes.c_double, ctypes.c_bool


def structure(name, *fields):
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


def fields(kind, names):
    return [(name, kind) for name in names.split()]


class Memory(ctypes.Structure):
    """What the kernels of a call may touch: everything else is out of bounds."""

    _fields_ = [
        ("reads", POINTER * 16),
        ("read_bytes", INT64 * 16),
        ("writes", POINTER * 8),
        ("write_bytes", INT64 * 8),
    ]


def _extent(t):
    """Bytes from the first to the last element of t."""
    if t.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return (last + 1) * t.element_size()


def memory_of(reads, writes):
    memory = Memory()
    for pointers, sizes, tensors in (
        (memory.reads, memory.read_bytes, reads),
        (memory.writes, memory.write_bytes, writes),
    ):
        for i, t in enumerate(t for t in tensors if t is not None):
            pointers[i], sizes[i] = t.data_ptr(), _extent(t)
    return memory


def pointer_of(t):
    return None if t is None else t.data_ptr()


def call(case, name, *arguments, schedule, seed=1):
    """Function `name` of tests/simt/cases/<case>.cpp; structures go by address."""
    arguments = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
    build.call(getattr(build.load(case), name), *arguments, schedule, seed)
