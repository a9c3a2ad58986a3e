"""Encoders to compare with: transformers, and what a skilled user writes in plain torch."""

import torch
import torch.nn.functional as F

BATCH = 32


class PaddedTransformers:
    """transformers' own model with sdpa attention on batches padded to their longest text."""

    def __init__(self, model: torch.nn.Module, compiled: bool) -> None:
        self.model = torch.compile(model, dynamic=True) if compiled else model
        self.compiled = compiled

    @torch.inference_mode()
    def __call__(self, ids: list[list[int]]) -> torch.Tensor:
        rows = []
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            longest = max(map(len, batch))
            padded = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
            lengths = torch.tensor([len(row) for row in batch])
            mask = (torch.arange(longest) < lengths[:, None]).long()
            hidden = self.model(input_ids=padded, attention_mask=mask).last_hidden_state.float()
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            rows.append(F.normalize(mean, dim=1))
        return torch.cat(rows)


class UnpaddedTorch:
    """BERT without padding in plain torch: linears over all tokens, sdpa per sequence."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.config = model.config
        self.embeddings = model.embeddings
        self.layers = []
        for layer in model.encoder.layer:
            attention, output = layer.attention.self, layer.attention.output
            parts = (attention.query, attention.key, attention.value)
            self.layers.append(
                (
                    torch.cat([p.weight for p in parts]),
                    torch.cat([p.bias for p in parts]),
                    output.dense,
                    output.LayerNorm,
                    layer.intermediate.dense,
                    layer.output.dense,
                    layer.output.LayerNorm,
                )
            )

    @torch.inference_mode()
    def __call__(self, ids: list[list[int]]) -> torch.Tensor:
        return torch.cat([self._batch(ids[i : i + BATCH]) for i in range(0, len(ids), BATCH)])

    def _batch(self, ids: list[list[int]]) -> torch.Tensor:
        lengths = [len(row) for row in ids]
        flat = torch.tensor([i for row in ids for i in row])
        positions = torch.cat([torch.arange(n) for n in lengths])
        e = self.embeddings
        x = e.word_embeddings(flat) + e.position_embeddings(positions)
        x = e.LayerNorm(x + e.token_type_embeddings.weight[0])
        heads = self.config.num_attention_heads
        for qkv_weight, qkv_bias, out, out_norm, up, down, down_norm in self.layers:
            qkv = F.linear(x, qkv_weight, qkv_bias).view(len(flat), 3, heads, -1)
            context = []
            for q, k, v in (part.unbind(1) for part in qkv.split(lengths)):
                q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
                context.append(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1))
            x = out_norm(out(torch.cat(context).flatten(1)) + x)
            x = down_norm(down(F.gelu(up(x))) + x)
        pooled = torch.stack([part.float().mean(0) for part in x.split(lengths)])
        return F.normalize(pooled, dim=1)
