"""Parameters of the built-ins that a sweep file names, with their bounds. Imports neither torch nor ray.

Every parameter may be an axis, by listing the built-in with several values: ``arch: [{name: mlp, width: 64}, ...]``.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Parameters(BaseModel):
    """Parameters of a built-in; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    LATER: ClassVar[dict[str, Any]] = {}
    """Parameters added after the first release, each with its inert value: not in the identity while they hold it."""


# Architectures


class Net(Parameters):
    """What all nets but the linear one can be told; each sets the defaults of its paper.

    Attributes:
        activation: ``shaped_relu`` and ``tailored_relu`` as in :mod:`trainables.shaping`.
        norm: before each activation; a layer followed by one has no bias.
        ghost_batch: with ``norm: batch``, statistics over so many consecutive examples instead of the whole minibatch.
        dropout: probability; after the activation of each hidden dense layer, or of the last features without any.
        init: of the weights: PyTorch's (``default``), N(0, 2 / fan-in) (``he``), N(0, 1 / fan-in) (``lecun``) or
            ``orthogonal``; other than PyTorch's with biases 0.
        init_scale: factor of the initial weights.
    """

    activation: Literal["relu", "tanh", "gelu", "selu", "shaped_relu", "tailored_relu"] = "relu"
    norm: Literal["none", "batch", "group", "layer"] = "none"
    ghost_batch: Annotated[int, Field(ge=2)] | None = None
    dropout: Fraction = 0.0
    init: Literal["default", "he", "lecun", "orthogonal"] = "default"
    init_scale: Annotated[float, Field(gt=0)] = 1.0

    @field_validator("ghost_batch")
    @classmethod
    def _of_batch_norm(cls, value: int | None, info: ValidationInfo) -> int | None:
        norm = info.data.get("norm", "batch")
        if value is not None and norm != "batch":
            raise ValueError(f"needs norm: batch, and norm is {norm}; leave it out or set norm: batch")
        return value


class MLP(Net):
    """Fully connected net with ``depth`` hidden layers of ``width`` units."""

    LATER: ClassVar[dict[str, Any]] = {
        "norm": "none",
        "ghost_batch": None,
        "dropout": 0.0,
        "init": "default",
        "init_scale": 1.0,
    }

    depth: Annotated[int, Field(ge=1, le=1000)] = 2
    width: Positive = 128


class SimpleCNN(Net):
    """Four 3x3 convolutions and a dense layer of 128 units (Jastrzębski et al. 2019, arXiv:1807.05031, appendix)."""


class AlexNetSmall(Net):
    """Two 5x5 convolutions of ``width`` channels, dense layers of 384 and 192 units.

    The default is that of Arpit et al. 2017, arXiv:1706.05394; ``width: 64, norm: none`` is that of Zhang et al. 2017,
    arXiv:1611.03530, without its local response normalization.
    """

    norm: Literal["none", "batch", "group", "layer"] = "batch"
    width: Positive = 200


class VGG11(Net):
    """Configuration A of Simonyan and Zisserman 2015, arXiv:1409.1556, for small images.

    ``dense: 1`` maps the 512 features of a 32x32 image to the classes at once, as is usual on CIFAR; ``dense: 3`` has
    the two hidden dense layers of the paper, with 512 units instead of 4096.
    """

    init: Literal["default", "he", "lecun", "orthogonal"] = "he"
    dense: Literal[1, 3] = 1


def _six_n_plus_two(depth: int) -> int:
    if depth % 6 != 2:
        below = depth - (depth - 2) % 6
        raise ValueError(f"{depth} is not 6n + 2, the depths there are; the nearest are {below} and {below + 6}")
    return depth


class ResNet(Net):
    """The residual nets of He et al. 2016, arXiv:1512.03385, section 4.2: ``depth`` 6n + 2, parameter-free shortcuts.

    Three stages of n blocks with ``width``, 2 ``width`` and 4 ``width`` channels; ``residual: false`` leaves out the
    shortcuts. Without ``norm`` the last convolution of each branch starts smaller, see
    :func:`trainables.initialization.initialize`.
    """

    norm: Literal["none", "batch", "group", "layer"] = "batch"
    init: Literal["default", "he", "lecun", "orthogonal"] = "he"
    depth: Annotated[int, Field(ge=8, le=1202), AfterValidator(_six_n_plus_two)] = 20
    width: Positive = 16
    residual: bool = True


# Data sets


class CIFAR100(Parameters):
    """CIFAR-100 with the labels of its 100 classes, or of the 20 groups that these form."""

    labels: Literal["fine", "coarse"] = "fine"


class Teacher(Parameters):
    """Gaussian inputs labelled by a random ReLU net with one hidden layer.

    Attributes:
        dimension: of inputs that are vectors.
        shape: of inputs that are not, channels first for images.
    """

    LATER: ClassVar[dict[str, Any]] = {"shape": None}

    train_size: Positive = 4096
    test_size: Positive = 1024
    dimension: Positive = 64
    classes: Annotated[int, Field(ge=2)] = 10
    width: Positive = 32
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    shape: Annotated[list[Positive], Field(min_length=1)] | None = None

    @field_validator("shape")
    @classmethod
    def _instead_of_dimension(cls, value: list[int] | None, info: ValidationInfo) -> list[int] | None:
        default = cls.model_fields["dimension"].default
        if value is not None and info.data.get("dimension", default) != default:
            raise ValueError("stands instead of dimension: leave one of them out")
        return value

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.shape or (self.dimension,))


# Optimizers; lr, momentum and weight_decay are fields of the trial


class SGD(Parameters):
    """Stochastic gradient descent as PyTorch's: ``v = momentum v + g``, ``w -= lr v``."""

    nesterov: bool = False
    decoupled: bool = False  # weight decay shrinks w by lr * weight_decay instead of entering the gradient

    LATER: ClassVar[dict[str, Any]] = {"nesterov": False, "decoupled": False}


class Adam(Parameters):
    """Kingma and Ba 2015; with ``decoupled`` AdamW (Loshchilov and Hutter 2019)."""

    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: Annotated[float, Field(gt=0)] = 1e-8
    decoupled: bool = False


class NudgedSGD(SGD):
    """SGD whose step is scaled by ``factor`` in the span of the top Hessian eigenvectors, and only there.

    Source: Jastrzębski et al. 2019, arXiv:1807.05031, section 4.
    """

    factor: Annotated[float, Field(ge=0)] = 0.1
    top: Annotated[int, Field(ge=1, le=100)] = 5  # eigenvectors
    every: Positive = 100  # steps between two measurements of the eigenvectors
    examples: Positive = 1024  # of the training set, for the Hessian
