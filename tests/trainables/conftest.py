import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # shared cases and plug-ins of these tests
