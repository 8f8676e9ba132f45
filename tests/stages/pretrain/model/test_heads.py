"""Letters: S masked frames, D width, K codebooks, C codes, E width of a code, F CQT bins."""

import math

import pytest
import torch

from stages.pretrain.model.heads import CodeHead, CqtHead

pytestmark = pytest.mark.usefixtures("one_thread")
S, D, K, C, E, F = 6, 10, 3, 7, 4, 5
EVERY = tuple(range(K))


def head(learn: bool = False, temperature: float = 0.1) -> CodeHead:
    torch.manual_seed(1)
    return CodeHead(D, K, C, E, temperature, learn)


def frames(seed: int = 2) -> torch.Tensor:
    return torch.randn(S, D, generator=torch.Generator().manual_seed(seed))


def cosines(made: CodeHead, x_SD: torch.Tensor) -> torch.Tensor:
    """(K, S, C), one similarity at a time."""
    weight, bias = made.projection.weight, made.projection.bias
    found = torch.empty(K, S, C)
    for s in range(S):
        query_KE = (weight @ x_SD[s] + bias).reshape(K, E)
        for k in range(K):
            for c in range(C):
                one, two = query_KE[k], made.table_KCE[k, c]
                found[k, s, c] = one @ two / (one.norm() * two.norm())
    return found.detach()


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("wanted", [EVERY, (1,), (0, 2), (2,)])
def test_logits_are_cosines_over_the_temperature(learn, wanted):
    made, x_SD = head(learn, 0.25), frames()
    logits = made(x_SD, None, wanted)
    assert len(logits) == len(wanted) and all(v.dtype == torch.float32 for v in logits)
    for k, logits_SC in zip(wanted, logits, strict=True):
        torch.testing.assert_close(logits_SC, cosines(made, x_SD)[k] / 0.25, rtol=1e-5, atol=1e-5)


def test_a_learned_temperature_belongs_to_each_codebook():
    made, x_SD = head(True), frames()
    assert made.log_scale_K.shape == (K,) and head().log_scale_K is None
    torch.testing.assert_close(made.log_scale_K.detach(), torch.full((K,), math.log(1 / 0.1)))
    with torch.no_grad():
        made.log_scale_K.copy_(torch.tensor([0.0, 1.0, 3.0]))
    for wanted in (EVERY, (2, 1)):
        for k, logits_SC in zip(wanted, made(x_SD, None, wanted), strict=True):
            torch.testing.assert_close(
                logits_SC, cosines(made, x_SD)[k] * math.exp((0.0, 1.0, 3.0)[k]), rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("log_scale", [math.log(100) + 1e-3, 5.0, 20.0, 80.0])
def test_a_learned_temperature_cannot_take_logits_beyond_a_hundred(log_scale):
    made, x_SD = head(True), frames()
    with torch.no_grad():
        made.log_scale_K.fill_(log_scale)
    for k, logits_SC in zip(EVERY, made(x_SD, None, EVERY), strict=True):
        assert logits_SC.abs().max() <= 100.001
        torch.testing.assert_close(logits_SC, cosines(made, x_SD)[k] * 100, rtol=1e-5, atol=1e-4)
    made(x_SD, torch.zeros(S, K, dtype=torch.long), EVERY)[0].sum().backward()
    assert all(p.grad.isfinite().all() for p in made.parameters()) and not made.log_scale_K.grad.any()


def test_below_the_bound_a_learned_temperature_is_what_was_learned():
    made, x_SD = head(True), frames()
    with torch.no_grad():
        made.log_scale_K.fill_(math.log(99.0))
    torch.testing.assert_close(made(x_SD, None, (0,))[0], cosines(made, x_SD)[0] * 99, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("wanted", [EVERY, (1,), (0, 2), ()])
def test_errors_and_hits_of_the_codebooks_wanted_and_zero_of_the_others(wanted):
    made, x_SD = head(), frames()
    logits_KSC = cosines(made, x_SD) * 10
    codes_SK = torch.randint(C, (S, K), generator=torch.Generator().manual_seed(4))
    codes_SK[0] = logits_KSC[:, 0].argmax(1)  # some are right
    loss_K, correct_K = made(x_SD, codes_SK, wanted)
    assert (
        loss_K.shape == correct_K.shape == (K,)
        and loss_K.dtype == correct_K.dtype == torch.float32
        and not correct_K.requires_grad
    )
    for k in range(K):
        error = sum(
            math.log(sum(math.exp(v) for v in row.tolist())) - row[code].item()
            for row, code in zip(logits_KSC[k], codes_SK[:, k], strict=True)
        )
        hits = sum(
            max(range(C), key=row.tolist().__getitem__) == code
            for row, code in zip(logits_KSC[k], codes_SK[:, k].tolist(), strict=True)
        )
        assert loss_K[k].item() == pytest.approx(error if k in wanted else 0, rel=1e-4) and correct_K[k] == (
            hits if k in wanted else 0
        )
    loss_K.sum().backward()
    assert all(p.grad is not None for p in made.parameters()), (
        "ranks exchange every gradient, those of zero too"
    )


def test_tables_begin_uniform_between_zero_and_one():
    torch.manual_seed(0)
    table_KCE = CodeHead(8, 8, 1024, 16, 0.1, False).table_KCE.detach()
    assert table_KCE.shape == (8, 1024, 16) and table_KCE.min() >= 0 and table_KCE.max() <= 1
    assert abs(table_KCE.mean() - 0.5) < 0.01 and abs(table_KCE.var() - 1 / 12) < 0.002


def test_a_cqt_head_is_a_linear_in_fp32_that_begins_as_torchs():
    torch.manual_seed(0)
    made, x_SD = CqtHead(64, 336, "linear"), torch.randn(S, 64)
    for parameter in made.parameters():
        assert 0.9 / 8 < parameter.abs().max() <= 1 / 8 and abs(parameter.mean()) < 0.02
    expected = x_SD @ made.weight.T + made.bias
    torch.testing.assert_close(made(x_SD), expected)
    assert made.to(torch.bfloat16)(x_SD.to(torch.bfloat16)).dtype == torch.float32


def test_a_cqt_heads_target_is_the_column_or_its_logarithm():
    cqt_SF = torch.rand(S, F).half() * 100
    linear, log = (CqtHead(D, F, target).target(cqt_SF) for target in ("linear", "log"))
    assert torch.equal(linear, cqt_SF.float()) and log.dtype == torch.float32
    torch.testing.assert_close(log, torch.log(cqt_SF.float() + 0.001))
    assert CqtHead(D, F, "log").target(torch.zeros(1, 1)).item() == pytest.approx(math.log(0.001))


def test_a_cqt_head_begins_with_given_values():
    made = CqtHead(D, F, "linear")
    before = made.bias.detach().clone()
    made.start(torch.full((F, D), 2.0), None)
    assert (made.weight == 2).all() and torch.equal(made.bias, before)
    made.start(None, torch.arange(F))
    assert made.bias.tolist() == [0, 1, 2, 3, 4] and (made.weight == 2).all() and made.weight.requires_grad
