"""EnCodec's 24 kHz encoder and quantiser (arXiv 2210.13438), piece by piece over one recording.

Gives the `encodec` package's codes of the whole recording: every layer is causal and carries the tail of its
input, or its state.

L positions (samples, or fewer after strides), C channels, T frames at 75 Hz, K codebooks, G chunks of frames.
Tensors are position-major (L, C): a convolution is one matrix product per tap on plain views."""

from itertools import compress

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.signal.rates import HOP_SAMPLES

LEVELS = ((32, 2), (64, 4), (128, 5), (256, 8))  # channels in, stride; package: ratios [8, 5, 4, 2] reversed
WIDTH = 512  # channels of the LSTM, after four doublings
PIECE_FRAMES = 75  # 1 s: the widest activations (3 MB) stay in the cache; 0.5 to 2 s are as fast (measured)
CHUNK_FRAMES = 256  # of an LSTM chunk, see `Lstm`
MERGE_EVERY = 16  # frames between two comparisons of chunks
MERGE_WITHIN = 2e-6  # of 1 + |state|: the noise of float32 rounding
QUANTISED_FRAMES = 512  # at a time: 2 MB of distances


class EncodecConvolution:
    """Causal strided convolution, weight (out, in, taps), reflecting at the recording's two ends.

    Padding is that of the package's `SConv1d`: taps − stride on the left, up to a stride on the right."""

    def __init__(self, weight: Tensor, bias: Tensor, stride: int = 1):
        out_channels, in_channels, taps = weight.shape
        self.channels, self.stride, self.left, self.bias = in_channels, stride, taps - stride, bias
        # `stride` taps at a time: so many neighbours are one row of a plain view.
        rows = weight.permute(2, 1, 0).reshape(taps // stride, stride * in_channels, out_channels)
        self.products = [row.contiguous() for row in rows]
        self.tail: Tensor | None = None  # (left, C) before this piece; None at the recording's start

    def restart(self) -> None:
        self.tail = None

    def buffer(self, length: int) -> tuple[Tensor, Tensor]:
        """A padded input (left + length + right, C) to fill, and this piece's part (length, C)."""
        right = -length % self.stride
        whole = self.bias.new_empty(self.left + length + right, self.channels)
        return whole, whole[self.left : self.left + length]

    def pad(self, whole: Tensor, length: int) -> None:
        """Fill both sides of a buffer; there is right padding only at the recording's end."""
        left, end = self.left, self.left + length
        right, short = len(whole) - end, self.tail is None and length <= left
        if self.tail is not None:
            whole[:left] = self.tail
        elif left:
            mirrored = min(left, length - 1)  # the package reflects a short input as if followed by zeros
            whole[: left - mirrored] = 0
            whole[left - mirrored : left] = whole[left + 1 : left + 1 + mirrored].flip(0)
        if right:
            whole[end:] = 0 if short else whole[end - 1 - right : end - 1].flip(0)
        self.tail = whole[end - left : end].clone() if left else None

    def run(self, whole: Tensor, length: int, out: Tensor | None = None) -> Tensor:
        """Convolve a filled buffer: (ceil(length / stride), out channels), into `out` if given."""
        self.pad(whole, length)
        grouped = whole.view(len(whole) // self.stride, -1)
        steps = len(grouped) - len(self.products) + 1
        out = torch.addmm(self.bias, grouped[:steps], self.products[0], out=out)
        for tap, product in enumerate(self.products[1:], 1):
            out.addmm_(grouped[tap : tap + steps], product)
        return out


class Level:
    """A residual block and the strided convolution after it, ELU before each convolution."""

    def __init__(self, weights: dict[str, Tensor], name: str, stride: int):
        def layer(part: str) -> tuple[Tensor, Tensor]:
            return weights[f"{name}.{part}.weight"], weights[f"{name}.{part}.bias"]

        self.inner = EncodecConvolution(*layer("inner"))
        self.down = EncodecConvolution(*layer("down"), stride)
        (outer, outer_bias), (shortcut, shortcut_bias) = layer("outer"), layer("shortcut")
        self.outer, self.shortcut = (w[:, :, 0].t().contiguous() for w in (outer, shortcut))
        self.bias = outer_bias + shortcut_bias

    def run(self, x_LC: Tensor) -> Tensor:
        """(L, C) → (ceil(L / stride), 2 C)."""
        length = len(x_LC)
        whole, here = self.inner.buffer(length)
        torch.ops.aten.elu.out(x_LC, out=here)
        hidden = F.elu_(self.inner.run(whole, length))
        whole, here = self.down.buffer(length)
        F.elu_(torch.addmm(self.bias, x_LC, self.shortcut, out=here).addmm_(hidden, self.outer))
        return self.down.run(whole, length)


class Lstm:
    """One LSTM layer over the frames of a block, in chunks side by side.

    A step costs the reading of 4 MB of recurrent weights, whatever its batch: so all chunks of a block step
    together, all but the first from a guess (zero). Then each is run again from its predecessor's end until
    its state equals the one stored at the same frame; a chunk that ends without that makes its successor run
    again. So the result is that of one uninterrupted pass with any weights; with weights that never forget,
    at the cost of that pass."""

    def __init__(self, weights: dict[str, Tensor], layer: int):
        def gates_in_order(name: str) -> Tensor:
            i, f, g, o = weights[f"lstm.{name}_l{layer}"].chunk(4)  # torch.nn.LSTM's order
            return torch.cat([i, f, o, g])  # the three sigmoids together

        self.inputs = gates_in_order("weight_ih").t().contiguous()
        self.recurrent = gates_in_order("weight_hh").t().contiguous()
        self.bias = gates_in_order("bias_ih") + gates_in_order("bias_hh")
        self.restart()

    def restart(self) -> None:
        self.state = self.bias.new_zeros(2, WIDTH)  # h, c

    def run(self, x_TC: Tensor) -> Tensor:
        frames, steps = len(x_TC), min(len(x_TC), CHUNK_FRAMES)
        chunks = -(-frames // CHUNK_FRAMES)
        x_SGC = F.pad(x_TC, (0, 0, 0, chunks * steps - frames)).view(chunks, steps, WIDTH).transpose(0, 1)
        gates_SGC = torch.addmm(self.bias, x_SGC.reshape(-1, WIDTH), self.inputs).view(steps, chunks, -1)
        states = x_TC.new_empty(2, steps, chunks, WIDTH)  # h, c
        start = x_TC.new_zeros(2, chunks, WIDTH)
        start[:, 0] = self.state
        self._steps(gates_SGC, start, states)
        again = list(range(1, chunks))
        while again:
            apart = self._rerun(gates_SGC, states, again)
            again = [chunk + 1 for chunk in apart if chunk + 1 < chunks]
        h_TC, c_TC = states.transpose(1, 2).reshape(2, -1, WIDTH)[:, :frames]
        self.state = torch.stack([h_TC[-1], c_TC[-1]])
        return h_TC

    def _rerun(self, gates_SGC: Tensor, states: Tensor, chunks: list[int]) -> list[int]:
        """Run `chunks` again until all equal what is stored; returns those that never do."""
        apart = torch.ones(len(chunks), dtype=torch.bool, device=states.device)
        start = states[:, -1, [chunk - 1 for chunk in chunks]]
        for first in range(0, len(gates_SGC), MERGE_EVERY):
            span = slice(first, first + MERGE_EVERY)
            stored = states[:, span, chunks]
            new = torch.empty_like(stored)
            self._steps(gates_SGC[span, chunks], start, new)
            start, was = new[:, -1], stored[:, -1]
            apart &= ((start - was).abs() > MERGE_WITHIN * (1 + was.abs())).any(-1).any(0)
            states[:, span, chunks] = new
            if not apart.any():
                break
        return list(compress(chunks, apart.tolist()))

    def _steps(self, gates_SGC: Tensor, start: Tensor, states: Tensor) -> None:
        """Step through gates (S, G, 4 WIDTH) from `start` (2, G, WIDTH) into `states` (2, S, G, WIDTH)."""
        h, c = start
        squashed = torch.empty_like(h)
        for gates, h_out, c_out in zip(gates_SGC, *states, strict=True):
            gates = torch.addmm(gates, h, self.recurrent)
            i, f, o = gates[:, : 3 * WIDTH].sigmoid_().chunk(3, 1)
            g = gates[:, 3 * WIDTH :].tanh_()
            c = torch.mul(f, c, out=c_out).addcmul_(i, g)
            h = torch.mul(o, torch.tanh(c, out=squashed), out=h_out)


class EncodecEncoder:
    """For one recording's blocks in order."""

    def __init__(self, weights: dict[str, Tensor], codebooks: int, dtype: torch.dtype = torch.float32):
        """weights: as `encodec_weights.tensors` names them, float32. dtype: of the convolutions that reduce
        the rate, most of the work."""
        down = {name: w.to(dtype) for name, w in weights.items() if name.startswith(("first", "level"))}
        self.first = EncodecConvolution(down["first.weight"], down["first.bias"])
        self.levels = [Level(down, f"level{n}", stride) for n, (_, stride) in enumerate(LEVELS)]
        self.lstm = [Lstm(weights, layer) for layer in range(2)]
        self.last = EncodecConvolution(weights["last.weight"], weights["last.bias"])
        books = [weights[f"codebook{k}"] for k in range(codebooks)]
        self.codebooks = [(book, (-2 * book).t().contiguous(), book.pow(2).sum(1)) for book in books]

    def restart(self) -> None:
        """The next block starts another recording."""
        down = [part for level in self.levels for part in (level.inner, level.down)]
        for part in [self.first, self.last, *down, *self.lstm]:
            part.restart()

    def encode(self, wave_N: np.ndarray) -> np.ndarray:
        """float32 (N,) → uint16 (ceil(N / 320), K). N is divisible by 320 but in a recording's last block."""
        wave = torch.tensor(wave_N, dtype=self.first.bias.dtype, device=self.first.bias.device)
        piece = PIECE_FRAMES * HOP_SAMPLES if wave.device.type == "cpu" else len(wave)  # a GPU: large kernels
        with torch.inference_mode():
            x_TC = torch.cat([self._convolve(part) for part in wave.split(piece)]).float()
            y_TC = self.lstm[1].run(self.lstm[0].run(x_TC))
            whole, here = self.last.buffer(len(x_TC))
            F.elu_(torch.add(x_TC, y_TC, out=here))
            rest_TD = self.last.run(whole, len(x_TC))
            codes_TK = torch.cat([self._nearest(part) for part in rest_TD.split(QUANTISED_FRAMES)])
        return codes_TK.to("cpu").numpy().astype(np.uint16)

    def _nearest(self, rest_TD: Tensor) -> Tensor:
        """(T, dimension) → int64 (T, K): residual search by Euclidean distance."""
        codes = []
        for book, minus_twice, squares in self.codebooks:
            # |x|² is the same for every code, so the nearest is the least |e|² − 2 x·e.
            codes.append(torch.addmm(squares, rest_TD, minus_twice).argmin(1))
            rest_TD = rest_TD - book[codes[-1]]
        return torch.stack(codes, 1)

    def _convolve(self, wave_L: Tensor) -> Tensor:
        whole, here = self.first.buffer(len(wave_L))
        here[:, 0] = wave_L
        x_LC = self.first.run(whole, len(wave_L))
        for level in self.levels:
            x_LC = level.run(x_LC)
        return x_LC
