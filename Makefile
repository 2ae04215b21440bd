# `make help` lists the targets. The first target installs everything into .venv.
#
#   make test TORCH=torch==2.12.0     another torch in .venv
#   make demo PYTHON=python3          an existing environment; nothing is installed into it

TORCH ?= torch==2.13.0
PYTHON ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

ifeq ($(strip $(PYTHON)),)
  RUN := .venv/bin/python
  # The name contains a checksum of TORCH, so that another choice of torch is installed.
  READY := .venv/.installed-$(shell printf %s '$(TORCH)' | cksum | cut -d ' ' -f 1)
else
  RUN := $(PYTHON)
  READY :=
endif

# Rebuild when a source is newer; CMake compiles only what changed.
KERNELS := danet/ops/libdanet.so
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py
BUILD := build/kernels.log

.PHONY: help venv kernels sanitize emulation demo real gpu test test-all lint docs wheel hub clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

venv: $(READY)  ## install everything into .venv (other targets do this too)

.venv/.installed-%: pyproject.toml
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "python3 must be 3.10 or newer, it is $$(python3 --version)"; exit 1; }
	@echo "installing $(TORCH) and danet into .venv (once; torch is large)"
	@python3 -m venv .venv
	@.venv/bin/python -m pip install -qq --disable-pip-version-check "$(TORCH)" "setuptools>=77" cmake ninja
	@.venv/bin/python -m pip install -qq --disable-pip-version-check "$(TORCH)" --no-build-isolation --editable '.[test,lint,docs]'
	@touch $(KERNELS)
	@rm -f .venv/.installed-*
	@touch $@

$(KERNELS): $(SOURCES) | $(READY)
	@mkdir -p build
	@echo "building the kernels"
	@$(RUN) setup.py --quiet build_ext --inplace >$(BUILD) 2>&1 || { cat $(BUILD); exit 1; }
	@touch $@

kernels: $(KERNELS)  ## build what changed in csrc/

# One process per core. --dist loadfile runs the tests of a file in one process, so that their shared fixtures are built
# once. `sanitize` and `emulation` run few files, whose tests share nothing: --dist load spreads them evenly.
PYTEST = $(RUN) -m pytest -q --numprocesses auto --maxprocesses 8 --dist loadfile

SANITIZED := build/cmake-sanitize/libdanet.so
SANITIZE_TESTS ?= sdc dcn lcdc rep_conv softmax_gate fused_safem ms_deform_attn deform_conv run_program \
  detail_channels
# The operators with kernels for the matrix unit; with avx512-bf16 and amx-emulated, the others run the same code as
# without it.
TILE_TESTS := rep_conv fused_safem run_program
# Instruction sets to test with sanitizers, and the checks of the emulated CUDA kernels.
CAPABILITIES ?= default avx2 avx512 avx512-bf16 amx-emulated
EMULATIONS ?= check sanitize
# The only instruction set that `make sanitize` compiles (setup.py), and an expression of markers, such as "not long", for
# the tests that it runs; empty: all of them.
INSTRUCTION_SET ?=
MARKERS ?=
# libstdc++ is preloaded too: AddressSanitizer must intercept its exceptions before Python loads it.
SANITIZERS = $(foreach lib,libasan.so libstdc++.so.6,$(shell $${CXX:-c++} -print-file-name=$(lib)))

sanitize: $(READY)  ## test the CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer
	@mkdir -p build
	@echo "building the kernels with sanitizers"
	@SANITIZE=address,undefined INSTRUCTION_SET=$(INSTRUCTION_SET) $(RUN) setup.py --quiet build_ext \
	  --build-lib build/sanitized >build/sanitize.log 2>&1 || { cat build/sanitize.log; exit 1; }
	@for capability in $(CAPABILITIES); do \
	  tests="$(SANITIZE_TESTS:%=tests/ops/test_%.py)"; \
	  case $$capability in avx512-bf16 | amx-emulated) tests="$(TILE_TESTS:%=tests/ops/test_%.py)" ;; esac; \
	  ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$(SANITIZERS)" DANET_LIBRARY=$(SANITIZED) DANET_CPU_CAPABILITY=$$capability \
	    $(PYTEST) --dist load -p no:cacheprovider -m "$(MARKERS)" $$tests; \
	done

emulation: $(KERNELS)  ## run the CUDA kernels on the CPU, with the race checker and with sanitizers
	@for emulation in $(EMULATIONS); do \
	  preload=; [ $$emulation != sanitize ] || preload="$(SANITIZERS)"; \
	  ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$preload" DANET_EMULATION=$$emulation \
	    $(PYTEST) --dist load -s -p no:cacheprovider tests/ops/test_devices.py tests/gpu_model/test_launches.py \
	    tests/gpu_model/test_budgets.py -k "emulated or launches or quick_kernel"; \
	done

DEMO := runs/demo

demo: $(KERNELS)  ## synthetic data, training, evaluation, a video with boxes; under 6 minutes on two cores
	@echo "== 1/4  synthetic infrared scenes"
	@$(RUN) -m danet.data synthesize $(DEMO)/data --size 160x192 --images 500 --val_images 210 --video_frames 120 \
	  --overwrite
	@$(RUN) -m danet.data split $(DEMO)/data/val.json --fraction 0.3 --quiet \
	  --out_a $(DEMO)/data/heldout.json --out_b $(DEMO)/data/tune.json
	@echo "== 2/4  training danet_nano"
	@$(RUN) -m danet.train --preset demo --data $(DEMO)/data/train.json --val $(DEMO)/data/tune.json \
	  --out $(DEMO)/train --overwrite
	@echo "== 3/4  evaluation on held-out scenes"
	@$(RUN) -m danet.evaluate $(DEMO)/train/weights.safetensors $(DEMO)/data/heldout.json \
	  --tune $(DEMO)/data/tune.json --out $(DEMO)/evaluate
	@$(RUN) -m danet.report $(DEMO)/evaluate --quiet
	@echo "== 4/4  detection in a video and in images"
	@$(RUN) -m danet.detect $(DEMO)/data/video.mp4 $(DEMO)/data/val \
	  --weights $(DEMO)/train/weights.safetensors --out $(DEMO)/detect --overwrite
	@echo
	@echo "Results of the demo:"
	@echo "  $(DEMO)/detect/video.webm or .mp4             the video with boxes"
	@echo "  $(DEMO)/detect/val/                           images with boxes"
	@echo "  $(DEMO)/evaluate/report.html                  metrics, curves and mistakes on one page"
	@echo "  $(DEMO)/evaluate/pr_curve.png                 the precision-recall curve"
	@echo "  $(DEMO)/evaluate/misses_and_false_alarms.png  the worst mistakes"
	@echo "  $(DEMO)/train/weights.safetensors             the detector"
	@echo "Next, with your own images and labels:"
	@echo "  $(RUN) -m danet.detect YOUR_VIDEO.mp4 --weights $(DEMO)/train/weights.safetensors"
	@echo "  $(RUN) -m danet.data import --help            import COCO, YOLO, VOC, masks or the Svanstrom videos"
	@echo "  $(RUN) -m danet.train --help                  train on them"

REAL := runs/real
DATA ?=

real: $(KERNELS)  ## train and evaluate on real frames (docs/results.md): make real DATA=FOLDER with svanstrom-ir/ and sirst/
	@[ -d "$(DATA)/svanstrom-ir" ] && [ -d "$(DATA)/sirst" ] \
	  || { echo "make real DATA=FOLDER: the folder must hold svanstrom-ir/ and sirst/"; exit 2; }
	@echo "== 1/5  import of the Svanstrom videos; a fifth of the training recordings, with 8 % of the frames, is kept for tuning"
	@$(MAKE) $(REAL)/tune.json $(REAL)/val.json $(REAL)/sirst/val.json
	@echo "== 2/5  training danet_s on crops, then on whole frames; about an hour on two cores"
	@$(RUN) -m danet.train --preset svanstrom --data $(REAL)/fit.json --out $(REAL)/crops --overwrite
	@$(RUN) -m danet.train --preset svanstrom_frames --data $(REAL)/fit.json \
	  --weights $(REAL)/crops/weights.safetensors --out $(REAL)/train --overwrite
	@echo "== 3/5  evaluation on every third frame of the validation videos"
	@$(RUN) -m danet.evaluate $(REAL)/train/weights.safetensors $(REAL)/val.json --target drone \
	  --tune $(REAL)/tune.json --criterion iou30 --out $(REAL)/evaluate
	@echo "== 4/5  fine-tuning of danet_s_wide on SIRST, about 40 minutes on one core"
	@$(RUN) -m danet.train --preset sirst --data $(REAL)/sirst/train.json --out $(REAL)/train-sirst --overwrite
	@echo "== 5/5  evaluation on the validation list of SIRST"
	@$(RUN) -m danet.evaluate $(REAL)/train-sirst/weights.safetensors $(REAL)/sirst/val.json --input_size 448x560 \
	  --out $(REAL)/evaluate-sirst

# The imported data sets are kept, so that a second run starts with the training.
$(REAL)/train.json:
	@$(RUN) -m danet.data import svanstrom "$(DATA)/svanstrom-ir" $(REAL) --split train \
	  --stride 6 --class_stride '{bird: 10, airplane: 12, helicopter: 12}'

$(REAL)/val.json:
	@$(RUN) -m danet.data import svanstrom "$(DATA)/svanstrom-ir" $(REAL) --split val --stride 3

$(REAL)/tune.json: $(REAL)/train.json
	@$(RUN) -m danet.data split $< --fraction 0.1 --seed 0 --out_a $(REAL)/fit.json --out_b $@

$(REAL)/sirst/val.json:
	@$(RUN) -m danet.data import masks "$(DATA)/sirst" $(REAL)/sirst --lists idx_427/train.txt idx_427/val.txt

test: $(KERNELS)  ## the test suite, under 6 minutes on two cores
	@$(PYTEST) -m "not long"

test-all: lint $(KERNELS)  ## the linters, the whole test suite with its long grids, the sanitizers; an hour, more with nvcc
	@$(RUN) -m pytest -q  # in one process: the long tests measure memory, and some of them use all cores
	@$(MAKE) sanitize emulation

wheel: $(KERNELS)  ## build dist/danet-*.whl for every Python, with the manylinux tag that auditwheel computes
	@mkdir -p build dist
	@rm -f dist/danet-*.whl
	@$(RUN) -m pip wheel . --no-deps --no-build-isolation --wheel-dir dist --disable-pip-version-check >$(BUILD) 2>&1 \
	  || { cat $(BUILD); exit 1; }
	@$(RUN) build_tools/manylinux.py dist/danet-*.whl

hub: $(KERNELS)  ## lay out the operators in build/hub as the kernels hub loads them
	@$(RUN) build_tools/hub.py build/hub

gpu: $(READY)  ## on a machine with a CUDA device: build, test, check with compute-sanitizer, measure; under 8 minutes
	@PYTHON=$(RUN) bash benchmarks/gpu.sh

FORMATTED = $(shell find csrc examples include -name '*.[ch]*' -o -name '*.cu*')

lint: $(READY)  ## ruff, mypy, codespell and clang-format; in under a minute
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m ruff format --quiet --check .
	@$(RUN) -m mypy --no-error-summary
	@$(RUN) -m codespell_lib $$(git ls-files)
	@$(RUN) -c 'import clang_format; clang_format.clang_format()' --dry-run --Werror $(FORMATTED)

docs: $(READY)  ## the documentation as a site in build/site; fails on a broken link or reference
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict
	@echo "build/site/index.html"

clean:  ## remove .venv, builds, caches and the results of the demo; other runs are kept
	rm -rf .venv $(DEMO) build dist *.egg-info $(KERNELS) .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
