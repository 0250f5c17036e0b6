# Set-up happens in a virtual environment beside this file, once, by whichever target comes first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two at once take two thirds of the time on two cores.
TESTS_AT_ONCE ?= 2
QUICK_TESTS := $(addprefix tests/test_,$(addsuffix .py,api chunks cli database timeline))

.PHONY: demo test browser tesseract lint docs coverage clean

demo: $(READY)
	$(BIN)/python -m caption_extents.training.sample_video demo/sample.mp4 --seconds 60
	$(BIN)/caption-extents run demo/sample.mp4 --crop 0.1,0.82,0.9,0.96 --store demo/store \
		--subtitles demo/sample.srt --report
	$(BIN)/python -m caption_extents.training.scoring demo/sample.srt demo/sample.json
	@echo "Look at demo/sample.mp4 with demo/sample.srt, and open this page:" \
		demo/store/local/client/videos/sample/cropped_frames_v*/report.html

test: $(READY) browser tesseract
	$(BIN)/python -m pytest -m "not undisturbed" --numprocesses $(TESTS_AT_ONCE) --dist worksteal
	$(BIN)/python -m pytest -m undisturbed

# The tests of the pages need Chromium; without it, and without the right to install it, they are skipped.
browser:
	@command -v chromium chromium-browser google-chrome > /dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && \
		  { apt-get install -qq -y chromium || { apt-get update -qq && apt-get install -qq -y chromium; }; } \
		  > /dev/null 2>&1; } || \
		echo "no Chromium: the tests of the report page are skipped; install it, for example: apt-get install chromium"

# Likewise for reading in languages that rapidocr does not know.
tesseract:
	@command -v tesseract > /dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && \
		  { apt-get install -qq -y tesseract-ocr tesseract-ocr-rus || \
		    { apt-get update -qq && apt-get install -qq -y tesseract-ocr tesseract-ocr-rus; }; } > /dev/null 2>&1; } || \
		echo "no Tesseract: a test is skipped; install it, for example: apt-get install tesseract-ocr tesseract-ocr-rus"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/make_api.py --check

docs: $(READY)
	$(BIN)/python docs/make_api.py

# Tests that run in a few minutes; the others run much of the code in child processes, which this does not see.
coverage: $(READY)
	$(BIN)/python -m pytest --quiet -m "not undisturbed" --cov --cov-report=term:skip-covered $(QUICK_TESTS)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
