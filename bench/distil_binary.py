"""Distil a small BERT into a BiBERT and a BiT, on a text classification that every machine has.

The texts are the docstrings of Python's standard library, the classes the top-level packages with
the most of them. A float teacher is trained from random weights; each student starts from its
weights and learns from it by direction matching. The students' accuracy is that of their packed
form: bits in memory, bit kernels in inference.

    python bench/distil_binary.py [--quick] [--seed 0] [--threads 2] [--json FILE]

Sources: Qin et al., "BiBERT: Accurate Fully Binarized BERT", 2022, section 3.4 (direction-matching
distillation); Liu et al., "BiT: Robustly Binarized Multi-distilled Transformer", 2022.
"""

import argparse
import json
import math
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers
import torch
from torch.nn import functional
from tqdm import tqdm

import taut
from taut import binarize
from taut.demo import default_model, stdlib_docstrings
from taut.encoder import EncoderConfig, SequenceClassifier, TextTokenizer

MAX_TOKENS = 64
TEST_SHARE = 0.2
HARD_WEIGHT = 0.5  # of the cross entropy with the labels beside that with the teacher


@dataclass(frozen=True)
class Settings:
    """Sizes of task, model and training."""

    classes: int = 12
    batch: int = 32
    texts: int = 100_000  # at most
    hidden: int = 128
    layers: int = 3
    teacher_epochs: int = 6
    student_epochs: int = 12
    teacher_rate: float = 1e-3
    student_rate: float = 1e-3


QUICK = Settings(
    classes=3, batch=8, texts=400, hidden=64, layers=1, teacher_epochs=4, student_epochs=3,
    teacher_rate=5e-3, student_rate=5e-3,
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """Texts and their classes, by number."""

    names: list[str]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]


def make_task(settings: Settings, seed: int) -> Task:
    """The docstrings of the packages that have the most, split at random."""
    labelled = [(text, name.split(".")[0]) for name, text in stdlib_docstrings()]
    names = [name for name, _ in Counter(label for _, label in labelled).most_common()]
    names = names[: settings.classes]
    pairs = [(text, names.index(label)) for text, label in labelled if label in names]
    random.Random(seed).shuffle(pairs)
    pairs = pairs[: settings.texts]
    held_out = int(TEST_SHARE * len(pairs))
    return Task(names, pairs[held_out:], pairs[:held_out])


def make_teacher(settings: Settings, task: Task) -> SequenceClassifier:
    """A float BERT with random weights and a real vocabulary."""
    words = tokenizers.Tokenizer.from_file(str(Path(default_model()) / "tokenizer.json"))
    config = EncoderConfig.from_dict(
        {
            "model_type": "bert",
            "vocab_size": words.get_vocab_size(),
            "hidden_size": settings.hidden,
            "num_hidden_layers": settings.layers,
            "num_attention_heads": settings.hidden // 64,
            "intermediate_size": 4 * settings.hidden,
            "max_position_embeddings": MAX_TOKENS,
            "type_vocab_size": 2,
            "num_labels": len(task.names),
        }
    )
    return SequenceClassifier(config, TextTokenizer(words, MAX_TOKENS))


class Recorder:
    """What distillation compares, kept from a model's last forward pass.

    `projections` has q, k and v of every layer, (total_tokens, heads, head_dim) each and
    real-valued; `hidden` the states behind the embeddings and every layer.
    """

    def __init__(self, model: SequenceClassifier) -> None:
        self.projections: list[torch.Tensor] = []
        self.hidden: list[torch.Tensor] = []
        config = model.config
        self._head_shape = config.num_heads, config.hidden_size // config.num_heads
        backbone = model.backbone
        self._handles = [
            model.register_forward_pre_hook(self._forget),
            backbone.embeddings.register_forward_hook(self._keep_hidden),
        ]
        for layer in backbone.layers:
            parts = (layer.qkv,) if hasattr(layer, "qkv") else (layer.query, layer.key, layer.value)
            for part in parts:
                self._handles.append(part.register_forward_hook(self._keep_projection))
            self._handles.append(layer.register_forward_hook(self._keep_hidden))

    def remove(self) -> None:
        """Stop recording."""
        for handle in self._handles:
            handle.remove()

    def _forget(self, *_) -> None:
        self.projections, self.hidden = [], []

    def _keep_hidden(self, _module, _inputs, output: torch.Tensor) -> None:
        self.hidden.append(output)

    def _keep_projection(self, _module, _inputs, output: torch.Tensor) -> None:
        self.projections.extend(output.unflatten(1, (-1, *self._head_shape)).unbind(1))


def _padded(x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """(total_tokens, ...) -> (batch, longest, ...), zeros behind each sequence."""
    lengths = cu_seqlens.diff()
    batch, longest = len(lengths), int(lengths.max())
    indices = taut.pack_lengths(lengths, longest).indices
    rows = taut.scatter_rows(x.flatten(1), indices, batch * longest)
    return rows.view(batch, longest, *x.shape[1:])


def _direction(x: torch.Tensor) -> torch.Tensor:
    """Each matrix over its Frobenius norm."""
    return x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)


def _mismatch(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return (_direction(student) - _direction(teacher)).norm(dim=(-2, -1)).mean()


def _similarities(x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """X X^T over the channels of every head: (batch, heads, longest, longest)."""
    heads = _padded(x, cu_seqlens).transpose(1, 2)
    return heads @ heads.transpose(2, 3) / x.shape[2] ** 0.5


def direction_matching(student: Recorder, teacher: Recorder, cu_seqlens: torch.Tensor):
    """The distances between the directions of Q Q^T, K K^T, V V^T and the hidden states."""
    loss = torch.zeros(())
    for ours, theirs in zip(student.projections, teacher.projections, strict=True):
        loss = loss + _mismatch(*(_similarities(x, cu_seqlens) for x in (ours, theirs)))
    for ours, theirs in zip(student.hidden, teacher.hidden, strict=True):
        loss = loss + _mismatch(*(_padded(x, cu_seqlens) for x in (ours, theirs)))
    return loss


def _rows_of(model: SequenceClassifier, texts: Sequence[str]) -> list[torch.Tensor]:
    """Token ids of each text."""
    rows: list[torch.Tensor] = []
    for flat in model.tokenizer.flats(list(texts)):
        rows.extend(torch.from_numpy(flat.ids).split(flat.lengths.tolist()))
    return rows


def _packed(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and cu_seqlens."""
    return torch.cat(tuple(rows)), torch.tensor([0, *map(len, rows)]).cumsum(0).int()


def train(
    model: SequenceClassifier,
    task: Task,
    epochs: int,
    rate: float,
    batch: int,
    order: torch.Generator,
    teacher: SequenceClassifier | None = None,
) -> list[float]:
    """Train a teacher on labels, or a student on labels and its teacher.

    Returns:
        The mean loss of every epoch.
    """
    rows = _rows_of(model, [text for text, _ in task.train])
    labels = torch.tensor([label for _, label in task.train])
    steps = epochs * math.ceil(len(rows) / batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    recorders = [Recorder(each) for each in (model, teacher)] if teacher else []
    model.train()
    means = []
    with tqdm(total=steps, disable=None, leave=False) as progress:
        for _ in range(epochs):
            losses = []
            for chosen in torch.randperm(len(rows), generator=order).split(batch):
                input_ids, cu_seqlens = _packed([rows[i] for i in chosen])
                logits = model(input_ids, cu_seqlens)
                loss = functional.cross_entropy(logits, labels[chosen])
                if teacher:
                    with torch.no_grad():
                        wanted = teacher(input_ids, cu_seqlens).softmax(1)
                    loss = HARD_WEIGHT * loss + functional.cross_entropy(logits, wanted)
                    loss = loss + direction_matching(*recorders, cu_seqlens)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                progress.update()
            means.append(sum(losses) / len(losses))
    for recorder in recorders:
        recorder.remove()
    model.eval()
    return means


def accuracy(model: SequenceClassifier, task: Task) -> float:
    """Share of the test texts whose class has the largest logit."""
    texts, labels = zip(*task.test, strict=True)
    return (model.predict(texts).argmax(1) == torch.tensor(labels)).float().mean().item()


def size_mb(model: SequenceClassifier) -> float:
    """Of the saved weights, in 10^6 bytes."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return sum(f.stat().st_size for f in Path(directory).glob("*.safetensors")) / 1e6


def distil(settings: Settings, seed: int, students: Sequence[str] = binarize.KINDS) -> dict:
    """Teach, distil, convert, and test.

    Returns:
        The sizes of the task, and for every model its accuracy, size and the losses of its epochs.
    """
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    task = make_task(settings, seed)
    teacher = make_teacher(settings, task)
    losses = train(
        teacher, task, settings.teacher_epochs, settings.teacher_rate, settings.batch, order
    )
    most = Counter(label for _, label in task.test).most_common(1)[0][1]
    rows = {
        "largest class": {"accuracy": most / len(task.test)},
        "teacher, fp32": {
            "accuracy": accuracy(teacher, task), "losses": losses, "size_mb": size_mb(teacher)
        },
    }  # fmt: skip
    for kind in students:
        student = binarize.prepare(teacher, kind)
        sample = _rows_of(student, [text for text, _ in task.train[: settings.batch]])
        binarize.initialize_scales(student, *_packed(sample))
        losses = train(
            student,
            task,
            settings.student_epochs,
            settings.student_rate,
            settings.batch,
            order,
            teacher,
        )
        packed = binarize.convert(student)
        rows[f"{kind}, packed"] = {
            "accuracy": accuracy(packed, task), "losses": losses, "size_mb": size_mb(packed),
            "accuracy_before_packing": accuracy(student, task),
        }  # fmt: skip
    return {
        "seed": seed, "settings": asdict(settings), "classes": task.names,
        "train_texts": len(task.train), "test_texts": len(task.test), "models": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small task and a small model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = distil(QUICK if arguments.quick else Settings(), arguments.seed)
    print(
        f"{result['train_texts']} docstrings to learn from, {result['test_texts']} to be tested on, "
        f"{len(result['classes'])} packages: {', '.join(result['classes'])}"
    )
    print(f"{'model':<16}{'accuracy':>9}{'MB':>8}")
    for name, row in result["models"].items():
        size = f"{row['size_mb']:8.2f}" if "size_mb" in row else ""
        print(f"{name:<16}{row['accuracy']:9.3f}{size}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
