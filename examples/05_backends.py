"""Which engine runs a model, and why.

python examples/05_backends.py [FILE.gguf …]
"""

import sys

from insula.engine.backends import CAPABILITIES, backends, choose
from insula.errors import InsulaError

for backend in backends():
    state = "installed" if backend.installed else backend.why_not
    print(f"{backend.name}: {backend.title} ({state})")
    for capability in CAPABILITIES:
        mark = "yes" if backend.can(capability) else "no "
        print(f"  {mark} {capability:16} {backend.limits.get(capability, '')}")

for path in sys.argv[1:]:
    try:
        choice = choose(path)
        print(f"{path}: {choice.backend}, because: {choice.reason}")
    except InsulaError as error:
        print(f"{path}: {error}")
