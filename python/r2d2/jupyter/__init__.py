"""Jupyter: magics, rich output, and kernels that run in a container.

``%load_ext r2d2`` registers the magics. Nothing here is imported before it is asked for, and rich output
needs nothing of Jupyter's own; the rest does (the extra ``[jupyter]``).

| file | holds |
| --- | --- |
| ``reprs`` | what notebooks show of containers, images, namespaces, changes, reports and errors |
| ``magics`` | ``%%container``, ``%containers``, ``%r2d2`` |
| ``cells`` | how a cell runs in a container: streams, interrupts, background |
| ``provisioner`` | the Python kernel of a notebook in a container |
| ``terminal`` | a live terminal in the notebook (the extra ``[terminal]``); ``static``: its screen |
| ``kernelspec`` | how Jupyter finds such a kernel: install, list, remove |
"""

from __future__ import annotations
