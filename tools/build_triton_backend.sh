#!/usr/bin/env bash
# Build Triton's onnxruntime backend for the server from the wheel: build_triton_backend.sh SOURCES OUT PYTHON
# SOURCES is a folder with a build.sh OUT PYTHON. Needs g++; about 15 s on two cores.
set -euo pipefail
sources=$1 out=$2 python=$3
if [[ ! -f $sources/build.sh ]]; then
    echo "no sources of Triton's onnxruntime backend at $sources: name their folder with TRITON_BACKEND_SOURCES" >&2
    exit 1
fi
# RapidJSON is headers only. Where the system has none, the source distribution of python-rapidjson brings them.
if ! echo '#include <rapidjson/document.h>' | g++ -E -x c++ - >/dev/null 2>&1; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
        --dest "$folder" python-rapidjson==1.21
    tar -xzf "$folder"/python_rapidjson-1.21.tar.gz -C "$folder"
    export CPLUS_INCLUDE_PATH=$folder/python_rapidjson-1.21/rapidjson/include
fi
bash "$sources/build.sh" "$out" "$python"
