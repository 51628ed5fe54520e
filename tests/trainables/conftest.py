import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent))  # shared cases and plug-ins of these tests
torch.set_num_threads(1)  # the cases are so small that threads would only wait for each other
