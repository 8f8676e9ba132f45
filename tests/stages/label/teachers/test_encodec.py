"""The EnCodec teacher gives the package's codes for the uninterrupted recording, from its own fast encoder."""

import hashlib
import http.server
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

from stages.label.teachers import encodec_model, encodec_weights
from stages.label.teachers.encodec import Encodec
from tests.encodec_weights import cached_weights, load_model, music

AGREE = 0.99999


@dataclass
class Recording:
    """A `Wave` in memory."""

    sound: np.ndarray

    @property
    def samples(self) -> int:
        return len(self.sound)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.sound[start:stop]


def codes(sound: np.ndarray, weights: bytes, **recipe) -> np.ndarray:
    """uint16 (T, K) of one recording by a freshly opened teacher."""
    teacher = Encodec(**recipe)
    return np.concatenate(list(teacher.open(weights, "cpu", 1)(Recording(sound))))


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float((a == b).mean())


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def weights_file() -> Path:
    return cached_weights()


@pytest.fixture(scope="session")
def weights(weights_file) -> bytes:
    return Encodec().locate(str(weights_file))


@pytest.fixture(scope="session")
def package_codes(weights_file):
    model = load_model(weights_file)

    def encode(sound: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            ((codes_BKT, _),) = model.encode(torch.tensor(sound)[None, None])
        return codes_BKT[0].t().numpy()

    return encode


@pytest.fixture(scope="session")
def expected(package_codes) -> np.ndarray:
    return package_codes(music(1))


# What the codes are


def test_codes_are_those_of_the_package(weights, expected):
    ours = codes(music(1), weights)
    assert ours.dtype == np.uint16 and ours.shape == (1500, 8)
    assert agreement(ours, expected) >= AGREE


def test_these_weights_use_many_codes_at_every_level(weights):
    """Otherwise agreement would say nothing."""
    ours = np.concatenate([codes(music(n, length_s=10.0), weights) for n in range(4)])
    assert min(len(np.unique(level)) for level in ours.T) >= 256


@pytest.mark.parametrize("block_s", [1.0, 1.04, 7.0])
def test_blocks_do_not_show(weights, expected, block_s):
    assert agreement(codes(music(1), weights, block_s=block_s), expected) >= AGREE


@pytest.mark.parametrize(("piece", "chunk"), [(8, 16), (1500, 1500), (33, 500)])
def test_pieces_and_chunks_do_not_show(weights, expected, monkeypatch, piece, chunk):
    monkeypatch.setattr(encodec_model, "PIECE_FRAMES", piece)
    monkeypatch.setattr(encodec_model, "CHUNK_FRAMES", chunk)
    assert agreement(codes(music(1), weights), expected) >= AGREE


LENGTHS = [1, 2, 3, 5, 7, 8, 41, 161, 319, 320, 321, 639, 641, 1920, 2240, 2241, 23_999, 24_000, 24_001, 24_007, 48_327]


@pytest.mark.parametrize("samples", LENGTHS)
def test_every_length_is_padded_as_the_package_pads(weights, package_codes, samples):
    sound = music(1)[5000 : 5000 + samples]
    ours = codes(sound, weights, block_s=1.0)
    assert len(ours) == -(-samples // 320)
    np.testing.assert_array_equal(ours, package_codes(sound))


def test_no_samples_give_no_frames(weights):
    assert list(Encodec().open(weights, "cpu", 1)(Recording(np.zeros(0, np.float32)))) == []


def test_fewer_codebooks_are_the_first_ones(weights_file, expected):
    teacher = Encodec(codebooks=2)
    ours = codes(music(1), teacher.locate(str(weights_file)), codebooks=2)
    assert agreement(ours, expected[:, :2].astype(np.uint16)) >= AGREE


def test_a_recording_knows_nothing_of_the_one_before(weights):
    label = Encodec(block_s=1.0).open(weights, "cpu", 1)
    first = np.concatenate(list(label(Recording(music(1)[:60_000]))))
    next(label(Recording(music(2))))  # left in the middle
    again = np.concatenate(list(label(Recording(music(1)[:60_000]))))
    assert first.tobytes() == again.tobytes()


# What the tests above would notice


def test_a_shift_by_one_frame_would_be_noticed(weights, expected):
    assert agreement(codes(music(1)[320:], weights)[:1400], expected[:1400]) < 0.9
    assert agreement(expected[1:], expected[:-1]) < 0.9


def test_a_cold_lstm_would_be_noticed(weights, expected, monkeypatch):
    warm = encodec_model.Lstm.run
    monkeypatch.setattr(encodec_model.Lstm, "run", lambda self, x: (self.restart(), warm(self, x))[1])
    assert agreement(codes(music(1), weights, block_s=1.0), expected) < AGREE


@pytest.mark.parametrize("wrong", ["forgets its tail", "zeros at the start", "zeros at the end"])
def test_wrong_padding_would_be_noticed(weights, package_codes, monkeypatch, wrong):
    right = encodec_model.Convolution.pad

    def pad(self, whole, length):
        start, end = self.tail is None, self.left + length
        if wrong == "forgets its tail":
            self.tail = None
        right(self, whole, length)
        if wrong == "zeros at the start" and start:
            whole[: self.left] = 0
        if wrong == "zeros at the end":
            whole[end:] = 0

    sound = music(1)[: 3 * 24_000 + 7]
    reference = package_codes(sound)
    assert agreement(codes(sound, weights, block_s=1.0), reference) >= AGREE
    monkeypatch.setattr(encodec_model.Convolution, "pad", pad)
    assert agreement(codes(sound, weights, block_s=1.0), reference) < AGREE


@pytest.mark.parametrize("forget_bias", [0.0, 20.0])
def test_chunks_side_by_side_are_one_uninterrupted_lstm(forget_bias):
    """Also with a memory that never fades, for which every guess is wrong and is run again."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.nn.LSTM(512, 512, 1)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) / 512**0.5)
        reference.bias_ih_l0[512:1024] += forget_bias
        frames = torch.randn(1000, 512, generator=generator)
        wanted, (_, cell) = reference(frames)
        ours = encodec_model.Lstm({f"lstm.{name}": value for name, value in reference.state_dict().items()}, 0)
        got = torch.cat([ours.run(frames[:900]), ours.run(frames[900:])])
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(ours.state[1], cell[0], atol=2e-4, rtol=2e-5)


# Weights


def transformers_state(state: dict, parametrized: bool) -> dict:
    """The same weights under the names of transformers' `EncodecModel`."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(("encoder.", "decoder.")):
            name = name.replace(".model.", ".layers.").replace(".conv.conv.", ".conv.").replace(".convtr.convtr.", ".conv.")
        else:
            name = name.replace("quantizer.vq.layers", "quantizer.layers").replace("._codebook.", ".codebook.")
        if parametrized:
            name = name.replace("weight_g", "parametrizations.weight.original0")
            name = name.replace("weight_v", "parametrizations.weight.original1")
        renamed[name] = tensor.contiguous().clone()
    return renamed


@pytest.mark.parametrize("parametrized", [False, True])
def test_transformers_layout_gives_the_same_bytes(weights_file, weights, tmp_path, parametrized):
    state = torch.load(weights_file, weights_only=True)
    save_file(transformers_state(state, parametrized), tmp_path / "model.safetensors")
    assert Encodec().locate(str(tmp_path)) == weights
    assert Encodec().locate(str(tmp_path / "model.safetensors")) == weights


def test_canonical_weights_hold_what_is_used_and_no_more(weights):
    tensors = load(weights)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == encodec_weights.shapes(8)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_untrained_codebooks_are_refused(weights_file, tmp_path):
    state = torch.load(weights_file, weights_only=True)
    state["quantizer.vq.layers.3._codebook.embed"].zero_()
    torch.save(state, tmp_path / "untrained.pt")
    with pytest.raises(ValueError, match=r"untrained\.pt: expected trained codebooks, saw 1024 equal.*codebook3"):
        Encodec().locate(str(tmp_path / "untrained.pt"))
    assert Encodec(codebooks=3).locate(str(tmp_path / "untrained.pt"))  # a level not used is not judged


def test_wrong_tensors_are_refused(weights_file, tmp_path):
    state = torch.load(weights_file, weights_only=True)
    path = tmp_path / "wrong.pt"
    name = "encoder.model.3.conv.conv.weight_v"
    torch.save(state | {name: state[name][:, :, :3]}, path)
    with pytest.raises(ValueError, match=r"wrong\.pt.*expected \(64, 32, 4\).*saw \(64, 32, 3\)"):
        Encodec().locate(str(path))
    torch.save({key: value for key, value in state.items() if key != name}, path)
    with pytest.raises(ValueError, match=r"wrong\.pt.*expected a tensor named encoder\.model\.3.*weight_v"):
        Encodec().locate(str(path))
    torch.save(state | {name: state[name] * float("nan")}, path)
    with pytest.raises(ValueError, match=r"wrong\.pt.*finite"):
        Encodec().locate(str(path))
    torch.save({"best_state": state}, path)
    with pytest.raises(ValueError, match=r"wrong\.pt.*expected a state dict"):
        Encodec().locate(str(path))


def test_damaged_files_are_refused(weights_file, tmp_path):
    state = torch.load(weights_file, weights_only=True)
    save_file(transformers_state(state, False), tmp_path / "model.safetensors")
    for whole in (weights_file, tmp_path / "model.safetensors"):
        cut = tmp_path / f"cut{whole.suffix}"
        cut.write_bytes(whole.read_bytes()[:-1000])
        with pytest.raises(ValueError, match=rf"{cut}: expected a whole weights file, saw {cut.stat().st_size} bytes"):
            Encodec().locate(str(cut))
    with pytest.raises(ValueError, match="expected EnCodec's weights .*saw no such file"):
        Encodec().locate(str(tmp_path / "absent.th"))
    named = tmp_path / encodec_weights.FILE
    named.write_bytes(b"not these")
    digits = hashlib.sha256(b"not these").hexdigest()[:16]
    with pytest.raises(ValueError, match=rf"{named}: expected a sha256 beginning d7cc33bc, saw {digits}"):
        Encodec().locate(str(named))


# Where weights are looked for


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_without_weights_the_three_ways_are_named_within_seconds(cache, monkeypatch):
    monkeypatch.setattr(encodec_weights, "TIMEOUT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/weights.th"
        monkeypatch.setattr(encodec_weights, "URL", url)
        began = time.monotonic()
        with pytest.raises(ValueError) as refused:
            Encodec().locate(None)
    assert time.monotonic() - began < 10
    for part in ("--set run.weights=PATH", str(cache / encodec_weights.FILE), url, "timed out"):
        assert part in str(refused.value)


def test_a_damaged_file_in_the_cache_is_refused(cache):
    cache.mkdir(parents=True)
    (cache / encodec_weights.FILE).write_bytes(b"cut short")
    with pytest.raises(ValueError, match=rf"{cache}.*expected a sha256 beginning d7cc33bc"):
        Encodec().locate(None)


@pytest.fixture
def served(weights_file, monkeypatch):
    """The published address serves the test's weights under a name with their own checksum."""
    content = weights_file.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(encodec_weights, "URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(encodec_weights, "FILE", f"encodec_24khz-{hashlib.sha256(content).hexdigest()[:8]}.th")
    yield
    server.shutdown()
    server.server_close()


def test_a_download_is_kept_in_the_cache(cache, served, weights, monkeypatch):
    assert Encodec().locate(None) == weights
    assert [path.name for path in cache.iterdir()] == [encodec_weights.FILE]
    monkeypatch.setattr(encodec_weights, "URL", "http://127.0.0.1:9/")
    assert Encodec().locate(None) == weights


def test_a_wrong_download_leaves_nothing(cache, served, monkeypatch):
    monkeypatch.setattr(encodec_weights, "FILE", "encodec_24khz-d7cc33bc.th")
    with pytest.raises(ValueError, match=r"http://127.*expected a sha256 beginning d7cc33bc, saw"):
        Encodec().locate(None)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"codebooks": 0}, {"codebooks": 33}, {"codebook_size": 512}, {"block_s": 0.1}])
def test_a_recipe_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=f"encodec.{next(iter(wrong))}: expected .* saw {next(iter(wrong.values()))}"):
        Encodec(**wrong)
