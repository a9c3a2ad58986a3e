"""Whole encoders on a GPU against themselves on the CPU: every op behind them as models call it, their
gradients, and torch.compile, autocast and graphs around them."""

import copy

import pytest
import torch

from helpers import cu_seqlens_of
from taut.encoder import EncoderConfig, SequenceClassifier

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICE = "cuda"
LENGTHS = (5, 1, 300, 64, 17)
CONFIGS = {
    "bert": {"hidden_act": "gelu"},
    "mosaic": {"alibi_starting_size": 8},
    "mpnet": {"model_type": "mpnet", "relative_attention_num_buckets": 32},
}


def classifier(name):
    """Two heads of 64."""
    raw = {
        "model_type": "bert", "vocab_size": 90, "hidden_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 192, "max_position_embeddings": 320,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 1,
        "type_vocab_size": 2,
    }  # fmt: skip
    return SequenceClassifier(EncoderConfig.from_dict({**raw, **CONFIGS[name]})).eval()


def batch(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 90, (sum(LENGTHS),), generator=generator)
    return ids.to(device), cu_seqlens_of(LENGTHS).to(device)


def assert_near(got, want, dtype):
    """fp32 differs by the order of sums, 16-bit types by rounding in every layer."""
    got, want = got.detach().cpu().double().flatten(), want.detach().double().flatten()
    error, allowed = (got - want).norm() / want.norm(), 1e-4 if dtype == torch.float32 else 0.05
    assert error <= allowed, f"{error:.2e} > {allowed}"


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states(name, dtype):
    model = classifier(name)
    with torch.no_grad():
        want = model.backbone(*batch())
        got = model.to(DEVICE, dtype).backbone(*batch(DEVICE))
    assert got.dtype == dtype
    assert_near(got, want, dtype)


def gradients(model, device, autocast=False):
    labels = torch.arange(len(LENGTHS), device=device) % 2
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        logits = model.train()(*batch(device))
    torch.nn.functional.cross_entropy(logits.float(), labels).backward()
    return torch.cat([p.grad.float().flatten().cpu() for p in model.parameters()])


@pytest.mark.parametrize("how", ("fp32", "bf16", "autocast"))
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients(name, how):
    model = classifier(name)
    other = copy.deepcopy(model).to(DEVICE, torch.bfloat16 if how == "bf16" else torch.float32)
    got, want = gradients(other, DEVICE, how == "autocast"), gradients(model, "cpu")
    assert got.isfinite().all()
    assert torch.cosine_similarity(got, want, dim=0) > (0.9999 if how == "fp32" else 0.9)


@pytest.mark.parametrize("scheme", ("w8a8", "w4a8-g32", "w4a16-g64", "ternary"))
def test_quantized(scheme):
    model = classifier("bert").quantize(scheme, show_progress=False)
    other = copy.deepcopy(model).to(DEVICE)
    with torch.no_grad():
        assert_near(other.backbone(*batch(DEVICE)), model.backbone(*batch()), torch.bfloat16)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_compiled(dtype):
    model = classifier("mosaic").to(DEVICE, dtype)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert_near(compiled(*batch(DEVICE)), model(*batch(DEVICE)).cpu(), dtype)


def test_cuda_graph():
    model = classifier("bert").to(DEVICE, torch.bfloat16)
    ids, cu_seqlens = batch(DEVICE)
    with torch.no_grad():
        for _ in range(2):
            model.backbone(ids, cu_seqlens)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model.backbone(ids, cu_seqlens)
        ids.copy_(ids.flip(0))
        graph.replay()
        assert torch.equal(out, model.backbone(ids, cu_seqlens))
