"""Code and CQT predictions from the encoder's frames, and their errors in fp32. E width of a code."""

from math import log, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.pretrain.model.layers import Linear, unused

COSINE_EPS = 1e-8  # torch.cosine_similarity's, which M uses
LOG_FLOOR = 1e-3  # added to magnitudes before the logarithm: 80 dB under a unit sine in the highest bin (D)
LARGEST_SCALE = 100.0  # of a learned temperature's inverse (M learnable_temp_max): logits within ±100


class CodeHead(nn.Module):
    """A projection, then cosine similarity with a learned table of each codebook: one matrix product, (S, C);
    the authors' form holds (C, S, E), about 0.9 GB (recipe D)."""

    def __init__(
        self, width: int, codebooks: int, codes: int, code_width: int, temperature: float, learn: bool
    ):
        super().__init__()
        self.projection = Linear(width, codebooks * code_width)
        self.table_KCE = nn.Parameter(torch.empty(codebooks, codes, code_width))
        self.temperature = temperature
        # ln(1 / temperature), as M keeps it
        self.log_scale_K = nn.Parameter(torch.full((codebooks,), -log(temperature))) if learn else None
        nn.init.uniform_(self.table_KCE)

    def forward(
        self, x_SD: Tensor, codes_SK: Tensor | None, wanted: tuple[int, ...]
    ) -> tuple[Tensor, Tensor] | list[Tensor]:
        """fp32 summed cross entropy and argmax hits, (K,) each, zero for codebooks not wanted. Without codes:
        fp32 logits (S, C) of each wanted one."""
        logits = self._logits(x_SD, wanted)
        if codes_SK is None:
            return logits
        zero = x_SD.new_zeros((), dtype=torch.float32)
        if not wanted:
            zero = unused(zero, self.parameters())
        loss_K, correct_K = [zero] * len(self.table_KCE), [zero.detach()] * len(self.table_KCE)
        for k, logits_SC in zip(wanted, logits, strict=True):
            loss_K[k] = F.cross_entropy(logits_SC, codes_SK[:, k], reduction="sum")
            correct_K[k] = (logits_SC.detach().argmax(1) == codes_SK[:, k]).sum().float()
        return torch.stack(loss_K), torch.stack(correct_K)

    def _logits(self, x_SD: Tensor, wanted: tuple[int, ...]) -> list[Tensor]:
        table_KCE = self.table_KCE
        query_SKE = self.projection(x_SD).float().unflatten(1, (-1, table_KCE.shape[2]))
        scale_K = [1 / self.temperature] * len(table_KCE)
        if self.log_scale_K is not None:
            scale_K = self.log_scale_K.float().exp().clamp_max(LARGEST_SCALE).unbind()
        if len(wanted) < len(table_KCE):
            table_KCE = table_KCE[list(wanted)]
        table_KCE = F.normalize(table_KCE.float(), dim=-1, eps=COSINE_EPS)
        queries = [F.normalize(query_SKE[:, k], dim=-1, eps=COSINE_EPS) * scale_K[k] for k in wanted]
        return [query_SE @ table_CE.T for query_SE, table_CE in zip(queries, table_KCE, strict=True)]


class CqtHead(nn.Module):
    """float (S, D) → fp32 (S, F), in fp32 throughout, as `target` has it."""

    def __init__(self, width: int, bins: int, target: str):
        super().__init__()
        self.log = target == "log"
        self.weight, self.bias = nn.Parameter(torch.empty(bins, width)), nn.Parameter(torch.empty(bins))
        for parameter in (self.weight, self.bias):  # torch's own for a linear
            nn.init.uniform_(parameter, -1 / sqrt(width), 1 / sqrt(width))

    def forward(self, x_SD: Tensor) -> Tensor:
        return F.linear(x_SD.float(), self.weight.float(), self.bias.float())

    @torch.no_grad()
    def start(self, weight_FD: Tensor | None, bias_F: Tensor | None) -> None:
        """Begin with these values; None leaves what is there."""
        for parameter, value in ((self.weight, weight_FD), (self.bias, bias_F)):
            if value is not None:
                parameter.copy_(value)

    def target(self, cqt_SF: Tensor) -> Tensor:
        """fp32 (S, F) as the loss compares it: the column's values, or ln(magnitude + 0.001)."""
        return (cqt_SF.float() + LOG_FLOOR).log() if self.log else cqt_SF.float()
