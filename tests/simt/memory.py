"""What the Python twins of launchers share: parameter structures, and the memory of a call."""

import ctypes

from simt import build
from simt.attention import _fields as fields
from simt.attention import _memory as memory_of
from simt.attention import _structure as structure
from simt.attention import pointer_of

__all__ = ["call", "fields", "memory_of", "pointer_of", "structure"]
POINTER, INT32, INT64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
FLOAT, DOUBLE, BOOL = ctypes.c_float, ctypes.c_double, ctypes.c_bool


def call(case, name, *arguments, schedule, seed=1):
    """Function `name` of tests/simt/cases/<case>.cpp; structures go by address."""
    arguments = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
    build.call(getattr(build.load(case), name), *arguments, schedule, seed)
