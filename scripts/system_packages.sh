#!/usr/bin/env bash
# What pip cannot bring: an offscreen OpenGL, and a browser for the report's test. Installs them with apt as root, else
# says in one line what to install.
set -euo pipefail

python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || {
  echo "error: $python not found; expected Python 3.11 or 3.12; install it, or run make PYTHON=/path/to/python" >&2
  exit 2
}

need=()
ldconfig -p | grep -q 'libEGL\.so\.1' || need+=(libegl1)
ldconfig -p | grep -q 'libEGL_mesa\.so\.0' || need+=(libegl-mesa0)
compgen -G '/usr/lib/*/dri/*_dri.so' >/dev/null || need+=(libgl1-mesa-dri)
"$python" -c 'import ensurepip' 2>/dev/null || need+=("$(basename "$python")-venv")
# The report's test wants a browser; elsewhere it says that it was skipped.
if [ -n "${CI:-}" ] && ! command -v chromium >/dev/null; then need+=(chromium); fi

[ ${#need[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  echo "installing ${need[*]}"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
else
  echo "error: missing system packages; install them with: sudo apt-get install ${need[*]}" >&2
  exit 2
fi
