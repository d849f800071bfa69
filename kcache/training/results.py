"""What a run leaves in OUT: the result, the best of its points, its record, and a README with the lines that use it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from kcache.checkpoints import Checkpoint
from kcache.whole_folder import whole_folder
