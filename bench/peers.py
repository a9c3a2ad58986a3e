"""Who else is here: the packages of contenders, their versions, and torch's ways to do our work."""

import importlib.metadata

# A contender's name starts with its package's name; the rest are torch's own.
PACKAGES = (
    "transformers",
    "sentence-transformers",
    "torchao",
    "onnxruntime",
    "openvino",
    "ctranslate2",
    "flash_attn",
)


def package_of(contender: str) -> str | None:
    """The package that a contender comes from; None for ours."""
    first = contender.split()[0]
    if first == "taut":
        return None
    return first if first in PACKAGES else "torch"


def version_of(package: str) -> str | None:
    """As in "torch 2.13.0"; None where it is not installed."""
    try:
        return f"{package} {importlib.metadata.version(package).split('+')[0]}"
    except importlib.metadata.PackageNotFoundError:
        return None


def found_and_missing() -> tuple[dict[str, str], list[str]]:
    """{package: version} of the peers that are installed, and the names of the others."""
    versions = {package: version_of(package) for package in ("torch", *PACKAGES)}
    found = {package: v.split()[1] for package, v in versions.items() if v}
    return found, [package for package, version in versions.items() if version is None]
