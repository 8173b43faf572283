"""What insula merge says, in English."""

TEXTS = {
    "working": "merging",
    "target_is_folder": "{path} is a folder; name the file to write",
    "target_exists": "{path} exists already; --force overwrites it",
    "same_file": "{path} is the base itself; write to another file",
    "bad_scale": "--scale must be a finite number, not {value}",
    "done": "{path} is written ({size}): {tensors} weights changed by an adapter of rank {rank}, by {rms} in root mean square",
}
