"""Invalid checkpoint files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from qnet.checkpoint import KEY


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> None:
    """Save the checkpoint again with its tensors and description changed."""
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()[KEY])
    tensors = load_file(path)
    change(tensors, description)
    save_file(tensors, path, metadata={KEY: json.dumps(description)})
