"""The device that a command computes on."""

import torch

from danet.utils.errors import UserError


def find_device(name: str) -> torch.device:
    """Resolves the option ``--device`` and checks that the device is available.

    Args:
        name: "auto" (CUDA if available, else the CPU), "cpu", "cuda", "cuda:N", only the number N, which means cuda:N,
            or another name of a device that torch knows.

    Raises:
        UserError: torch does not know the device, or it is not available.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
        >>> find_device("gpu")
        Traceback (most recent call last):
        danet.utils.errors.UserError: --device must be auto, cpu, cuda, cuda:N or N, got 'gpu'
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{name}" if name.isdecimal() else name)
    except RuntimeError:
        raise UserError(f"--device must be auto, cpu, cuda, cuda:N or N, got {name!r}") from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).split("\n")[0][:100]
        raise UserError(f"--device {device}: not available here ({reason})") from error
    return device
