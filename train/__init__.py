"""Training recipes in plain PyTorch, installed as ``fastgen.train``.

One readable script per paper; ``losses``, ``vgg``, ``data`` and ``loop`` hold what they share.
Option classes live in ``fastgen.train.options``, which imports no torch, so that command lines can
be built from them cheaply.
"""
