# The front door: every target is one call of the fork's tool (scripts/fork), in its private environment.
#
#   VENV=path            the environment to install into (else the active one, else .venv)
#   SOURCE=git|sdist|auto   where the checkout comes from (auto: git when its commit can be fetched)
#   UPSTREAM=5.17.0      the release to stand on (else the checkout's, else the default)
#   WHEELHOUSE=dir       take every package from this folder, never from the network
#   MODEL=id-or-path     the model of `make demo`
#   JOBS=4               processes of `make test-upstream`
#   PART=2/8             what `make test-pins` runs: every 8th file of tests, from the 2nd on
#   TO=5.23.0            the release that `make rebase` goes to
#   N=3 MESSAGE=file     the patch that is edited or dropped, and its message
#   ARGS="..."           further options: of pytest in `make test`, of the tool in the others
#   PYTHON=python3.12    the interpreter to start from
PYTHON ?= python3
export PYTHON VENV WHEELHOUSE
TOOL = @sh scripts/tool
SOURCED = $(if $(SOURCE),--source "$(SOURCE)") $(if $(UPSTREAM),--upstream "$(UPSTREAM)")

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install uninstall apply export status verify prove branch wheel changes clean
.PHONY: new-patch edit-patch drop-patch rebase rebase-continue rebase-abort releases
.PHONY: test test-pins test-upstream lint demo bench

help: ## list the targets
	@sed -n 's/^#  /  /p; s/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile | expand -t 22

install: ## environment, checkout, patches, editable transformers (VENV= UPSTREAM= SOURCE= WHEELHOUSE=)
	$(TOOL) install $(SOURCED) $(ARGS)

uninstall: ## put the stock release of transformers back
	$(TOOL) uninstall $(ARGS)

apply: ## overlay/ and patches/ -> transformers/ (UPSTREAM= SOURCE=)
	$(TOOL) apply $(SOURCED) $(ARGS)

export: ## transformers/ -> overlay/ and patches/
	$(TOOL) export $(ARGS)

status: ## pin, source, what is applied, edits not exported, drift
	$(TOOL) status $(ARGS)

verify: ## every series applies to pristine source and exports byte for byte
	$(TOOL) verify $(ARGS)

prove: ## without each patch, the test it names fails
	$(TOOL) prove $(SOURCED) $(ARGS)

new-patch: ## a patch of what you edited in transformers/ (MESSAGE=file, else your editor)
	$(TOOL) new-patch $(if $(MESSAGE),--message "$(MESSAGE)")

edit-patch: ## what you edited, into patch N; without edits, its message (N= MESSAGE=)
	$(TOOL) edit-patch --patch "$(N)" $(if $(MESSAGE),--message "$(MESSAGE)")

drop-patch: ## take patch N out of the series (N=)
	$(TOOL) drop-patch --patch "$(N)"

rebase: ## the series, carried to another release (TO=5.23.0 SOURCE=)
	$(TOOL) rebase --to "$(TO)" $(SOURCED) $(ARGS)

rebase-continue: ## go on where a rebase stopped (ARGS="--drop N" or "--accept N")
	$(TOOL) rebase-continue $(ARGS)

rebase-abort: ## forget a rebase
	$(TOOL) rebase-abort $(ARGS)

releases: ## what to expect of every release between: docs/releases.md (ARGS="5.3.0 5.4.0": of these)
	$(TOOL) releases $(ARGS)

changes: ## docs/what_the_fork_changes.md, from the patches
	$(TOOL) changes

branch: ## the applied series as a plain git branch, to push (UPSTREAM= SOURCE=)
	$(TOOL) branch $(SOURCED) $(ARGS)

wheel: ## wheel and sdist of the fork in dist/ (UPSTREAM= SOURCE=)
	$(TOOL) wheel $(SOURCED) $(ARGS)

clean: ## remove what is derived, keep what you edited
	$(TOOL) clean $(ARGS)

test: ## install, then run the tests (ARGS="-k sink")
	$(TOOL) test $(SOURCED) -- $(ARGS)

test-pins: ## our tests on the other releases, each in a clone of its own (PART=2/8 UPSTREAM= SOURCE=)
	$(TOOL) test-pins $(SOURCED) $(if $(PART),--part "$(PART)") -- $(ARGS)

test-upstream: ## upstream's tests on the pin and patched: what differs (JOBS= ARGS="-k tp")
	$(TOOL) test-upstream $(SOURCED) $(if $(JOBS),--jobs "$(JOBS)") -- $(ARGS)

lint: ## ruff and mypy
	$(TOOL) lint $(SOURCED)

demo: ## a small Qwen3 under four masks (MODEL=)
	$(TOOL) demo $(SOURCED) $(if $(MODEL),--model "$(MODEL)") $(ARGS)

bench: ## time and memory of masks, against unpatched upstream (ARGS="--works forward --lengths 16384")
	$(TOOL) bench $(SOURCED) -- $(ARGS)
