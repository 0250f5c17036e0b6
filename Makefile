# Set-up happens in a virtual environment beside this file, once, by whichever target comes first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/python -m caption_extents.training.sample_video demo/sample.mp4 --seconds 60
	$(BIN)/caption-extents run demo/sample.mp4 --crop 0.1,0.82,0.9,0.96 --store demo/store --subtitles demo/sample.srt
	$(BIN)/python -m caption_extents.training.scoring demo/sample.srt demo/sample.json
	@echo "Look at demo/sample.mp4 with demo/sample.srt, and at the chunks and the database under demo/store."

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
