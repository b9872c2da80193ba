"""What the right answer is at a patch: a target is called as `target(view, positions)`, without gradient."""

from geomim.pretrain.targets.answer import Answer, Target
from geomim.pretrain.targets.crops import OtherCrop
from geomim.pretrain.targets.hog import HOG
from geomim.pretrain.targets.latent import Alike, EmaLatent
from geomim.pretrain.targets.pixels import Pixels
from geomim.pretrain.targets.sentences import Meanings, Sentences
from geomim.pretrain.targets.teacher import FrozenTeacher, TeacherLevels

__all__ = [
    "HOG",
    "Alike",
    "Answer",
    "EmaLatent",
    "FrozenTeacher",
    "Meanings",
    "OtherCrop",
    "Pixels",
    "Sentences",
    "Target",
    "TeacherLevels",
]
