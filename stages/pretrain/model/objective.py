"""What the model learns to predict on masked frames, and what errors cost: the YAML section `objective:`.

With S masked frames, K codebooks (F hubert_criterion.py; M loss_weights):

    loss = codes_weight · Σ_K (summed cross entropy) + S · (penalty_weight · penalty + cqt_weight · CQT error)

where the penalty is the mean square of the front-end's output and the CQT error the mean square over frames
and bins. It is a sum: the trainer divides it by the masked frames of the global batch.
"""

from dataclasses import dataclass

from stages.config import require


@dataclass(frozen=True)
class Objective:
    codes_weight: float = 1.0
    cqt_weight: float = 1.0  # 0: no CQT head
    penalty_weight: float = 10.0
    temperature: float = 0.1  # cosines are divided by it (M)
    learn_temperature: bool = False  # `temperature` is then where it starts
    head_width: int = 64  # of a code, per codebook; 128 at 330M (M)
    codebooks_per_update: int | None = None  # drawn anew each update; the sum is over these (nothing: all)
    # torch's values (M) | mean: each bin's mean as bias | fit: least squares, see `head_start` (D)
    cqt_start: str = "default"
    cqt_target: str = "linear"  # linear (M): the column as it is | log: ln(magnitude + 0.001)

    def __post_init__(self):
        for name in ("codes_weight", "cqt_weight", "penalty_weight"):
            require(getattr(self, name) >= 0, f"objective.{name}", getattr(self, name), "expected 0 or more")
        require(
            self.codes_weight > 0 or self.cqt_weight > 0,
            "objective.codes_weight",
            self.codes_weight,
            "with cqt_weight 0 too there is nothing to learn: set one above 0",
        )
        require(
            0.01 <= self.temperature <= 10, "objective.temperature", self.temperature, "expected 0.01 to 10"
        )
        require(self.head_width >= 1, "objective.head_width", self.head_width, "expected 1 or more")
        require(
            self.codebooks_per_update is None or self.codebooks_per_update >= 1,
            "objective.codebooks_per_update",
            self.codebooks_per_update,
            "expected 1 or more, or nothing for all",
        )
        require(
            self.cqt_start in ("default", "mean", "fit"),
            "objective.cqt_start",
            self.cqt_start,
            "expected default, mean or fit",
        )
        require(
            self.cqt_target in ("linear", "log"),
            "objective.cqt_target",
            self.cqt_target,
            "expected linear or log",
        )
