.PHONY: bench tables mutants

bench: ## Time, memory and errors of the loss beside its rivals; writes benchmarks/results and the tables of the docs.
	python benchmarks/loss.py
	python benchmarks/token_loss.py
	python benchmarks/numerics.py
	python benchmarks/tables.py

tables: ## The tables of the docs, from the JSON that is there.
	python benchmarks/tables.py

mutants: ## Deliberate faults in the numerics: each must break a test.
	python tests/mutants.py
