"""Knowledge distillation from one teacher per target scale: SSKD, section 3.2 of the DANet paper.

``Distiller`` (SSKD) sends images to the ``Teacher`` of their scale and compares features by one ``EADM`` per stage,
which consists of ``EKEM``, ``UFP`` and APGM (``TPKS``, ``TPKI``). Paper: https://doi.org/10.1145/3581783.3612146
"""

from danet.distill.distiller import Distiller, route
from danet.distill.eadm import EADM
from danet.distill.teachers import Teacher, load_teacher

__all__ = ["EADM", "Distiller", "Teacher", "load_teacher", "route"]
