from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainables.datasets import load_dataset
from trainables.registry import BUILT_IN, PluginError, load, resolve, source_sha256, train_size


def test_parameters_at_their_defaults_do_not_show_and_do_not_matter() -> None:
    plain, spelled = resolve("arch", "mlp"), resolve("arch", {"name": "mlp", "depth": 2, "width": 128})
    assert plain == spelled
    assert plain.column == "mlp"
    assert plain.identity == {"name": "mlp", "depth": 2, "width": 128, "activation": "relu"}


def test_other_parameters_show_as_canonical_json_that_reads_back() -> None:
    deep = resolve("arch", {"width": 64, "name": "mlp", "depth": 4})
    assert deep.column == '{"depth":4,"name":"mlp","width":64}'
    assert resolve("arch", deep.column) == deep


def test_a_plugin_takes_its_defaults_from_its_signature() -> None:
    plain = resolve("arch", "plugins:convnet")
    assert plain.identity == {"name": "plugins:convnet", "channels": 2}
    assert resolve("arch", {"name": "plugins:convnet", "channels": 2}).column == "plugins:convnet"
    assert source_sha256("plugins:convnet") is not None


@pytest.mark.parametrize(
    ("kind", "reference", "message"),
    [
        (
            "arch",
            "mpl",
            (
                "unknown arch 'mpl': allowed are alexnet-small, linear, mlp, resnet, simple-cnn, vgg11, "
                "or package.module:callable; did you mean 'mlp'?"
            ),
        ),
        (
            "arch",
            {"name": "mlp", "dept": 3},
            (
                "parameter 'dept'.*it takes activation, depth, dropout, ghost_batch, init, init_scale, norm, width; "
                "did you mean 'depth'?"
            ),
        ),
        ("arch", {"name": "mlp", "depth": 0}, "parameter 'depth': Input should be greater than or equal to 1"),
        ("arch", {"depth": 3}, "needs a name"),
        ("arch", 3, "a name or a mapping"),
        ("loss", "cross-entropy", "did you mean 'cross_entropy'?"),
        ("arch", "no_such_module:net", "cannot import 'no_such_module'"),
        ("arch", "plugins:convnett", "module 'plugins' has no 'convnett'; did you mean 'convnet'?"),
        ("arch", {"name": "plugins:convnet", "chanels": 1}, "unexpected keyword argument 'chanels'.*its signature is"),
        ("metric", "weight_norm", "allowed are package.module:callable"),
        ("arch", "plugins:annotations", "is a"),
        ("call", {"name": "plugins:whole_trial", "lr": 5}, "parameter 'lr' is a field of every trial"),
    ],
)
def test_a_wrong_name_gets_a_message_that_helps(kind: str, reference: object, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        resolve(kind, reference)  # type: ignore[arg-type]


def test_every_built_in_exists() -> None:
    for built_ins in BUILT_IN.values():
        assert all(callable(load(target)) for target, _ in built_ins.values())


@pytest.mark.parametrize("dataset", ["digits", '{"name":"teacher","train_size":77}'])
def test_sizes_known_without_loading_are_the_true_ones(dataset: str) -> None:
    assert train_size(dataset) == load_dataset(dataset).train_size


def test_a_users_folder_named_like_ours_does_not_shadow_it(tmp_path: Path) -> None:
    """The working directory is importable, last."""
    for name in ("analysis", "cluster", "trainables"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    (tmp_path / "namespace" / "orchestrator").mkdir(parents=True)
    (tmp_path / "mine.py").write_text("def net(input_shape, num_classes): ...")
    code = "from trainables.registry import load; load('mine:net'); import analysis, cluster"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=tmp_path, env=os.environ)
