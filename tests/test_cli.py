"""The `taut` command as a user runs it: separate processes, real checkpoint, real files."""

import json
import os
import resource
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from safetensors.numpy import load_file

from taut.demo import default_model
from taut.text_io import read_texts

TEXTS = ["a short text", "", "naïve café 北京", "another, somewhat longer text than the first one"]


def taut(*arguments, stdin=None, **options):
    options = {"stdout": subprocess.PIPE, **options}
    return subprocess.run(
        [sys.executable, "-c", "from taut.cli import main; main()", *map(str, arguments)],
        input=stdin, stderr=subprocess.PIPE, timeout=300, **options,
    )  # fmt: skip


def encode(source, output, *arguments, stdin=None, **options):
    return taut("encode", source, "--model", default_model(), "--output", output, *arguments,
                stdin=stdin, **options)  # fmt: skip


def refused(result, *fragments, code=2):
    """The exit code, a message with every fragment, and no traceback."""
    message = result.stderr.decode()
    assert result.returncode == code, message
    assert "Traceback" not in message and "Exception ignored" not in message, message
    assert "Usage:" in message or message.count("\n") == 1, "one line, but for wrong options"
    for fragment in fragments:
        assert fragment in message, message


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def test_every_output_format_and_input_form_agree(lines, tmp_path):
    results = {}
    for suffix in (".npy", ".safetensors", ".jsonl"):
        output = tmp_path / f"out{suffix}"
        result = encode(lines, output)
        assert result.returncode == 0, result.stderr.decode()
        results[suffix] = output
    expected = np.load(results[".npy"])
    assert expected.shape == (len(TEXTS), 384) and expected.dtype == np.float32
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(load_file(results[".safetensors"])["embeddings"], expected)
    rows = [json.loads(line)["embedding"] for line in results[".jsonl"].open()]
    np.testing.assert_array_equal(np.array(rows, dtype=np.float32), expected)

    jsonl = "\n".join(json.dumps({"id": i, "body": t}) for i, t in enumerate(TEXTS)).encode()
    output = tmp_path / "stdin.npy"
    result = encode("-", output, "--jsonl-field", "body", stdin=jsonl)
    assert result.returncode == 0, result.stderr.decode()
    np.testing.assert_array_equal(np.load(output), expected)


def test_bf16_is_close_to_fp32(lines, tmp_path):
    for dtype in ("fp32", "bf16"):
        assert encode(lines, tmp_path / f"{dtype}.npy", "--dtype", dtype).returncode == 0
    fp32, bf16 = np.load(tmp_path / "fp32.npy"), np.load(tmp_path / "bf16.npy")
    assert ((fp32 * bf16).sum(1) >= 0.9999).all()


def test_bad_input_is_refused_and_nothing_is_written(tmp_path):
    output = tmp_path / "out.npy"
    empty = tmp_path / "empty.txt"
    empty.touch()
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"fine\ncaf\xe9\n")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": 3}\n')
    surrogate = tmp_path / "surrogate.jsonl"
    surrogate.write_text('{"text": "fine"}\n\n{"text": "\\ud800"}\n')
    deep = tmp_path / "deep.jsonl"
    deep.write_text("[" * 200_000)
    refused(encode(surrogate, output), "line 3", "not Unicode", "ud800")
    refused(encode(deep, output), "line 1", "not JSON")
    refused(encode(empty, output), "holds no texts")
    refused(encode(latin, output), "line 2", "not UTF-8", "0xe9")
    refused(encode(broken, output), "line 2", "'text'")
    refused(encode(tmp_path / "absent.txt", output), "absent.txt", "No such file")
    assert not output.exists()


def test_bad_output_is_refused_before_the_work(lines, tmp_path):
    refused(encode(lines, tmp_path / "out.csv"), ".npy, .safetensors, .jsonl")
    refused(encode(lines, tmp_path / "absent" / "out.npy"), "cannot write")
    refused(encode(lines, tmp_path), "directory" if tmp_path.suffix else "must end in")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(lines):
    refused(encode(lines, "/proc/out.npy"), "cannot write /proc/out.npy")


def test_the_input_is_no_output(tmp_path):
    records = tmp_path / "records.jsonl"
    records.write_text('{"text": "precious"}\n')
    (tmp_path / "folder").mkdir()
    again = tmp_path / "folder/../records.jsonl"
    refused(encode(records, again), "cannot write", "it is the input")
    assert "precious" in records.read_text()


@pytest.mark.parametrize("suffix", (".npy", ".safetensors", ".jsonl"))
def test_a_full_disk_is_a_failure_that_leaves_nothing(lines, tmp_path, suffix):
    def limit():  # a file may not grow further: what a full disk is for one file
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    output = tmp_path / f"out{suffix}"
    refused(encode(lines, output, preexec_fn=limit), f"cannot write {output}", code=1)
    assert os.listdir(tmp_path) == []


def test_a_mark_and_carriage_returns_are_no_text(tmp_path):
    plain, windows = tmp_path / "plain.txt", tmp_path / "windows.txt"
    plain.write_bytes(b"one\ntwo\n\nthree")
    windows.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree")
    assert read_texts(str(windows)) == read_texts(str(plain)) == ["one", "two", "", "three"]
    windows.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n')
    assert read_texts(str(windows), "text") == ["one"]


@pytest.mark.parametrize("device", ("cuda:99", "nonsense"))
def test_an_unusable_device_is_refused(lines, tmp_path, device):
    result = encode(lines, tmp_path / "out.npy", "--device", device)
    refused(result, "device must be usable", device)


def test_a_bad_model_for_the_demo_is_refused(tmp_path):
    refused(taut("demo", "--model", tmp_path), "cannot load model", "has no config.json")


def test_a_reader_that_left_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    result = taut("info", stdout=writing)
    os.close(writing)
    assert result.returncode == 1 and result.stderr == b""
    with open("/dev/full", "wb") as full:
        refused(taut("info", stdout=full), "No space left", code=1)


def test_a_failure_leaves_the_old_output(lines, tmp_path):
    output = tmp_path / "out.npy"
    output.write_bytes(b"precious")
    (tmp_path / "bad").mkdir()
    result = taut("encode", lines, "--model", tmp_path / "bad", "--output", output)
    refused(result, "cannot load model")
    assert output.read_bytes() == b"precious"
    assert os.listdir(tmp_path / "bad") == []


def test_wrong_use_exits_with_2(lines, tmp_path):
    assert taut("encode", lines).returncode == 2
    refused(
        encode(lines, tmp_path / "o.npy", "--dtype", "int3"), "value for '--dtype'", "fp32, bf16"
    )
    for tokens in (0, -1):
        refused(encode(lines, tmp_path / "o.npy", "--batch-tokens", tokens), "batch-tokens")
    assert taut("no-such-command").returncode == 2


def test_version():
    assert taut("--version").stdout.decode() == f"{version('taut')}\n"


def test_info_names_versions_and_libraries():
    result = taut("info")
    text = result.stdout.decode()
    assert result.returncode == 0
    for fact in ("torch", "libtaut_cpu", "loaded", "instruction sets", "in use", "libtaut_cuda"):
        assert fact in text, text
    refused(taut("info", "--tokens", 8), "--tokens needs a MODEL")


def test_demo_compares_and_searches():
    result = taut("demo", "--sample", 48, "--corpus", 400)
    text = result.stdout.decode()
    assert result.returncode == 0, result.stderr.decode()
    for row in (
        "transformers fp32, padded", "taut fp32", "taut bf16", "taut w8a8", "taut w4a8", "cosine",
        "nearest",
    ):  # fmt: skip
        assert row in text, text


def test_quantize_writes_a_model_that_encode_reads(lines, tmp_path):
    target = tmp_path / "small"
    options = ("--scheme", "w8a8", "--layer", "layers.0.*=w8a16", "--calibration", "random")
    result = taut("quantize", default_model(), "--output", target, *options)
    text = result.stdout.decode()
    assert result.returncode == 0, result.stderr.decode()
    for fragment in ("w8a8, 90.", "MB in fp32 -> 2", "mean 0.99", "worst 0.99"):
        assert fragment in text, text
    found = taut("encode", lines, "--model", target, "--output", tmp_path / "a.npy")
    assert found.returncode == 0, found.stderr.decode()
    assert encode(lines, tmp_path / "b.npy").returncode == 0
    rows = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
    assert ((rows[0] * rows[1]).sum(1) > 0.99).all()
    again = taut("quantize", default_model(), "--output", target, *options)
    refused(again, "exists and is not an empty directory")


@pytest.mark.parametrize(
    "options,fragment",
    (
        (("--scheme", "w5a8"), "scheme must be w{8,4,3,2}a{16,8,4}"),
        (("--layer", "layers.0.up"), "--layer must be PATTERN=SCHEME"),
        (("--layer", "up=w8a8"), "layers must name layers.<i>"),
        (("--calibration", "/no/such/file"), "/no/such/file"),
    ),
)
def test_quantize_refuses(tmp_path, options, fragment):
    target = tmp_path / "none"
    refused(taut("quantize", default_model(), "--output", target, *options), fragment)
    assert not target.exists()
