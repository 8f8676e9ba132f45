import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from stages.pretrain.data.pinning import pin
from stages.pretrain.data.settings import Data
from stages.shards import record as records
from stages.shards.storage import Storage
from tests.stages.pretrain.corpus import CROP, SEGMENT, Corpus, K


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Corpus:
    return Corpus(str(tmp_path_factory.mktemp("corpus") / "out")).write().gather()


@pytest.fixture
def copied(made, tmp_path) -> Corpus:
    shutil.copytree(made.root, tmp_path / "copied")
    return replace(made, root=str(tmp_path / "copied"))


@pytest.fixture
def data(made, tmp_path) -> Data:
    return Data(corpora=(made.root,), crop_samples=CROP, cache=str(tmp_path / "cache"))


def of(corpus: Corpus, data: Data) -> Data:
    return replace(data, corpora=(corpus.root,))


def test_what_is_pinned(made, data):
    pinned = pin(data)
    assert [c.name for c in pinned.codes] == [made.names["codes"]] and (
        pinned.codes[0].codebooks,
        pinned.codes[0].size,
    ) == (K, 50)
    assert pinned.cqt_bins == 12 and pinned.cqt.name == made.names["cqt"]
    assert pinned.recordings == {"train": 7, "valid": 1} and not pinned.dropped
    train = [k for shard in made.keys.values() for k in shard if not k.startswith(next(iter(made.waves)))]
    drawn = [pinned.key(r) for r in np.flatnonzero(pinned.crops_R)]
    assert drawn == sorted(train) and len(pinned.valid_V) == 3
    assert pinned.samples_per_epoch == sum(int(n) // CROP for n in pinned.samples_R[pinned.crops_R > 0])
    assert pinned.hours == pytest.approx(sum(len(w) for w in list(made.waves.values())[1:]) / 24_000 / 3600)
    said = json.loads(json.dumps(pinned.to_json()))
    assert (
        said["codes"] == [{"name": made.names["codes"], "codebooks": K, "size": 50, "hop_samples": 320}]
        and said["cqt_bins"] == 12
    )


def test_places_in_the_arrays_are_where_the_bytes_are(made, data):
    pinned = pin(data)
    for row in (0, 4, len(pinned.key_R) - 1):
        recording, shard = pinned.recording(row), pinned.shard_names[pinned.shard_R[row]]
        first = int(pinned.start_R[row])
        wave = made.tar("audio", shard).read_bytes()[pinned.audio_R[row] :][: 2 * pinned.samples_R[row]]
        assert np.array_equal(
            np.frombuffer(wave, "<i2"), made.waves[recording][first : first + pinned.samples_R[row]]
        )
        codes = made.tar("codes", shard).read_bytes()[pinned.codes_RC[row, 0] :][: 2 * K * 10]
        assert np.array_equal(
            np.frombuffer(codes, "<u2").reshape(10, K), made.codes[recording][first // 320 :][:10]
        )


def test_a_run_keeps_its_shards_and_settings(copied, data):
    own = of(copied, data)
    pinned = pin(own)
    again = json.loads(json.dumps(pinned.to_json()))
    for shard in (9,):  # labelling went on
        more = Corpus(str(copied.root) + "-more", seed=shard).write(shards=1, valid=0).gather()
        for name in more.names.values():
            for path in (Storage(more.root).local(f"columns/{name}")).iterdir():
                shutil.copy(path, Storage(copied.root).local(f"columns/{name}"))
        rows = [Storage(c.root).read_table("plan.parquet") for c in (copied, more)]
        Storage(copied.root).write_table("plan.parquet", pa.concat_tables(rows))
    assert pin(own, again).fingerprint == pinned.fingerprint  # from the cache
    # from the shards
    assert pin(replace(own, cache=own.cache + "2"), again).fingerprint == pinned.fingerprint
    wider = pin(own, again, {"data"})
    assert (
        wider.fingerprint != pinned.fingerprint
        and wider.recordings["train"] == pinned.recordings["train"] + 2
    )
    with pytest.raises(
        ValueError, match=r"data.crop_samples is 8000, this run was begun with 16000.*resume.allow=data"
    ):
        pin(replace(own, crop_samples=8000), again)
    with pytest.raises(
        ValueError, match=r"data.passes is \[2.0\], this run was begun with \[1.0\]: set it back"
    ):
        pin(replace(own, passes=(2.0,)), again)
    assert pin(replace(own, workers=7, prefetch=9), again).fingerprint == pinned.fingerprint, "circumstance"


def test_the_same_data_has_the_same_fingerprint_wherever_it_lies(copied, made, data):
    ungathered = of(copied, data)
    for name in ("index.parquet", "segments.parquet"):
        Storage(copied.root).delete(name)
    assert pin(ungathered).fingerprint == pin(data).fingerprint
    assert pin(replace(data, passes=(2.0,))).fingerprint != pin(data).fingerprint
    assert pin(replace(data, min_segment_s=0.1)).fingerprint != pin(data).fingerprint


def test_tombstones_leave_and_are_other_data(copied, data):
    own = of(copied, data)
    before = pin(own)
    gone = sorted(copied.waves)[-1]
    copied.tombstone(gone)
    after = pin(own)
    assert (
        after.dropped == {"tombstone: edited": 3}
        and after.recordings["train"] == before.recordings["train"] - 1
    )
    for cache in (own.cache, own.cache + "2"):
        with pytest.raises(ValueError, match="(edited|vanished).*resume.allow=data"):
            pin(replace(own, cache=cache), before.to_json())
    assert pin(own, before.to_json(), {"data"}).fingerprint == after.fingerprint


def test_filters_count_what_they_leave_out(made, data):
    everything = pin(data)
    stats = Storage(made.root).read_table("segments.parquet").to_pylist()
    middle = sorted(r["rms_db"] for r in stats)[12]
    held = next(iter(made.waves))
    quiet = sum(r["rms_db"] < middle for r in stats)
    pinned = pin(replace(data, min_rms_db=middle))
    assert pinned.dropped == {"data.min_rms_db": quiet} and quiet == 12
    left = pin(replace(data, where=f"samples > {SEGMENT} or recording = '{held}'"))
    assert left.dropped == {
        "data.where": sum(r["samples"] <= SEGMENT and r["recording"] != held for r in stats)
    }
    assert pin(replace(data, crop_samples=SEGMENT)).dropped["shorter than a crop"] > 0
    assert pin(replace(data, min_segment_s=SEGMENT / 24_000 + 1e-4)).dropped["data.min_segment_s"] > 0
    assert everything.samples_per_epoch > pinned.samples_per_epoch
    for where, said in (("loudness > 3", "loudness"), ("rms_db >", "syntax error"), ("'x'", "data.where is")):
        with pytest.raises(ValueError, match=said) as refused:
            pin(replace(data, where=where))
        assert "data.where" in str(refused.value)
    with pytest.raises(ValueError, match="no segment is left to train on.*24 of data.min_rms_db"):
        pin(replace(data, min_rms_db=0.0))


def test_a_recording_that_a_teacher_refused_is_left_out(tmp_path, data):
    refused = f"{0:04x}{1:06x}{1:06x}"
    made = Corpus(str(tmp_path / "out")).write(rejects=(refused,)).gather()
    pinned = pin(of(made, data))
    assert pinned.dropped == {f"rejected by {made.names['codes']}": 3} and pinned.recordings["train"] == 6


def test_what_does_not_fit_is_refused_by_shard_and_column(made, copied, data, tmp_path):
    short = Corpus(str(tmp_path / "short")).write(short_of="s000002").gather()
    with pytest.raises(
        ValueError, match=rf"{short.names['codes']}/s000002 lacks the key {short.keys['s000002'][-1]}"
    ):
        pin(of(short, data))

    own, name, shard = of(copied, data), copied.names["codes"], sorted(copied.keys)[1]
    storage, file = Storage(copied.root), records.file(copied.names["codes"], sorted(copied.keys)[1], "json")
    original = records.read(storage, name, shard)
    storage.write(file, replace(original, recipe={"stage": "codes", "other": 1}).to_bytes())
    with pytest.raises(ValueError, match=f"{name}/{shard} was made by recipe"):
        pin(own)
    storage.write(file, replace(original, source_sha256="0" * 64).to_bytes())
    with pytest.raises(ValueError, match=f"{name}/{shard} was made from another audio tar"):
        pin(own)
    storage.write(file, original.to_bytes())
    index = storage.read_table("index.parquet")
    wrongs = (
        ("frames", 7, "has 7 frames at"),
        ("size", 1000, "has .* bytes at .*, expected .* frames of"),
        ("start", 320, "has other samples at .* than audio"),
        ("key", "stray-00000", "lacks the key|has the key stray"),
    )
    for field, value, said in wrongs:
        rows = index.to_pylist()
        row = next(r for r in rows if r["column"] == name and r["shard"] == shard)
        row[field] = value
        storage.write_table("index.parquet", pa.Table.from_pylist(rows, schema=index.schema))
        with pytest.raises(ValueError, match=said) as refused:
            pin(own)
        assert f"{name}/{shard}" in str(refused.value)


def test_nothing_to_train_on_is_said_at_once(made, copied, data, tmp_path):
    for root, said in (
        ("/nowhere", "/nowhere cannot be read as labels"),
        (str(tmp_path), "cannot be read as labels"),
        ("ftp://x/y", "s3://"),
    ):
        with pytest.raises(ValueError, match=said):
            pin(replace(data, corpora=(root,)))
    with pytest.raises(ValueError, match="data.codes or data.cqt names codes-00000000"):
        pin(replace(data, codes=("codes-00000000",)))
    with pytest.raises(ValueError, match="global_batch is 100000, an epoch has"):
        pin(data).require(100_000)
    pinned, storage = pin(of(copied, data)), Storage(copied.root)
    records.discard(storage, copied.names["cqt"], sorted(copied.keys)[0])
    with pytest.raises(
        ValueError, match=f"pinned shards are not finished in {copied.names['cqt']} any more, first s000000"
    ):
        pin(replace(of(copied, data), cache=str(tmp_path / "other")), pinned.to_json())
    assert len(pin(of(copied, data)).shard_names) == 3, "an unfinished shard is not used"
    for shard in copied.keys:
        records.discard(storage, copied.names["cqt"], shard)
    with pytest.raises(ValueError, match="no shard that is finished in audio, codes-.*, cqt-"):
        pin(of(copied, data))


def test_two_corpora(made, data, tmp_path):
    other = Corpus(str(tmp_path / "other"), seed=1).write(shards=1, valid=0).gather()
    both = replace(data, corpora=(made.root, other.root), passes=(1.0, 3.0))
    one, alone = pin(data), pin(of(other, data))
    assert pin(both).samples_per_epoch == one.samples_per_epoch + 3 * alone.samples_per_epoch
    coarse = Corpus(str(tmp_path / "coarse"), seed=2, storage="uint8").write(shards=1, valid=0).gather()
    with pytest.raises(ValueError, match="data.cqt: .* and .*coarse.*label both with one recipe.cqt"):
        pin(replace(data, corpora=(made.root, coarse.root)))
    # D
    assert pin(replace(data, corpora=(made.root, coarse.root), cqt="online")).cqt.context_samples == 25_230


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"crop_s": 5.001}, "Data.crop_s is 5.001: expected a multiple of 320"),
        ({"crop_samples": 100}, "Data.crop_samples"),
        ({"corpora": ()}, "Data.corpora"),
        ({"passes": (1.0, 2.0)}, "Data.passes"),
        ({"cqt": "columns"}, "Data.cqt is 'columns'"),
        ({"max_silence": 2.0}, "Data.max_silence"),
        ({"workers": -1}, "Data.workers"),
        ({"crops_per_segment": 0}, "Data.crops_per_segment"),
    ],
)
def test_impossible_settings(fields, said):
    with pytest.raises(ValueError, match=said):
        Data(**fields)
