"""Teachers: frozen networks whose four feature maps are the targets of distillation (section 3.2.1).

The architectures ``teacher_small``, ``teacher_medium`` and ``teacher_large`` are sizes of ``danet.config.ModelConfig``.
Any other network with four maps at strides 4, 8, 16 and 32 can be a teacher as well.
"""

import hashlib
import os

import torch
from torch import Tensor, nn

from danet.checkpoint import load_weights
from danet.config import ModelConfig
from danet.models import DANet
from danet.utils.errors import UserError
from danet.utils.memory_format import channels_last

STRIDES = (4, 8, 16, 32)
PROBE_SIDE = 64
"""Side in pixels of the images that find out a network's maps; training images have at least this size."""


class Teacher:
    """A frozen network in eval mode that runs without gradients.

    It is not an ``nn.Module``: loops over the modules of a student or a ``Distiller`` neither train nor save it.

    Args:
        network: a DANet, whose backbone is copied and fused; or any module that maps images ``[N, channels, H, W]`` to
            a sequence of four maps ``[N, C_l, ceil(H / s), ceil(W / s)]`` at the strides s = 4, 8, 16, 32. Such a
            module is used itself, on its device and in its dtype: it is put into eval mode and frozen.
        channels: channels of the images.

    Raises:
        ValueError: the network does not return four maps of these sizes.

    Example:
        >>> from danet.config import ModelConfig
        >>> from danet.models import build_model
        >>> teacher = Teacher(build_model(ModelConfig(name="danet_nano")))
        >>> [list(feature.shape) for feature in teacher(torch.rand(1, 1, 64, 64))]
        [[1, 16, 16, 16], [1, 32, 8, 8], [1, 64, 4, 4], [1, 128, 2, 2]]
    """

    def __init__(self, network: nn.Module, *, channels: int = 1) -> None:
        if isinstance(network, DANet):
            network = network.fused().backbone
        self.network = network.eval().requires_grad_(False)
        self.widths = self._probe(channels)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """The four maps of images ``[N, channels, H, W]``."""
        return list(self.network(images))

    def fingerprint(self) -> str:
        """A hash of all parameters and buffers, 12 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, value in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:12]

    def _probe(self, channels: int) -> list[int]:
        """The channels of the four maps, found by running the network once."""
        parameter = next(self.network.parameters(), next(self.network.buffers(), torch.zeros(())))
        images = torch.zeros(2, channels, PROBE_SIDE, PROBE_SIDE, device=parameter.device)
        maps = self(images)
        expected = [(2, PROBE_SIDE // stride, PROBE_SIDE // stride) for stride in STRIDES]
        found = [(m.shape[0], *m.shape[2:]) if isinstance(m, Tensor) and m.ndim == 4 else None for m in maps]
        if found != expected:
            given = [list(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in maps]
            raise ValueError(
                f"Teacher: the network must give four maps at the strides 4, 8, 16 and 32; of {list(images.shape)} it "
                f"gives {given}"
            )
        return [m.shape[1] for m in maps]


INPUT_OPTIONS = ("input_channels", "local_contrast", "lags")
"""Options of a model that define the channels of its input."""


def load_teacher(path: str | os.PathLike, *, student: ModelConfig, device: torch.device) -> Teacher:
    """Loads a teacher from a weights file of ``danet train``.

    Args:
        path: the file.
        student: configuration of the student, whose input the teacher gets.
        device: where the teacher runs.

    Raises:
        UserError: the file is missing or holds no weights, or its network takes other input channels than the student,
            or the same in another order.

    Example:
        >>> from danet.checkpoint import SHIPPED
        >>> load_teacher(SHIPPED, student=ModelConfig(), device=torch.device("cpu")).widths
        [32, 64, 128, 256]
    """
    network, _ = load_weights(path, device)
    for name in INPUT_OPTIONS:
        theirs, ours = getattr(network.config, name), getattr(student, name)
        if theirs != ours:
            raise UserError(
                f"{path}: a teacher with model.{name} {theirs}, but the student has {ours}, so their inputs differ; "
                "train the teacher with the options of the student"
            )
    return Teacher(channels_last(network), channels=student.network_channels)
