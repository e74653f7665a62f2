"""Files that are replaced atomically, folders, and remote storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_traj import lazy_exports

if TYPE_CHECKING:
    from lightning_traj.files.atomic import as_place as as_place
    from lightning_traj.files.atomic import files_in as files_in
    from lightning_traj.files.atomic import is_remote as is_remote
    from lightning_traj.files.atomic import local_copy as local_copy
    from lightning_traj.files.atomic import local_path as local_path
    from lightning_traj.files.atomic import replace_atomically as replace_atomically
    from lightning_traj.files.atomic import replace_together as replace_together
    from lightning_traj.files.folders import Folder as Folder
    from lightning_traj.files.folders import LocalFolder as LocalFolder
    from lightning_traj.files.folders import folder_at as folder_at
    from lightning_traj.files.pickling import METHODS_OF_MODULE as METHODS_OF_MODULE
    from lightning_traj.files.pickling import Picklable as Picklable
    from lightning_traj.files.pickling import identity_of as identity_of

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "atomic": (
            "as_place",
            "files_in",
            "is_remote",
            "local_copy",
            "local_path",
            "replace_atomically",
            "replace_together",
        ),
        "folders": ("Folder", "LocalFolder", "folder_at"),
        "pickling": ("METHODS_OF_MODULE", "Picklable", "identity_of"),
    },
)
