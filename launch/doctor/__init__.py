"""What this machine has of what azr needs (`azr doctor`). A file a section; `report.py` has what a section is made of."""
