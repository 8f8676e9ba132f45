"""EnCodec's weights: one canonical form from every source, and clear refusals."""

import hashlib
import http.server
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from stages.label.teachers import encodec_weights
from stages.label.teachers.encodec import Encodec
from tests.encodec_weights import cached_weights


@pytest.fixture(scope="module")
def weights_file() -> Path:
    return cached_weights()


@pytest.fixture(scope="module")
def weights(weights_file) -> bytes:
    return Encodec().locate(str(weights_file))


# What is read


def transformers_state(state: dict, parametrized: bool) -> dict:
    """The same weights under the names of transformers' `EncodecModel`."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(("encoder.", "decoder.")):
            name = name.replace(".model.", ".layers.").replace(".conv.conv.", ".conv.")
            name = name.replace(".convtr.convtr.", ".conv.")
        else:
            name = name.replace("quantizer.vq.layers", "quantizer.layers").replace(
                "._codebook.", ".codebook."
            )
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
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        name: shape for name, (_, shape) in encodec_weights.tensors(8).items()
    }
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_untrained_codebooks_are_refused(weights_file, tmp_path):
    state = torch.load(weights_file, weights_only=True)
    state["quantizer.vq.layers.3._codebook.embed"].zero_()
    torch.save(state, tmp_path / "untrained.pt")
    with pytest.raises(
        ValueError, match=r"untrained\.pt: expected trained codebooks, saw 1024 equal.*codebook3"
    ):
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
        with pytest.raises(
            ValueError,
            match=rf"{cut}: expected EnCodec.s weights .*saw {cut.stat().st_size} bytes that are "
            rf"neither, or cut short",
        ):
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
    monkeypatch.setattr(
        encodec_weights, "FILE", f"encodec_24khz-{hashlib.sha256(content).hexdigest()[:8]}.th"
    )
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
