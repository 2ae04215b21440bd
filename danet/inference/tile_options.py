"""Limits and defaults of the options of tiles, and their checks; importing this loads no torch."""

from collections.abc import Sequence

from danet.utils.errors import UserError

DEFAULT_OVERLAP = 0.2
MAX_OVERLAP = 0.9
"""With a larger overlap, a frame would have many thousand tiles."""
DEFAULT_TILE_EVERY = 10
"""Every so many frames of a video are searched completely. With it, danet_s processes frames of 1920 x 1080 pixels at
more than 10 frames/s on two CPU cores with AMX."""


def check_tile_options(tile: Sequence[int] | None, overlap: float) -> None:
    """Checks the options ``--tile`` and ``--overlap`` of a command as far as they concern each other.

    Raises:
        UserError: ``overlap`` is out of range, or set without ``tile``.

    Example:
        >>> check_tile_options(None, 0.5)
        Traceback (most recent call last):
        danet.utils.errors.UserError: --overlap: needs --tile
    """
    if not 0 <= overlap <= MAX_OVERLAP:
        raise UserError(f"--overlap must lie between 0 and {MAX_OVERLAP:g}, got {overlap:g}")
    if tile is None and overlap != DEFAULT_OVERLAP:
        raise UserError("--overlap: needs --tile")
