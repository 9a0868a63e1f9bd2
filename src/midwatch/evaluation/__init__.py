"""The evaluation: scenarios with real faults, run and scored by rules, so that a change of the diagnosis is measured."""
