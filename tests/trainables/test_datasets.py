"""The built-in data sets: what their tensors are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import image_sets as sets
import numpy as np
import pytest
import torch

from trainables import datasets
from trainables.datasets import cifar100, load_dataset, standardized, teacher
from trainables.files import DamagedFileError, MissingFileError, read
from trainables.published import PUBLISHED
from trainables.registry import BUILT_IN, PluginError, example_shape, resolve, train_size


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data root of the test's own, without files."""
    monkeypatch.setenv("ISORATIO_DATA", str(tmp_path))
    load_dataset.cache_clear()
    yield tmp_path
    load_dataset.cache_clear()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_an_idx_set_is_loaded_by_name(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    published = sets.write_idx(root, name=name)
    monkeypatch.setitem(PUBLISHED, name, published)
    loaded = load_dataset(name)
    assert loaded.input_shape == published.shape == (1, 4, 4)
    assert (loaded.train_size, len(loaded.test_inputs), loaded.num_classes) == (sets.TRAIN, sets.TEST, 10)
    assert loaded.train_targets.tolist() == sets.random_bytes(sets.TRAIN, below=10).tolist()
    assert loaded.train_inputs.dtype == torch.float32
    pixels = sets.random_bytes(sets.TRAIN, 4, 4) / 255
    expected = (sets.random_bytes(sets.TEST, 4, 4) / 255 - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(loaded.test_inputs[:, 0], expected, rtol=1e-5, atol=1e-6)
    assert loaded.input_moments == pytest.approx((0, 1), abs=1e-6)


def test_channels_of_colour_images_are_standardized_apart(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, "cifar10", sets.write_cifar(root, {"class": 10}))
    loaded = load_dataset("cifar10")
    assert loaded.input_shape == (3, 32, 32)
    for inputs in loaded.train_inputs.double().transpose(0, 1):
        assert float(inputs.mean()) == pytest.approx(0, abs=1e-6)
        assert float(inputs.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert abs(float(loaded.test_inputs.mean())) > 1e-4  # its own mean is not what was taken off


def test_standardization_resolves_a_single_pixel_that_differs() -> None:
    pixels = np.full((1, 1, 300, 300), 255, np.uint8)
    pixels[0, 0, 0, 0] = 254
    n = pixels.size
    found, _ = standardized(pixels, pixels)
    deviation = np.sqrt(n - 1) / n
    assert float(found[0, 0, 0, 0]) == pytest.approx((1 / n - 1) / deviation, rel=1e-2)
    assert float(found.double().std(correction=0)) == pytest.approx(1, rel=1e-2)


def test_cifar100_has_both_kinds_of_labels(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = sets.write_cifar(root, {"coarse": 20, "fine": 100})
    monkeypatch.setitem(PUBLISHED, "cifar100", published)
    train, _ = read(published, root)
    for labels, classes in published.classes.items():
        loaded = cifar100(root, labels)
        assert loaded.num_classes == classes
        assert loaded.train_targets.tolist() == train.labels[labels].tolist()
    assert load_dataset("cifar100").sha256() == cifar100(root, "fine").sha256()
    assert resolve("dataset", {"name": "cifar100", "labels": "fine"}).column == "cifar100"
    with pytest.raises(PluginError, match="'labels': Input should be 'fine' or 'coarse'"):
        resolve("dataset", {"name": "cifar100", "labels": "superfine"})


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_nothing_is_downloaded_unasked(root: Path, name: str) -> None:
    with pytest.raises(MissingFileError, match=f"MD5 {PUBLISHED[name].downloads[0].md5}.*`isoratio data fetch {name}`"):
        load_dataset(name)


def test_a_damaged_file_is_not_trained_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, "mnist", sets.write_idx(root))
    path = next((root / "MNIST/raw").iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFileError, match=path.name):
        load_dataset("mnist")


SMALL = {"train_size": 50, "test_size": 7, "seed": 3}


@pytest.mark.parametrize("kind", [{"dimension": 5}, {"shape": [3, 2, 2]}])
def test_the_teacher_does_not_depend_on_how_much_is_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch, kind: dict[str, object]
) -> None:
    whole = teacher(Path(), **SMALL, **kind)
    for numbers in (1, 37, 100):
        monkeypatch.setattr(datasets, "AT_ONCE", numbers)
        assert teacher(Path(), **SMALL, **kind).sha256() == whole.sha256()


def test_a_teacher_of_images_is_that_of_vectors_in_another_shape() -> None:
    vectors, images = teacher(Path(), **SMALL, dimension=12), teacher(Path(), **SMALL, shape=[3, 2, 2])
    assert images.input_shape == (3, 2, 2)
    assert torch.equal(images.train_targets, vectors.train_targets)
    assert torch.equal(images.test_inputs.flatten(1), vectors.test_inputs.float())


def test_a_shape_stands_instead_of_a_dimension_and_later_than_it() -> None:
    assert "shape" not in resolve("dataset", "teacher").identity
    assert resolve("dataset", {"name": "teacher", "shape": [2, 3]}).identity["shape"] == [2, 3]
    with pytest.raises(PluginError, match="'shape': stands instead of dimension: leave one of them out"):
        resolve("dataset", {"name": "teacher", "shape": [2, 3], "dimension": 6})
    with pytest.raises(PluginError, match=r"'shape\.1'|'shape'"):
        resolve("dataset", {"name": "teacher", "shape": [2, 0]})


@pytest.mark.parametrize(
    "reference", ["digits", '{"name":"teacher","shape":[2,3],"train_size":77}', '{"dimension":9,"name":"teacher"}']
)
def test_what_is_known_without_loading_is_true(reference: str) -> None:
    loaded = load_dataset(reference)
    assert train_size(reference) == loaded.train_size
    assert example_shape(reference) == (loaded.input_shape, loaded.num_classes)


def test_what_is_known_of_published_sets() -> None:
    assert {name: (train_size(name), example_shape(name)) for name in sorted(PUBLISHED)} == {
        "cifar10": (50_000, ((3, 32, 32), 10)),
        "cifar100": (50_000, ((3, 32, 32), 100)),
        "fashion-mnist": (60_000, ((1, 28, 28), 10)),
        "mnist": (60_000, ((1, 28, 28), 10)),
    }
    assert all(published.test_size == 10_000 for published in PUBLISHED.values())
    assert example_shape('{"labels":"coarse","name":"cifar100"}') == ((3, 32, 32), 20)
    assert {*PUBLISHED, "digits", "teacher"} == set(BUILT_IN["dataset"])
    assert train_size("mine:data") is None
    assert example_shape("mine:data") is None


def test_the_first_examples_of_a_published_set_are_whole_images(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, "mnist", sets.write_idx(root))
    whole = load_dataset("mnist")
    part = whole.first(5)
    assert replace(part, train_inputs=whole.train_inputs, train_targets=whole.train_targets).sha256() == whole.sha256()
    for image, label in zip(part.train_inputs, part.train_targets, strict=True):
        (found,) = (k for k in range(sets.TRAIN) if torch.equal(whole.train_inputs[k], image))
        assert whole.train_targets[found] == label
