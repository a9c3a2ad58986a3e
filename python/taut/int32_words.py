"""Codes in int32 words, as the files of others hold them."""

import torch

from taut.formats import pack_codes, unpack_codes


def words_to_codes(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 (rows, words) -> uint8 (rows, words * (32 // bits)), low bits first."""
    shifts = torch.arange(32 // bits) * bits
    return ((words.long()[:, :, None] >> shifts) & (2**bits - 1)).flatten(1).to(torch.uint8)


def codes_to_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    per_word = 32 // bits
    padded = torch.nn.functional.pad(codes.long(), (0, -codes.shape[1] % per_word))
    shifts = torch.arange(per_word) * bits
    words = (padded.unflatten(1, (-1, per_word)) << shifts).sum(2)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def string_to_codes(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """int32 (rows, words), each row one string of bits -> uint8 (rows, count)."""
    return unpack_codes(words.contiguous().view(torch.uint8), bits, count)


def codes_to_string(codes: torch.Tensor, bits: int) -> torch.Tensor:
    return pack_codes(codes, bits).view(torch.int32)
