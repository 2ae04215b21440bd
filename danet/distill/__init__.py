"""Distillation from teachers of one scale each (section 3.2): ``Distiller`` and what it is made of."""

from danet.distill.distiller import Distiller, route
from danet.distill.eadm import EADM
from danet.distill.teachers import Teacher, load_teacher

__all__ = ["EADM", "Distiller", "Teacher", "load_teacher", "route"]
