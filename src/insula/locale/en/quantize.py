"""What insula quantize says, in English."""

TEXTS = {
    "target_is_folder": "{path} is a folder; name the file to write",
    "target_exists": "{path} exists already; --force overwrites it",
    "same_file": "{path} is the file to read; write to another",
    "working": "quantizing",
    "quality": "{bits} bits per weight; root mean square error {rmse}",
    "done": "{path} is written ({before} -> {after})",
    "no_such_format": "there is no format {name!r}; there are: {known}",
}
