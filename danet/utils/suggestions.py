"""Suggestions for unknown options: names of other tools, missing groups such as ``model.``, and misspellings."""

import difflib
from collections.abc import Iterable, Mapping

SYNONYMS = {
    "annotations": ("data",),
    "arch": ("model.name",),
    "architecture": ("model.name",),
    "backbone": ("model.name",),
    "bs": ("batch",),
    "cache": ("cache_mb",),
    "checkpoint": ("weights",),
    "ckpt": ("weights",),
    "class_names": ("model.classes",),
    "conf": ("score", "fixed"),
    "conf_thres": ("score", "fixed"),
    "conf_threshold": ("score", "fixed"),
    "confidence": ("score", "fixed"),
    "cuda": ("device",),
    "dataset": ("data", "val"),
    "degrees": ("augmentation.rotation",),
    "dst": ("out",),
    "exist_ok": ("overwrite",),
    "fliplr": ("augmentation.flip",),
    "force": ("overwrite",),
    "fp16": ("dtype", "amp"),
    "gpu": ("device",),
    "gpus": ("device",),
    "grad_clip": ("clip",),
    "half": ("dtype", "amp"),
    "image_size": ("input_size", "augmentation.crop", "size"),
    "images": ("sources", "frames"),
    "img": ("input_size", "augmentation.crop", "size"),
    "img_size": ("input_size", "augmentation.crop", "size"),
    "imgsz": ("input_size", "augmentation.crop", "size"),
    "init": ("weights",),
    "input": ("sources", "source", "data"),
    "iou_thres": ("iou",),
    "iou_threshold": ("iou",),
    "jobs": ("workers", "threads"),
    "learning_rate": ("lr",),
    "lr0": ("lr",),
    "lr_scheduler": ("schedule",),
    "lrf": ("final_lr",),
    "max_det": ("max_detections",),
    "max_epochs": ("epochs",),
    "model": ("weights",),
    "model_name": ("model.name",),
    "name": ("model.name", "out"),
    "names": ("model.classes",),
    "nc": ("model.classes",),
    "nms_threshold": ("iou",),
    "num_classes": ("model.classes",),
    "num_epochs": ("epochs",),
    "num_threads": ("threads",),
    "num_workers": ("workers",),
    "o": ("out",),
    "opt": ("optimizer",),
    "outdir": ("out",),
    "output": ("out",),
    "output_dir": ("out",),
    "path": ("data", "sources", "source", "run"),
    "precision": ("dtype", "amp"),
    "pretrained": ("weights",),
    "project": ("out",),
    "random_seed": ("seed",),
    "save": ("save_images",),
    "save_conf": ("save_csv",),
    "save_dir": ("out",),
    "save_period": ("save_every_minutes",),
    "save_txt": ("save_csv",),
    "scheduler": ("schedule",),
    "score_threshold": ("score", "fixed"),
    "show_conf": ("show_scores",),
    "source": ("sources", "data"),
    "test": ("data",),
    "threshold": ("score", "fixed"),
    "train": ("data",),
    "train_data": ("data",),
    "val_data": ("val",),
    "validation": ("val",),
    "video": ("sources",),
    "wd": ("weight_decay",),
    "weight": ("weights",),
}
"""Names of options in Ultralytics, YOLOv5, torchvision and others, and the options of danet that mean the same. The
first one that a command has is suggested."""


def find_spelling(name: str, known: Iterable[str]) -> str:
    """The known name that differs only in hyphens and underscores, or ``name`` itself.

    Example:
        >>> find_spelling("input-size", ["input_size"])
        'input_size'
    """
    names = {each.replace("-", "_"): each for each in known}
    return names.get(name.replace("-", "_"), name)


def suggestion(wrong: str, names: Iterable[str], synonyms: Mapping[str, Iterable[str]] = SYNONYMS) -> str:
    """The end of a message about an unknown option: the option that was probably meant, or nothing.

    Example:
        >>> suggestion("epoch", ["epochs", "batch"]), suggestion("imgsz", ["input_size", "iou"])
        ('; did you mean --epochs?', '; did you mean --input_size?')
        >>> suggestion("classes", ["model.classes", "data"])
        '; did you mean --model.classes?'
    """
    meant = nearest(wrong, names, synonyms)
    return f"; did you mean --{meant}?" if meant else ""


def nearest(wrong: str, names: Iterable[str], synonyms: Mapping[str, Iterable[str]] = SYNONYMS) -> str | None:
    """The name that was probably meant: a synonym, a name without its group, or a similar name."""
    wrong, known = wrong.lower().replace("-", "_"), list(names)
    candidates = [name for name in synonyms.get(wrong, ()) if name in known]
    candidates += [name for name in known if name.rpartition(".")[2] == wrong]
    candidates += difflib.get_close_matches(wrong, known, n=1)
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    candidates += [leaves[leaf] for leaf in difflib.get_close_matches(wrong, leaves, n=1)]
    return candidates[0] if candidates else None
