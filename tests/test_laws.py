"""Laws of the sources that no op's test can hold: docstrings, environment variables, imports."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import taut
import taut.encoder
from taut.encoder.model import Backbone

ROOT = Path(__file__).parent.parent
SHIPPED = [*(ROOT / "python").rglob("*.py"), *(ROOT / "triton_kernels").rglob("*.py")]
PYTHON = [*SHIPPED, *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]
PYTHON.append(ROOT / "setup.py")
NATIVE = [
    path
    for room in ("csrc", "tests", "bench")
    for ending in ("*.cpp", "*.h", "*.cu", "*.cuh")
    for path in (ROOT / room).rglob(ending)
]
LONGEST_FILE = 400  # lines


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def test_no_star_imports():
    assert len(PYTHON) > 50
    for path in PYTHON:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom):
                assert node.names[0].name != "*", f"{path}:{node.lineno}"


def test_no_file_is_too_long():
    assert len(NATIVE) > 150
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in (*PYTHON, *NATIVE)}
    assert not {path for path, count in lines.items() if count > LONGEST_FILE}


def test_assembly_stays_in_its_room():
    room = ROOT / "csrc/cuda/ptx"
    with_assembly = {
        path for path in NATIVE if re.search(r"\basm( volatile)?[ (]", path.read_text("utf-8"))
    }
    assert with_assembly and all(room in path.parents for path in with_assembly)


def test_parameters_and_formats_know_no_torch():
    """What crosses from host to device, and what both read."""
    shared = [p for p in (ROOT / "csrc/common").iterdir() if "check" not in p.name]
    crossing = [*shared, *(ROOT / "csrc/cuda").glob("*_params.h")]
    assert len(crossing) > 6
    for path in crossing:
        assert "<torch" not in path.read_text("utf-8"), path


def test_native_sources_build_with_the_oldest_torch():
    """Names of torch's headers that came after the version the build asks for."""
    assert "TORCH_TARGET_VERSION=0x020a" in (ROOT / "CMakeLists.txt").read_text()
    later = re.compile("STABLE_TORCH_ERROR_CODE_CHECK")  # 2.13; TORCH_ERROR_CODE_CHECK is in all
    assert not {path for path in NATIVE if later.search(path.read_text("utf-8"))}


def test_no_jit_function_returns_none():
    """Triton 3.6 takes None as an argument, but not as a result: `x if b is None else ...`."""
    functions = [
        node
        for path in (ROOT / "triton_kernels").glob("*.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef)
        and "jit" in "".join(map(ast.unparse, node.decorator_list))
    ]
    assert len(functions) > 30
    for function in functions:
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value is not None:
                assert not re.search(r" is (not )?None", ast.unparse(node.value)), function.name


def variables_read(path):
    """Names of environment variables that a Python file reads; constants are looked up in it."""
    tree = tree_of(path)
    constants = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("environ"):
            name = node.slice
        elif isinstance(node, ast.Call) and (
            re.search(r"environ\.get$|getenv$|environment_choice$", ast.unparse(node.func))
        ):
            name = node.args[0]
        else:
            continue
        if ast.unparse(name) != "name":  # environment_choice's own argument
            yield name.value if isinstance(name, ast.Constant) else constants[name.id]


def test_the_readme_lists_the_environment_variables_that_are_read():
    read = {name for path in (*SHIPPED, ROOT / "setup.py") for name in variables_read(path)}
    for path in (ROOT / "CMakeLists.txt", *(ROOT / "csrc").rglob("*.*")):
        read.update(re.findall(r'getenv\("(\w+)"|ENV\{(\w+)\}', path.read_text()))
    table = (ROOT / "README.md").read_text().split("## Environment")[1].split("\n## ")[0]
    assert read == set(re.findall(r"^\| `(\w+)` \|", table, re.M))


# ---- docstrings

FUNCTIONS = [f for f in map(taut.__dict__.get, taut.__all__) if inspect.isfunction(f)]
CLASSES = [getattr(taut.encoder, name) for name in taut.encoder.__all__] + [
    Backbone,
    taut.nn.Linear,
]
METHODS = {
    f"{cls.__name__}.{name}": function
    for cls in CLASSES
    for name, function in inspect.getmembers(cls, lambda m: inspect.isroutine(m))
    if not name.startswith("_") and getattr(function, "__module__", "").startswith("taut")
}


def sections(docstring):
    """{section: its text}, for "Args:", "Returns:" and the like; what comes before under ""."""
    parts = re.split(r"^(Args|Returns|Raises|Source):", inspect.cleandoc(docstring), flags=re.M)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(args):
    """{parameter: its text} of an "Args:" section; entries may share a line: "k, v: ..."."""
    found = {}
    for names, text in re.findall(r"^    (\w[\w, \n]*):((?:.*\n?(?!    \w))*)", args, re.M):
        found.update(dict.fromkeys(re.findall(r"\w+", names), text))
    return found


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_the_docstring_of_an_op_is_complete(function):
    found = sections(function.__doc__)
    assert re.match(r"[^\n]+(\n[^\n]+)?\.", found[""]), "one sentence comes first"
    documented = entries(found["Args"])
    parameters = inspect.signature(function).parameters
    assert documented.keys() == parameters.keys()
    for name, parameter in parameters.items():
        if "Tensor" in str(parameter.annotation):
            shape = r"\(.*\)|as in|the same|what `pack_weight` gave"
            assert re.search(shape, documented[name], re.S), f"{name} has no shape"
    dtype = r"fp32|int32|int8|bool|dtype|as in"
    assert re.search(dtype, found["Args"]), "no dtypes"
    assert re.search(r"\(.*\)|Packing|packed", found["Returns"], re.S), "no shape"
    assert "TypeError, ValueError: naming the argument" in found["Raises"]


@pytest.mark.parametrize("name", METHODS)
def test_the_docstring_of_a_method_names_its_parameters(name):
    function = METHODS[name]
    assert function.__doc__, name
    signature = inspect.signature(function)
    parameters = signature.parameters.keys() - {"self", "cls"}
    if re.search(r"[sS]ee `|arguments as for `", function.__doc__):
        return  # another docstring says it
    missing = [p for p in parameters if not re.search(rf"\b{p}\b", function.__doc__)]
    assert not missing
    if "Args" in (found := sections(function.__doc__)):
        assert signature.return_annotation is None or "Returns" in found


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_docstring_of_a_class_names_what_makes_it(cls):
    inherited = any(cls.__init__ is base.__init__ for base in cls.__mro__[1:])
    made_by_fields = issubclass(cls, tuple)
    assert cls.__doc__ and ("Args:" in cls.__doc__ or inherited or made_by_fields)
