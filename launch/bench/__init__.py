"""The subjects of `azr bench`, a file each: a part of azr beside a peer or a limit that is measured in the same run.

Open the file of a subject, such as `executor.py`, for what is measured, `report.py` for what comes out.
"""
