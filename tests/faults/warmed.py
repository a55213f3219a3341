"""Imported by the process that victims are forked from: the kernels are compiled before there is anybody to kill."""

from app.screen.compiled.warm import warm

WARM_S = warm()
