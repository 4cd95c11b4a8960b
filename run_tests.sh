#!/usr/bin/env bash
# Sets this machine up (once) and runs every check: lint, format, types, layers, documentation, tests. Arguments go to
# pytest, for example
#   ./run_tests.sh tests/test_audio.py -k truncated
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./setup_venv.sh dev

# One thread per process: the tests start several ranks at a time, and more threads than cores are slower than none.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
python=.venv/bin/python
$python -m ruff check .
$python -m ruff format --check .
$python -m mypy
.venv/bin/lint-imports
# The documentation as a site; a link that leads nowhere is an error. The variable keeps an advertisement
# away; --quiet would keep warnings from being errors.
NO_MKDOCS_2_WARNING=1 $python -m mkdocs build --strict
exec $python -m pytest "$@"
