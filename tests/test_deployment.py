"""What docs/deployment.md says is true: its client talks to a server, and its commands, options and extras exist."""

import json
import re
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from autoreg.cli import cli
from autoreg.export import write_repository
from autoreg.naming.write import write_classes
from autoreg.runtime.engine import Engine, load_engine
from conftest import Models, noise
from served import CLASSES, read_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CODE = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) + re.findall(r"`([^`\n]+)`", PAGE)


@contextmanager
def serving(config: ModelConfig, engine: Engine) -> Iterator[str]:
    """A server that speaks as much of KServe's protocol, and of Triton's binary tensors, as the client of the docs needs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == f"/v2/models/{config.name}/config"
            # As Triton makes it: with the names of the fields as they are in the schema.
            answer = json_format.MessageToDict(config, preserving_proto_field_name=True)
            self.reply(json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def do_POST(self) -> None:
            assert self.path == f"/v2/models/{config.name}/infer"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            length = int(self.headers["Inference-Header-Content-Length"])
            asked, pixels = json.loads(body[:length]), body[length:]
            (image,), (wanted,) = asked["inputs"], asked["outputs"]
            assert (image["name"], image["datatype"]) == ("image", "FP32")
            assert image["parameters"] == {"binary_data_size": len(pixels)}
            assert wanted == {"name": "labels", "parameters": {"binary_data": True}}
            labels = engine.label(np.frombuffer(pixels, "<f4").reshape(image["shape"]))
            given = {
                "name": "labels",
                "datatype": "UINT8",
                "shape": labels.shape,
                "parameters": {"binary_data_size": labels.size},
            }
            header = json.dumps({"outputs": [given]}).encode()
            self.reply(header + labels.tobytes(), {"Inference-Header-Content-Length": str(len(header))})

        def reply(self, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_the_client_gets_labels_and_makes_classes_of_them(models: Models, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_classes(models(3, "uint8"), path, CLASSES)
    folder = write_repository(path, tmp_path).folder
    config, engine = read_config(folder), load_engine(path)
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    with serving(config, engine) as address:
        assert "http://localhost:8000/" in program
        exec(program.replace("http://localhost:8000", address), names)
        images = np.stack([noise(3, 64, 96, seed) for seed in range(2)]).astype(np.float32)
        clusters = names["label"](images)
    assert names["tile"].shape[1:] == names["classes"].shape == (names["height"], names["width"])
    assert names["tile"].dtype == np.float32
    assert np.array_equal(clusters, engine.label(images))
    assert len(np.unique(clusters)) > 1
    assert np.array_equal(names["table"][clusters], np.array([7, 9, 9, 7], np.uint8)[clusters])


def test_its_commands_and_options_exist() -> None:
    seen = set()
    for code in CODE:
        for line in code.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:^|\s)autoreg ([a-z-]+)(.*)", line)
            if found:
                command = cli.commands[found[1]]
                seen.add(found[1])
                known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
                assert set(re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", found[2])) <= known, line
    assert {"build", "doctor", "export", "segment", "selftest"} <= seen


def test_options_that_it_names_alone_exist() -> None:
    known = {option for command in cli.commands.values() for parameter in command.params for option in parameter.opts}
    alone = {code.split()[0] for code in CODE if code.startswith("--")}
    assert "--device" in alone
    assert alone <= known


def test_its_extras_exist() -> None:
    named = set(",".join(re.findall(r"autoreg\[([a-z,]+)\]", PAGE)).split(","))
    assert {"run", "cuda", "tensorrt"} <= named <= set(PROJECT["optional-dependencies"])


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def test_the_jetpacks_that_fit_are_those_with_a_python_and_a_tensorrt_that_do() -> None:
    python = PROJECT["requires-python"].removeprefix(">=")
    extra = PROJECT["optional-dependencies"]["tensorrt"]
    (tensorrt,) = (item.removeprefix("tensorrt>=") for item in extra if item.startswith("tensorrt>="))
    (table,) = re.findall(r"\| JetPack \|.*\n\|[ -|]+\n((?:\|.*\n)+)", PAGE)
    said = {}
    for row in table.splitlines():
        jetpack, _, its_tensorrt, _, its_python, verdict = (cell.strip() for cell in row.strip("|").split("|"))
        fits = version(its_tensorrt) >= version(tensorrt) and version(its_python) >= version(python)
        assert verdict.startswith(
            "fits" if fits else f"no: it needs Python {python} or later and TensorRT {tensorrt} or later"
        )
        said[jetpack] = fits
    assert said == {"6.1, 6.2": False, "7.0, 7.1": True, "7.2": True}
    assert "**JetPack 6 and older do not fit**, for both reasons, and a container does not help" in PAGE


@pytest.mark.parametrize("anchor", re.findall(r"\]\(#([^)]+)\)", PAGE))
def test_its_chapters_exist(anchor: str) -> None:
    titles = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    }
    assert anchor in titles
