# Development build: one environment, one build tree, one lock around it.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: native
native:
	@mkdir -p build/dev
	@flock build/.lock sh -c 'test -f build/dev/build.ninja || $(BIN)/cmake -S . -B build/dev -G Ninja -DPython_EXECUTABLE=$$PWD/$(BIN)/python >/dev/null; $(BIN)/cmake --build build/dev && cp build/dev/_native*.so build/dev/_native.pyi src/insula/'
