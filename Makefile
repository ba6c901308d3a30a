# Two commands are enough on a machine with Python 3.11, pip and make:
#   make transcribe    sets up, exports the built-in model, transcribes the built-in recording
#   make test          sets up and runs the tests

MODEL ?= tiny.en
PRECISION ?= f32
# Folders are named by the spelling of files: fp16.
STORED := $(patsubst f%,fp%,$(PRECISION:fp%=f%))
OUT ?= models/$(notdir $(MODEL))$(if $(filter-out fp32,$(STORED)),-$(STORED))
AUDIO ?= $(shell $(BIN)/python scripts/fetch_assets.py --quiet beckett)
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ASSETS := $(VENV)/.assets

.DEFAULT_GOAL := help
.PHONY: help setup export transcribe wer bench-rtf bench-kv bench-peers docs test test-fast fuzz soak lint format typecheck dist release-check clean

help:
	@echo "make setup       make a virtual environment, and fetch the built-in model and recording"
	@echo "make transcribe  transcribe AUDIO (default: the built-in recording) with MODEL"
	@echo "make export      export MODEL (default tiny.en: a name, hub id, folder or .pt file) to OUT"
	@echo "                 in PRECISION (f32, f16 or int8; EXPORT_FLAGS: further options)"
	@echo "make wer         measure the word error rate of MODEL on REFERENCES (a TSV manifest or"
	@echo "                 LibriSpeech folder)"
	@echo "make bench-rtf   measure the speed of MODEL on AUDIO (BENCH_FLAGS: further options)"
	@echo "make bench-kv    measure the time and memory of each kind of decoder cache"
	@echo "make bench-peers compare speed and accuracy with other recognisers on REFERENCES"
	@echo "make docs        build these pages for a browser, in build/docs/site"
	@echo "make test        run all tests"
	@echo "make test-fast   run the tests that are not slow, in under two minutes"
	@echo "make fuzz        decode 5000 damaged recordings (FUZZ_FLAGS: further options), and try"
	@echo "                 FUZZ_EXAMPLES damaged model folders, manifests, caches and requests each"
	@echo "make soak        use files, live speech and the server for HOURS, and watch their memory"
	@echo "make lint        check style, and which room imports which"
	@echo "make format      correct the style"
	@echo "make typecheck   check types"
	@echo "make dist        build and check the wheel and the sdist in dist/"
	@echo "make release-check  make dist, and run tests from the sdist and the installed wheel"
	@echo "make clean       remove the files of these commands, but not the user's cache of assets"
	@echo
	@echo "MODEL=$(MODEL) PRECISION=$(PRECISION) OUT=$(OUT)"

setup: $(INSTALLED) $(ASSETS)

$(INSTALLED): setup.cfg pyproject.toml
	@echo "installing packages into $(VENV): 3 GB, most of it PyTorch; it takes minutes, and pip is quiet"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[export,ort,eval,server,wyoming,corpus,docs,dev]'
	@touch $@

# The library of the page of `whisper-npu serve`: packed into the wheel, never in git.
LIBRARY := server/page/wavesurfer

$(ASSETS): $(INSTALLED)
	@echo "fetching the built-in model and recording: 80 MB, once for all checkouts; seconds to minutes"
	$(BIN)/python scripts/fetch_assets.py
	@folder=$$($(BIN)/python scripts/fetch_assets.py --quiet wavesurfer) \
		&& mkdir -p $(LIBRARY) && cp "$$folder"/* $(LIBRARY) \
		|| echo "the page of whisper-npu serve will have no waveform: see the line above"
	@touch $@

EXPORT_FLAGS ?=
EXPORT = $(BIN)/python scripts/export_onnx.py $(MODEL) --precision $(PRECISION) --output $(OUT) \
	$(EXPORT_FLAGS)

# `export` is a keyword of make, so this target cannot have prerequisites on its line.
export:
	@$(MAKE) --no-print-directory $(INSTALLED)
	$(EXPORT)

$(OUT)/export_manifest.json: | $(INSTALLED)
	@echo "exporting $(MODEL) to $(OUT), and comparing it with PyTorch: one or two minutes for a small model"
	$(EXPORT)

transcribe: $(ASSETS) $(OUT)/export_manifest.json
	@echo "transcribing; the first start compiles the model, which takes seconds"
	$(BIN)/python scripts/transcribe.py $(AUDIO) --model $(OUT)

REFERENCES ?=
WER_FLAGS ?= --language en
wer:
	@test -n "$(REFERENCES)" || { echo "give the references: make wer REFERENCES=references.tsv" \
		"(lines of audio<TAB>reference) or a LibriSpeech folder; see docs/accuracy.md"; exit 2; }
	@$(MAKE) --no-print-directory $(OUT)/export_manifest.json
	$(BIN)/python scripts/evaluate_wer.py $(REFERENCES) --model $(OUT) $(WER_FLAGS)

BENCH_FLAGS ?=
bench-rtf: $(ASSETS) $(OUT)/export_manifest.json
	$(BIN)/python scripts/benchmark_rtf.py $(AUDIO) --model $(OUT) --language en $(BENCH_FLAGS)

bench-kv: $(OUT)/export_manifest.json
	$(BIN)/python scripts/benchmark_kv_cache.py --model $(OUT) $(BENCH_FLAGS)

bench-peers:
	@test -n "$(REFERENCES)" || { echo "give the references: make bench-peers" \
		"REFERENCES=\"long.tsv utterances.tsv\" (lines of audio<TAB>reference); see docs/performance.md"; exit 2; }
	@$(MAKE) --no-print-directory $(OUT)/export_manifest.json
	$(BIN)/python scripts/benchmark_peers.py $(REFERENCES) --model $(OUT) $(BENCH_FLAGS)

# Fails on a broken link or anchor, and on a page that no menu lists.
docs: $(INSTALLED)
	$(BIN)/python scripts/build_docs.py

# All tests of a file run in one process, because they share its fixtures.
JOBS ?= 2
test: $(ASSETS)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# Needs no assets.
test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile

FUZZ_FLAGS ?=
FUZZ_EXAMPLES ?= 1000
fuzz: $(INSTALLED)
	$(BIN)/python scripts/fuzz_audio.py $(FUZZ_FLAGS)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/fuzz

HOURS ?= 1
SOAK_FLAGS ?=
soak: $(ASSETS) $(OUT)/export_manifest.json
	$(BIN)/python scripts/soak.py $(AUDIO) --model $(OUT) --hours $(HOURS) $(SOAK_FLAGS)

# mypy and import-linter do not read package_dir of setup.cfg, so they get a copy in the layout of
# an installation. (import-linter follows no links.)
LAYOUT := build/layout
AS_INSTALLED = rm -rf $(LAYOUT) && mkdir -p $(LAYOUT) && cp -r whisper_npu $(LAYOUT) \
	&& cp -r corpus export runtime npu scripts server $(LAYOUT)/whisper_npu

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(AS_INSTALLED)
	cd $(LAYOUT) && $(CURDIR)/$(BIN)/lint-imports $(CURDIR)/setup.cfg --no-cache

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(INSTALLED)
	@$(AS_INSTALLED)
	cd $(LAYOUT) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/setup.cfg --cache-dir $(CURDIR)/.mypy_cache

# The wheel is built from the sdist, so the sdist is complete, and nothing old in build/ gets in.
RELEASE := $(VENV)/.release
$(RELEASE): $(INSTALLED)
	@echo "installing the packages that build and check releases: a minute, and pip is quiet"
	$(BIN)/python -m pip install --quiet --editable '.[release]'
	@touch $@

dist: $(ASSETS) $(RELEASE)
	@test -f $(LIBRARY)/wavesurfer.esm.js -a -f $(LIBRARY)/LICENSE || { echo "the wheel would lack the" \
		"page's library: give the machine npm and a network, then: rm $(ASSETS) && make dist"; exit 2; }
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/check-wheel-contents --toplevel whisper_npu dist/*.whl

# Some rooms are tested from the sdist, to show that it holds what tests need; the documentation is
# built too, if there is a target for it.
RELEASE_TESTS ?= tests/test_package.py
FROM_SDIST ?= tests/runtime/output tests/runtime/text tests/runtime/decoding tests/scripts/test_command_line.py \
	tests/scripts/test_cli.py tests/whisper_npu
release-check: dist
	rm -rf build/sdist && mkdir -p build/sdist && tar xzf dist/*.tar.gz -C build/sdist --strip-components 1
	cd build/sdist && PYTHONPATH=$(CURDIR)/build/sdist $(CURDIR)/$(BIN)/python -m pytest -m "not slow" $(FROM_SDIST)
	WHISPER_NPU_WHEEL=$$(ls $(CURDIR)/dist/*.whl) $(BIN)/python -m pytest $(RELEASE_TESTS)
	@if grep -q '^docs:' Makefile; then $(MAKE) --no-print-directory docs; fi

clean:
	rm -rf $(VENV) $(LIBRARY) build dist models *.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage
