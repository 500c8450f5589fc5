"""Setup of the tests of studies."""

from tests_of_studies import client, folders, study  # noqa: F401
