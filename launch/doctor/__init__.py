"""The checks of `azr doctor`, a file for each section of the report; `report.py` has the report itself."""
