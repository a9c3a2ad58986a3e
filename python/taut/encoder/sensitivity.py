"""Which layers need more bits: Q-BERT's mixed precision, without labels.

With the distance between the hidden states of the rounded and the exact encoder as the loss, the
Hessian of a weight at the exact one is J^T J, J being the derivative of the hidden states. Its trace
is the mean of |J^T v|^2 over random signs v (Hutchinson), one backward pass each. What rounding a
weight to b bits costs is then about trace / count * |W_b - W|^2.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from taut.encoder.quantize import calibration_batch
from taut.encoder.quantized import LINEARS
from taut.schemes import parse_scheme, quantize_weight

if TYPE_CHECKING:
    from taut.encoder.pretrained import Pretrained

_SEQUENCES = 16  # of the calibration batch: every probe differentiates all of them
_PROBES = 8


def _named_linears(model: "Pretrained") -> dict[str, torch.nn.Module]:
    return {
        f"layers.{i}.{name}": getattr(layer, name)
        for i, layer in enumerate(model.backbone.layers)
        for name in LINEARS
    }


def hessian_traces(
    model: "Pretrained", *, calibration: Sequence[str] | None = None, seed: int = 0, probes=_PROBES
) -> dict[str, float]:
    """The mean diagonal entry of each linear layer's Hessian, estimated by Hutchinson's method.

    Args:
        model: a float encoder.
        calibration: texts to differentiate on, 16 of them; None: random token ids.
        seed: of the random ids and signs; the same seed gives the same traces.
        probes: random sign vectors.

    Returns:
        By name, such as "layers.0.qkv".

    Source: Shen et al., "Q-BERT", 2020, section 3.1; Dong et al., "HAWQ-V2", 2020.
    """
    batch = calibration_batch("hessian_traces", model, calibration, seed)
    cu_seqlens = batch.cu_seqlens[: _SEQUENCES + 1]
    ids = batch.input_ids[: int(cu_seqlens[-1])]
    linears = _named_linears(model)
    weights = [linear.weight for linear in linears.values()]
    totals = [0.0] * len(weights)
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    with torch.inference_mode(False), torch.enable_grad():
        hidden = model.backbone(ids, cu_seqlens)
        for probe in range(probes):
            signs = torch.randint(0, 2, hidden.shape, generator=generator).to(hidden.dtype) * 2 - 1
            keep = probe + 1 < probes
            grads = torch.autograd.grad(hidden, weights, signs, retain_graph=keep)
            for i, grad in enumerate(grads):
                totals[i] += float(grad.float().square().mean()) / probes
    return dict(zip(linears, totals, strict=True))


def choose_schemes(
    model: "Pretrained",
    average_bits: float,
    schemes: Sequence[str] = ("w2a8", "w4a8", "w8a8"),
    *,
    calibration: Sequence[str] | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> dict[str, str]:
    """A scheme for every linear layer, so that weights have so many bits in the mean.

    Every layer starts with the fewest bits; the layer whose next step up saves the most estimated
    loss per added bit takes it, until nothing fits.

    Args:
        model: a float encoder.
        average_bits: bits per weight, at most.
        schemes: to choose from, of ascending bits.
        calibration, seed: as in `hessian_traces`.
        show_progress: show a progress bar.

    Returns:
        By name; what `quantize` takes as `layers`.

    Raises:
        ValueError: the fewest bits are more than average_bits.
    """
    linears = _named_linears(model)
    parsed = [parse_scheme(name) for name in schemes]
    bits = [scheme.bits for scheme in parsed]
    if bits != sorted(set(bits)) or bits[0] > average_bits:
        raise ValueError(
            f"choose_schemes: schemes must have ascending bits, from at most {average_bits}, "
            f"got {', '.join(schemes)}"
        )
    traces = hessian_traces(model, calibration=calibration, seed=seed)
    losses = {}
    progress = tqdm(linears.items(), desc="sensitivity", disable=not show_progress)
    for name, linear in progress:
        weight = linear.weight.detach().float()
        losses[name] = [
            traces[name]
            * float(
                (quantize_weight(weight, scheme, search="mse").dequantize() - weight).square().sum()
            )
            for scheme in parsed
        ]
    level = dict.fromkeys(linears, 0)
    sizes = {name: linear.weight.numel() for name, linear in linears.items()}
    budget = average_bits * sum(sizes.values()) - bits[0] * sum(sizes.values())
    while True:
        steps = []
        for name, at in level.items():
            if at + 1 < len(bits):
                cost = (bits[at + 1] - bits[at]) * sizes[name]
                gain = losses[name][at] - losses[name][at + 1]
                if cost <= budget:
                    steps.append((gain / cost, name, cost))
        if not steps:
            return {name: schemes[at] for name, at in level.items()}
        _, name, cost = max(steps)
        level[name] += 1
        budget -= cost
