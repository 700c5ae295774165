import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from autoreg.errors import CheckpointError
from autoreg.network.checkpoint import load_checkpoint
from conftest import save_random_checkpoint


class Exploit:
    """What a malicious pickle does when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploited"),)


def test_round_trip(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_random_checkpoint(tmp_path / "c.pt", stride=4))
    network = checkpoint.build_network()
    assert network.config.stride == 4
    assert checkpoint.bands == ("band1", "band2")
    assert checkpoint.samples.shape == (2, 2, 64, 64)
    assert not network.training


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "autoreg.checkpoint", "weights": Exploit()}, tmp_path / "torch.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Exploit()))
    for name in ("torch.pt", "pickle.pt"):
        with pytest.raises(CheckpointError, match=r"not a checkpoint that autoreg train wrote"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "exploited").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    good = save_random_checkpoint(tmp_path / "good.pt", stride=2)
    content = torch.load(good, weights_only=True)
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "half.pt").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(content | {"version": 99}, tmp_path / "future.pt")
    torch.save({name: value for name, value in content.items() if name != "samples"}, tmp_path / "lacking.pt")
    torch.save(content | {"bands": ["a"]}, tmp_path / "bands.pt")
    torch.save(content | {"network": content["network"] | {"stride": 3}}, tmp_path / "stride.pt")
    torch.save(content | {"network": content["network"] | {"kernel_size": 99999}}, tmp_path / "kernel.pt")
    torch.save(content | {"network": content["network"] | {"widths": (16,) * 100_000}}, tmp_path / "blocks.pt")
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in source.namelist():
            bomb.writestr(entry, source.read(entry))
    for name, message in (
        ("none.pt", "there is no checkpoint"),
        ("text.pt", "not a checkpoint"),
        ("half.pt", "not a checkpoint"),
        ("bomb.pt", "not a checkpoint"),
        ("list.pt", "torch file, but not a checkpoint"),
        ("future.pt", "version 99, and this autoreg reads 2"),
        ("lacking.pt", "samples"),
        ("bands.pt", "1 bands for a network of 2"),
        ("stride.pt", "stride of 3"),
        ("kernel.pt", "kernel of 99999 px"),
        ("blocks.pt", "100000 blocks"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path / name)


def test_a_small_file_cannot_claim_a_large_network(tmp_path: Path) -> None:
    path = save_random_checkpoint(tmp_path / "c.pt", stride=2)
    content = torch.load(path, weights_only=True)
    content["network"] |= {"widths": (65536,) * 50}  # more than 10^12 weights
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="do not fit its layers"):
        load_checkpoint(path).build_network()


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = save_random_checkpoint(tmp_path / "c.pt", stride=2)
    content = torch.load(path, weights_only=True)
    content["weights"].pop("decoder.bias")
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="do not fit its layers"):
        load_checkpoint(path).build_network()
