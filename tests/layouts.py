"""Ways to place a model on several processes."""

from __future__ import annotations

LAYOUTS = {"DDP": 2, "DDP, shared out": 2, "FSDP2": 3, "tensor parallel": 2, "FSDP2 x tensor parallel": 4, "HSDP": 4}
