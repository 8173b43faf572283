"""What insula convert says, in English."""

TEXTS = {
    "working": "converting",
    "bad_dtype": "--dtype is {value!r}; there are: {known}",
    "bad_size": "--max-shard-size is {value!r}; a size such as 500M or 5G is needed",
    "shard_is_for_folders": "--max-shard-size is for folders; {path} becomes one GGUF file",
    "folder_exists": "{path} exists; a folder is never overwritten: name another, or remove it",
    "file_exists": "{path} exists already; --force overwrites it",
    "joined": "the {count} parts of the model are one file now",
    "joined_as_they_are": "{path} is one of several parts, which are joined as they are, without --dtype and --max-shard-size; convert the whole file then",
    "wrote_file": "{path} is written ({size})",
    "wrote_folder": "{path} is written ({size} in {files} safetensors)",
}
