from tests.stages.label.conftest import decoder  # noqa: F401 - one decoder for a module
