# Two commands matter: `make demo` shows banger at work, `make test` passes the tests, both on a fresh machine.
.DEFAULT_GOAL := help
.PHONY: help demo test check unit build clean lock openapi install-user-units
PY := .venv/bin/python

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-20s %s\n", $$1, $$2}'

demo: ## install what is missing, build the image once, run a command in a VM, delete it
	@bash scripts/bootstrap.sh run
	@bash scripts/demo.sh

test: ## install what is missing, then all tests, with real guests
	@bash scripts/bootstrap.sh dev
	$(PY) -m pytest -q tests/test_checks.py tests/unit tests/contract -n 2 --dist loadfile
	$(PY) -m pytest -q tests/host tests/vm tests/fault

check: ## lint, types, layers and unit tests, in under 90 s
	@bash scripts/bootstrap.sh dev
	$(PY) -m pytest -q tests/test_checks.py tests/unit -n 2 --dist loadfile

build: ## wheel and sdist into build/dist, programs into build/bin
	@bash scripts/bootstrap.sh dev
	@bash scripts/build.sh

lock: ## renew the pinned requirements
	@bash scripts/lock.sh

openapi: ## renew docs/reference/openapi.json
	$(PY) scripts/openapi.py > docs/reference/openapi.json

install-user-units: ## systemd user units: start bangerd at the first command
	install -Dm644 -t $${XDG_CONFIG_HOME:-$$HOME/.config}/systemd/user src/banger/daemon/systemd/*

clean: ## remove what was generated (images of the tests too)
	@if [ -d build/test-state ]; then chmod -R u+w build/test-state; fi
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
