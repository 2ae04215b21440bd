"""EADM, Element-wise Attentive Distillation Module: the distance between a student's and a teacher's stage.

Section 3.2.2 and eqs. 8 and 9 of the DANet paper (https://doi.org/10.1145/3581783.3612146).
"""

import torch
from torch import Tensor, nn

from danet.distill.apgm import TPKI, TPKS
from danet.distill.ekem import EKEM
from danet.models.ufp import UFP

VARIANCE_FLOOR = 0.01
"""Added to the variance of every channel of the teacher, as a fraction of the mean variance over the channels of an
image: channels that are nearly constant on an image are not amplified to unit variance."""
EPSILON = 1e-5
"""Added to every variance: keeps the gradient of a constant channel finite."""


class EADM(nn.Module):
    """Element-wise Attentive Distillation Module (section 3.2.2, eqs. 8 and 9) for one stage and one teacher.

    With ``F_p = UFP(EKEM(F))`` for both networks and ``F_a = TPKI(F_p of the student, TPKS(F_p of the teacher))``, the
    loss is the ``distance`` between F_a and the teacher's F_p.

    The teacher's branch is not trained (our decision): its EKEM keeps its initial weights and its UFP is the identity,
    so the distillation target is the enhanced map of the teacher. The target is detached, so gradients would reach this
    branch only through TPKS, and would make the target predictable from the C/8 channels that TPKS selects: its rank
    drops, and a student with constant features reaches the same distance (measured in docs/paper.md). With
    ``literal=True`` the branch is trained, as eq. 8 is printed.

    If the widths differ, a 1x1 convolution first maps the student's features to the teacher's width, so that no channel
    of the teacher is lost (our decision; in the paper the widths agree).

    Args:
        student: channels of the student's map.
        teacher: channels of the teacher's map.
        literal: train EKEM and UFP of the teacher's branch as well.

    Shapes:
        student ``[N, student, H, W]`` and teacher ``[N, teacher, H, W]`` -> float32 ``[N]``, one distance per image.

    Example:
        >>> EADM(16, 32)(torch.rand(2, 16, 8, 8), torch.rand(2, 32, 8, 8)).shape
        torch.Size([2])
    """

    def __init__(self, student: int, teacher: int, *, literal: bool = False) -> None:
        super().__init__()
        self.adapter = nn.Identity() if student == teacher else nn.Conv2d(student, teacher, 1)
        self.enhance_student = EKEM(teacher)
        self.enhance_teacher = EKEM(teacher).requires_grad_(literal)
        self.project_student = UFP(teacher)
        self.project_teacher = UFP(teacher, identity=True) if literal else nn.Identity()
        self.select = TPKS(teacher)
        self.integrate = TPKI(teacher, self.select.selected)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return distance(*self.project(student, teacher))

    def project(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """F_a of the student and F_p of the teacher, both ``[N, teacher, H, W]``."""
        student = self.project_student(self.enhance_student(self.adapter(student)))
        teacher = self.project_teacher(self.enhance_teacher(teacher))
        return self.integrate(student, self.select(teacher)), teacher


def distance(augmented: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of standardized features for each image, in float32 also under autocast.

    Every channel of an image is standardized to mean 0 and variance 1 over its positions, as in PKD
    (https://arxiv.org/abs/2207.02039). The distance then is ``2 (1 - correlation)``: it does not depend on the scale of
    either side, so the student cannot reduce it by shrinking its features. The target is detached.

    Args:
        augmented: F_a of the student, ``[N, C, H, W]``.
        target: F_p of the teacher, ``[N, C, H, W]``; see ``VARIANCE_FLOOR``.

    Returns:
        float32 ``[N]``.
    """
    with torch.autocast(augmented.device.type, enabled=False):
        augmented = _standardize(augmented.float())
        target = _standardize(target.detach().float(), VARIANCE_FLOOR)
        return (augmented - target).square().mean(dim=(1, 2, 3))


def _standardize(x: Tensor, variance_floor: float = 0.0) -> Tensor:
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
    return (x - mean) * (variance + variance_floor * variance.mean(dim=1, keepdim=True) + EPSILON).rsqrt()
