# Two commands matter: `make demo` shows banger at work, `make test` passes the tests, both on a fresh machine.
.DEFAULT_GOAL := help
.PHONY: help demo test test-long bench-create fuzz verify check build man runtime-bundle lock reference install-user-units uninstall-user-units clean
PY := .venv/bin/python
QUICK := tests/test_checks.py tests/unit
UNITS := $(or $(XDG_CONFIG_HOME),$(HOME)/.config)/systemd/user

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-22s %s\n", $$1, $$2}'

demo: ## install what is missing, build the image once, run a command in a VM, delete it
	@bash scripts/bootstrap.sh run
	@bash scripts/demo.sh

test: ## install what is missing, then run the tests, with real guests
	@bash scripts/bootstrap.sh dev
	@BANGER_REQUIRE_TESTS= bash scripts/pytest-again.sh -n 2 $(QUICK)
	@bash scripts/pytest-again.sh -n 2 --dist loadfile -m "not alone and not long" $(addprefix --ignore=,$(QUICK))
	BANGER_REQUIRE_TESTS= $(PY) -m pytest -m "alone and not long" $(addprefix --ignore=,$(QUICK))

test-long: ## the tests that `make test` leaves out: more of the same, for as long again
	@bash scripts/bootstrap.sh dev
	@BANGER_REQUIRE_TESTS= bash scripts/pytest-again.sh -n 2 --dist loadfile -m "long and not alone" $(addprefix --ignore=,$(QUICK))
	BANGER_REQUIRE_TESTS= $(PY) -m pytest -m "long and alone" $(addprefix --ignore=,$(QUICK))

bench-create: ## what a VM's life takes on this host (ARGS="--runs 2")
	@bash scripts/bootstrap.sh run
	@bash scripts/bench-create.sh $(ARGS)

fuzz: ## feed whatever banger reads with what nobody would write (ARGS="--seconds 600"; docs/explanation/fuzzing.md)
	@bash scripts/fuzz.sh $(ARGS)

verify: ## a VM's whole life on this host, tried for real; the last line says how it went
	@bash scripts/bootstrap.sh run
	@bash scripts/verify.sh

check: ## lint, types, layers and unit tests, but for the slowest dozen
	@bash scripts/bootstrap.sh dev
	$(PY) -m pytest -n 2 -m "not slow" $(QUICK)

build: ## wheel and sdist into build/dist, programs that run from here into build/bin
	@bash scripts/bootstrap.sh run
	@bash scripts/build.sh

man: ## manual pages into build/man (read one: man -l build/man/man1/banger.1)
	@bash scripts/bootstrap.sh run
	$(PY) scripts/man_pages.py build/man

runtime-bundle: ## fetch firecracker and jailer into build/runtime (FROM=file or directory, MANIFEST=file)
	@bash scripts/bootstrap.sh run
	@.venv/bin/banger runtime fetch $(if $(FROM),--from "$(FROM)") $(if $(MANIFEST),--manifest "$(MANIFEST)")

lock: ## renew the pinned requirements (needs uv)
	@bash scripts/lock.sh

reference: ## renew what docs/reference has from code
	@bash scripts/bootstrap.sh run
	$(PY) scripts/openapi.py > docs/reference/openapi.json
	$(PY) scripts/cli_reference.py > docs/reference/cli.md
	$(PY) scripts/configuration.py > docs/reference/configuration.md
	$(PY) scripts/schema.py > docs/reference/schema.sql
	$(PY) scripts/firecracker_reference.py > docs/reference/firecracker.md

install-user-units: ## let systemd start bangerd when a command needs it
	@bash scripts/bootstrap.sh run
	@bash scripts/user-units.sh install "$(UNITS)"

uninstall-user-units: ## take that back; VMs run on
	@bash scripts/user-units.sh remove "$(UNITS)"

clean: ## remove what was generated (the tests' image too)
	@if [ -d build ]; then chmod -R u+w build; fi
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
