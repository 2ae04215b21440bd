"""Teachers: frozen networks whose four feature maps a student learns from (section 3.2.1).

The architectures ``teacher_small``, ``teacher_medium`` and ``teacher_large`` are rows of the tables in
``danet.models.danet``; any other network with four maps at the strides 4 to 32 can teach as well.
"""

import hashlib

import torch
from torch import Tensor, nn

from danet.checkpoint import load_weights
from danet.models import DANet
from danet.utils.errors import UserError
from danet.utils.memory_format import channels_last

STRIDES = (4, 8, 16, 32)
PROBE = 64  # pixels: the least side of a training image


class Teacher:
    """A network that is only asked: in eval mode, without gradients, its parameters frozen.

    It is no ``nn.Module``, so that nothing that walks over the student's modules trains, saves, or switches it.

    Args:
        network: a DANet, of which the backbone with fused blocks is used and which stays as it is; or any module that
            maps images ``[N, channels, H, W]`` to a sequence of four maps ``[N, C_l, ceil(H / s), ceil(W / s)]``,
            s = 4, 8, 16, 32, which is put into eval mode and frozen. It is taken where it is, device and type.
        channels: of the images.

    Raises:
        ValueError: the network gives something else.
    """

    def __init__(self, network: nn.Module, *, channels: int = 1) -> None:
        if isinstance(network, DANet):
            network = network.fused().backbone
        self.network = network.eval().requires_grad_(False)
        self.widths = self._probe(channels)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Four maps of images ``[N, channels, H, W]``."""
        return list(self.network(images))

    def fingerprint(self) -> str:
        """Changes with any parameter or buffer."""
        digest = hashlib.sha256()
        for name, value in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:12]

    def _probe(self, channels: int) -> list[int]:
        parameter = next(self.network.parameters(), next(self.network.buffers(), torch.zeros(())))
        images = torch.zeros(2, channels, PROBE, PROBE, device=parameter.device)
        maps = self(images)
        expected = [(2, PROBE // stride, PROBE // stride) for stride in STRIDES]
        found = [(m.shape[0], *m.shape[2:]) if isinstance(m, Tensor) and m.ndim == 4 else None for m in maps]
        if found != expected:
            given = [list(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in maps]
            raise ValueError(
                f"Teacher: the network must give four maps at the strides 4, 8, 16 and 32; of {list(images.shape)} it "
                f"gives {given}"
            )
        return [m.shape[1] for m in maps]


def load_teacher(path: str, *, channels: int, device: torch.device) -> Teacher:
    """The teacher in a weights file of ``danet train``. Raises UserError naming the file."""
    network, _ = load_weights(path, device)
    if network.config.input_channels != channels:
        raise UserError(
            f"{path}: a teacher for images of {network.config.input_channels} channels, the student's have {channels}"
        )
    return Teacher(channels_last(network), channels=channels)
