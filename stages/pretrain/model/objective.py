"""What errors on S masked frames cost, with K codebooks (F hubert_criterion.py; M loss_weights):

    loss = codes_weight · Σ_K (summed cross entropy) + S · (penalty_weight · penalty + cqt_weight · CQT error)

and musical_weight times the sums over frames of the musical targets' errors (`musical`), each the mean square
over values; and S · visible_weight times the mean of all the same over frames that are not masked.

The penalty is the mean square of the front-end's output, the CQT error the mean square over frames and bins.
It is a sum: the trainer divides it by the masked frames of the global batch."""

from typing import Annotated, Literal

from pydantic import Field

from stages.config import NUMBER, Count, Flag, NotNegative, Several, check, settings


@settings
class Objective:
    """What is predicted, and the weights of the loss's parts."""

    codes_weight: NotNegative = 1.0  # of the codes' cross entropy
    cqt_weight: NotNegative = 1.0  # of the CQT error; 0: no CQT head
    # of the same errors on frames that are not masked (F pred_nomask_weight): they keep what they sound like
    visible_weight: NotNegative = 0.0
    penalty_weight: NotNegative = 10.0  # of the mean square of the front-end's output
    temperature: Annotated[float, Field(ge=0.01, le=10), NUMBER] = 0.1  # cosines are divided by it (M)
    learn_temperature: Flag = False  # `temperature` is then where it starts
    head_width: Count = 64  # of a code, per codebook; 128 at 330M (M)
    codebooks_per_update: Count | None = None  # drawn anew each update; the sum is over these (null: all)
    # torch's values (M) | mean: each bin's mean as bias | fit: least squares, see `cqt_start` (D)
    cqt_start: Literal["default", "mean", "fit"] = "default"
    # linear (M): the column as it is | log: ln(magnitude + 0.001)
    cqt_target: Literal["linear", "log"] = "linear"
    # predicted beside the CQT, from whose column they are computed (D; docs/evidence.md); [] : none
    musical: Several[Literal["chroma", "harmony", "onsets"]] = ()
    musical_weight: NotNegative = 3.0  # of each one's mean square error; they are scaled to deviation 1

    def __post_init__(self):
        learns = self.codes_weight > 0 or self.cqt_weight > 0 or bool(self.musical)
        above = "with cqt_weight 0 too there is nothing to learn: set one above 0"
        check(learns, self, "codes_weight", above)
