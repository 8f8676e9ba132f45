"""How a run begins: with weights of others, or without."""

import pytest
import torch
from safetensors.torch import load_file

from stages.pretrain.config import load
from stages.pretrain.data.batch import CodeColumn
from stages.pretrain.model.mert import Mert
from tests.chaos.training import Ranks, configured, rows
from tests.stages.pretrain.corpus import SIZE, F, K
from tests.stages.pretrain.model.test_published import save_fairseq, save_mert_folder

STILL = (
    "optim.updates=1",
    "optim.warmup_updates=1",
    "optim.lr=1.0e-20",
    "optim.weight_decay=0",
    "model.layer_drop=0",
)


@pytest.mark.parametrize("layout", ["fairseq", "hugging face"])
def test_a_run_begins_with_the_weights_of_others(tmp_path, layout):
    """After one update at no rate: the encoder is the file's. So is a fairseq file's CQT head; the other file
    has none, which is fitted."""
    config = configured(tmp_path)
    asked = load(str(config))
    torch.manual_seed(5)
    source = Mert(asked.model, asked.objective, (CodeColumn("codes-a", K, SIZE),), F)
    if layout == "fairseq":
        place = save_fairseq(tmp_path / "given.pt", source)
    else:
        place = save_mert_folder(tmp_path / "MERT-v1-95M", source)
    with Ranks(config, 1, f"run.init_from={place}", *STILL) as ranks:
        assert ranks.wait() == 0, ranks.text()
    assert f"weights of {layout} layout" in ranks.text() and len(rows(tmp_path)) == 1
    found = load_file(tmp_path / "toy" / "checkpoints" / "u00000001" / "model.safetensors")
    same = {
        name: torch.allclose(value, found[name], rtol=0, atol=1e-12)
        for name, value in source.state_dict().items()
    }
    assert all(kept for name, kept in same.items() if not name.startswith(("code_heads", "cqt_head")))
    assert {same["cqt_head.weight"], same["cqt_head.bias"], same["code_heads.0.table_KCE"]} == {
        layout == "fairseq"
    }
