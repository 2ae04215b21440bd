# `make help` lists the targets. Everything is installed into .venv, once.
#
#   make test TORCH=torch==2.12.0     another torch in .venv
#   make demo PYTHON=python3          an existing environment, in which nothing is installed

TORCH ?= torch==2.13.0
PYTHON ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

ifeq ($(strip $(PYTHON)),)
  RUN := .venv/bin/python
  # Its name holds the choice of torch, so that another one is installed when it changes.
  READY := .venv/.installed-$(shell printf %s '$(TORCH)' | cksum | cut -d ' ' -f 1)
else
  RUN := $(PYTHON)
  READY :=
endif

.PHONY: help venv demo test test-all real lint clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

venv: $(READY)  ## install everything into .venv (the others do it too)

.venv/.installed-%: pyproject.toml
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "python3 must be 3.10 or newer, it is $$(python3 --version)"; exit 1; }
	@echo "installing $(TORCH) and danet into .venv (once; torch is large)"
	@python3 -m venv .venv
	@.venv/bin/python -m pip install -qq --disable-pip-version-check "$(TORCH)"
	@.venv/bin/python -m pip install -qq --disable-pip-version-check "$(TORCH)" --editable '.[test]' ruff
	@rm -f .venv/.installed-*
	@touch $@

DEMO := runs/demo

demo: $(READY)  ## synthetic scenes, a short training, its figures, a video with boxes; under 6 minutes on two cores
	@echo "== 1/4  synthetic infrared scenes"
	@$(RUN) -m danet.data synthesize $(DEMO)/data --images 600 --val_images 60 --video_frames 120 --overwrite true
	@$(RUN) -m danet.data synthesize $(DEMO)/heldout --images 0 --val_images 150 --seed 1 --overwrite true
	@echo "== 2/4  training danet_nano"
	@$(RUN) -m danet.train --preset demo --data $(DEMO)/data/train.json --val $(DEMO)/data/val.json \
	  --out $(DEMO)/train --overwrite true
	@echo "== 3/4  evaluation on held-out scenes"
	@$(RUN) -m danet.evaluate $(DEMO)/train/weights.safetensors $(DEMO)/heldout/val.json \
	  --tune $(DEMO)/data/val.json --out $(DEMO)/evaluate
	@echo "== 4/4  detection in a video and in pictures"
	@$(RUN) -m danet.detect $(DEMO)/data/video.mp4 $(DEMO)/heldout/val \
	  --weights $(DEMO)/train/weights.safetensors --out $(DEMO)/detect --upscale 2
	@echo
	@echo "The demo's results:"
	@echo "  $(DEMO)/detect/video.mp4                      the video with boxes"
	@echo "  $(DEMO)/detect/val/                           pictures with boxes"
	@echo "  $(DEMO)/evaluate/pr_curve.png                 precision over recall"
	@echo "  $(DEMO)/evaluate/misses_and_false_alarms.png  the worst mistakes"
	@echo "  $(DEMO)/train/weights.safetensors             the detector"
	@echo "Next, with your own pictures and labels:"
	@echo "  $(RUN) -m danet.detect YOUR_VIDEO.mp4 --weights $(DEMO)/train/weights.safetensors"
	@echo "  $(RUN) -m danet.data import --help            bring COCO, YOLO, VOC, masks or the Svanstrom videos"
	@echo "  $(RUN) -m danet.train --help                  train on them"

test: $(READY)  ## the test suite, under 6 minutes on two cores
	@$(RUN) -m pytest -q

test-all: lint test  ## the test suite and the linter

lint: $(READY)  ## the linter
	@$(RUN) -m ruff check .

clean:  ## remove .venv, the demo's results and caches; other runs stay
	rm -rf .venv $(DEMO) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
