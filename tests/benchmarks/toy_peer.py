"""A peer that learns nothing: what a child process of the contest says and does, in a few lines."""

import json
import sys

print(json.dumps({"name": "toy", "parameters": 3, "notes": ["it is a toy"]}), flush=True)
for number, line in enumerate(sys.stdin):
    if line != "update\n":
        sys.exit(f"who says {line!r}?")
    if number == int(sys.argv[1]):
        sys.exit("the toy broke")
    print(json.dumps({"seconds": 0.5 + number, "peak_memory": [100, 300, 200][number % 3]}), flush=True)
