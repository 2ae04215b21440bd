"""EADM: how far one stage of the student is from the same stage of one teacher."""

import torch
from torch import Tensor, nn

from danet.distill.apgm import TPKI, TPKS
from danet.distill.ekem import EKEM
from danet.models.ufp import UFP

SILENT = 0.01
"""A teacher's channel whose variance on an image is less than this part of the channels' mean counts for little."""


class EADM(nn.Module):
    """Element-wise Attentive Distillation Module (section 3.2.2, eqs. 8-9) for one stage and one teacher.

    ``F_p = UFP(EKEM(F))`` of both, ``F_a = TPKI(F_p of the student, TPKS(F_p of the teacher))``, and the mean squared
    difference of F_a and the teacher's F_p, both standardised channel by channel (see ``distance``).

    The teacher's F_p does not learn (our decision): its EKEM stays at its start and its UFP at the identity, so that
    the target is the teacher's own map, enhanced. Since the target is detached, gradients could come to it only by way
    of TPKS, and these make it what TPKI guesses from C/8 of its channels: its rank falls, and a student whose features
    are flat reaches the same distance as any other (docs/paper.md has the figures). ``literal=True`` lets both learn,
    as eq. 8 is printed.

    Where the widths differ, a 1x1 convolution first brings the student's map to the teacher's width, so that the
    knowledge to be learned stays whole (our decision; the paper's widths agree).

    Args:
        student: channels of the student's map. teacher: of the teacher's.
        literal: the teacher's EKEM and UFP learn too.

    Shapes: student ``[N, student, H, W]``, teacher ``[N, teacher, H, W]`` -> float32 ``[N]``, one distance an image.
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
        """F_a of the student and F_p of the teacher, ``[N, teacher, H, W]`` both."""
        student = self.project_student(self.enhance_student(self.adapter(student)))
        teacher = self.project_teacher(self.enhance_teacher(teacher))
        return self.integrate(student, self.select(teacher)), teacher


def distance(augmented: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of standardised features, for each image; float32 also under autocast.

    Every channel of an image is shifted and scaled to mean 0 and variance 1 over its positions, as in PKD (Cao et al.,
    NeurIPS 2022), so that the distance is ``2 (1 - correlation)``: it does not depend on the scale of either side, and
    features that shrink or lose channels gain nothing. Of the target, channels that are nearly constant on an image
    are not blown up to the noise they hold. The target is detached: it cannot come to meet the student.

    Shapes: two ``[N, C, H, W]`` -> ``[N]``.
    """
    with torch.autocast(augmented.device.type, enabled=False):
        augmented = _standardise(augmented.float())
        target = _standardise(target.detach().float(), SILENT)
        return (augmented - target).square().mean(dim=(1, 2, 3))


def _standardise(x: Tensor, silent: float = 0.0) -> Tensor:
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
    # The constant keeps a dead channel's gradient finite; features leave a batch norm, so that it is small.
    return (x - mean) * (variance + silent * variance.mean(dim=1, keepdim=True) + 1e-5).rsqrt()
